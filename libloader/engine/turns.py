"""Whose turn it is among the adapter sets that have work: a batch runs with one of them.

Law: a set with work gets a batch at least once in as many steps as there are such sets, whoever
comes and goes; a newcomer joins at the end.
"""

from __future__ import annotations

from libloader.core import Adapters
from libloader.engine.sequence import Sequence


class Turns:
    """A ring of adapter sets."""

    def __init__(self) -> None:
        self._line: list[Adapters] = []

    def of_one_kind(self, ready: list[Sequence]) -> list[Sequence]:
        """Return those of `ready` whose adapter set is next; it waits for all others then."""
        kinds = dict.fromkeys(sequence.live.adapters for sequence in ready)
        staying = [adapters for adapters in self._line if adapters in kinds]
        self._line = staying + [adapters for adapters in kinds if adapters not in staying]
        if len(self._line) < 2:
            return ready
        turn = self._line.pop(0)
        self._line.append(turn)
        return [sequence for sequence in ready if sequence.live.adapters == turn]
