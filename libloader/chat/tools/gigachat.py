"""GigaChat: the call is a turn of its own in version 3, and follows a control token in 3.1.

3      <|message_sep|>, two line feeds, function call<|role_sep|>, a line feed, one JSON object
3.1    <|function_call|> and one JSON object
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from libloader.chat.tools.deltas import Call
from libloader.chat.tools.format import Format, Steps
from libloader.chat.tools.gbnf import (
    CALL,
    LINE,
    Begins,
    Forced,
    Rules,
    alternatives,
    json_object,
    literal,
)
from libloader.chat.tools.json_calls import read_call
from libloader.chat.tools.reader import Reader

SEPARATOR, ROLE = "<|message_sep|>", "function call<|role_sep|>"
TURN = f"{SEPARATOR}\n\n{ROLE}\n"
TOKEN = "<|function_call|>"


def read(reader: Reader, trigger: str) -> Steps:
    yield from reader.spaces()
    yield from read_call(reader)


def _rules(before: str, functions: Sequence[Forced]) -> Rules:
    return {
        "root": f"{literal(before)} {CALL}",
        CALL: alternatives(map(json_object, functions)),
    }


def _begins(functions: Sequence[Forced], root: str) -> Begins:
    """Free text may have ended the turn before."""
    return Begins((ROLE,), f"{literal(ROLE)} {LINE} {CALL}")


def _write(before: str, calls: Sequence[Call]) -> str:
    return "".join(
        f'{before}{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}}}'
        for call in calls
    )


GIGACHAT3 = Format(
    name="gigachat3",
    marks=(("function call", "role_sep", "function result"),),
    triggers=(ROLE,),
    wrappers=(SEPARATOR,),
    read=read,
    one_call=True,
    grammar=lambda functions, parallel: _rules(TURN, functions),
    begins=_begins,
    write=lambda calls: _write(TURN, calls),
)
GIGACHAT31 = Format(
    name="gigachat3.1",
    marks=((TOKEN,),),
    triggers=(TOKEN,),
    wrappers=(SEPARATOR,),
    read=read,
    one_call=True,
    grammar=lambda functions, parallel: _rules(TOKEN, functions),
    write=lambda calls: _write(TOKEN, calls),
)
