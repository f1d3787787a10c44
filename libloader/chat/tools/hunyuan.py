"""Hy3: GLM's pairs of keys and values, in a block; each tag has a suffix of its edition."""

from __future__ import annotations

from collections.abc import Sequence

from libloader.chat.tools.format import Format, Steps
from libloader.chat.tools.gbnf import CALL, Forced, Rules, literal, repeated
from libloader.chat.tools.reader import Reader
from libloader.chat.tools.xml_calls import Shape, read_call, write_calls
from libloader.chat.tools.xml_calls import grammar as call_grammar

EDITION = ":opensource"
BLOCK, BLOCK_END = f"<tool_calls{EDITION}>", f"</tool_calls{EDITION}>"
SHAPE = Shape(
    begin=f"<tool_call{EDITION}>",
    named=f"<tool_sep{EDITION}>",
    key=f"<arg_key{EDITION}>",
    key_end=f"</arg_key{EDITION}>",
    value=f"<arg_value{EDITION}>",
    parameter_end=f"</arg_value{EDITION}>",
    end=f"</tool_call{EDITION}>",
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


HUNYUAN = Format(
    name="hunyuan",
    marks=((SHAPE.named,), ("<tool_sep{}>", "'<tool_calls{}>'")),
    triggers=(BLOCK,),
    shown=(BLOCK_END, *SHAPE[:7]),
    read=read,
    by_parameter=True,
    grammar=grammar,
    write=lambda calls: f"{BLOCK}\n{write_calls(SHAPE, calls)}\n{BLOCK_END}",
)
