"""LFM2: Python calls between control tokens; newer models may write JSON there."""

from __future__ import annotations

from collections.abc import Sequence

from libloader.chat.tools.deltas import Call
from libloader.chat.tools.format import Format, Steps
from libloader.chat.tools.gbnf import CALL, Forced, Rules, literal, repeated
from libloader.chat.tools.json_calls import read_calls as read_json_calls
from libloader.chat.tools.python_calls import read_calls, write_calls
from libloader.chat.tools.pythonic import call_rules
from libloader.chat.tools.reader import Reader

BEGIN, END = "<|tool_call_start|>", "<|tool_call_end|>"


def read(reader: Reader, trigger: str) -> Steps:
    yield from reader.spaces()
    if (yield from reader.looks_like('[{"')) or (yield from reader.looks_like("{")):
        yield from read_json_calls(reader)
    else:
        yield from reader.expect("[")
        yield from read_calls(reader)
    yield from reader.spaces()
    yield from reader.expect(END)
    reader.done()


def grammar(functions: Sequence[Forced], parallel: bool) -> Rules:
    calls = repeated(CALL, ", ", parallel)
    return {"root": f"{literal(BEGIN + '[')} {calls} {literal(']' + END)}", **call_rules(functions)}


def write(calls: Sequence[Call]) -> str:
    return f"{BEGIN}[{write_calls(calls)}]{END}"


LFM2 = Format(
    name="lfm2",
    marks=(("<|tool_call_start|>",), ("<|tool_list_start|>",), ("List of tools: [",)),
    triggers=(BEGIN,),
    shown=(END,),
    read=read,
    by_parameter=True,
    grammar=grammar,
    write=write,
)
