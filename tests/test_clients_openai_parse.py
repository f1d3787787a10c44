"""The official client's typed answers: pydantic models go in, objects of these come out.

What its users write works as they write it, at any temperature: the schema that the client makes
of a model (strict, with $defs, anyOf, const, formats, limits) can be enforced as a whole. Unions
are written the older way: pydantic evaluates them, on Python 3.9 too.
"""

from __future__ import annotations

import datetime
import enum
import uuid
from typing import Literal, Optional, Union

import openai
import pydantic
import pytest

pytestmark = pytest.mark.native

ASK = [{"role": "user", "content": "What is the weather in Rome?"}]
HOT = {"model": "pocket", "temperature": 1.5, "max_tokens": 400}


class Unit(enum.Enum):
    CELSIUS = "C"
    FAHRENHEIT = "F"


class Place(pydantic.BaseModel):
    city: str = pydantic.Field(min_length=1, max_length=12, description="Where it is")
    code: str = pydantic.Field(pattern="^[A-Z]{2}-[0-9]{1,3}$")


class Rain(pydantic.BaseModel):
    kind: Literal["rain"]
    millimetres: float = pydantic.Field(ge=0, le=50)


class Sun(pydantic.BaseModel):
    kind: Literal["sun"]
    hours: int = pydantic.Field(ge=1, le=12)


class Report(pydantic.BaseModel):
    place: Place
    unit: Unit
    day: datetime.date
    id: uuid.UUID
    outlook: list[Union[Rain, Sun]] = pydantic.Field(min_length=1, max_length=3)  # noqa: UP007
    note: Optional[Literal["calm", "windy"]]  # noqa: UP045
    is_certain: bool


class Tree(pydantic.BaseModel):
    name: Literal["leaf", "fork"]
    children: list[Tree] = pydantic.Field(max_length=1)


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.mark.parametrize("seed", range(5))
def test_a_model_is_parsed_into_its_own_class(client, seed):
    parse = client.chat.completions.parse
    answer = parse(messages=ASK, response_format=Report, seed=seed, **HOT)
    report = answer.choices[0].message.parsed
    assert isinstance(report, Report)
    assert 1 <= len(report.outlook) <= 3
    assert "warnings" not in (answer.model_extra or {})


def test_the_older_beta_name_works_where_the_client_has_it(client):
    parse = getattr(client.beta, "chat", client.chat).completions.parse
    answer = parse(messages=ASK, response_format=Place, **HOT)
    assert isinstance(answer.choices[0].message.parsed, Place)


def test_a_model_that_contains_itself_is_parsed(client):
    answer = client.chat.completions.parse(messages=ASK, response_format=Tree, seed=2, **HOT)
    assert isinstance(answer.choices[0].message.parsed, Tree)


def test_a_cut_answer_is_the_clients_own_error(client):
    cut = {**HOT, "max_tokens": 3}
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(messages=ASK, response_format=Report, **cut)


def test_a_streamed_model_is_parsed_at_its_end(client):
    with client.chat.completions.stream(messages=ASK, response_format=Report, seed=1, **HOT) as s:
        kinds = {event.type for event in s}
        final = s.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert isinstance(final.choices[0].message.parsed, Report)


@pytest.mark.parametrize("seed", range(3))
def test_a_tool_made_of_a_model_gets_arguments_of_that_class(client, seed):
    answer = client.chat.completions.parse(
        messages=ASK,
        tools=[openai.pydantic_function_tool(Report), openai.pydantic_function_tool(Place)],
        tool_choice="required",
        parallel_tool_calls=False,
        seed=seed,
        **HOT,
    )
    calls = answer.choices[0].message.tool_calls
    assert calls
    assert all(isinstance(c.function.parsed_arguments, (Report, Place)) for c in calls)


def test_choices_are_an_extra_field_of_the_client(client):
    answer = client.chat.completions.create(
        model="pocket",
        messages=[{"role": "user", "content": "Hello!"}],
        temperature=0,
        extra_body={"choices": ["Hi!", "Go away!"]},
    )
    choice = answer.choices[0]
    assert choice.message.content == "Hi!"
    assert choice.choice_probs[0]["probability"] > 0.5
