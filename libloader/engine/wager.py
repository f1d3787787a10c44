"""How many tokens are worth guessing: what a batch costs against what it may bring.

A guessed token is one more row of the batch. A row may cost next to nothing (a GPU) or six tenths
of a token (a CPU, with two rows; four tenths with sixteen), and a batch of four rows less than one
of three, so costs are measured, by rows:

    worth it     tokens expected of a batch / the least that it takes  >  the same without guesses
    borne        the most that it takes, all of its guesses wrong  <=  a step and the purse

Laws:
- Guessing lives on a purse: two parts in a hundred of the time go in until it holds a small loan,
  what guesses have won as well, and a batch is only tried if the purse can bear that all its
  guesses are wrong. So no run of bad luck, and no misjudged cost, slows the streams by more; only
  a batch that takes longer than such ones ever did can, once: what the purse lacks is forgiven.
- A batch may wait for a machine that does other things, but never takes less than it must. So what
  it takes is the least of the last few, and something else is believed only if it comes again.
- What guesses are measured by, a batch without any, is never long ago; and nothing is guessed
  right after a batch that was slow.
- Few sizes of batches, so that each is measured soon; one that was not is judged kindly.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence as Many
from itertools import accumulate
from typing import NamedTuple

SIZES = (2, 4, 8, 16, 32)  # rows of a batch with guesses in it
MARGIN = 1.05  # what a guess must promise, as a multiple of doing without
INCOME, LOAN, FULL = 0.02, 8.0, 24.0  # of the purse, in steps: each step's, at first, at most
ROW_PRICE = 0.2  # of a row, as a part of one before it, if nothing is known of so many
NO_TIME = 1e-9  # seconds: something to divide by
MEMORY = 3  # batches of one size that its cost is the least of
STALE = 512  # batches after which a cost may be another one
N_GUESSED = 16  # batches, then one without guesses: what is a step? So many at first
PATIENCE = 32  # batches in a row that are slow because of something else, not for ever
DOUBT, HASTE = 3.0, 0.5  # multiples of what a batch should take that are no measure of it


class Bid(NamedTuple):
    """What one sequence could guess: the chance of each token, and how many at most."""

    chance: float
    most: int


class Wager:
    """Learns from each batch of streams alone."""

    def __init__(self) -> None:
        self._costs = _Costs()
        self._purse = LOAN  # in steps: batches without guesses

    def note(
        self, n_streams: int, n_guessed: int, n_tokens: int, seconds: float, spent_s: float = 0.0
    ) -> None:
        """Learn from one batch: its streams, its guessed rows, the tokens that it brought.

        `spent_s` went into guessing, before the batch, whatever came of it.
        """
        seconds = self._costs.note(n_streams, n_guessed, seconds)
        step_s = self._costs.of(n_streams).least
        if n_guessed:
            won, full = n_tokens / n_streams - seconds / step_s, FULL
        else:
            won, full = INCOME, max(LOAN, self._purse)
        self._purse = max(0.0, min(self._purse + won - spent_s / step_s, full))

    def lengths(self, bids: Many[Bid], n_streams: int, depth_s: float = 0.0) -> list[int]:
        """Return how many tokens each bidder shall guess.

        `n_streams` are all in the batch; `depth_s` is what guessing takes for each token in a row.
        """
        lengths = [0] * len(bids)
        rows = sorted(
            ((bid.chance**n, index) for index, bid in enumerate(bids) for n in range(1, _end(bid))),
            reverse=True,
        )
        if not rows or not self._costs.are_clear(n_streams):
            return lengths
        n_best = self._best([chance for chance, _ in rows], n_streams, depth_s / len(bids))
        for _, index in rows[:n_best]:
            lengths[index] += 1
        return lengths

    def _best(self, chances: list[float], n_streams: int, row_s: float) -> int:
        """Return how many of the guesses, likeliest first, make the most tokens in a second."""
        step_s = self._costs.of(n_streams).least
        affordable_s = (1.0 + self._purse) * step_s
        n_best, best_rate = 0, MARGIN * n_streams / step_s
        expected = [0.0, *accumulate(chances)]
        for size in SIZES:
            n = min(size - n_streams, len(chances))
            if n <= n_best:
                continue
            cost = self._costs.of(n_streams + n)
            rate = (n_streams + expected[n]) / (cost.least + n * row_s)
            if rate > best_rate and cost.most + n * row_s <= affordable_s:
                n_best, best_rate = n, rate
        return n_best


def _end(bid: Bid) -> int:
    return min(bid.most, SIZES[-1]) + 1 if bid.chance > 0.0 else 0


class Cost(NamedTuple):
    """Seconds of a batch: what it has to take, and what it may."""

    least: float
    most: float


class _Costs:
    """What batches take, by rows: the extremes of the last few, or judged by the nearest sizes."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[deque[float], int]] = {}  # and the number of the last batch
        self._n_batches = 0
        self._n_slow = 0  # batches, the last ones, that waited for something else

    def note(self, n_streams: int, n_guessed: int, seconds: float) -> float:
        """Learn from one batch; return the seconds that count: an outlier is believed in part."""
        self._n_batches += 1
        n_rows, seconds = n_streams + n_guessed, max(NO_TIME, seconds)
        if self._was_slow(n_rows, seconds) or self._n_slow >= PATIENCE or not self._fresh():
            self._known.clear()
            self._n_slow = 0
            self._add(n_rows, deque(maxlen=MEMORY), seconds)
            return seconds
        thought_s = self.of(n_rows).least
        self._n_slow = self._n_slow + 1 if seconds > DOUBT * thought_s else 0
        seconds = min(seconds, DOUBT * thought_s)
        if self.age(n_rows) > STALE:  # what was thought counts as if it had been measured
            self._add(n_rows, deque([thought_s], MEMORY), seconds)
        elif n_guessed or not self._n_slow:  # a step is measured all the time, that can wait
            self._add(n_rows, self._known[n_rows][0], seconds)
        return seconds

    def are_clear(self, n_streams: int) -> bool:
        """Say whether it is known what guesses are measured by."""
        is_warm = self._n_batches >= N_GUESSED
        return is_warm and not self._n_slow and self.age(n_streams) <= N_GUESSED

    def age(self, n_rows: int) -> int:
        """Return how many batches ago one of `n_rows` was measured."""
        return self._n_batches - self._known[n_rows][1] if n_rows in self._known else STALE + 1

    def of(self, n_rows: int) -> Cost:
        """Return what `n_rows` take; something must be known."""
        known = self._fresh()
        place = bisect_left([rows for rows, _ in known], n_rows)
        if place == 0:  # more rows take no less
            return known[0][1]
        fewer, cost = known[place - 1]
        n_more = (n_rows - fewer) / fewer
        if place == len(known):  # from nearly nothing for a row to as much as for those before
            return Cost(cost.least * (1 + ROW_PRICE * n_more), cost.most * (1 + n_more))
        more, other = known[place]
        part = (n_rows - fewer) / (more - fewer)
        return Cost(*(a + (b - a) * part for a, b in zip(cost, other)))

    def _was_slow(self, n_rows: int, seconds: float) -> bool:
        """Say whether what is known was measured by a machine that did other things."""
        return any(rows <= n_rows and seconds < HASTE * cost.least for rows, cost in self._fresh())

    def _add(self, n_rows: int, recent: deque[float], seconds: float) -> None:
        recent.append(seconds)
        self._known[n_rows] = recent, self._n_batches

    def _fresh(self) -> list[tuple[int, Cost]]:
        """Return what is known, by rows; the older it is, the less: so that it is tried again."""
        return [
            (rows, Cost(min(recent) * (1 - self.age(rows) / STALE / 2), max(recent)))
            for rows, (recent, _) in sorted(self._known.items())
            if self.age(rows) <= STALE
        ]
