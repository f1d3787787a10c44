"""functionary v3.1 (`<function=name>{...}</function>`) and v3.2 (`>>>name` sections)."""

from __future__ import annotations

from collections.abc import Sequence

from libloader.chat.tools.deltas import Call, ContentDelta
from libloader.chat.tools.format import Format, Steps
from libloader.chat.tools.gbnf import (
    CALL,
    Begins,
    Forced,
    Rules,
    alternatives,
    literal,
    one_of,
    repeated,
)
from libloader.chat.tools.reader import Broken, Reader

BEGIN, END = "<function=", "</function>"
SECTION, CONTENT = ">>>", "all"


def read_tagged(reader: Reader, trigger: str) -> Steps:
    name = yield from reader.name()
    yield from reader.expect(">")
    yield from reader.spaces()
    yield from reader.stream_arguments(name)
    yield from reader.spaces()
    yield from reader.expect(END)
    reader.done()


def read_sections(reader: Reader) -> Steps:
    """Read `all\\ntext>>>name\\n{...}`; the prompt has written the first `>>>`."""
    more = True
    yield from reader.skip(SECTION)
    while more:
        reader.mark()
        try:
            more = yield from _read_section(reader)
        except Broken:
            reader.rewind()
            more = yield from reader.stream(ContentDelta, SECTION)


def _read_section(reader: Reader) -> Steps:
    """Read one section; return whether another follows."""
    name = yield from reader.name()
    if name == CONTENT and (yield from reader.skip("\n")):
        return (yield from reader.stream(ContentDelta, SECTION))
    yield from reader.expect("\n")
    yield from reader.stream_arguments(name)
    yield from reader.spaces()
    return (yield from reader.skip(SECTION)) or (yield from reader.stream(ContentDelta, SECTION))


def tagged_grammar(functions: Sequence[Forced], parallel: bool) -> Rules:
    calls = (f"{literal(each.name + '>')} {each.arguments} {literal(END)}" for each in functions)
    return {"root": repeated(CALL, "", parallel), CALL: one_of(BEGIN, calls)}


def section_grammar(functions: Sequence[Forced], parallel: bool) -> Rules:
    calls = (f"{literal(each.name + chr(10))} {each.arguments}" for each in functions)
    return {"root": repeated(CALL, SECTION, parallel), CALL: alternatives(calls)}


def section_begins(functions: Sequence[Forced], root: str) -> Begins:
    names = [each.name + "\n" for each in functions]
    anywhere = tuple(SECTION + name for name in names)
    return Begins(anywhere, f"{literal(SECTION)} ({root})", tuple(names), root)


def write_tagged(calls: Sequence[Call]) -> str:
    return "".join(f"{BEGIN}{call.name}>{call.arguments}{END}" for call in calls)


def write_sections(calls: Sequence[Call]) -> str:
    return SECTION.join(f"{call.name}\n{call.arguments}" for call in calls)


FUNCTIONARY_V31 = Format(
    name="functionary-v3.1",
    marks=((BEGIN, END, "<|eom_id|>"), ("<function=example_function_name>{",)),
    triggers=(BEGIN,),
    read=read_tagged,
    grammar=tagged_grammar,
    write=write_tagged,
)
FUNCTIONARY_V32 = Format(
    name="functionary-v3.2",
    marks=((SECTION + "all",), (">>>${recipient}",)),
    read_all=read_sections,
    grammar=section_grammar,
    begins=section_begins,
    content=f"{CONTENT}\n",
    write=write_sections,
)
