"""Gemma 4 and FunctionGemma: `call:name{key:<|"|>text<|"|>,n:3}` between control tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from libloader.chat.tools.deltas import Call
from libloader.chat.tools.format import Format, Steps
from libloader.chat.tools.gbnf import (
    CALL,
    TEXT,
    Forced,
    Rules,
    alternatives,
    literal,
    one_of,
    text_before,
)
from libloader.chat.tools.members import Members
from libloader.chat.tools.reader import Broken, Reader

MAX_DEPTH = 50


class Marks(NamedTuple):
    begin: str
    end: str
    quote: str  # on both sides of text


GEMMA4_MARKS = Marks("<|tool_call>", "<tool_call|>", '<|"|>')
FUNCTION_GEMMA_MARKS = Marks("<start_function_call>", "<end_function_call>", "<escape>")


def reading(marks: Marks) -> Any:
    """Return the `read` of a format with these marks."""

    def read(reader: Reader, trigger: str) -> Steps:
        yield from reader.spaces()
        yield from reader.expect("call:")
        name = yield from reader.name()
        yield from reader.spaces()
        yield from reader.expect("{")
        members = Members(reader, name)
        yield from _read_members(reader, marks.quote, members.add, 0)
        members.end()
        yield from reader.spaces()
        yield from reader.expect(marks.end)
        reader.done()

    return read


def _read_members(reader: Reader, quote: str, add: Any, depth: int) -> Steps:
    """Read `key:value,...}` and hand each pair to `add`."""
    yield from reader.spaces()
    if (yield from reader.skip("}")):
        return
    while True:
        yield from reader.spaces()
        key, _ = yield from reader.until(":")
        yield from reader.spaces()
        add(
            key.strip().strip('"').replace(quote, ""),
            (yield from _read_value(reader, quote, depth)),
        )
        yield from reader.spaces()
        if (yield from reader.skip("}")):
            return
        yield from reader.expect(",")


def _read_value(reader: Reader, quote: str, depth: int) -> Steps:
    if depth > MAX_DEPTH:
        raise Broken
    if (yield from reader.skip(quote)):
        text, _ = yield from reader.until(quote)
        return text
    if (yield from reader.skip("{")):
        found: dict[str, Any] = {}
        yield from _read_members(reader, quote, found.__setitem__, depth + 1)
        return found
    if (yield from reader.skip("[")):
        return (yield from _read_items(reader, quote, depth))
    try:
        return json.loads((yield from reader.json()))
    except ValueError:
        raise Broken from None


def _read_items(reader: Reader, quote: str, depth: int) -> Steps:
    items: list[Any] = []
    yield from reader.spaces()
    if (yield from reader.skip("]")):
        return items
    while True:
        yield from reader.spaces()
        items.append((yield from _read_value(reader, quote, depth + 1)))
        yield from reader.spaces()
        if (yield from reader.skip("]")):
            return items
        yield from reader.expect(",")


def grammar_of(marks: Marks) -> Any:
    """Return the `grammar` of a format with these marks. Values but top-level text are JSON."""

    def grammar(functions: Sequence[Forced], parallel: bool) -> Rules:
        rules = text_before(TEXT, marks.quote)
        for index, function in enumerate(functions):
            head = literal(f"{function.name}{{")
            rules[f"{CALL}-{index}"] = (
                f"{head} {_members(marks, function)} {literal('}' + marks.end)}"
            )
        numbered = (f"{CALL}-{index}" for index in range(len(functions)))
        rules[CALL] = one_of(f"{marks.begin}call:", numbered)
        return {"root": f"{CALL}+" if parallel else CALL, **rules}

    return grammar


def _members(marks: Marks, function: Forced) -> str:
    """Required parameters in order; then optional ones, each with its comma."""
    texts = []
    for parameter in function.parameters:
        value = parameter.rule
        if parameter.text:
            end = "" if parameter.text == TEXT else literal(marks.quote)
            value = f"{literal(marks.quote)} {parameter.text} {end}"
        texts.append((parameter, f"{literal(parameter.name + ':')} {value}"))
    required = f" {literal(',')} ".join(text for each, text in texts if each.required)
    optional = [text for each, text in texts if not each.required]
    if required:
        return required + "".join(f" ({literal(',')} {text})?" for text in optional)
    return f"({alternatives(optional)})?" if optional else '""'


def _write_value(marks: Marks, value: Any) -> str:
    if isinstance(value, str):
        return marks.quote + value + marks.quote
    if isinstance(value, dict):
        return "{" + _write_members(marks, value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_write_value(marks, each) for each in value) + "]"
    return json.dumps(value)


def _write_members(marks: Marks, members: dict[str, Any]) -> str:
    return ",".join(f"{key}:{_write_value(marks, value)}" for key, value in members.items())


def writing(marks: Marks) -> Any:
    def write(calls: Sequence[Call]) -> str:
        return "".join(
            f"{marks.begin}call:{call.name}{{{_write_members(marks, json.loads(call.arguments))}}}"
            f"{marks.end}"
            for call in calls
        )

    return write


def _format(name: str, marks: Marks) -> Format:
    return Format(
        name=name,
        marks=((marks.begin,),),
        triggers=(marks.begin,),
        shown=marks,
        read=reading(marks),
        by_parameter=True,
        grammar=grammar_of(marks),
        write=writing(marks),
    )


GEMMA4 = _format("gemma4", GEMMA4_MARKS)
FUNCTION_GEMMA = _format("function-gemma", FUNCTION_GEMMA_MARKS)
