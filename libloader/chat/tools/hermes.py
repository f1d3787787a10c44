"""Hermes, Qwen 2.5 and 3, Granite 4, MiMo and many more: JSON between <tool_call> tags."""

from __future__ import annotations

import json
from collections.abc import Sequence

from libloader.chat.tools.deltas import Call
from libloader.chat.tools.format import Format, Steps
from libloader.chat.tools.gbnf import (
    CALL,
    LINE,
    Forced,
    Rules,
    alternatives,
    json_object,
    literal,
    repeated,
)
from libloader.chat.tools.json_calls import read_calls
from libloader.chat.tools.reader import Reader

BEGIN, END = "<tool_call>", "</tool_call>"


def read(reader: Reader, trigger: str) -> Steps:
    yield from reader.spaces()
    yield from read_calls(reader)
    yield from reader.spaces()
    yield from reader.expect(END)
    reader.done()


def grammar(functions: Sequence[Forced], parallel: bool) -> Rules:
    calls = alternatives(map(json_object, functions))
    return {
        "root": repeated(CALL, "\n", parallel),
        CALL: f"{literal(BEGIN)} {LINE} ({calls}) {LINE} {literal(END)}",
    }


def write(calls: Sequence[Call]) -> str:
    texts = (
        f'{BEGIN}\n{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}}}\n{END}'
        for call in calls
    )
    return "\n".join(texts)


HERMES = Format(
    name="hermes",
    marks=(("<tool_call>", "</tool_call>"),),
    triggers=(BEGIN,),
    read=read,
    grammar=grammar,
    write=write,
)
