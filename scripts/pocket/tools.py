"""Dialogues that call functions: what is offered, when it is called, how a result is told.

Laws:
- Only what is offered is called, under the name and the argument names it is offered with; the
  many spellings of the definitions teach reading them instead of remembering one.
- With tools offered, everything that needs none is answered as without.
"""

# Sentences are easier to read in filled lines than one to a line:
# fmt: off

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any, NamedTuple

from . import facts
from .topics import random_text, sentence, some_name, spoken

Message = dict[str, Any]


class Exchange(NamedTuple):
    """One use of a tool: `calls` are made, `results` come back in the same order."""

    user: str
    thought: str
    calls: list[tuple[str, dict[str, Any]]]
    results: list[str]
    answer: str


class Offer(NamedTuple):
    """A function as offered in one conversation: our kind of it, its name, its argument names."""

    kind: str
    name: str
    arguments: tuple[str, ...]
    definition: dict[str, Any]


# kind:   (argument type, names it goes by, its argument names, descriptions)
KINDS: dict[str, tuple[str, list[str], list[tuple[str, ...]], list[str]]] = {
    "weather": (
        "string",
        ["get_weather", "get_weather", "get_weather", "get_current_weather", "weather",
         "get_forecast"],
        [("city",), ("city",), ("city",), ("location",), ("place",)],
        ["Get the weather of a city.", "Get the current weather in a given location",
         "Get current weather", "The weather now.", "Get the weather"],
    ),
    "add": (
        "number",
        ["add", "add", "add", "add_numbers", "sum", "plus"],
        [("a", "b"), ("a", "b"), ("a", "b"), ("x", "y"), ("first", "second")],
        ["Add two numbers.", "Add two numbers", "Adds a and b", "Returns the sum of two numbers."],
    ),
    "time": (
        "string",
        ["get_time", "get_time", "get_time", "get_current_time", "current_time", "time"],
        [("city",), ("city",), ("city",), ("location",), ("place",)],
        ["Get the time in a city.", "Get the current time", "The time now in a city.", "Get time"],
    ),
    "search": (
        "string", ["search", "web_search", "lookup"], [("query",), ("q",)],
        ["Search the web.", "Search", "Look something up."],
    ),
    "mail": (
        "string", ["send_mail", "send_email"], [("to", "text"), ("to", "body")],
        ["Send a message.", "Send an email to a person."],
    ),
}


def offer(rng: random.Random, kind: str) -> Offer:
    """Define a function of this kind in one of the spellings that clients use."""
    if kind == "any":
        return offer_any(rng)
    argument_type, names, argument_names, descriptions = KINDS[kind]
    name, arguments = rng.choice(names), rng.choice(argument_names)
    properties = {argument: property_schema(rng, argument_type) for argument in arguments}
    return Offer(kind, name, arguments, definition(rng, name, rng.choice(descriptions), properties))


def offer_any(rng: random.Random) -> Offer:
    verb = rng.choice(["open", "find", "make", "move", "get", "set", "list", "run"])
    name = rng.choice([f"{verb}_{rng.choice(facts.WORDS)}", verb, rng.choice(facts.WORDS)])
    arguments = tuple({rng.choice(facts.WORDS) for _ in range(rng.choice([0, 1, 1, 2, 2, 3]))})
    properties = {argument: property_schema(rng, rng.choice(["string", "integer", "boolean"]))
                  for argument in sorted(arguments)}
    description = sentence(rng)
    return Offer("any", name, tuple(properties), definition(rng, name, description, properties))


def definition(rng: random.Random, name: str, description: str, properties: dict[str, Any]
               ) -> dict[str, Any]:
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if properties and rng.random() < 0.8:
        parameters["required"] = list(properties)
    if rng.random() < 0.15:
        parameters["additionalProperties"] = False
    function: dict[str, Any] = {"name": name}
    if rng.random() < 0.75:
        function["description"] = description
    function["parameters"] = parameters
    if rng.random() < 0.1:
        function["strict"] = True
    return {"type": "function", "function": function}


def property_schema(rng: random.Random, argument_type: str) -> dict[str, str]:
    if argument_type == "number" and rng.random() < 0.4:
        argument_type = "integer"
    schema = {"type": argument_type}
    if rng.random() < 0.2:
        schema["description"] = rng.choice(["The name of the city", "City, e.g. Paris", "A number",
                                            "The city", "The value"])
    return schema


def offers(rng: random.Random) -> list[Offer]:
    kinds = rng.sample([*KINDS, "any"], k=rng.choice([1, 1, 1, 2, 2, 3, 3, 4]))
    return [offer(rng, kind) for kind in kinds]


# --- weather and time ----------------------------------------------------------------------

def some_place(rng: random.Random) -> str:
    return rng.choice(facts.CITIES) if rng.random() < 0.75 else some_name(rng)


CONDITIONS = ("sunny", "cloudy", "rainy", "windy", "foggy", "snowy", "clear", "stormy")


def weather_result(rng: random.Random, argument: str, place: str) -> tuple[str, str]:
    """A result as a tool may write it, and the sentence that tells it."""
    degrees, condition = rng.randint(-9, 39), rng.choice(CONDITIONS)
    number = {rng.choice(["temperature", "temperature", "temp", "temp_c"]): degrees}
    word = {rng.choice(["condition", "condition", "weather"]): condition}
    units = {"unit": rng.choice(["celsius", "C"])}
    both, warm, seen = (f"It is {told} in {place}." for told in
                        (f"{degrees} degrees and {condition}", f"{degrees} degrees", condition))
    return rng.choice([
        (json.dumps({**number, **word}), both), (json.dumps({**word, **number}), both),
        (json.dumps({argument: place, **number, **word}), both),
        (json.dumps({**number, **units, **word}), both),
        (f"{degrees} degrees, {condition}", both), (f"{condition}, {degrees} degrees", both),
        (f"{condition.capitalize()}, {degrees}°C", both), (f"{degrees}°C and {condition}", both),
        (f"{degrees}", warm), (f"{degrees}°C", warm), (json.dumps(number), warm),
        (json.dumps({**number, **units}), warm), (condition, seen), (json.dumps(word), seen),
    ])


def weather(rng: random.Random, tool: Offer) -> Exchange:
    places = [some_place(rng) for _ in range(2 if rng.random() < 0.2 else 1)]
    named = " and in ".join(places)
    user = spoken(rng, f"What is the weather in {named}?", f"What's the weather in {named}?",
                  f"How is the weather in {named}?", f"What's the weather like in {named}?",
                  f"Tell me the weather in {named}.", f"Weather in {named}?")
    results = [weather_result(rng, tool.arguments[0], place) for place in places]
    return Exchange(user, f"I need the weather in {named}. I call {tool.name}.",
                    [(tool.name, {tool.arguments[0]: place}) for place in places],
                    [result for result, _ in results], " ".join(told for _, told in results))


def time_of_day(rng: random.Random, tool: Offer) -> Exchange:
    place = some_place(rng)
    clock = f"{rng.randrange(24):02d}:{rng.randrange(60):02d}"
    result = rng.choice([clock, json.dumps({"time": clock}), json.dumps({"time": clock}),
                         json.dumps({tool.arguments[0]: place, "time": clock})])
    user = spoken(rng, f"What time is it in {place}?", f"What is the time in {place}?",
                  f"Tell me the time in {place}.", f"How late is it in {place}?")
    return Exchange(user, f"I need the time in {place}. I call {tool.name}.",
                    [(tool.name, {tool.arguments[0]: place})], [result],
                    f"It is {clock} in {place}.")


# --- adding --------------------------------------------------------------------------------

def add(rng: random.Random, tool: Offer) -> Exchange:
    a, b = (rng.randrange(10 ** rng.randint(1, 4)) for _ in range(2))
    # A wrong result now and then: the model tells what the tool said, not what it knows.
    total = a + b if rng.random() < 0.7 else rng.randrange(10 ** 4)
    result = rng.choice([str(total), str(total), json.dumps({"result": total}),
                         json.dumps({"sum": total})])
    user = spoken(rng, f"Add {a} and {b}.", f"What is {a} + {b}?",
                  f"What is the sum of {a} and {b}?", f"Please add {a} and {b}.",
                  f"What is {a} plus {b}?", f"Calculate {a} + {b}.")
    first, second = tool.arguments
    return Exchange(user, f"I need a sum. I call {tool.name}.",
                    [(tool.name, {first: a, second: b})], [result], f"The sum is {total}.")


# --- everything else -----------------------------------------------------------------------

def search(rng: random.Random, tool: Offer) -> Exchange:
    wanted = " ".join(rng.choices(facts.WORDS, k=rng.randint(1, 4)))
    found = sentence(rng)
    user = spoken(rng, f"Search for {wanted}.", f"Look up {wanted}.", f"Search: {wanted}")
    return Exchange(user, f"I call {tool.name}.", [(tool.name, {tool.arguments[0]: wanted})],
                    [found], f"I found this: {found}")


def mail(rng: random.Random, tool: Offer) -> Exchange:
    whom, text = some_name(rng), random_text(rng)
    recipient, body = tool.arguments
    user = spoken(rng, f"Send a mail to {whom}: {text}", f"Send {whom} a message: {text}")
    return Exchange(user, f"I call {tool.name}.", [(tool.name, {recipient: whom, body: text})],
                    [rng.choice(["sent", "ok", '{"ok": true}', "done"])],
                    f"I have written to {whom}.")


def direct(rng: random.Random, tool: Offer) -> Exchange:
    """Any function at all, called by its name: the way to test a tool that we do not know."""
    properties = tool.definition["function"]["parameters"]["properties"]
    values: dict[str, Any] = {}
    for argument in tool.arguments:
        text = " ".join(rng.choices(facts.WORDS, k=rng.randint(1, 3)))
        values[argument] = {"string": text, "boolean": rng.random() < 0.5}.get(
            properties[argument]["type"], rng.randrange(1000))
    named = " and ".join(f"{argument} {spelled(value)}" for argument, value in values.items())
    user = f"{rng.choice(['Call', 'Call', 'Use'])} {tool.name} with {named}." if values else \
        f"Call {tool.name}."
    result = rng.choice([str(rng.randrange(1000)), rng.choice(facts.WORDS)])
    return Exchange(user, f"I call {tool.name}.", [(tool.name, values)],
                    [rng.choice([result, json.dumps({"result": result})])],
                    f"The result is {result}.")


def spelled(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def unanswerable(rng: random.Random, offered: list[Offer]) -> str | None:
    """A question for which none of the offered tools is fit, or None."""
    kind = rng.choice(["weather", "time"])
    if any(tool.kind == kind for tool in offered):
        return None
    return EXCHANGES[kind](rng, Offer(kind, "", ("",), {})).user


EXCHANGES: dict[str, Callable[[random.Random, Offer], Exchange]] = {
    "weather": weather,
    "time": time_of_day,
    "add": add,
    "search": search,
    "mail": mail,
    "any": direct,
}


def messages_of(exchange: Exchange, call_ids: random.Random) -> list[Message]:
    """The exchange as OpenAI's messages; the two assistant messages are what is learned."""
    calls = [
        {"id": f"call_{call_ids.randrange(10 ** 6)}", "type": "function",
         "function": {"name": name, "arguments": arguments}}
        for name, arguments in exchange.calls
    ]
    return [
        {"role": "user", "content": exchange.user},
        {"role": "assistant", "content": "", "tool_calls": calls, "thought": exchange.thought},
        *({"role": "tool", "content": result} for result in exchange.results),
        {"role": "assistant", "content": exchange.answer, "thought": "The function has answered."},
    ]
