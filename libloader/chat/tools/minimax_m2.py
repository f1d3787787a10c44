"""MiniMax M2: `<invoke name=...>` with `<parameter name=...>` tags, in one block for all calls."""

from __future__ import annotations

from collections.abc import Sequence

from libloader.chat.tools.format import Format, Steps
from libloader.chat.tools.gbnf import CALL, Forced, Rules, literal, repeated
from libloader.chat.tools.reader import Reader
from libloader.chat.tools.xml_calls import Shape, read_call, write_calls
from libloader.chat.tools.xml_calls import grammar as call_grammar

BLOCK, BLOCK_END = "<minimax:tool_call>", "</minimax:tool_call>"
SHAPE = Shape(
    begin='<invoke name="',
    named='">',
    key='<parameter name="',
    key_end='">',
    value="",
    parameter_end="</parameter>",
    end="</invoke>",
)


def read(reader: Reader, trigger: str) -> Steps:
    yield from reader.spaces()
    yield from reader.expect(SHAPE.begin)
    yield from reader.each(lambda: read_call(reader, SHAPE), SHAPE.begin)
    yield from reader.expect(BLOCK_END)
    reader.done()


def grammar(functions: Sequence[Forced], parallel: bool) -> Rules:
    calls = repeated(CALL, "\n", parallel)
    return {
        "root": f"{literal(BLOCK + chr(10))} {calls} {literal(chr(10) + BLOCK_END)}",
        **call_grammar(SHAPE, functions),
    }


MINIMAX_M2 = Format(
    name="minimax-m2",
    marks=((BLOCK,),),
    triggers=(BLOCK,),
    read=read,
    by_parameter=True,
    grammar=grammar,
    write=lambda calls: f"{BLOCK}\n{write_calls(SHAPE, calls)}\n{BLOCK_END}",
)
