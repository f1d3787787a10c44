"""One row of the benchmark: what was measured, against what, and whether that is enough.

Lives here: rows, goals, verdicts, printing, JSON. Not here: any measuring.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

AT_LEAST, AT_MOST = ">=", "<="


@dataclass(frozen=True)
class Goal:
    """`sense` is AT_LEAST or AT_MOST."""

    sense: str
    value: float

    def is_met(self, figure: float) -> bool:
        if math.isnan(figure):
            return False
        return figure >= self.value if self.sense == AT_LEAST else figure <= self.value

    def __str__(self) -> str:
        return f"{self.sense} {self.value:g}"


def at_least(value: float) -> Goal:
    return Goal(AT_LEAST, value)


def at_most(value: float) -> Goal:
    return Goal(AT_MOST, value)


@dataclass(frozen=True)
class Row:
    """One figure: the median of `n` repeats, their extremes, and what it means in words.

    `against` is the same figure of the server that --against names, if it was driven.
    """

    name: str
    figure: float
    low: float
    high: float
    n: int
    words: str
    goal: Goal | None = None
    against: float | None = None

    @property
    def verdict(self) -> str:
        if self.goal is None:
            return "-"
        return "ok" if self.goal.is_met(self.figure) else "miss"


def row(
    name: str,
    figures: Sequence[float],
    words: str,
    goal: Goal | None = None,
    against: Sequence[float] = (),
) -> Row:
    """Make a row of the figures of all repeats; of none, a row that misses its goal."""
    known = [figure for figure in figures if not math.isnan(figure)] or [math.nan]
    other = statistics.median(against) if against else None
    return Row(
        name, statistics.median(known), min(known), max(known), len(figures), words, goal, other
    )


def heading(with_against: bool) -> str:
    other = f" {'against':>8}" if with_against else ""
    return f"{'row':<24} {'figure':>8} {'min..max':>17} {'goal':>8} {'':<4}{other}  what"


def line(item: Row, with_against: bool) -> str:
    spread = f"{_short(item.low)}..{_short(item.high)}"
    other = ""
    if with_against:
        other = f" {_short(item.against) if item.against is not None else '-':>8}"
    goal = str(item.goal or "-")
    return (
        f"{item.name:<24} {_short(item.figure):>8} {spread:>17} {goal:>8} {item.verdict:<4}{other}"
        f"  {item.words} (n={item.n})"
    )


def _short(figure: float) -> str:
    return f"{figure:.3f}" if abs(figure) < 10 else f"{figure:.1f}"


def write_json(path: str, rows: Sequence[Row], facts: dict[str, Any]) -> None:
    """Write rows and the facts about the run; NaN becomes null, for strict readers."""
    table = [{**_without_nan(asdict(item)), "verdict": item.verdict} for item in rows]
    with open(path, "w", encoding="utf-8") as file:
        json.dump({**facts, "rows": table}, file, indent=1, allow_nan=False)
        file.write("\n")


def _without_nan(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in fields.items()
    }
