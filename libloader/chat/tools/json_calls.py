"""Calls written as JSON objects: `{"name": ..., "arguments": {...}}`, one, several or a list.

Keys differ between families and may come in any order; where the name comes first, which is the
rule, arguments stream.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from libloader.chat.tools.format import Steps
from libloader.chat.tools.reader import Broken

if TYPE_CHECKING:
    from libloader.chat.tools.reader import Reader

NAMES = ("name", "tool_name", "function_name")
ARGUMENTS = ("arguments", "parameters", "args")
IDS = ("id", "tool_call_id", "call_id")


@dataclass
class _Found:
    """What has been read of one object."""

    name: str = ""
    id: str = ""
    arguments: str = "{}"
    announced: bool = False


def read_calls(reader: Reader, known_only: bool = False) -> Steps:
    """Read one object, several, or a list of them, perhaps in a code fence.

    With `known_only`, for answers that are marked by nothing, the name must be of a function of the
    request, and no other keys may come.
    """
    fence = yield from reader.skip_any("```json", "```")
    yield from reader.spaces()
    if (yield from reader.skip("[")):
        yield from _read_list(reader, known_only)
    else:
        yield from _read_row(reader, known_only)
    if fence:
        yield from reader.spaces()
        yield from reader.skip("```")


def _read_list(reader: Reader, known_only: bool) -> Steps:
    yield from reader.rest_of_list(lambda: read_call(reader, known_only))
    reader.done()


def _read_row(reader: Reader, known_only: bool) -> Steps:
    """Read objects with nothing but white space, commas or semicolons between them."""
    yield from read_call(reader, known_only)
    while True:
        yield from reader.spaces()
        separated = yield from reader.skip_any(",", ";")
        yield from reader.spaces()
        if not separated and not (yield from reader.looks_like("{")):
            return
        yield from read_call(reader, known_only)


def read_call(reader: Reader, known_only: bool = False) -> Steps:
    """Read one object and write its call."""
    found = _Found()
    yield from _read_members(reader, found, known_only)
    if not found.announced:
        if not found.name:
            raise Broken
        reader.call(found.name, found.arguments, found.id)
    reader.done()


def _read_members(reader: Reader, found: _Found, known_only: bool) -> Steps:
    yield from reader.expect("{")
    while True:
        yield from reader.spaces()
        key = yield from _read_string(reader)
        yield from reader.spaces()
        yield from reader.expect(":")
        yield from reader.spaces()
        yield from _read_member(reader, found, key, known_only)
        yield from reader.spaces()
        if not (yield from reader.skip(",")):
            break
    closed = yield from reader.skip("}")
    if not closed and not found.announced:  # models forget the last brace
        raise Broken


def _read_member(reader: Reader, found: _Found, key: str, known_only: bool) -> Steps:
    if key in NAMES or (key == "function" and not (yield from reader.looks_like("{"))):
        found.name = yield from _read_string(reader)
        if not found.name or (known_only and found.name not in reader.functions):
            raise Broken
    elif key == "function":
        yield from _read_members(reader, found, known_only)
    elif key in ARGUMENTS:
        yield from _read_arguments(reader, found)
    elif key in IDS:
        value = _loaded((yield from reader.json()))
        found.id = value if isinstance(value, str) else ""
    elif known_only and key != "type":
        raise Broken
    else:
        yield from reader.json()


def _read_arguments(reader: Reader, found: _Found) -> Steps:
    if (yield from reader.looks_like("{")) and found.name and not found.announced:
        found.announced = True
        yield from reader.stream_arguments(found.name, found.id)
        return
    value = _loaded((yield from reader.json()))
    if isinstance(value, str):  # JSON in a string, as OpenAI's own API has it
        value = _loaded(value)
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise Broken
    found.arguments = json.dumps(value, ensure_ascii=False)


def _read_string(reader: Reader) -> Steps:
    if not (yield from reader.looks_like('"')):
        raise Broken
    return _loaded((yield from reader.json()))


def _loaded(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Broken from None
