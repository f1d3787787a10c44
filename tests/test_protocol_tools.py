"""Fields of tools and shapes: what is taken, what is refused, which field is named."""

import random

import pytest

from libloader.errors import FieldInvalid, FieldUnsupported
from libloader.protocol import chat
from libloader.protocol.shape import ANY_OBJECT, Shape
from libloader.protocol.tools import ToolUse

HELLO = {"messages": [{"role": "user", "content": "Hello!"}]}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {}}}
TIME = {"type": "function", "function": {"name": "get_time"}}
NAMED = {"type": "function", "function": {"name": "get_time"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def allowed(mode, *tools):
    return {
        "type": "allowed_tools",
        "allowed_tools": {"mode": mode, "tools": list(tools)},
    }


def read(**body):
    return chat.read_request({**HELLO, **body}, seed_source=random.Random(7))


def refused(**body):
    with pytest.raises((FieldInvalid, FieldUnsupported)) as caught:
        read(**body)
    return caught.value.param


def test_without_tools_there_is_nothing_to_call():
    assert read().use == ToolUse()


@pytest.mark.parametrize(
    ("choice", "is_forced", "names"),
    [
        (None, False, ()),
        ("auto", False, ()),
        ("required", True, ()),
        (NAMED, True, ("get_time",)),
        (allowed("auto", NAMED), False, ("get_time",)),
        (allowed("required", WEATHER, NAMED), True, ("get_weather", "get_time")),
        (
            {"type": "allowed_tools", "tools": [{"name": "get_time"}]},
            False,
            ("get_time",),
        ),
    ],
)
def test_tool_choice_says_whether_a_call_is_forced_and_which(choice, is_forced, names):
    use = read(tools=[WEATHER, TIME], tool_choice=choice).use
    assert use == ToolUse((WEATHER, TIME), is_forced=is_forced, names=names)


def test_tool_choice_none_hides_the_tools():
    assert read(tools=[WEATHER], tool_choice="none").use.tools == ()


def test_parallel_calls_can_be_forbidden():
    assert not read(tools=[WEATHER], parallel_tool_calls=False).use.parallel


def test_the_older_functions_mean_tools():
    use = read(functions=[TIME["function"]], function_call={"name": "get_time"}).use
    assert use == ToolUse(
        (TIME,), is_forced=True, names=("get_time",), parallel=False, is_legacy=True
    )


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [WEATHER], "tool_choice": "maybe"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": 1}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": NAMED}, "tool_choice.function.name"),
        ({"tools": [WEATHER], "tool_choice": {}}, "tool_choice.function.name"),
        (
            {"tools": [WEATHER], "tool_choice": allowed("auto", NAMED)},
            "tool_choice.function.name",
        ),
        (
            {"tools": [WEATHER], "tool_choice": allowed("none", WEATHER)},
            "tool_choice.allowed_tools.mode",
        ),
        (
            {"tools": [WEATHER], "tool_choice": allowed("auto")},
            "tool_choice.allowed_tools.tools",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [], "tool_choice": NAMED}, "tool_choice"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
        ({"tools": [WEATHER, {"type": "function"}]}, "tools[1].function"),
        ({"tools": [{"function": {"name": ""}}]}, "tools[0].function.name"),
        (
            {"tools": [{"function": {"name": "f", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        ({"functions": [{}]}, "functions[0].name"),
        ({"tools": [WEATHER], "parallel_tool_calls": 1}, "parallel_tool_calls"),
    ],
)
def test_wrong_tools_are_refused_and_named(body, param):
    assert refused(**body) == param


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"grammar": ""}, None),
        ({"response_format": {"type": "json_object"}}, Shape("response_format", ANY_OBJECT)),
        (
            {"response_format": {"type": "json_object", "schema": SCHEMA}},
            Shape("response_format", SCHEMA),
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": SCHEMA, "strict": True},
                }
            },
            Shape("response_format", SCHEMA, strict=True),
        ),
        ({"json_schema": SCHEMA}, Shape("json_schema", SCHEMA)),
        ({"json_schema": True}, Shape("json_schema", True)),
        ({"grammar": 'root ::= "a"'}, Shape("grammar", grammar='root ::= "a"')),
    ],
)
def test_the_shape_of_an_answer_comes_from_any_of_three_fields(body, shape):
    assert read(**body).shape == shape


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": 1}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"strict": "yes"}}},
            "response_format.json_schema.strict",
        ),
        ({"json_schema": "{}"}, "json_schema"),
        ({"grammar": 5}, "grammar"),
        ({"grammar": "root ::= x", "json_schema": {}}, "grammar"),
        ({"reasoning_format": "some"}, "reasoning_format"),
    ],
)
def test_a_wrong_shape_is_refused_and_named(body, param):
    assert refused(**body) == param


def test_the_reasoning_format_is_kept():
    assert read(reasoning_format="none").reasoning_format == "none"
    assert read().reasoning_format == ""
