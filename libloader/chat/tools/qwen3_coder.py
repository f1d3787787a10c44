"""Qwen3-Coder, Qwen 3.5, Nemotron 3: `<function=name>` with `<parameter=key>` tags inside."""

from __future__ import annotations

from collections.abc import Sequence

from libloader.chat.tools.format import Format, Steps
from libloader.chat.tools.gbnf import CALL, Forced, Rules, repeated
from libloader.chat.tools.reader import Reader
from libloader.chat.tools.xml_calls import Shape, read_call, write_calls
from libloader.chat.tools.xml_calls import grammar as call_grammar

OUTER, OUTER_END, FUNCTION = "<tool_call>", "</tool_call>", "<function="
SHAPE = Shape(
    begin=f"{OUTER}\n{FUNCTION}",
    named=">",
    key="<parameter=",
    key_end=">",
    value="",
    parameter_end="</parameter>",
    end=f"</function>\n{OUTER_END}",
    padding="\n",
)
INNER = SHAPE._replace(end="</function>")


def read(reader: Reader, trigger: str) -> Steps:
    """Read a call. Models forget the outer tag, so the inner one is a trigger too."""
    if trigger == OUTER:
        yield from reader.spaces()
        yield from reader.expect(FUNCTION)
    yield from read_call(reader, INNER)
    yield from reader.spaces()
    yield from reader.skip(OUTER_END)
    reader.done()


def grammar(functions: Sequence[Forced], parallel: bool) -> Rules:
    return {"root": repeated(CALL, "\n", parallel), **call_grammar(SHAPE, functions)}


QWEN3_CODER = Format(
    name="qwen3-coder",
    marks=(("<function=", "<parameter="),),
    triggers=(OUTER, FUNCTION),
    read=read,
    by_parameter=True,
    grammar=grammar,
    write=lambda calls: write_calls(SHAPE, calls),
)
