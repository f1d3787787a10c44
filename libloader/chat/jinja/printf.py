"""Text formatting for templates: `%` and the format filter, and `str.format`.

Both are our own small readings of Python's: no attributes, no indexing, bounded widths.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from re import Match
from typing import Callable

from libloader.chat.jinja.limits import MAX_WIDTH, Budget
from libloader.chat.jinja.values import Undefined, Value, shorten, text_of
from libloader.errors import TemplateError

_CONVERSION = re.compile(r"%(?:\((\w+)\))?([-+ 0#]*)(\d*)(?:\.(\d+))?([sdiufFeEgGxXor%])|%")
_FIELD = re.compile(r"\{\{|\}\}|\{(\w*)\}|[{}]")
_NUMBERS = "diufFeEgGxXo"


def printf(budget: Budget, template: str, args: Sequence[Value]) -> str:
    """Return `template % args`; one dict as the only argument serves `%(name)s`."""
    unused = iter(args)
    pieces = _Pieces(budget)

    def convert(match: Match[str]) -> str:
        name, flags, width, precision, letter = match.groups()
        if letter is None:
            raise TemplateError("incomplete % format")
        if letter == "%":
            return "%"
        if max(int(width or 0), int(precision or 0)) > MAX_WIDTH:
            raise TemplateError(f"a format width is above {MAX_WIDTH}")
        value = args[0][name] if name else _next(unused)
        if letter not in _NUMBERS:
            value = text_of(budget, value) if letter == "s" else repr(text_of(budget, value))
        elif not isinstance(value, (int, float)):
            raise TemplateError(f"%{letter} needs a number")
        spec = f"%{flags}{width}{'.' + precision if precision else ''}"
        return str((spec + ("s" if letter == "r" else letter)) % value)

    text = pieces.replace(_CONVERSION, convert, template)
    # As in Python, what could be a mapping need not be used.
    may_be_left = len(args) == 1 and isinstance(args[0], (dict, list, Undefined))
    if not may_be_left and any(True for _ in unused):
        raise TemplateError("too many arguments for the format")
    return text


def _next(values: Iterator[Value]) -> Value:
    for value in values:
        return value
    raise TemplateError("not enough arguments for the format")


def str_format(budget: Budget, template: str, *args: Value, **kwargs: Value) -> str:
    """Return `template.format(...)` for fields `{}`, `{0}` and `{name}`."""
    unused = iter(args)
    pieces = _Pieces(budget)

    def field(match: Match[str]) -> str:
        text, name = match.group(), match.group(1)
        if text in _DOUBLED:
            return _DOUBLED[text]
        if name is None:
            raise TemplateError(f"only {{}}, {{0}} and {{name}} fields: {shorten(template)}")
        if not name:
            return text_of(budget, _next(unused))
        return text_of(budget, args[int(name)] if name.isdecimal() else kwargs[name])

    return pieces.replace(_FIELD, field, template)


_DOUBLED: dict[str, str] = {"{{": "{", "}}": "}"}


class _Pieces:
    """re.sub with the length of the result checked as it grows."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget

    def replace(
        self, pattern: re.Pattern[str], function: Callable[[Match[str]], str], text: str
    ) -> str:
        pieces: list[str] = []
        position = length = 0
        for match in pattern.finditer(text):
            pieces += text[position : match.start()], function(match)
            length += len(pieces[-2]) + len(pieces[-1])
            self.budget.room(length)
            self.budget.spend(1)
            position = match.end()
        pieces.append(text[position:])
        self.budget.room(length + len(pieces[-1]))
        return self.budget.text("".join(pieces))
