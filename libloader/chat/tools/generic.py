"""Any other model: it is told, in a system message, to write calls as JSON objects.

What it writes is taken for a call only if it is the whole answer, or in a <tool_call> tag, and
names a function of the request.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from libloader.chat.tools.deltas import Call
from libloader.chat.tools.format import Format, Steps
from libloader.chat.tools.gbnf import Begins, Forced, json_name
from libloader.chat.tools.json_calls import read_calls
from libloader.chat.tools.reader import Reader

BEGIN, END = "<tool_call>", "</tool_call>"
FENCE = "```json"

_INSTRUCTIONS = """\
You can call these functions:

{functions}

To call one, answer with nothing but its name and arguments in this form:
{example}
The results come back in the next message. If no function is needed, answer in plain text."""
_EXAMPLE = Call("", "name_of_function", '{"name_of_argument": "value"}')


def read(reader: Reader, trigger: str) -> Steps:
    if trigger != BEGIN:
        reader.back(len(trigger))
        yield from read_calls(reader, known_only=True)
        return
    yield from reader.spaces()
    yield from read_calls(reader)
    yield from reader.spaces()
    yield from reader.expect(END)
    reader.done()


def instructions(tools: Sequence[dict[str, Any]], format: Format) -> str:
    """Return the system message that tells a model about its tools and its format of calls."""
    functions = (tool.get("function", tool) for tool in tools)
    return _INSTRUCTIONS.format(
        functions="\n".join(json.dumps(each, ensure_ascii=False) for each in functions),
        example=format.write([_EXAMPLE]),
    )


def begins(functions: Sequence[Forced], root: str) -> Begins:
    """Plain JSON is a call once it is the whole answer and has named a function."""
    return Begins(at_start=tuple(json_name(each.name) for each in functions), first_calls=root)


GENERIC = Format(
    name="json",
    marks=(),
    triggers=(BEGIN,),
    first_triggers=("{", "[", FENCE),
    read=read,
    begins=begins,
)
