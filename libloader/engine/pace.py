"""How many rows of prompts a batch may have beside streams.

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

What rows cost is measured, for each size of a chunk (row_costs.py); one that turns out slow is left
for the next larger. Nothing is known at first: then a chunk is small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from libloader.engine.row_costs import RowCosts
from libloader.engine.timings import Average

STALL = 1.25  # with a prompt a step shall take this much longer, as a multiple of one without
STALL_MOST = 1.85  # where that leaves no size at all
TOGETHER = 5.0  # steps that all streams together may lose to a chunk, where that is more
ALONE_S = 0.5
BRIEF_S = 0.5
# Few, so that libllama meets few shapes and each is measured soon.
SIZES = (2, 4, 6, *(size << power for power in range(13) for size in (8, 12)))
BARGAIN = 2.0  # where any size takes too long: what more rows may cost, as a multiple of the least
FIRST = 16  # rows of a chunk while nothing is known


class Pace:
    """Learns from each batch."""

    def __init__(self) -> None:
        self._stream_step_s = Average()
        self._streams_s = 0.0  # what batches of streams alone took in this round
        self._costs = RowCosts()

    def begin_round(self) -> None:
        """A round brings each stream one token, in one batch or in several."""
        if self._streams_s > 0.0:
            self._stream_step_s.add(self._streams_s)
        self._streams_s = 0.0

    def note(
        self, n_streams: int, n_prompt_rows: int, n_guessed: int, seconds: float, n_past: int = 0
    ) -> None:
        """Learn from one batch: running streams, rows of prompts, rows that were guessed.

        `n_past` tokens, on the average, are behind the rows of prompts.
        """
        if n_prompt_rows >= SIZES[0]:
            size = max(size for size in SIZES if size <= n_prompt_rows)
            extra_s = seconds - (self._step_s() if n_streams else 0.0)
            self._costs.note(size, max(0.0, extra_s) / n_prompt_rows, n_past)
        elif not n_prompt_rows:
            self._streams_s = -math.inf if n_guessed else self._streams_s + seconds

    def chunk(self, n_streams: int, n_ubatch: int, n_past: int = 0) -> int:
        """Return how many prompt rows the next batch may have beside `n_streams` streams."""
        room = max(1, n_ubatch - n_streams)
        if not n_streams:
            return self._rows_in((ALONE_S,), room, n_past)
        stalls = max(STALL, TOGETHER / n_streams), STALL_MOST
        return self._rows_in([stall * self._step_s() for stall in stalls], room, n_past)

    def brief(self, n_streams: int, n_ubatch: int, n_past: int = 0) -> int:
        """Return how many rows it may have for prompts that are no longer than that."""
        room = max(1, n_ubatch - n_streams)
        return self._rows_in((BRIEF_S,), room, n_past) if self._costs.is_known else 0

    def _step_s(self) -> float:
        return self._stream_step_s.or_else(0.0)

    def _rows_in(self, wishes_s: Sequence[float], room: int, n_past: int) -> int:
        """Return the most rows that take no longer than the first of the wishes that any fulfils.

        If none does, the most that are not much slower than the quickest.
        """
        sizes = [size for size in reversed(SIZES) if size <= room]
        if not sizes or not self._costs.is_known:
            return min(room, FIRST)
        cost_s = partial(self._costs.batch_s, n_past=n_past)

        def most_in(wish_s: float) -> int:
            return next((size for size in sizes if cost_s(size) <= wish_s), 0)

        n = next(filter(None, map(most_in, wishes_s)), 0)
        n = n or most_in(BARGAIN * min(map(cost_s, sizes)))
        return room if n == sizes[0] else n


def deal(pending: Sequence[int], briefs: Sequence[bool], n_rows: int, n_brief: int) -> list[int]:
    """Return how many rows of a batch each of several prompts gets; the oldest comes first.

    Long prompts share `n_rows`: half is the oldest's, the rest goes to those with least to read.
    With brief ones there may be `n_brief` rows in all, if that is more, but no less than half of
    them, or of `n_rows`, is left to the long ones. Of what one brief prompt leaves the next gets
    nothing if that is less than half of it: few rows are dear, see above.
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
        n_more, n_left = pending[i] - dealt[i], limit - sum(dealt)
        is_next_brief = briefs[i] and any(n for n, is_brief in zip(dealt, briefs) if is_brief)
        if not is_next_brief or 2 * n_left >= n_more:
            dealt[i] += max(0, min(n_more, n_left))
    return dealt
