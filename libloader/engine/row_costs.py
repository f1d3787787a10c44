"""What the rows of a prompt cost, by how many of them share a batch: measured.

A row costs the more, the longer the past behind it: twice as much behind 2,500 tokens as behind
500 (15M model). By how much more is learned from batches of one size behind different pasts, and
holds for all sizes: else a size that was last used near the beginning of a prompt would look cheap
near its end, be tried, and hold up whoever waits.

Smaller is not always faster: flash attention on a CPU works in tiles of 64 rows, and a batch of 32
rows behind 1,000 tokens took 244 ms where one of 64 took 33 ms. So each size is measured by itself.

A moment may be bad, the first one always is (the weights come from the disk: 1.7 s for a batch that
takes 0.1): a size costs the median of its latest batches, one bad one is not believed where a
smaller size does better, and what is known of a size is slowly forgotten while others are used.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TypeVar

from libloader.engine.timings import Average

MEMORY = 3  # batches of one size
FORGET = 0.9995  # of a size's cost remains with each batch of another size
OUTLIER = 4.0  # a bad moment of the machine counts as so many times what is known, at most
FAR = 512  # tokens between two pasts that tell what a past costs
LEAST = 0.2  # of a row's measured cost remains, however much shorter the past is now

T = TypeVar("T", float, tuple[float, int])


class RowCosts:
    """Learns from each batch. Sizes are numbers of rows, times seconds, pasts tokens."""

    def __init__(self) -> None:
        self._by_size: dict[int, _RowCost] = {}
        self._of_past = Average()  # what each token of past adds to a row

    @property
    def is_known(self) -> bool:
        return bool(self._by_size)

    def note(self, size: int, row_s: float, n_past: int) -> None:
        """Learn from a batch of about `size` rows, of which each took `row_s`."""
        cost = self._by_size.setdefault(size, _RowCost())
        of_past = cost.of_past(row_s, n_past)
        if of_past is not None:
            self._of_past.add(of_past)
        for other in self._by_size.values():
            other.trust *= FORGET
        cost.add(row_s, n_past, self._past_s())

    def batch_s(self, size: int, n_past: int) -> float:
        """Return what a batch takes, by the rows of this size, else of the sizes next to it."""
        return size * min(cost.row_s(n_past, self._past_s()) for cost in self._witnesses(size))

    def _witnesses(self, size: int) -> list[_RowCost]:
        known = self._by_size
        own = known.get(size)
        if own is not None and own.is_proved:
            return [own]
        smaller = max((other for other in known if other < size), default=None)
        larger = min((other for other in known if other > size), default=None)
        return [known[each] for each in (smaller, size if own else larger) if each is not None]

    def _past_s(self) -> float:
        return self._of_past.or_else(0.0)


class _RowCost:
    """Of one size: the latest batches. What was not measured of late counts for less."""

    def __init__(self) -> None:
        self.trust = 1.0
        self._latest: deque[tuple[float, int]] = deque(maxlen=MEMORY)  # (seconds of a row, past)

    @property
    def is_proved(self) -> bool:
        return len(self._latest) > 1

    def row_s(self, n_past: int, past_s: float) -> float:
        """Return what a row takes behind `n_past` tokens, of which each adds `past_s`."""
        return self.trust * _lower_middle(
            [max(LEAST * row_s, row_s + past_s * (n_past - n)) for row_s, n in self._latest]
        )

    def of_past(self, row_s: float, n_past: int) -> float | None:
        """Return what a token of past adds, if this row stands behind a very different one."""
        if not self._latest:
            return None
        known_s, n_known = _lower_middle(list(self._latest))
        n_more = n_past - n_known
        return max(0.0, (row_s - known_s) / n_more) if abs(n_more) >= FAR else None

    def add(self, row_s: float, n_past: int, past_s: float) -> None:
        most = OUTLIER * self.row_s(n_past, past_s) if self._latest else math.inf
        self.trust = 1.0
        self._latest.append((min(row_s, most), n_past))


def _lower_middle(values: list[T]) -> T:
    return sorted(values)[(len(values) - 1) // 2]
