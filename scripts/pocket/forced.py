"""Answers that a grammar dictates in part: JSON where the question did not ask for any.

With a JSON schema or a forced tool call the server lets only some tokens through. The model then
sees a start that it would never have chosen; here it learns to go on sensibly and, above all,
to close what was opened.

Laws:
- Nothing that a grammar dictates is learned (keys, opening signs), else the model would write
  JSON by itself. What is learned are values and the signs that close.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

from . import facts
from .tools import Offer

# For keys that the model does not know: what it writes, by the kind that the schema asks for
VALUES: tuple[Any, ...] = ("yes", "yes", 7, 7, True, None, ["a"], 2.5)
ARGUMENTS = {"string": "Paris", "number": 1, "integer": 1, "boolean": True}


class Forced(NamedTuple):
    """An answer, and the character ranges of it that a grammar dictates."""

    answer: str
    dictated: list[tuple[int, int]]


class Writer:
    """Puts an answer together from dictated and free pieces."""

    def __init__(self) -> None:
        self.text = ""
        self.dictated: list[tuple[int, int]] = []

    def dictate(self, piece: str) -> None:
        self.dictated.append((len(self.text), len(self.text) + len(piece)))
        self.text += piece

    def write(self, piece: str) -> None:
        self.text += piece

    def fields(self, values: dict[str, Any], known: bool) -> None:
        """The inside of an object. Of a value whose kind is not known, the start is dictated."""
        for number, (key, value) in enumerate(values.items()):
            if number:
                self.write(", ")
            self.dictate(f'"{key}": ')
            text = json.dumps(value, ensure_ascii=False)
            if not known:
                self.dictate(text[:1])
                text = text[1:]
            self.write(text)

    def result(self) -> Forced:
        return Forced(self.text, self.dictated)


def forced_json(rng: random.Random, plain_answer: str) -> Forced:
    """Any question answered as an object: its answer in it, known keys, or unknown ones."""
    writer = Writer()
    writer.dictate("{")
    form = rng.randrange(3)
    if form == 0:
        writer.fields({rng.choice(["answer", "text", "reply"]): plain_answer}, known=True)
    elif form == 1:
        keys = rng.sample(list(facts.JSON_VALUES), k=rng.randint(1, 4))
        writer.fields({key: facts.JSON_VALUES[key] for key in keys}, known=True)
    else:
        keys = rng.sample(facts.WORDS, k=rng.randint(1, 4))
        writer.fields({key: rng.choice(VALUES) for key in keys}, known=False)
    writer.write("}")
    return writer.result()


def forced_call(rng: random.Random, offered: Sequence[Offer]) -> Forced:
    """A call of an offered function that nothing in the question asked for."""
    tool = rng.choice(offered)
    properties = tool.definition["function"]["parameters"]["properties"]
    values = {name: ARGUMENTS[properties[name]["type"]] for name in tool.arguments}
    writer = Writer()
    writer.dictate(f'<tool_call>\n{{"name": {json.dumps(tool.name)}, "arguments": {{')
    writer.fields(values, known=True)
    writer.write("}}\n</tool_call>")
    return writer.result()
