"""What rows of a batch cost, measured; and how many prompt rows that allows.

A whole n_ubatch of prompt takes as long as dozens of tokens of a stream: on a slow machine ten
seconds. So how much prompt a step computes depends on whom it holds up:

    nobody          about ALONE_S, for whoever cancels or comes next waits so long
    streams         STALL times a step without it, for each of them; fewer than four may be held up
                    longer, TOGETHER steps in all: a prompt that crawls hurts its own client
    streams, but    BRIEF_S, whatever a step takes: a hitch is felt less than a question that is
    it is brief     answered late, and the rest of a batch is all the sooner full

Small chunks have their price: the rows of a prompt and those of the streams are two passes over the
weights where each sequence has its own KV stream, and a pass of few rows is as dear as one of many
(0.6B model, 2 threads, ms beside 4 streams: none 30, 4 rows 64, 8 76, 16 109, 32 152, 64 249).

Smaller is not always faster: flash attention on a CPU works in tiles of 64 rows, and a batch of 32
rows behind 1,000 tokens took 244 ms where one of 64 took 33 ms. So each size is measured by itself,
and one that turns out slow is left for the next larger.

A moment may be bad, the first one always is (the weights come from the disk: 1.7 s for a batch that
takes 0.1): a size costs the median of its latest batches, one bad one is not believed where a
smaller size does better, and what is known of a size is slowly forgotten while others are used.
Nothing is known at first: then a chunk is small.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from libloader.engine.timings import Average

STALL = 1.5  # with a prompt a step shall take this much longer, as a multiple of one without
STALL_MOST = 1.85  # where that leaves no size at all
TOGETHER = 6.0  # steps that all streams together may lose to a chunk, where that is more
ALONE_S = 0.5
BRIEF_S = 0.5
# Few, so that libllama meets few shapes and each is measured soon.
SIZES = (2, 4, 6, *(size << power for power in range(13) for size in (8, 12)))
BARGAIN = 2.0  # where any size takes too long: what more rows may cost, as a multiple of the least
FIRST = 16  # rows of a chunk while nothing is known
MEMORY = 5  # batches: a row costs more, the longer the past behind it
FORGET = 0.9995  # of a size's cost remains with each batch of another size
OUTLIER = 4.0  # a bad moment of the machine counts as so many times what is known, at most


class Pace:
    """Learns from each batch."""

    def __init__(self) -> None:
        self._stream_step_s = Average()
        self._streams_s = 0.0  # what batches of streams alone took in this round
        self._rows: dict[int, _RowCost] = {}  # by size

    def begin_round(self) -> None:
        """A round brings each stream one token, in one batch or in several."""
        if self._streams_s > 0.0:
            self._stream_step_s.add(self._streams_s)
        self._streams_s = 0.0

    def note(self, n_streams: int, n_prompt_rows: int, n_guessed: int, seconds: float) -> None:
        """Learn from one batch: running streams, rows of prompts, rows that were guessed."""
        if n_prompt_rows >= SIZES[0]:
            size = max(size for size in SIZES if size <= n_prompt_rows)
            extra_s = seconds - (self._step_s() if n_streams else 0.0)
            for other in self._rows.values():
                other.trust *= FORGET
            self._rows.setdefault(size, _RowCost()).add(max(0.0, extra_s) / n_prompt_rows)
        elif not n_prompt_rows:
            self._streams_s = -math.inf if n_guessed else self._streams_s + seconds

    def chunk(self, n_streams: int, n_ubatch: int) -> int:
        """Return how many prompt rows the next batch may have beside `n_streams` streams."""
        if not n_streams:
            return self._rows_in((ALONE_S,), 0, n_ubatch)
        stalls = max(STALL, TOGETHER / n_streams), STALL_MOST
        return self._rows_in([stall * self._step_s() for stall in stalls], n_streams, n_ubatch)

    def brief(self, n_streams: int, n_ubatch: int) -> int:
        """Return how many rows it may have for prompts that are no longer than that."""
        return self._rows_in((BRIEF_S,), n_streams, n_ubatch) if self._rows else 0

    def _step_s(self) -> float:
        return self._stream_step_s.or_else(0.0)

    def _rows_in(self, wishes_s: Sequence[float], n_streams: int, n_ubatch: int) -> int:
        """Return the most rows that take no longer than the first of the wishes that any fulfils.

        If none does, the most that are not much slower than the quickest.
        """
        room = max(1, n_ubatch - n_streams)
        sizes = [size for size in SIZES if size <= room]
        if not sizes or not self._rows:
            return min(room, FIRST)
        cost_s = {size: self._chunk_s(size) for size in sizes}
        for wish_s in (*wishes_s, BARGAIN * min(cost_s.values())):
            affordable = [size for size in sizes if cost_s[size] <= wish_s]
            if affordable:
                break
        return room if affordable == sizes else max(affordable)

    def _chunk_s(self, size: int) -> float:
        """Return what a chunk takes, by the rows of this size, else of the sizes next to it."""
        known = self._rows
        own = known.get(size)
        if own is not None and own.is_proved:
            return size * own.seconds
        smaller = max((other for other in known if other < size), default=None)
        larger = min((other for other in known if other > size), default=None)
        nearest = [smaller, size if own else larger]
        return size * min(known[each].seconds for each in nearest if each is not None)


class _RowCost:
    """Seconds of one row in chunks of one size. What was not measured of late counts for less."""

    def __init__(self) -> None:
        self.trust = 1.0
        self._latest: deque[float] = deque(maxlen=MEMORY)

    @property
    def is_proved(self) -> bool:
        return len(self._latest) > 1

    @property
    def seconds(self) -> float:
        return self.trust * sorted(self._latest)[(len(self._latest) - 1) // 2]

    def add(self, seconds: float) -> None:
        most = OUTLIER * self.seconds if self._latest else math.inf
        self.trust = 1.0
        self._latest.append(min(seconds, most))


def deal(pending: Sequence[int], briefs: Sequence[bool], n_rows: int, n_brief: int) -> list[int]:
    """Return how many rows of a batch each of several prompts gets; the oldest comes first.

    Long prompts share `n_rows`: half is the oldest's, the rest goes to those with least to read.
    With brief ones there may be `n_brief` rows in all, if that is more, but no less than half of
    them, or of `n_rows`, is left to the long ones.
    """
    n_wanted = sum(n for n, is_brief in zip(pending, briefs) if is_brief)
    n_all = max(n_rows, n_brief) if n_wanted else n_rows
    n_long = min(n_rows, max(n_all - n_wanted, n_all // 2))
    longs = [i for i, is_brief in enumerate(briefs) if not is_brief]
    turns = [(i, (n_long + 1) // 2) for i in longs[:1]]
    turns += [(i, n_long) for i in sorted(longs, key=pending.__getitem__)]
    turns += [(i, n_all) for i, is_brief in enumerate(briefs) if is_brief]
    dealt = [0] * len(pending)
    for i, limit in turns:
        dealt[i] += max(0, min(pending[i] - dealt[i], limit - sum(dealt)))
    return dealt
