"""The global names of every template: range, namespace, raise_exception, strftime_now, ..."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from re import Match
from typing import Any, Callable

from libloader.chat.jinja.limits import MAX_RANGE, Budget
from libloader.chat.jinja.values import (
    Function,
    Namespace,
    Object,
    Value,
    missing,
    new_dict,
    text_of,
)
from libloader.errors import TemplateError, TemplateRaised


def _raise_exception(budget: Budget, message: Value = "") -> None:
    raise TemplateRaised(text_of(budget, message))


def _range(budget: Budget, *bounds: Value) -> range:
    result = range(*bounds)
    # A range's len() fails above 2**63, hence the look at its bounds first.
    if max(abs(result.start), abs(result.stop)) > 2**62 or len(result) > MAX_RANGE:
        raise TemplateError(f"a range is longer than {MAX_RANGE}")
    return result


def _namespace(budget: Budget, *pairs: Value, **named: Value) -> Namespace:
    return Namespace(new_dict(budget, *pairs, **named))


class Cycler(Object):
    """`cycler(a, b)`: next() returns its items in turn."""

    __slots__ = ("items", "position")

    def __init__(self, items: list[Value]) -> None:
        self.items = items
        self.position = 0

    def attribute(self, name: str) -> Value:
        if name == "current":
            return self.items[self.position]
        known = {"next": self._next, "reset": self._reset}
        return Function(name, known[name]) if name in known else missing(name)

    def parts(self) -> list[Value]:
        return self.items

    def _next(self, budget: Budget) -> Value:
        value = self.items[self.position]
        self.position = (self.position + 1) % len(self.items)
        return value

    def _reset(self, budget: Budget) -> None:
        self.position = 0


class Joiner(Object):
    """`joiner(", ")`: nothing at the first call, its text at each later one."""

    __slots__ = ("separator", "used")

    def __init__(self, separator: Value) -> None:
        self.separator = separator
        self.used = False

    def parts(self) -> list[Value]:
        return [self.separator]

    def call(self, budget: Budget, args: list[Value], kwargs: dict[str, Value]) -> Value:
        first, self.used = not self.used, True
        return "" if first else self.separator


def _cycler(budget: Budget, *items: Value) -> Cycler:
    if not items:
        raise TemplateError("cycler needs at least one item")
    return Cycler(list(items))


def _joiner(budget: Budget, sep: Value = ", ") -> Joiner:
    return Joiner(sep)


_FUNCTIONS: Mapping[str, Callable[..., Value]] = {
    "cycler": _cycler,
    "dict": new_dict,
    "joiner": _joiner,
    "namespace": _namespace,
    "raise_exception": _raise_exception,
    "range": _range,
}
GLOBALS: Mapping[str, Value] = {name: Function(name, f) for name, f in _FUNCTIONS.items()}

# --- the clock -----------------------------------------------------------------------------------

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
# Our own table: C's strftime depends on the platform and its locale, and may pad without end.
_DIRECTIVES: Mapping[str, Callable[[datetime.datetime], str]] = {
    "%": lambda now: "%",
    "a": lambda now: _DAYS[now.weekday()][:3],
    "A": lambda now: _DAYS[now.weekday()],
    "b": lambda now: _MONTHS[now.month - 1][:3],
    "B": lambda now: _MONTHS[now.month - 1],
    "c": lambda now: _strftime(now, "%a %b %e %H:%M:%S %Y"),
    "d": lambda now: f"{now.day:02}",
    "D": lambda now: _strftime(now, "%m/%d/%y"),
    "e": lambda now: f"{now.day:2}",
    "f": lambda now: f"{now.microsecond:06}",
    "F": lambda now: _strftime(now, "%Y-%m-%d"),
    "h": lambda now: _MONTHS[now.month - 1][:3],
    "H": lambda now: f"{now.hour:02}",
    "I": lambda now: f"{(now.hour + 11) % 12 + 1:02}",
    "j": lambda now: f"{now.timetuple().tm_yday:03}",
    "m": lambda now: f"{now.month:02}",
    "M": lambda now: f"{now.minute:02}",
    "n": lambda now: "\n",
    "p": lambda now: "AM" if now.hour < 12 else "PM",
    "R": lambda now: _strftime(now, "%H:%M"),
    "S": lambda now: f"{now.second:02}",
    "t": lambda now: "\t",
    "T": lambda now: _strftime(now, "%H:%M:%S"),
    "u": lambda now: str(now.isoweekday()),
    "w": lambda now: str(now.isoweekday() % 7),
    "x": lambda now: _strftime(now, "%m/%d/%y"),
    "X": lambda now: _strftime(now, "%H:%M:%S"),
    "y": lambda now: f"{now.year % 100:02}",
    "Y": lambda now: str(now.year),
    "z": lambda now: now.strftime("%z"),
    "Z": lambda now: now.tzname() or "",
}
_DIRECTIVE = re.compile(r"%(-?)(.)", re.DOTALL)


def _strftime(now: datetime.datetime, text: str) -> str:
    def directive(match: Match[str]) -> str:
        minus, letter = match.groups()
        if letter not in _DIRECTIVES:
            return match.group()
        value = _DIRECTIVES[letter](now)
        return (value.lstrip("0 ") or "0") if minus else value  # %-d: without padding

    return _DIRECTIVE.sub(directive, text)


def clock(now: Any) -> Function:
    """Return strftime_now for a rendering that takes place at the datetime `now`."""

    def strftime_now(budget: Budget, format: str) -> str:
        if len(format) > 1000:
            raise TemplateError("the time format is too long")
        return budget.text(_strftime(now, format))

    return Function("strftime_now", strftime_now)
