"""DeepSeek V3.2 and V4: DSML tags, whose parameters say themselves whether they are text."""

from __future__ import annotations

import json
from collections.abc import Sequence

from libloader.chat.tools.deltas import Call
from libloader.chat.tools.format import Format, Steps
from libloader.chat.tools.gbnf import (
    CALL,
    TEXT,
    Begins,
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

MARK = "｜DSML｜"
BLOCK, BLOCK_END = f"<{MARK}tool_calls>", f"</{MARK}tool_calls>"
OLD_BLOCK, OLD_BLOCK_END = f"<{MARK}function_calls>", f"</{MARK}function_calls>"
INVOKE, INVOKE_END = f'<{MARK}invoke name="', f"</{MARK}invoke>"
PARAMETER, PARAMETER_END = f'<{MARK}parameter name="', f"</{MARK}parameter>"
AS_TEXT, AS_JSON = '" string="true">', '" string="false">'


def read(reader: Reader, trigger: str) -> Steps:
    yield from reader.spaces()
    yield from reader.expect(INVOKE)
    yield from reader.each(lambda: _read_call(reader), INVOKE)
    if not (yield from reader.skip_any(BLOCK_END, OLD_BLOCK_END)):
        raise Broken
    reader.done()


def _read_call(reader: Reader) -> Steps:
    name = yield from reader.name()
    yield from reader.expect('">')
    members = Members(reader, name)
    while True:
        yield from reader.spaces()
        if (yield from reader.skip(INVOKE_END)):
            break
        yield from reader.expect(PARAMETER)
        key, kind = yield from reader.until(AS_TEXT, AS_JSON, '">')
        if kind == AS_TEXT:
            yield from members.stream_text(key, PARAMETER_END)
            continue
        text, _ = yield from reader.until(PARAMETER_END)
        members.add_text(key, text)
    members.end()


def grammar(functions: Sequence[Forced], parallel: bool) -> Rules:
    rules: Rules = text_before(TEXT, PARAMETER_END)
    for index, function in enumerate(functions):
        head = literal(f'{INVOKE}{function.name}">\n')
        parts = [
            f"{_parameter(each)}" if each.required else f"({_parameter(each)})?"
            for each in function.parameters
        ]
        rules[f"{CALL}-{index}"] = " ".join([head, *parts, literal(INVOKE_END)])
    rules[CALL] = alternatives(f"{CALL}-{index}" for index in range(len(functions)))
    row = repeated(CALL, "\n", parallel)
    return {"root": f"{literal(BLOCK + chr(10))} {row} {literal(chr(10) + BLOCK_END)}", **rules}


def begins(functions: Sequence[Forced], root: str) -> Begins:
    """V3.2 calls its block otherwise."""
    old = root.replace(BLOCK, OLD_BLOCK).replace(BLOCK_END, OLD_BLOCK_END)
    return Begins((BLOCK, OLD_BLOCK), f"({root}) | ({old})")


def _parameter(parameter: Parameter) -> str:
    head = literal(PARAMETER + parameter.name + (AS_TEXT if parameter.text else AS_JSON))
    if parameter.text == TEXT:
        return f"{head} {TEXT} {literal(chr(10))}"
    return f"{head} {parameter.text or parameter.rule} {literal(PARAMETER_END + chr(10))}"


def write(calls: Sequence[Call]) -> str:
    return "\n".join([BLOCK, *map(_written, calls), BLOCK_END])


def _written(call: Call) -> str:
    lines = [f'{INVOKE}{call.name}">']
    for key, value in json.loads(call.arguments).items():
        is_text = isinstance(value, str)
        text = value if is_text else json.dumps(value, ensure_ascii=False)
        lines.append(f"{PARAMETER}{key}{AS_TEXT if is_text else AS_JSON}{text}{PARAMETER_END}")
    return "\n".join([*lines, INVOKE_END])


DEEPSEEK_DSML = Format(
    name="deepseek-dsml",
    marks=((MARK, "invoke"),),
    triggers=(BLOCK, OLD_BLOCK),
    shown=(BLOCK_END, OLD_BLOCK_END, INVOKE, INVOKE_END),
    read=read,
    by_parameter=True,
    grammar=grammar,
    begins=begins,
    write=write,
)
