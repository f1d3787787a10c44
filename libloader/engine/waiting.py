"""The line of sequences that wait for a slot: first come first served per key, keys in turn.

Not here: who may enter (engine.py bounds the number of requests) and who fits (scheduler.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from libloader.engine.sequence import Sequence


class Waiting:
    """A ring of lines, one per fair_key; sequences that lost their slot come before all others."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[Sequence]] = {}  # in the order of their turns
        self._returned: deque[Sequence] = deque()

    def __len__(self) -> int:
        return len(self._returned) + sum(len(line) for line in self._lines.values())

    def __iter__(self) -> Iterator[Sequence]:
        yield from self._returned
        for line in self._lines.values():
            yield from line

    def push(self, sequence: Sequence) -> None:
        self._lines.setdefault(sequence.live.request.fair_key, deque()).append(sequence)

    def push_back_to_front(self, sequence: Sequence) -> None:
        """Take back a sequence that was already running: nobody overtakes it."""
        self._returned.appendleft(sequence)

    def first(self) -> Sequence | None:
        """Return whose turn it is, without ending that turn."""
        return next(iter(self), None)

    def take_first(self) -> Sequence:
        """Remove and return whose turn it is; that key's next turn comes after all other keys'."""
        if self._returned:
            return self._returned.popleft()
        key = next(iter(self._lines))
        line = self._lines.pop(key)
        sequence = line.popleft()
        if line:
            self._lines[key] = line
        return sequence

    def remove(self, sequence: Sequence) -> None:
        if sequence in self._returned:
            self._returned.remove(sequence)
            return
        key = sequence.live.request.fair_key
        self._lines[key].remove(sequence)
        if not self._lines[key]:
            del self._lines[key]
