"""What a tool-call format is: a row of plain facts and a generator that reads it."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable

from libloader.chat.reasoning import Tags
from libloader.chat.tools.deltas import Call
from libloader.chat.tools.gbnf import Begins, Forced, Rules, json_objects

if TYPE_CHECKING:  # reader.py needs Format, formats only name Reader
    from libloader.chat.tools.reader import Reader

Steps = Generator[None, None, Any]  # of a reading that waits for text where it yields


def _write_json(calls: Sequence[Call]) -> str:
    objects = ({"name": call.name, "arguments": json.loads(call.arguments)} for call in calls)
    return "\n".join(json.dumps(each, ensure_ascii=False) for each in objects)


@dataclass(frozen=True)
class Format:
    """How one family of models writes calls.

    `marks` are groups of texts: a chat template that contains all texts of a group speaks this
    format. `read(reader, trigger)` reads what follows a trigger; a format whose whole answer has
    a structure (channels) has `read_all(reader)` instead. `grammar(functions, parallel)` returns
    the GBNF rules of an answer that is calls and nothing else; `begins(functions, root)` says how
    free text turns into calls, given the root of those rules: by default, at any trigger.
    """

    name: str
    marks: tuple[tuple[str, ...], ...]
    triggers: tuple[str, ...] = ()  # begin calls anywhere
    first_triggers: tuple[str, ...] = ()  # only where the answer begins
    wrappers: tuple[str, ...] = ()  # around content; dropped
    shown: tuple[str, ...] = ()  # more texts that `read` looks for
    read: Callable[[Reader, str], Steps] | None = None
    read_all: Callable[[Reader], Steps] | None = None
    one_call: bool = False  # its models make one call an answer
    by_parameter: bool = False  # `grammar` needs a rule per parameter, not per object
    grammar: Callable[[Sequence[Forced], bool], Rules] = json_objects
    begins: Callable[[Sequence[Forced], str], Begins] | None = None
    thought: Tags | None = None  # around thoughts, where the whole answer has a structure
    resumes: str = ""  # what comes between thoughts and the rest, there
    content: str = ""  # what content begins with, there
    write: Callable[[Sequence[Call]], str] = _write_json  # for templates that write no calls

    def beginnings(self, functions: Sequence[Forced], root: str) -> Begins:
        """Return how calls begin in free text; empty where that is not certain enough."""
        if self.begins is not None:
            return self.begins(functions, root)
        return Begins(self.triggers, root)

    @property
    def looks_for_anything(self) -> bool:
        """False if all that a model writes is content."""
        return bool(self.triggers or self.first_triggers or self.wrappers or self.read_all)

    def texts(self) -> tuple[str, ...]:
        """The texts that an answer must show, even where they are control tokens."""
        return (*self.triggers, *self.first_triggers, *self.wrappers, *self.shown)
