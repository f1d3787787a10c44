"""GLM 4.5 and later: the name, then `<arg_key>` and `<arg_value>` pairs."""

from __future__ import annotations

from collections.abc import Sequence

from libloader.chat.tools.format import Format, Steps
from libloader.chat.tools.gbnf import CALL, Forced, Rules, repeated
from libloader.chat.tools.reader import Reader
from libloader.chat.tools.xml_calls import Shape, read_call, write_calls
from libloader.chat.tools.xml_calls import grammar as call_grammar

SHAPE = Shape(
    begin="<tool_call>",
    named="",
    key="<arg_key>",
    key_end="</arg_key>",
    value="<arg_value>",
    parameter_end="</arg_value>",
    end="</tool_call>",
    dense=True,
)


def read(reader: Reader, trigger: str) -> Steps:
    yield from read_call(reader, SHAPE)
    reader.done()


def grammar(functions: Sequence[Forced], parallel: bool) -> Rules:
    return {"root": repeated(CALL, "\n", parallel), **call_grammar(SHAPE, functions)}


GLM = Format(
    name="glm",
    marks=(("<arg_key>", "<arg_value>", "<tool_call>"),),
    triggers=(SHAPE.begin,),
    read=read,
    by_parameter=True,
    grammar=grammar,
    write=lambda calls: write_calls(SHAPE, calls),
)
