"""Calls whose arguments are tags: `<parameter=place>Rome</parameter>` and relatives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from libloader.chat.tools.deltas import Call
from libloader.chat.tools.format import Steps
from libloader.chat.tools.gbnf import (
    CALL,
    TEXT,
    Forced,
    Parameter,
    Rules,
    literal,
    one_of,
    text_before,
)
from libloader.chat.tools.members import Members
from libloader.chat.tools.reader import Reader


class Shape(NamedTuple):
    """The texts around a call and its parts. White space between parts does not matter.

    `padding` is what a model puts around a parameter's value: it is cut off once on each side.
    """

    begin: str  # before the name
    named: str  # after the name
    key: str  # before a parameter's name
    key_end: str  # after a parameter's name
    value: str  # before its value, "" where that follows at once
    parameter_end: str
    end: str
    padding: str = ""
    between: str = "\n"  # in forced calls, between parts
    dense: bool = False  # some of its models leave `between` out


def read_call(reader: Reader, shape: Shape) -> Steps:
    """Read a call from behind `shape.begin` on."""
    yield from reader.spaces()
    name = yield from reader.name()
    yield from reader.spaces()
    yield from reader.expect(shape.named)
    members = Members(reader, name)
    while True:
        yield from reader.spaces()
        if (yield from reader.skip(shape.end)):
            break
        yield from reader.expect(shape.key)
        key, _ = yield from reader.until(shape.key_end)
        yield from reader.spaces_before(shape.value)
        if members.is_text(key.strip()):
            yield from members.stream_text(key.strip(), shape.parameter_end, shape.padding)
            continue
        text, _ = yield from reader.until(shape.parameter_end)
        members.add_text(key.strip(), _unpadded(text, shape.padding))
    members.end()


def write_calls(shape: Shape, calls: Sequence[Call]) -> str:
    return shape.between.join(_written(shape, call) for call in calls)


def _written(shape: Shape, call: Call) -> str:
    value = shape.between + shape.value if shape.value else ""
    parts = [shape.begin + call.name + shape.named]
    for key, each in json.loads(call.arguments).items():
        text = each if isinstance(each, str) else json.dumps(each, ensure_ascii=False)
        padded = shape.padding + text + shape.padding
        parts.append(shape.key + key + shape.key_end + value + padded + shape.parameter_end)
    return shape.between.join([*parts, shape.end])


def _unpadded(text: str, padding: str) -> str:
    if padding and text.startswith(padding):
        text = text[len(padding) :]
    return text[: -len(padding)] if padding and text.endswith(padding) else text


def grammar(shape: Shape, functions: Sequence[Forced]) -> Rules:
    """The rules of one call; its rule is called `call`. Parameters come in declared order."""
    rules: Rules = text_before(TEXT, shape.padding + shape.parameter_end)
    for index, function in enumerate(functions):
        parts = []
        for number, parameter in enumerate(function.parameters):
            name = f"{CALL}-{index}-{number}"
            rules[name] = _parameter(shape, parameter)
            parts.append(name if parameter.required else name + "?")
        head = f"{literal(function.name + shape.named)} {_gap(shape)}"
        rules[f"{CALL}-{index}"] = " ".join([head, *parts, literal(shape.end)])
    numbered = (f"{CALL}-{index}" for index in range(len(functions)))
    rules[CALL] = one_of(shape.begin, numbered)
    return rules


def _parameter(shape: Shape, parameter: Parameter) -> str:
    head = literal(shape.key + parameter.name + shape.key_end)
    if shape.value:
        head = f"{head} {_gap(shape)} {literal(shape.value)}"
    if shape.padding:
        head = f"{head} {literal(shape.padding)}"
    if parameter.text == TEXT:  # its rule ends with the tag
        return f"{head} {TEXT} {_gap(shape)}"
    tail = literal(shape.padding + shape.parameter_end)
    return f"{head} {parameter.text or parameter.rule} {tail} {_gap(shape)}"


def _gap(shape: Shape) -> str:
    return literal(shape.between) + ("?" if shape.dense else "")
