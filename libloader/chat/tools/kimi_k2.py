"""Kimi K2: ids such as `functions.get_weather:0` carry the name."""

from __future__ import annotations

import re
from collections.abc import Sequence

from libloader.chat.tools.deltas import Call
from libloader.chat.tools.format import Format, Steps
from libloader.chat.tools.gbnf import CALL as CALL_RULE
from libloader.chat.tools.gbnf import Begins, Forced, Rules, literal, one_of
from libloader.chat.tools.reader import Reader

SECTION, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL, ARGUMENTS, CALL_END = (
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
)
_ID = re.compile(r"(?:functions\.)?(.+?)(?::\d+)?")


def read(reader: Reader, trigger: str) -> Steps:
    if trigger == SECTION:
        yield from reader.spaces()
        yield from reader.expect(CALL)
    yield from reader.each(lambda: _read_call(reader), CALL)
    yield from reader.skip(SECTION_END)
    reader.done()


def _read_call(reader: Reader) -> Steps:
    yield from reader.spaces()
    id = yield from reader.name()
    yield from reader.spaces()
    yield from reader.expect(ARGUMENTS)
    yield from reader.spaces()
    match = _ID.fullmatch(id)
    yield from reader.stream_arguments(match.group(1) if match else id, id)
    yield from reader.spaces()
    yield from reader.expect(CALL_END)
    reader.done()


def grammar(functions: Sequence[Forced], parallel: bool) -> Rules:
    calls = (
        f"{literal(each.name + ':')} [0-9] {literal(ARGUMENTS)} {each.arguments} "
        f"{literal(CALL_END)}"
        for each in functions
    )
    row = f"{CALL_RULE}+" if parallel else CALL_RULE
    return {
        "root": f"{literal(SECTION)} {row} {literal(SECTION_END)}",
        CALL_RULE: one_of(f"{CALL}functions.", calls),
    }


def begins(functions: Sequence[Forced], root: str) -> Begins:
    """Models forget the outer mark."""
    return Begins((SECTION, CALL), f"({root}) | {CALL_RULE}")


def write(calls: Sequence[Call]) -> str:
    texts = (
        f"{CALL}functions.{call.name}:{index}{ARGUMENTS}{call.arguments}{CALL_END}"
        for index, call in enumerate(calls)
    )
    return SECTION + "".join(texts) + SECTION_END


KIMI_K2 = Format(
    name="kimi-k2",
    marks=((SECTION,),),
    triggers=(SECTION, CALL),
    shown=(ARGUMENTS, CALL_END, SECTION_END),
    read=read,
    grammar=grammar,
    begins=begins,
    write=write,
)
