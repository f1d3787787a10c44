"""Llama 3.2 and 4 and others: the whole answer is a list of Python calls."""

from __future__ import annotations

from collections.abc import Sequence

from libloader.chat.tools.deltas import Call
from libloader.chat.tools.format import Format, Steps
from libloader.chat.tools.gbnf import CALL, Begins, Forced, Rules, alternatives, literal, repeated
from libloader.chat.tools.python_calls import read_calls, write_calls
from libloader.chat.tools.reader import Reader

START, END = "<|python_start|>", "<|python_end|>"


def read(reader: Reader, trigger: str) -> Steps:
    if trigger == START:
        yield from reader.expect("[")
    yield from read_calls(reader, known_only=trigger == "[")
    yield from reader.skip(END)
    reader.done()


def call_rules(functions: Sequence[Forced]) -> Rules:
    """The rules of one Python call, called `call`; values are JSON, which Python calls may hold."""
    rules: Rules = {}
    for index, function in enumerate(functions):
        rules[f"{CALL}-{index}"] = (
            f"{literal(function.name + '(')} {_arguments(function)} {literal(')')}"
        )
    rules[CALL] = alternatives(f"{CALL}-{index}" for index in range(len(functions)))
    return rules


def _arguments(function: Forced) -> str:
    """Required arguments in order, then optional ones; commas make the nesting."""
    required = [p for p in function.parameters if p.required]
    optional = [p for p in function.parameters if not p.required]
    parts = [f"{literal(p.name + '=')} {p.rule}" for p in required]
    text = f" {literal(', ')} ".join(parts)
    for parameter in optional if required else ():
        text += f" ({literal(', ' + parameter.name + '=')} {parameter.rule})?"
    if not required and optional:
        text = f"({alternatives(f'{literal(p.name + chr(61))} {p.rule}' for p in optional)})?"
    return text or '""'


def grammar(functions: Sequence[Forced], parallel: bool) -> Rules:
    return {"root": f'"[" {repeated(CALL, ", ", parallel)} "]"', **call_rules(functions)}


def begins(functions: Sequence[Forced], root: str) -> Begins:
    """A list that begins the answer is one of calls if it begins with a function's name."""
    heads = tuple(f"[{each.name}(" for each in functions)
    return Begins((START,), f"{literal(START)} {root} {literal(END)}?", heads, root)


def write(calls: Sequence[Call]) -> str:
    return f"[{write_calls(calls)}]"


PYTHONIC = Format(
    name="pythonic",
    marks=(("<|python_start|>",), ("[func_name1(",), ("[func_name(",)),
    triggers=(START,),
    first_triggers=("[",),
    read=read,
    by_parameter=True,
    grammar=grammar,
    begins=begins,
    write=write,
)
