"""Cohere: `Action: ```json [...]```` (Command-R) and <|START_ACTION|> (R7B, A and later)."""

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
    json_head,
    json_object,
    literal,
    repeated,
)
from libloader.chat.tools.json_calls import read_calls
from libloader.chat.tools.reader import Reader

ACTION, FENCE = "Action:", "```"
BEGIN, END = "<|START_ACTION|>", "<|END_ACTION|>"


def read_action(reader: Reader, trigger: str) -> Steps:
    yield from reader.spaces()
    yield from reader.expect(FENCE)
    reader.back(len(FENCE))
    yield from read_calls(reader)


def read_tagged(reader: Reader, trigger: str) -> Steps:
    yield from reader.spaces()
    yield from read_calls(reader)
    yield from reader.spaces()
    yield from reader.expect(END)
    reader.done()


def _grammar(before: str, after: str, functions: Sequence[Forced], parallel: bool) -> Rules:
    calls = (json_object(each, "tool_name", "parameters") for each in functions)
    row = repeated(CALL, ",\n    ", parallel)
    return {
        "root": f"{literal(before)} {row} {literal(after)}",
        CALL: alternatives(calls),
    }


def action_grammar(functions: Sequence[Forced], parallel: bool) -> Rules:
    return _grammar(f"{ACTION} {FENCE}json\n[\n    ", f"\n]{FENCE}", functions, parallel)


def tagged_grammar(functions: Sequence[Forced], parallel: bool) -> Rules:
    """The models number their calls; the number may be left out."""
    rules = _grammar(f"{BEGIN}[\n    ", f"\n]{END}", functions, parallel)
    number = '"\\"tool_call_id\\": \\"" [0-9] [0-9]? "\\", "'
    calls = (
        f"{literal(json_head(each.name, 'tool_name', 'parameters')[1:])} {each.arguments}"
        for each in functions
    )
    return {**rules, CALL: f'"{{" ({number})? ({alternatives(calls)}) "}}"'}


def _write(before: str, after: str, calls: Sequence[Call]) -> str:
    texts = (
        f'{{"tool_name": {json.dumps(call.name)}, "parameters": {call.arguments}}}'
        for call in calls
    )
    return before + ",\n    ".join(texts) + after


COMMAND_R = Format(
    name="command-r",
    marks=(("Action: ```json",), ("Action:```json",), ("Action:", "tool_name")),
    triggers=(ACTION,),
    read=read_action,
    grammar=action_grammar,
    # Its models answer in plain words by way of a call too, of `directly_answer`.
    begins=lambda functions, root: Begins(),
    write=lambda calls: _write(f"{ACTION} {FENCE}json\n[\n    ", f"\n]{FENCE}", calls),
)
COMMAND_R7B = Format(
    name="command-r7b",
    marks=((BEGIN,),),
    triggers=(BEGIN,),
    shown=(END,),
    wrappers=("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"),
    read=read_tagged,
    grammar=tagged_grammar,
    write=lambda calls: _write(f"{BEGIN}[\n    ", f"\n]{END}", calls),
)
