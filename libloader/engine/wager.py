"""How many tokens are worth guessing: what a batch costs against what it may bring.

A guessed token is one more row of the batch. A row may cost next to nothing (a GPU) or six tenths
of a token (a CPU, with two rows; four tenths with sixteen), so costs are measured, by rows:

    worth it     tokens expected of a batch / its cost  >  the same without guesses

Laws:
- Guessing lives on a purse: two parts in a hundred of the time go in, what guesses have won as
  well, and a batch is only tried if the purse can bear that all its guesses are wrong. So no run of
  bad luck, and no misjudged cost, slows the streams by more than that.
- Few sizes of batches, so that each is measured soon; a trial finds out what rows cost at all.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence as Many
from itertools import accumulate
from typing import NamedTuple

from libloader.engine.timings import Average

SIZES = (2, 4, 8, 16, 32)  # rows of a batch with guesses in it
MARGIN = 1.05  # what a guess must promise, as a multiple of doing without
INCOME, LOAN, FULL = 0.02, 8.0, 24.0  # of the purse: a share of the time; multiples of a step
ROW_PRICE = 0.5  # of a second row, before any was measured, in steps
NO_TIME = 1e-9  # seconds: something to divide by
MEMORY = 8  # batches of one size that an average spans
STALE = 512  # batches after which a cost may be another one
N_TRIAL = 3  # tokens guessed to find that out


class Bid(NamedTuple):
    """What one sequence could guess: the chance of each token, and how many at most."""

    chance: float
    most: int


class Wager:
    """Learns from each batch of streams alone."""

    def __init__(self) -> None:
        self._costs = _Costs()
        self._purse_s = -1.0  # below 0: not opened yet
        self._n_plain = STALE  # batches since the last guess

    def note(
        self, n_streams: int, n_guessed: int, n_tokens: int, seconds: float, spent_s: float = 0.0
    ) -> None:
        """Learn from one batch: its streams, its guessed rows, the tokens that it brought.

        `spent_s` went into guessing, before the batch.
        """
        self._costs.note(n_streams + n_guessed, seconds)
        plain_s = self._costs.of(n_streams)
        self._n_plain = 0 if n_guessed else self._n_plain + 1
        if self._purse_s < 0.0:
            self._purse_s = LOAN * plain_s
        won_s = (
            n_tokens / n_streams * plain_s - seconds - spent_s if n_guessed else INCOME * seconds
        )
        self._purse_s = max(0.0, min(self._purse_s + won_s, FULL * plain_s))

    def lengths(self, bids: Many[Bid], n_streams: int, depth_s: float = 0.0) -> list[int]:
        """Return how many tokens each bidder shall guess.

        `n_streams` are all in the batch; `depth_s` is what guessing takes for each token in a row.
        """
        lengths = [0] * len(bids)
        rows = sorted(
            ((bid.chance**n, index) for index, bid in enumerate(bids) for n in range(1, _end(bid))),
            reverse=True,
        )
        if not rows or self._purse_s < 0.0:
            return lengths
        n_best = self._best([chance for chance, _ in rows], n_streams, depth_s / len(bids))
        for _, index in rows[:n_best]:
            lengths[index] += 1
        return lengths

    def _best(self, chances: list[float], n_streams: int, row_s: float) -> int:
        """Return how many of the guesses, likeliest first, make the most tokens in a second."""
        plain_s = self._costs.of(n_streams)
        affordable_s = plain_s + self._purse_s
        if self._n_plain > STALE:  # what rows cost here must be known, at any chance
            n = min(N_TRIAL, len(chances))
            return n if self._costs.of(n_streams + n) <= affordable_s else 0
        n_best, best_rate = 0, MARGIN * n_streams / plain_s
        expected = [0.0, *accumulate(chances)]
        for size in SIZES:
            n = min(size - n_streams, len(chances))
            seconds = self._costs.of(n_streams + n) + n * row_s
            if n <= n_best or seconds > affordable_s:
                continue
            rate = (n_streams + expected[n]) / seconds
            if rate > best_rate:
                n_best, best_rate = n, rate
        return n_best


def _end(bid: Bid) -> int:
    return min(bid.most, SIZES[-1]) + 1 if bid.chance > 0.0 else 0


class _Costs:
    """Seconds of a batch, by rows: measured, or judged by the nearest that were."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Average, int]] = {}  # rows: seconds, number of the last batch
        self._n_batches = 0

    def note(self, n_rows: int, seconds: float) -> None:
        self._n_batches += 1
        average, last = self._known.get(n_rows, (Average(MEMORY), 0))
        if self._n_batches - last > STALE:
            average = Average(MEMORY)
        average.add(seconds)
        self._known[n_rows] = average, self._n_batches

    def of(self, n_rows: int) -> float:
        """Return what `n_rows` take: on the line between two known, or on from the last two."""
        points = self._points()
        sizes = [size for size, _ in points]
        place = bisect_left(sizes, n_rows)
        if place < len(points) and sizes[place] == n_rows:
            return max(NO_TIME, points[place][1])
        size, seconds = points[max(0, place - 1)]
        if place == 0 or len(points) == 1:  # nothing smaller is known, or nothing else at all
            slope = ROW_PRICE * seconds / size
        else:
            left = min(place - 1, len(points) - 2)
            (size, seconds), (larger, more) = points[left], points[left + 1]
            slope = max(0.0, (more - seconds) / (larger - size))
        return max(NO_TIME, seconds + slope * (n_rows - size))

    def _points(self) -> list[tuple[int, float]]:
        fresh = self._n_batches - STALE
        known = sorted(self._known.items())
        return [(size, average.value) for size, (average, last) in known if last >= fresh]
