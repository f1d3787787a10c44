"""Guesses for the next batch: from whom they come, for which streams, how many.

    source    the sequences' own past (speculate.py), or a smaller model (draft.py)
    wager     how many are worth it (wager.py)

All guesses are decoded with the next token in one batch, and sampled row by row until one is wrong:
so the output is what it would have been, greedy token for token, sampled with the same distribution
(each token is drawn from its own row, given what was drawn before).

Why nothing is guessed unless asked for, although it never costs more than the wager's purse: how
many rows share a batch depends on what batches took, and libllama's sums on how many rows there
are. So of two nearly equal logits now one wins, now the other (0.6B random weights, Q4_0: greedy
text took another turn within 400 tokens), and the same request may be answered in two ways.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Any, Callable, Protocol

from libloader.engine.sequence import Sequence
from libloader.engine.speculate import Guesser, Lookup
from libloader.engine.wager import Bid, Wager


class Source(Protocol):
    """Makes guessers, and lets them guess, all at once."""

    @property
    def depth_s(self) -> float:
        """Seconds that guessing takes for each token in a row."""

    @property
    def spent_s(self) -> float:
        """Seconds that the last guesses took."""

    def open(self, tokens: list[int]) -> Guesser:
        """Return the guesser of a sequence that begins with `tokens`."""

    def guess(self, wanted: Many[tuple[Any, int]]) -> list[list[int]]:
        """Return for each (guesser, n) at most n tokens that may come next."""

    def close(self) -> None: ...


class Lookups:
    """Every sequence guesses from its own past."""

    depth_s = spent_s = 0.0  # next to none

    def open(self, tokens: list[int]) -> Lookup:
        return Lookup(tokens)

    def guess(self, wanted: Many[tuple[Lookup, int]]) -> list[list[int]]:
        return [lookup.guess(n) for lookup, n in wanted]

    def close(self) -> None:
        pass


class Guessing:
    """Engine thread only. Without a source nothing is ever guessed."""

    def __init__(
        self,
        source: Source | None,
        n_most: int,
        lengths: tuple[int, int],
        mark: Callable[[str], None],
    ) -> None:
        self._source = source
        self._least, self._most = lengths  # tokens of one draft
        self._mark = mark  # gets the ids of the requests that are in hand
        self._n_most = n_most  # rows of one batch
        self._wager = Wager()
        self._has_asked = False  # the source, for the next batch, whatever it answered
        self._is_wager = False  # the next batch: streams alone, with guesses that may be wrong

    def open(self, sequence: Sequence) -> None:
        """Give `sequence`, which is new, its guesser."""
        sequence.guesser = self._source.open(sequence.tokens) if self._source else None

    def prepare(self, plan: Many[tuple[Sequence, int]]) -> int:
        """Set the `draft` of sequences in the next batch; return how many tokens that are.

        Only streams alone make wagers.
        """
        if self._source is None and not any([sequence.guesser for sequence, _ in plan]):
            self._is_wager = False
            return 0
        streams = [sequence for sequence, _ in plan if sequence.n_pending == 1]
        n_rows = sum(n for _, n in plan)
        n_sure = self._tell_sure(streams, self._n_most - n_rows)
        self._is_wager = self._source is not None and n_rows == len(streams) and not n_sure
        if self._is_wager:
            self._bet(streams)
        return sum(len(sequence.draft) for sequence in streams)

    def note(self, n_streams: int, n_guessed: int, n_tokens: int, seconds: float) -> None:
        """Learn from the batch that was prepared; `n_tokens` came of it."""
        if self._is_wager:
            spent_s = self._source.spent_s if self._source and self._has_asked else 0.0
            self._wager.note(n_streams, n_guessed, n_tokens, seconds, spent_s)

    def close(self) -> None:
        if self._source is not None:
            self._source.close()

    def _tell_sure(self, streams: Many[Sequence], n_rows: int) -> int:
        """Let those draft who know what comes; return the number of rows."""
        n_told = 0
        for sequence in streams:
            if sequence.guesser is not None and sequence.guesser.is_sure:
                room = min(_room(sequence), n_rows - n_told)
                sequence.draft = sequence.guesser.guess(room) if room > 0 else []
                n_told += len(sequence.draft)
        return n_told

    def _bet(self, streams: Many[Sequence]) -> None:
        assert self._source is not None
        able = [(each, bid) for each in streams if (bid := self._bid(each, len(streams))).most > 0]
        bids = [bid for _, bid in able]
        lengths = self._wager.lengths(bids, len(streams), self._source.depth_s)
        wanted = [
            (sequence, n) for (sequence, _), n in zip(able, lengths) if n >= max(1, self._least)
        ]
        self._has_asked = bool(wanted)
        if wanted:
            self._mark(" ".join(dict.fromkeys(each.live.request.id for each, _ in wanted)))
            drafts = self._source.guess([(sequence.guesser, n) for sequence, n in wanted])
            for (sequence, _), draft in zip(wanted, drafts):
                sequence.draft = draft

    def _bid(self, sequence: Sequence, n_streams: int) -> Bid:
        guesser = sequence.guesser
        if guesser is None or guesser.chance <= 0.0:
            return Bid(0.0, 0)
        return Bid(guesser.chance, min(_room(sequence), self._n_most - n_streams, self._most))


def _room(sequence: Sequence) -> int:
    return sequence.n_limit - len(sequence.tokens) - 1
