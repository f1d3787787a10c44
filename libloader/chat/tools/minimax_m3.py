"""MiniMax M3: a tag per argument, and inside it a tag per member or item, to any depth.

Each tag of the call is marked with a token, so that values may hold any other markup.
"""

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
    alternatives,
    literal,
    repeated,
    text_before,
)
from libloader.chat.tools.members import Members
from libloader.chat.tools.reader import Broken, Reader
from libloader.chat.tools.typed import Typed

MARK = "]<]minimax[>["
BLOCK, BLOCK_END = f"{MARK}<tool_call>", f"{MARK}</tool_call>"
INVOKE, NAMED, INVOKE_END = f'{MARK}<invoke name="', '">', f"{MARK}</invoke>"
ITEM = "item"
MAX_DEPTH = 50


def read(reader: Reader, trigger: str) -> Steps:
    yield from reader.spaces()
    yield from reader.expect(INVOKE)
    yield from reader.each(lambda: _read_call(reader), INVOKE)
    yield from reader.expect(BLOCK_END)
    reader.done()


def _read_call(reader: Reader) -> Steps:
    name = yield from reader.name()
    yield from reader.expect(NAMED)
    members, schema = Members(reader, name), reader.schema(name)
    while True:
        yield from reader.spaces()
        if (yield from reader.skip(INVOKE_END)):
            break
        key = yield from _read_tag(reader)
        value = yield from _read_value(reader, key, schema.property(key), 0)
        members.add(key, value)
    members.end()


def _read_tag(reader: Reader) -> Steps:
    """Read `<key>`; return the key."""
    yield from reader.expect(MARK + "<")
    if (yield from reader.looks_like("/")):
        raise Broken
    key, _ = yield from reader.until(">")
    return key


def _read_value(reader: Reader, key: str, schema: Typed, depth: int) -> Steps:
    """Read up to and with `</key>`: text, or tags of members, or tags of items."""
    if depth > MAX_DEPTH:
        raise Broken
    end = f"{MARK}</{key}>"
    text, _ = yield from reader.until(MARK)
    reader.back(len(MARK))
    if (yield from reader.skip(end)):
        return schema.value(text)
    pairs: list[tuple[str, Any]] = []
    while not (yield from reader.skip(end)):
        inner = yield from _read_tag(reader)
        kind = schema.items() if inner == ITEM else schema.property(inner)
        pairs.append((inner, (yield from _read_value(reader, inner, kind, depth + 1))))
        yield from reader.spaces()
    is_list = "object" not in schema.kinds() and all(name == ITEM for name, _ in pairs)
    return [value for _, value in pairs] if is_list else dict(pairs)


def grammar(functions: Sequence[Forced], parallel: bool) -> Rules:
    """Lists and objects come as JSON, which `read` takes as well: their schema is a rule of it."""
    rules: Rules = text_before(TEXT, f"{MARK}</")
    for index, function in enumerate(functions):
        parts = [
            _parameter(each) if each.required else f"({_parameter(each)})?"
            for each in function.parameters
        ]
        head = literal(INVOKE + function.name + NAMED)
        rules[f"{CALL}-{index}"] = " ".join([head, *parts, literal(INVOKE_END)])
    rules[CALL] = alternatives(f"{CALL}-{index}" for index in range(len(functions)))
    row = repeated(CALL, "\n", parallel)
    return {
        "root": f"{literal(BLOCK + chr(10))} {row} {literal(chr(10) + BLOCK_END)}",
        **rules,
    }


def _parameter(parameter: Parameter) -> str:
    head = literal(f"{MARK}<{parameter.name}>")
    if parameter.text == TEXT:  # its rule ends with the beginning of the tag
        return f"{head} {TEXT} {literal(parameter.name + '>')}"
    return f"{head} {parameter.text or parameter.rule} {literal(f'{MARK}</{parameter.name}>')}"


def write(calls: Sequence[Call]) -> str:
    return "\n".join([BLOCK, *map(_written, calls), BLOCK_END])


def _written(call: Call) -> str:
    """Return a call as `grammar` has it: lists and objects as JSON."""
    pairs = json.loads(call.arguments).items()
    texts = ((key, value if isinstance(value, str) else json.dumps(value)) for key, value in pairs)
    values = "".join(f"{MARK}<{key}>{text}{MARK}</{key}>" for key, text in texts)
    return f"{INVOKE}{call.name}{NAMED}{values}{INVOKE_END}"


MINIMAX_M3 = Format(
    name="minimax-m3",
    marks=((MARK, "<invoke name="),),
    triggers=(BLOCK,),
    shown=(MARK,),
    read=read,
    by_parameter=True,
    grammar=grammar,
    write=write,
)
