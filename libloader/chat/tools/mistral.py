"""Mistral: `[TOOL_CALLS][{...}]` (Nemo, 7B v0.3), `[TOOL_CALLS]name[ARGS]{...}` (Small 3.2 on)."""

from __future__ import annotations

import json
from collections.abc import Sequence

from libloader.chat.tools.deltas import Call
from libloader.chat.tools.format import Format, Steps
from libloader.chat.tools.gbnf import (
    CALL,
    Forced,
    Rules,
    alternatives,
    json_head,
    literal,
    one_of,
    repeated,
)
from libloader.chat.tools.json_calls import read_calls
from libloader.chat.tools.reader import Reader

BEGIN, ID, ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"


def read(reader: Reader, trigger: str) -> Steps:
    yield from reader.spaces()
    if (yield from reader.looks_like("[")) or (yield from reader.looks_like("{")):
        yield from read_calls(reader)
        return
    name = yield from reader.name()
    yield from reader.spaces()
    id = (yield from reader.name()) if (yield from reader.skip(ID)) else ""
    yield from reader.skip(ARGS)
    yield from reader.spaces()
    yield from reader.stream_arguments(name, id)


def list_grammar(functions: Sequence[Forced], parallel: bool) -> Rules:
    """Models may put an id behind the arguments, as their template does."""
    calls = (f"{literal(json_head(each.name))} {each.arguments}" for each in functions)
    id = '", \\"id\\": \\"" [a-zA-Z0-9]{9} "\\""'
    return {
        "root": f'{literal(BEGIN)} " "? "[" {repeated(CALL, ", ", parallel)} "]"',
        CALL: f'({alternatives(calls)}) ({id})? "}}"',
    }


def args_grammar(functions: Sequence[Forced], parallel: bool) -> Rules:
    id = f"({literal(ID)} [a-zA-Z0-9]{{9}})? {literal(ARGS)}"
    calls = (f"{literal(each.name)} {id} {each.arguments}" for each in functions)
    return {"root": f"{CALL}+" if parallel else CALL, CALL: one_of(BEGIN, calls)}


def write_list(calls: Sequence[Call]) -> str:
    texts = (
        f'{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}}}' for call in calls
    )
    return f"{BEGIN}[{', '.join(texts)}]"


def write_args(calls: Sequence[Call]) -> str:
    return "".join(f"{BEGIN}{call.name}{ARGS}{call.arguments}" for call in calls)


MISTRAL_ARGS = Format(
    name="mistral",
    marks=((BEGIN, ARGS),),
    triggers=(BEGIN,),
    shown=(ID, ARGS),
    read=read,
    grammar=args_grammar,
    write=write_args,
)
MISTRAL_LIST = Format(
    name="mistral-nemo",
    marks=((BEGIN,),),
    triggers=(BEGIN,),
    read=read,
    grammar=list_grammar,
    write=write_list,
)
