"""Llama 3.1 to 3.3: one JSON object is the whole answer, or follows <|python_tag|>."""

from __future__ import annotations

import json
from collections.abc import Sequence

from libloader.chat.tools.deltas import Call
from libloader.chat.tools.format import Format, Steps
from libloader.chat.tools.gbnf import (
    CALL,
    Begins,
    Forced,
    Rules,
    alternatives,
    json_name,
    json_object,
    literal,
    repeated,
)
from libloader.chat.tools.json_calls import read_calls
from libloader.chat.tools.reader import Broken, Reader

TAG = "<|python_tag|>"


def read(reader: Reader, trigger: str) -> Steps:
    if trigger == "{":
        reader.back(1)
        yield from read_calls(reader, known_only=True)
        return
    yield from reader.spaces()
    if (yield from reader.looks_like("{")):
        yield from read_calls(reader)
    else:
        yield from _read_builtin(reader)


def _read_builtin(reader: Reader) -> Steps:
    """Read `brave_search.call(query="...")`, or else Python for the code interpreter."""
    name = yield from reader.name()
    method = ".call"
    if not name.endswith(method) or not (yield from reader.skip("(query=")):
        raise Broken
    query = json.loads((yield from reader.json()))
    yield from reader.expect(")")
    reader.call(name[: -len(method)], {"query": query})


def grammar(functions: Sequence[Forced], parallel: bool) -> Rules:
    calls = (json_object(each, arguments_key="parameters") for each in functions)
    return {"root": repeated(CALL, "; ", parallel), CALL: alternatives(calls)}


def begins(functions: Sequence[Forced], root: str) -> Begins:
    """JSON is a call once the name of a function has come; other tools may follow the tag."""
    heads = tuple(json_name(each.name) for each in functions)
    return Begins((f'{TAG}{{"name"',), f"{literal(TAG)} ({root})", heads, root)


def write(calls: Sequence[Call]) -> str:
    return "; ".join(
        f'{{"name": {json.dumps(call.name)}, "parameters": {call.arguments}}}' for call in calls
    )


LLAMA3 = Format(
    name="llama3",
    marks=(("<|start_header_id|>", '"parameters"'), ("<|start_header_id|>", "ipython")),
    triggers=(TAG,),
    first_triggers=("{",),
    read=read,
    grammar=grammar,
    begins=begins,
    write=write,
)
