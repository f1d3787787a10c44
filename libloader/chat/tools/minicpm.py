"""MiniCPM 5: `<function name=...>` with `<param name=...>` tags; markup in values is in CDATA."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from libloader.chat.tools.deltas import Call
from libloader.chat.tools.format import Format, Steps
from libloader.chat.tools.gbnf import (
    CALL,
    TEXT,
    Forced,
    Parameter,
    Rules,
    literal,
    one_of,
    repeated,
    text_before,
)
from libloader.chat.tools.members import Members
from libloader.chat.tools.reader import Reader

BEGIN, NAMED, END = '<function name="', '">', "</function>"
PARAM, PARAM_END = '<param name="', "</param>"
CDATA, CDATA_END = "<![CDATA[", "]]>"
MARKED = f"{TEXT}-marked"  # the rule of text in CDATA


def read(reader: Reader, trigger: str) -> Steps:
    name = yield from reader.name()
    yield from reader.expect(NAMED)
    members = Members(reader, name)
    while True:
        yield from reader.spaces()
        if (yield from reader.skip(END)):
            break
        yield from reader.expect(PARAM)
        key, _ = yield from reader.until(NAMED)
        end = CDATA_END + PARAM_END if (yield from reader.skip(CDATA)) else PARAM_END
        if members.is_text(key):
            yield from members.stream_text(key, end)
        else:
            text, _ = yield from reader.until(end)
            members.add_text(key, text)
    members.end()
    reader.done()


def grammar(functions: Sequence[Forced], parallel: bool) -> Rules:
    rules: Rules = {
        **text_before(TEXT, PARAM_END),
        **text_before(MARKED, CDATA_END + PARAM_END),
    }
    for index, function in enumerate(functions):
        parts = [
            _parameter(each) if each.required else f"({_parameter(each)})?"
            for each in function.parameters
        ]
        head = literal(function.name + NAMED)
        rules[f"{CALL}-{index}"] = " ".join([head, *parts, literal(END)])
    rules[CALL] = one_of(BEGIN, (f"{CALL}-{index}" for index in range(len(functions))))
    return {"root": repeated(CALL, "\n", parallel), **rules}


def _parameter(parameter: Parameter) -> str:
    head = literal(PARAM + parameter.name + NAMED)
    if parameter.text == TEXT:  # what begins with a tag must be marked, or it may be a CDATA's
        bare = f"{literal(PARAM_END)} | [^<] {TEXT}"
        return f"{head} ({literal(CDATA)} {MARKED} | {bare})"
    return f"{head} {parameter.text or parameter.rule} {literal(PARAM_END)}"


def write(calls: Sequence[Call]) -> str:
    return "\n".join(map(_written, calls))


def _written(call: Call) -> str:
    pairs = json.loads(call.arguments).items()
    values = "".join(f"{PARAM}{key}{NAMED}{_value(value)}{PARAM_END}" for key, value in pairs)
    return f"{BEGIN}{call.name}{NAMED}{values}{END}"


def _value(value: Any) -> str:
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    is_marked = any(character in value for character in "<&\n")
    return CDATA + value + CDATA_END if is_marked else value


MINICPM = Format(
    name="minicpm",
    marks=(('<function name="', '<param name="'),),
    triggers=(BEGIN,),
    read=read,
    by_parameter=True,
    grammar=grammar,
    write=write,
)
