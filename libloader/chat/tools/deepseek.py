"""DeepSeek V3 and R1 (a code fence per call) and V3.1 (bare JSON)."""

from __future__ import annotations

from collections.abc import Sequence

from libloader.chat.tools.deltas import Call
from libloader.chat.tools.format import Format, Steps
from libloader.chat.tools.gbnf import CALL as CALL_RULE
from libloader.chat.tools.gbnf import Begins, Forced, Rules, alternatives, literal, one_of, repeated
from libloader.chat.tools.reader import Broken, Reader

CALLS, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, SEPARATOR, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
# Distilled models write the outer marker in other spellings, too.
BEGINS = (CALLS, "<｜tool_calls_begin｜>", "<｜tool calls begin｜>", "<｜tool▁calls｜>")


def read(reader: Reader, trigger: str) -> Steps:
    """Read all calls of a block; the outer markers are not always there."""
    if trigger != CALL:
        yield from reader.spaces()
        yield from reader.expect(CALL)
    yield from reader.each(lambda: _read_call(reader), CALL)
    yield from reader.skip(CALLS_END)
    reader.done()


def _read_call(reader: Reader) -> Steps:
    yield from reader.spaces()
    name = yield from reader.name()
    yield from reader.expect(SEPARATOR)
    if name == "function":  # V3, R1: the type comes first, the name after it
        name = yield from reader.name()
    yield from reader.spaces()
    fenced = yield from reader.skip_any("```json", "```")
    yield from reader.spaces()
    yield from reader.stream_arguments(name)
    yield from reader.spaces()
    if fenced:
        yield from reader.skip("```")
        yield from reader.spaces()
    if not (yield from reader.skip(CALL_END)):
        raise Broken
    reader.done()


def _grammar(before: str, after: str, functions: Sequence[Forced], parallel: bool) -> Rules:
    shared, _, named = before.partition("{}")
    calls = (
        f"{literal(each.name + named)} {each.arguments} {literal(after)}" for each in functions
    )
    row = repeated(CALL_RULE, "\n" if "```" in before else "", parallel)
    return {
        "root": f"{literal(CALLS)} {row} {literal(CALLS_END)}",
        CALL_RULE: one_of(shared, calls),
    }


def begins(functions: Sequence[Forced], root: str) -> Begins:
    """The outer mark may be spelt otherwise, or lack."""
    openings = alternatives(map(literal, BEGINS))
    return Begins((*BEGINS, CALL), f"({openings})? {root[len(literal(CALLS)) :]}")


V3 = CALL + "function" + SEPARATOR + "{}\n```json\n", "\n```" + CALL_END
V31 = CALL + "{}" + SEPARATOR, CALL_END


def _write(before: str, after: str, calls: Sequence[Call]) -> str:
    texts = (before.format(call.name) + call.arguments + after for call in calls)
    return CALLS + ("\n" if "```" in before else "").join(texts) + CALLS_END


DEEPSEEK_V3 = Format(
    name="deepseek-v3",
    marks=((CALLS, "```"),),
    triggers=(*BEGINS, CALL),
    shown=(SEPARATOR, CALL_END, CALLS_END),
    read=read,
    grammar=lambda functions, parallel: _grammar(*V3, functions, parallel),
    begins=begins,
    write=lambda calls: _write(*V3, calls),
)
DEEPSEEK_V31 = Format(
    name="deepseek-v3.1",
    marks=((CALLS,),),
    triggers=(*BEGINS, CALL),
    shown=(SEPARATOR, CALL_END, CALLS_END),
    read=read,
    grammar=lambda functions, parallel: _grammar(*V31, functions, parallel),
    begins=begins,
    write=lambda calls: _write(*V31, calls),
)
