"""Formats that are a marker and a JSON list: Granite 3, Phi 4 mini, Nemotron, Apriel, MiniMax M1.

firefunction v2 too: it writes ` functools[...]`.
"""

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
    json_object,
    literal,
    repeated,
)
from libloader.chat.tools.json_calls import read_calls
from libloader.chat.tools.reader import Reader


def _format(
    name: str, marks: tuple[tuple[str, ...], ...], before: str, after: str, row: str = "[]"
) -> Format:
    """Return the format that writes `before`, calls between the brackets `row`, and `after`."""
    trigger = before.strip()
    is_bracket = trigger.endswith("[")

    def read(reader: Reader, trigger: str) -> Steps:
        if is_bracket:
            reader.back(1)
        yield from reader.spaces()
        yield from read_calls(reader)
        yield from reader.spaces()
        if after:
            yield from reader.expect(after.strip())
            reader.done()

    separator = ", " if row else "\n"
    opening, closing = ("" if is_bracket else row[:1]), row[1:]

    def grammar(functions: Sequence[Forced], parallel: bool) -> Rules:
        calls = repeated(CALL, separator, parallel)
        return {
            "root": f"{literal(before + opening)} {calls} {literal(closing + after)}",
            CALL: alternatives(map(json_object, functions)),
        }

    def begins(functions: Sequence[Forced], root: str) -> Begins:
        """Free text may have written the white space before."""
        start = before + opening
        return Begins((trigger,), root.replace(literal(start), literal(start.lstrip()), 1))

    def write(calls: Sequence[Call]) -> str:
        texts = (
            f'{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}}}' for call in calls
        )
        return before + opening + separator.join(texts) + closing + after

    return Format(name, marks, (trigger,), read=read, grammar=grammar, begins=begins, write=write)


GRANITE3 = _format("granite", (("<|tool_call|>", "<|start_of_role|>"),), "<|tool_call|>", "")
PHI4 = _format("phi4", (("<|tool_call|>",),), "<|tool_call|>", "<|/tool_call|>")
NEMOTRON = _format("nemotron", (("<TOOLCALL>",),), "<TOOLCALL>", "</TOOLCALL>")
TOOL_CALLS = _format("tool-calls", (("<tool_calls>[",),), "<tool_calls>", "</tool_calls>")
MINIMAX_M1 = _format(
    "minimax-m1", (("<tool_calls>", "</tool_calls>"),), "<tool_calls>\n", "\n</tool_calls>", ""
)
FIREFUNCTION = _format("firefunction", (("functools[",), ("functools",)), " functools[", "")
