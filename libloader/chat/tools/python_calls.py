"""Calls written as Python: `[get_weather(place="Rome", days=[1, 2]), get_time()]`."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from typing import Any

from libloader.chat.tools.deltas import Call
from libloader.chat.tools.format import Steps
from libloader.chat.tools.members import Members
from libloader.chat.tools.reader import Broken, Reader

MAX_DEPTH = 50
_CLOSING = {")": "(", "]": "[", "}": "{"}


def read_calls(reader: Reader, known_only: bool = False) -> Steps:
    """Read what follows `[`, up to and with `]`."""
    yield from reader.rest_of_list(lambda: read_call(reader, known_only))
    reader.done()


def read_call(reader: Reader, known_only: bool) -> Steps:
    name = yield from reader.name()
    if known_only and name not in reader.functions:
        raise Broken
    yield from reader.expect("(")
    members = Members(reader, name)
    yield from reader.spaces()
    if not (yield from reader.skip(")")):
        yield from _read_arguments(reader, members)
    members.end()


def _read_arguments(reader: Reader, members: Members) -> Steps:
    while True:
        key = yield from reader.name()
        yield from reader.spaces()
        yield from reader.expect("=")
        text = yield from read_value(reader)
        members.add(key, literal_value(text))
        if (yield from reader.skip(")")):
            return
        yield from reader.expect(",")
        yield from reader.spaces()


def read_value(reader: Reader) -> Steps:
    """Return the text of a Python or JSON value, up to the `,` or `)` after it."""
    text: list[str] = []
    brackets, quote, escaped = "", "", False
    while True:
        character = yield from reader.peek()
        if quote:
            if not escaped and character == quote:
                quote = ""
            escaped = character == "\\" and not escaped
        elif character in "'\"":
            quote = character
        elif character in "([{":
            brackets += character
        elif character in _CLOSING and brackets.endswith(_CLOSING[character]) and brackets:
            brackets = brackets[:-1]
        elif character in ",)" and not brackets:
            return "".join(text).strip()
        if len(brackets) > MAX_DEPTH:
            raise Broken
        text.append(character)
        yield from reader.skip(character)


def literal_value(text: str) -> Any:
    """Return the value of a JSON or Python literal; nothing is ever evaluated."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        value = ast.literal_eval(text)
        json.dumps(value)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise Broken from None
    return value


def write_calls(calls: Sequence[Call]) -> str:
    """Return the calls as Python writes them."""
    return ", ".join(f"{call.name}({_written(json.loads(call.arguments))})" for call in calls)


def _written(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{key}={_python(value)}" for key, value in arguments.items())


def _python(value: Any) -> str:
    """Return a value as Python source, strings in double quotes."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return f"[{', '.join(map(_python, value))}]"
    if isinstance(value, dict):
        members = (f"{_python(key)}: {_python(each)}" for key, each in value.items())
        return f"{{{', '.join(members)}}}"
    return repr(value)
