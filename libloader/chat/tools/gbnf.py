"""Grammar rules (GBNF) of formats, to force calls from the first token.

The rules of a function's arguments come from libloader.grammar, by name: this package only puts
the format's own text around them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# Rules of a format are named so; those of libloader.grammar keep clear of these names.
CALL, TEXT, THOUGHT = "format-call", "format-text", "format-thought"

Rules = dict[str, str]  # rule name -> its right side; "root" is the answer


class Parameter(NamedTuple):
    """One property of a function's arguments.

    `rule` is the rule of its JSON value. `text` is for formats that write strings bare: an
    expression of the strings that it may be, TEXT for any, "" if it is no string.
    """

    name: str
    rule: str
    required: bool
    text: str = ""


class Forced(NamedTuple):
    """A function that may be called. `arguments` is the rule of its arguments as a JSON object."""

    name: str
    arguments: str
    parameters: tuple[Parameter, ...] = ()


def literal(text: str) -> str:
    """Return `text` as a GBNF literal."""
    return json.dumps(text, ensure_ascii=False)


def alternatives(choices: Iterable[str]) -> str:
    return " | ".join(choices)


def repeated(rule: str, separator: str, parallel: bool) -> str:
    """Return one `rule`, or where calls may be parallel several with `separator` between."""
    return f"{rule} ({literal(separator)} {rule})*" if parallel else rule


def json_object(function: Forced, name_key: str = "name", arguments_key: str = "arguments") -> str:
    """Return the expression of `{"name": ..., "arguments": {...}}`."""
    head = f'{{"{name_key}": {json.dumps(function.name)}, "{arguments_key}": '
    return f'{literal(head)} {function.arguments} "}}"'


def json_objects(functions: Sequence[Forced], parallel: bool) -> Rules:
    """The rules of one object, or of several on lines of their own."""
    calls = alternatives(map(json_object, functions))
    return {"root": repeated(CALL, "\n", parallel), CALL: calls}


def text_before(name: str, end: str) -> Rules:
    """Return rules, the first called `name`, for any text and then `end`, its first occurrence.

    One rule per character of `end` that has been seen: an automaton that falls back to the longest
    beginning of `end` that the text still ends in.
    """
    rules: Rules = {}
    for seen in range(len(end)):
        steps: dict[int, str] = {}
        for character in sorted(set(end)):
            length = _longest_beginning(end[:seen] + character, end)
            steps[length] = steps.get(length, "") + character
        options = []
        for length, characters in steps.items():
            # Characters that fall back to the start are part of "any other character".
            if length == len(end):
                options.append(_set(characters))
            elif length:
                options.append(f"{_set(characters)} {_state(name, length)}")
        others = "".join(text for length, text in steps.items() if length)
        options.append(f"{_set(others, inverted=True)} {_state(name, 0)}")
        rules[_state(name, seen)] = alternatives(options)
    return rules


def _state(name: str, seen: int) -> str:
    return f"{name}-{seen}" if seen else name


def _longest_beginning(text: str, end: str) -> int:
    return next(n for n in range(min(len(text), len(end)), -1, -1) if text.endswith(end[:n]))


def _set(characters: str, inverted: bool = False) -> str:
    escaped = "".join(c if c.isalnum() else f"\\U{ord(c):08X}" for c in characters)
    return f"[{'^' if inverted else ''}{escaped}]"
