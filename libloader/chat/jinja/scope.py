"""The names that a template sees at one place, and where its text goes.

    root       globals of jinja, the render variables, names set at the top level
    inner      a copy of the names around it: bodies of for, macro, call, with, filter, block set
               and generation. What is set there is gone at its end, as jinja2 has it.

An inner scope may copy because nothing can set an outer name while the inner body runs. Only the
fields of a namespace() object outlive it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from libloader.chat.jinja.limits import Budget
from libloader.chat.jinja.values import Undefined, Value


class Scope(dict[str, Value]):
    """Names and values; a missing name reads as Undefined."""

    __slots__ = ("budget",)
    budget: Budget

    def __missing__(self, name: str) -> Value:
        return Undefined(f"'{name}'")

    def inner(self) -> Scope:
        child = Scope(self)
        child.budget = self.budget
        self.budget.spend(8 + (len(self) >> 4))
        return child


def root_scope(budget: Budget, *names: Mapping[str, Any]) -> Scope:
    scope = Scope()
    scope.budget = budget
    for group in names:
        scope.update(group)
    return scope


class Sink:
    """Collects the text of the template, of one macro call or of one captured block."""

    __slots__ = ("chunks", "budget")

    def __init__(self, budget: Budget) -> None:
        self.chunks: list[str] = []
        self.budget = budget

    def write(self, text: str) -> None:
        self.chunks.append(text)
        self.budget.write(len(text))

    def text(self) -> str:
        """Return all of it as a value of the template, counted as such."""
        self.budget.room(sum(map(len, self.chunks)))
        return self.budget.text("".join(self.chunks))
