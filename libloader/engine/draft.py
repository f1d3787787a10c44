"""Guessing with a smaller model: it runs ahead, the large one checks all of it in one batch.

The small model has a context of its own, whose KV cache follows the large one's:

    held      [ tokens the two agree on ........ | guessed, refused ]     cut off before the next
    sequence  [ ................................ | sampled instead  ]     decoded with it, one batch

Laws:
- A draft is a convenience: whatever goes wrong here ends in no draft, never in a failed request.
- As many seats as slots. A seat keeps what it holds when its sequence ends, for the next prompt
  that begins the same way; a sequence without a seat takes the free one that holds most of it.
- All sequences draft together, one batch for each token in a row.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence as Many
from typing import Any, Callable

from libloader.engine.ports import BatchPort, ChainPort, ContextPort
from libloader.errors import DecodeFailed, IgllamaError

FIRST_CHANCE = 0.7  # that a guess is right
N_FIRST, MEMORY = 3, 48  # guesses that the first chance is worth; that an estimate spans
FIRST_PAUSE, LONGEST_PAUSE = 32, 512  # tokens until a model that guesses badly may try again
N_DEPTHS = 8  # batches that their time is the least of


class DraftGuesser:
    """One sequence as the small model sees it."""

    __slots__ = (
        "n_drafted", "n_accepted", "tokens", "seat", "is_known", "_model", "_chance", "_n_behind",
        "_pause", "_since",
    )  # fmt: skip
    is_sure = False

    def __init__(self, model: DraftModel, tokens: list[int]) -> None:
        self.n_drafted = 0
        self.n_accepted = 0
        self.tokens = list(tokens)
        self.seat: Seat | None = None
        self.is_known = max(tokens, default=0) < model.n_vocab  # the small model has all of them
        self._model = model
        self._chance = FIRST_CHANCE
        self._n_behind = N_FIRST  # guesses that the chance is an estimate from
        self._pause = FIRST_PAUSE
        self._since = 0  # tokens since the last guess

    @property
    def chance(self) -> float:
        return self._chance if self._model.can_follow(self) else 0.0

    def push(self, token: int) -> None:
        """Append a token. A model that guessed badly is given another chance, ever more rarely."""
        self.tokens.append(token)
        self.is_known = self.is_known and token < self._model.n_vocab
        self._since += 1
        if self._since >= self._pause and self._chance < FIRST_CHANCE:
            self._chance, self._n_behind = FIRST_CHANCE, N_FIRST
            self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def guess(self, n: int) -> list[int]:
        return self._model.guess([(self, n)])[0]

    def learn(self, n_guessed: int, n_right: int) -> None:
        self.n_drafted += n_guessed
        self.n_accepted += n_right
        self._since = 0
        n_seen = n_right + (n_right < n_guessed)  # what came after the first wrong one says nothing
        for number in range(n_seen):
            self._n_behind = min(self._n_behind + 1, MEMORY)
            self._chance += ((number < n_right) - self._chance) / self._n_behind
        if self._chance > FIRST_CHANCE:
            self._pause = FIRST_PAUSE

    def close(self) -> None:
        if self.seat is not None:
            self.seat.guesser = None
            self.seat = None


class Seat:
    """One sequence of the small model's KV cache, and whose it is."""

    def __init__(self, seq_id: int) -> None:
        self.seq_id = seq_id
        self.held: list[int] = []
        self.guesser: DraftGuesser | None = None
        self.used = 0  # when, in calls of `guess`


class Job:
    """One draft in the making."""

    def __init__(self, seat: Seat, guesser: DraftGuesser, n: int) -> None:
        self.seat, self.n = seat, n
        self.ahead = [*guesser.tokens]  # all that is known, and what is guessed after it
        self.n_known = len(guesser.tokens)

    @property
    def draft(self) -> list[int]:
        return self.ahead[self.n_known :]

    @property
    def n_pending(self) -> int:
        return len(self.ahead) - len(self.seat.held)


class DraftModel:
    """A context of the small model, shared by all sequences. Engine thread only."""

    def __init__(
        self,
        context: ContextPort,
        batch: BatchPort,
        chain: ChainPort,
        *,
        n_vocab: int,
        clock: Callable[[], float],
    ) -> None:
        self._context, self._batch, self._chain = context, batch, chain
        self.n_vocab = n_vocab  # tokens that both models know
        self._clock = clock
        self._seats = [Seat(seq_id) for seq_id in range(context.n_seq_max)]
        self.spent_s = 0.0
        self._depths_s: deque[float] = deque(maxlen=N_DEPTHS)
        self._n_calls = 0

    @property
    def depth_s(self) -> float:
        return min(self._depths_s, default=0.0)  # what else the machine does is no reason

    def open(self, tokens: list[int]) -> DraftGuesser:
        return DraftGuesser(self, tokens)

    def can_follow(self, guesser: DraftGuesser) -> bool:
        """Say whether the small model can read the sequence at all."""
        return guesser.is_known and len(guesser.tokens) < self._context.n_ctx_seq

    def guess(self, wanted: Many[tuple[Any, int]]) -> list[list[int]]:
        """Return a draft for each; a prompt that is new here takes a few calls to be read."""
        self._n_calls += 1
        started_s = self._clock()
        jobs = [Job(self._seat_of(guesser), guesser, n) for guesser, n in wanted]
        try:
            for job in jobs:
                self._align(job)
            going = self._advance(jobs)
            while going:
                going = self._advance([job for job in going if len(job.draft) < job.n])
        except IgllamaError:  # no room, no numbers: the next call begins anew
            for job in jobs:
                self._forget(job.seat)
            return [[] for _ in jobs]
        finally:
            self.spent_s = self._clock() - started_s
        return [job.draft for job in jobs]

    def close(self) -> None:
        self._chain.close()

    def _seat_of(self, guesser: DraftGuesser) -> Seat:
        if guesser.seat is None:
            free = [seat for seat in self._seats if seat.guesser is None]
            if not free:  # its owner waits in the line, or it would be drafting now
                free = [min(self._seats, key=lambda seat: seat.used)]
            seat = max(free, key=lambda seat: (_n_shared(seat.held, guesser.tokens), -seat.used))
            if seat.guesser is not None:
                seat.guesser.close()
            guesser.seat, seat.guesser = seat, guesser
        guesser.seat.used = self._n_calls
        return guesser.seat

    def _align(self, job: Job) -> None:
        """Cut off what the seat holds beyond what it shares; one token is left to decode."""
        seat = job.seat
        n = min(_n_shared(seat.held, job.ahead), job.n_known - 1)
        if n < len(seat.held):
            if n and self._context.seq_rm(seat.seq_id, n, -1):
                del seat.held[n:]
            else:
                self._forget(seat)

    def _forget(self, seat: Seat) -> None:
        self._context.seq_rm(seat.seq_id, 0, -1)
        seat.held.clear()

    def _advance(self, jobs: list[Job]) -> list[Job]:
        """Decode what is pending, in one batch, and guess the next token; return who can go on."""
        if not jobs:
            return []
        started_s = self._clock()
        rows = self._fill(jobs)
        if self._context.decode(self._batch):
            raise DecodeFailed("the draft model's batch was refused")
        for job, n, _ in rows:
            job.seat.held += job.ahead[len(job.seat.held) :][:n]
        going: list[Job] = []
        for job, _, row in rows:
            token = self._chain.sample(self._context, row) if not job.n_pending else self.n_vocab
            if token < self.n_vocab:
                job.ahead.append(token)
                going.append(job)
        if self._batch.n_tokens <= 2 * len(jobs):
            self._depths_s.append(self._clock() - started_s)
        return going

    def _fill(self, jobs: list[Job]) -> list[tuple[Job, int, int]]:
        """Put what is pending into the batch; return (job, number of its tokens, last row)."""
        self._batch.clear()
        left = min(self._batch.capacity, self._context.n_ubatch)
        rows: list[tuple[Job, int, int]] = []
        for job in sorted(jobs, key=lambda job: job.seat.seq_id):
            start = len(job.seat.held)
            n = min(left, job.n_pending)
            for position in range(start, start + n):
                wants_logits = position == len(job.ahead) - 1
                self._batch.add(job.ahead[position], position, job.seat.seq_id, wants_logits)
            if n:
                rows.append((job, n, self._batch.n_tokens - 1))
            left -= n
        return rows


def _n_shared(a: Many[int], b: Many[int]) -> int:
    """Return how many leading tokens are the same."""
    if a[: len(b)] == b[: len(a)]:
        return min(len(a), len(b))
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b)))
