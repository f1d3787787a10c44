"""Qwen3-Coder, Qwen 3.5, Nemotron 3: `<function=name>` with `<parameter=key>` tags inside."""

from __future__ import annotations

from collections.abc import Sequence

from libloader.chat.tools.deltas import Call
from libloader.chat.tools.format import Format, Steps
from libloader.chat.tools.gbnf import CALL, LINE, Begins, Forced, Rules, literal, repeated
from libloader.chat.tools.reader import Reader
from libloader.chat.tools.xml_calls import Shape, read_call, write_calls
from libloader.chat.tools.xml_calls import grammar as call_grammar

OUTER, OUTER_END, FUNCTION = "<tool_call>", "</tool_call>", "<function="
SHAPE = Shape(
    begin=FUNCTION,
    named=">",
    key="<parameter=",
    key_end=">",
    value="",
    parameter_end="</parameter>",
    end="</function>",
    padding="\n",
)
WRAPPED = f"{CALL}-wrapped"  # the rule of a call in its outer tag


def read(reader: Reader, trigger: str) -> Steps:
    """Read a call. Models forget the outer tag, so the inner one is a trigger too."""
    if trigger == OUTER:
        yield from reader.spaces()
        yield from reader.expect(FUNCTION)
    yield from read_call(reader, SHAPE)
    yield from reader.spaces()
    yield from reader.skip(OUTER_END)
    reader.done()


def grammar(functions: Sequence[Forced], parallel: bool) -> Rules:
    return {
        "root": repeated(WRAPPED, "\n", parallel),
        WRAPPED: f"{literal(OUTER)} {LINE} {CALL} {LINE} {literal(OUTER_END)}",
        **call_grammar(SHAPE, functions),
    }


def begins(functions: Sequence[Forced], root: str) -> Begins:
    return Begins((OUTER, FUNCTION), f"({root}) | {CALL} ({LINE} {literal(OUTER_END)})?")


def write(calls: Sequence[Call]) -> str:
    return "\n".join(f"{OUTER}\n{write_calls(SHAPE, [call])}\n{OUTER_END}" for call in calls)


QWEN3_CODER = Format(
    name="qwen3-coder",
    marks=(("<function=", "<parameter="),),
    triggers=(OUTER, FUNCTION),
    read=read,
    by_parameter=True,
    grammar=grammar,
    begins=begins,
    write=write,
)
