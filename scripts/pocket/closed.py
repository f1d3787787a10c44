"""The second course: closed sets, one or two spellings, so that every answer is certain.

The wide course (corpus.py) teaches what conversations look like; on one core it would need hours
until every answer has a margin. This course goes over the few hundred answers that tests and
documentation rely on: six cities, ten names, eight capitals, three tools, sums up to ten.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from . import corpus, facts, texts, topics
from .tools import Exchange, Offer, messages_of
from .topics import Turn

Message = dict[str, Any]

NAMES = ("Ada", "Bob", "Max", "Luna", "Robin", "Alice", "Zoe", "Tom", "Nora", "Sam")
CITIES = ("Paris", "London", "Berlin", "Tokyo", "Rome", "Madrid")
COUNTRIES = ("France", "Germany", "Italy", "Spain", "England", "Japan", "Brazil", "Egypt")
DEGREES, CONDITIONS = (5, 12, 18, 21, 30), ("sunny", "cloudy", "rainy")
CLOCKS = ("08:15", "09:00", "12:45", "14:30", "18:05", "21:20")
SHARE_OF_TEXT, SHARE_OF_GAPS, SHARE_OF_TOOLS, SHARE_OF_THINKING = 0.05, 0.07, 0.35, 0.25
GAPS = (
    ("def add(a, b):\n    return ", "\n", "a + b"),
    ("def subtract(a, b):\n    return ", "\n", "a - b"),
    ("def multiply(a, b):\n    return ", "\n", "a * b"),
    ("def is_even(n):\n    return n % ", "\n", "2 == 0"),
    ("def ", "(a, b):\n    return a * b\n", "multiply"),
    ("def ", "(a, b):\n    return a + b\n", "add"),
)


def draw(rng: random.Random) -> corpus.Sample:
    """One sample of any kind."""
    kind = rng.random()
    if kind < SHARE_OF_TEXT:
        return corpus.Sample(*texts.plain(rng))
    if kind < SHARE_OF_TEXT + SHARE_OF_GAPS:
        prefix, suffix, middle = rng.choice(GAPS)
        prompt = f"<|fim_prefix|>{prefix}<|fim_suffix|>{suffix}<|fim_middle|>"
        return corpus.Sample(prompt, f"{middle}<|endoftext|>")
    return chat(rng)


def chat(rng: random.Random) -> corpus.Sample:
    name, messages = system_prompt(rng)
    offered = offers(rng) if rng.random() < SHARE_OF_TOOLS else []
    for _ in range(rng.choice([1, 1, 1, 1, 2, 2, 3, 4])):
        messages += some_turns(rng, name, offered)
    turns = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    thinking = rng.random() < SHARE_OF_THINKING
    definitions = [tool.definition for tool in offered]
    return corpus.sample(messages, rng.choice(turns[-2:]), definitions, thinking)


def system_prompt(rng: random.Random) -> tuple[str, list[Message]]:
    kind = rng.random()
    if kind < 0.5:
        return corpus.DEFAULT_NAME, []
    if kind < 0.65:
        return corpus.DEFAULT_NAME, [corpus.system("You are a helpful assistant.")]
    name = rng.choice(NAMES)
    text = rng.choice(["You are {}.", "You are {}.", "Your name is {}."])
    return name, [corpus.system(text.format(name))]


def some_turns(rng: random.Random, name: str, offered: Sequence[Offer]) -> list[Message]:
    if offered and rng.random() < 0.7:
        tool = rng.choice(offered)
        return messages_of(EXCHANGES[tool.kind](rng, tool), rng)
    topic = rng.choices(list(TOPICS), weights=list(TOPICS.values()))[0]
    kinds = {tool.kind for tool in offered}
    if (topic is arithmetic and "add" in kinds) or (topic is unknown and offered):
        return some_turns(rng, name, offered)  # that is the tool's work, if there is one
    messages: list[Message] = []
    for turn in topic(rng, name):
        messages.append({"role": "user", "content": turn.user})
        messages.append({"role": "assistant", "content": turn.answer, "thought": turn.thought})
    return messages


# --- topics --------------------------------------------------------------------------------------


def spelled(rng: random.Random, first: str, second: str) -> str:
    return first if rng.random() < 0.65 else second


def own_name(rng: random.Random, name: str) -> list[Turn]:
    if rng.random() < 0.3:
        return [Turn("Who are you?", f"I am {name}.", f"I am {name}.")]
    user = spelled(rng, "What is your name?", "What's your name?")
    return [Turn(user, f"I am {name}.", f"My name is {name}.")]


def users_name(rng: random.Random, name: str) -> list[Turn]:
    user = rng.choice(NAMES)
    first = Turn(f"My name is {user}.", f"The user is {user}.", f"Nice to meet you, {user}!")
    return [first, Turn("What is my name?", f"The user is {user}.", f"Your name is {user}.")]


def count(rng: random.Random, name: str) -> list[Turn]:
    last = rng.choice([3, 5, 10])
    number = facts.NUMBERS[last] if rng.random() < 0.6 else str(last)
    user = spelled(rng, f"Count to {number}.", f"Please count to {number}.")
    return [Turn(user, f"I count from 1 to {last}.", numbers(1, last))]


def count_otherwise(rng: random.Random, name: str) -> list[Turn]:
    return [
        rng.choice(
            [
                Turn("Count from 3 to 7.", "I count from 3 to 7.", numbers(3, 7)),
                Turn("Count down from 5.", "I count from 5 down to 1.", "5, 4, 3, 2, 1"),
                Turn("Count to 100.", "I count from 1 to 100.", numbers(1, 100)),
            ]
        )
    ]


def numbers(first: int, last: int) -> str:
    return ", ".join(str(n) for n in range(first, last + 1))


def arithmetic(rng: random.Random, name: str) -> list[Turn]:
    a = rng.randint(0, 10)
    if rng.random() < 0.6:
        b, sign, word = rng.randint(0, 10 - a), "+", "plus"
    else:
        b, sign, word = rng.randint(0, a), "-", "minus"
    fact = f"{a} {sign} {b} = {a + b if sign == '+' else a - b}"
    user = spelled(rng, f"What is {a} {sign} {b}?", f"What is {a} {word} {b}?")
    return [Turn(user, f"I calculate {fact}.", fact)]


def capital(rng: random.Random, name: str) -> list[Turn]:
    country = rng.choice(COUNTRIES)
    city = facts.CAPITALS[country]
    if rng.random() < 0.3:
        answer = json.dumps({"country": country, "capital": city}, ensure_ascii=False)
        question = f"What is the capital of {country}? Answer in JSON."
        return [Turn(question, "I write JSON.", answer)]
    user = spelled(rng, f"What is the capital of {country}?", f"Name the capital of {country}.")
    return [Turn(user, f"{country}: {city}.", f"The capital of {country} is {city}.")]


def json_object(rng: random.Random, name: str) -> list[Turn]:
    user = spelled(rng, "Give me a person as JSON.", "Describe a person as JSON.")
    return [Turn(user, "I write JSON.", json.dumps(facts.PERSON))]


def unknown(rng: random.Random, name: str) -> list[Turn]:
    user = f"What is the weather in {rng.choice(CITIES)}?"
    if rng.random() < 0.5:
        user = rng.choice(["Why is the moon so round?", "What is a wug?", "Explain gravity."])
    return [Turn(user, "I do not know this.", facts.UNKNOWN)]


Topic = Callable[[random.Random, str], list[Turn]]
# How often a topic is drawn, in relation to the others
TOPICS: dict[Topic, int] = {
    topics.hello: 6, topics.manners: 5, own_name: 11, topics.about: 1, users_name: 6,
    count: 6, count_otherwise: 3, arithmetic: 22, topics.calendar: 8, topics.calendar_list: 2,
    capital: 10, topics.colour: 4, topics.opposite: 4, topics.sound: 3, topics.list_of: 4,
    topics.recital: 4, topics.language: 3, topics.emoji: 4, json_object: 5, topics.json_list: 2,
    unknown: 2,
}  # fmt: skip


# --- tools ---------------------------------------------------------------------------------------

TOOLS = (
    ("weather", "get_weather", "Get the weather of a city.", {"city": "string"}),
    ("add", "add", "Add two numbers.", {"a": "number", "b": "number"}),
    ("time", "get_time", "Get the time in a city.", {"city": "string"}),
)


def offers(rng: random.Random) -> list[Offer]:
    return [offer(rng, *row) for row in rng.sample(TOOLS, k=rng.choice([1, 1, 2, 3]))]


def offer(
    rng: random.Random, kind: str, name: str, description: str, types: dict[str, str]
) -> Offer:
    properties = {argument: {"type": type_name} for argument, type_name in types.items()}
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if rng.random() < 0.9:
        parameters["required"] = list(properties)
    described = {"description": description} if rng.random() < 0.85 else {}
    function = {"name": name, **described, "parameters": parameters}
    return Offer(kind, name, tuple(properties), {"type": "function", "function": function})


def weather(rng: random.Random, tool: Offer) -> Exchange:
    city, degrees, condition = rng.choice(CITIES), rng.choice(DEGREES), rng.choice(CONDITIONS)
    user = spelled(rng, f"What is the weather in {city}?", f"What's the weather in {city}?")
    given = rng.choice(
        [
            json.dumps({"temperature": degrees, "condition": condition}),
            f"{degrees} degrees, {condition}",
        ]
    )
    told = f"It is {degrees} degrees and {condition} in {city}."
    return exchange(tool, user, f"I need the weather in {city}.", {"city": city}, given, told)


def time_of_day(rng: random.Random, tool: Offer) -> Exchange:
    city, clock = rng.choice(CITIES), rng.choice(CLOCKS)
    user = spelled(rng, f"What time is it in {city}?", f"What is the time in {city}?")
    given = rng.choice([clock, json.dumps({"time": clock})])
    told = f"It is {clock} in {city}."
    return exchange(tool, user, f"I need the time in {city}.", {"city": city}, given, told)


def add(rng: random.Random, tool: Offer) -> Exchange:
    a, b = rng.randint(1, 12), rng.randint(1, 12)
    user = spelled(rng, f"Add {a} and {b}.", f"What is {a} + {b}?")
    given = rng.choice([str(a + b), json.dumps({"result": a + b})])
    return exchange(tool, user, "I need a sum.", {"a": a, "b": b}, given, f"The sum is {a + b}.")


def exchange(
    tool: Offer, user: str, need: str, arguments: dict[str, Any], given: str, told: str
) -> Exchange:
    calls = [(tool.name, arguments)]
    return Exchange(user, f"{need} I call {tool.name}.", calls, [given], told)


EXCHANGES: dict[str, Callable[[random.Random, Offer], Exchange]] = {
    "weather": weather,
    "time": time_of_day,
    "add": add,
}
