"""Guessing the next tokens of a sequence from its own past: prompt lookup.

Text repeats itself: names, code, quotations. If the last tokens have occurred before, what followed
them then is a good guess for what follows now. All guesses are decoded with the next token in one
batch, and sampled row by row until one is wrong: so the output is what it would have been, at
greedy token for token, sampled with the same distribution (each token is drawn from its own row).

Lives here: the guess and its length. Not here: decoding and taking back (engine.py).

Laws:
- A wrong guess costs one row of a batch. A token is guessed only while the chance that it and all
  before it are right, by what this sequence has shown, is above the price of its row (pace.py).
- After a miss guessing pauses, twice as long after each miss in a row; so text that does not repeat
  pays next to nothing.
- Looking is one search through the tokens as bytes: no index to build, no memory to pay.
"""

from __future__ import annotations

from struct import Struct
from typing import Protocol

MATCHES = (4, 3)  # lengths of the last tokens that are looked for, best first
LONGEST = 16  # tokens guessed at once
FIRST_CHANCE, MEMORY = 0.8, 8.0  # that a guessed token is right; tokens that the estimate spans
LONGEST_PAUSE = 64  # tokens
WINDOW = 1 << 15  # tokens that are searched, from the end

_TOKEN = Struct("<i")
_BYTES = _TOKEN.size


class Guesser(Protocol):
    """Who says what may come next in one sequence; see Lookup for the terms."""

    n_drafted: int
    n_accepted: int

    def push(self, token: int) -> None: ...
    def guess(self, n_max: int, price: float) -> list[int]: ...
    def learn(self, n_guessed: int, n_right: int) -> None: ...


class Lookup:
    """The past of one sequence and how well guessing from it has gone."""

    __slots__ = ("n_drafted", "n_accepted", "_past", "_chance", "_pause", "_pausing")

    def __init__(self, tokens: list[int]) -> None:
        self.n_drafted = 0
        self.n_accepted = 0
        self._past = bytearray(b"".join(map(_TOKEN.pack, tokens)))
        self._chance = FIRST_CHANCE
        self._pause = 0  # how long the last pause was meant to be
        self._pausing = 0  # tokens left of it

    def push(self, token: int) -> None:
        """Append a token of the sequence. Hot."""
        self._past += _TOKEN.pack(token)
        if self._pausing:
            self._pausing -= 1

    def guess(self, n_max: int, price: float = 0.0) -> list[int]:
        """Return at most `n_max` tokens that may come next; often none.

        `price` is what decoding one more row costs, as a part of what a token costs anyway.
        """
        n = 0 if self._pausing else min(n_max, self._worthwhile(price))
        for n_match in MATCHES if n > 0 else ():
            found = self._find(n_match)
            if found >= 0:
                start = found + n_match * _BYTES
                return self._unpack(bytes(self._past[start : start + n * _BYTES]))
        return []

    def learn(self, n_guessed: int, n_right: int) -> None:
        """Take note of how a guess went; what came after the first wrong token says nothing."""
        self.n_drafted += n_guessed
        self.n_accepted += n_right
        n_wrong = 0 if n_right == n_guessed else 1
        weight = min(1.0, (n_right + n_wrong) / MEMORY)
        self._chance += (n_right / (n_right + n_wrong) - self._chance) * weight
        if n_right:
            self._pause = 0
        else:
            self._pause = self._pausing = min(max(1, 2 * self._pause), LONGEST_PAUSE)

    def _worthwhile(self, price: float) -> int:
        """Return for how many tokens in a row the chance to be right is above the price."""
        n, chance = 0, self._chance
        while n < LONGEST and chance > price:
            n += 1
            chance *= self._chance
        return n

    def _find(self, n_match: int) -> int:
        """Return where the last `n_match` tokens occurred before, latest first; -1 if nowhere."""
        past = self._past
        tail = len(past) - n_match * _BYTES
        if tail <= 0:
            return -1
        pattern, first = bytes(past[tail:]), max(0, len(past) - WINDOW * _BYTES)
        end = len(past) - 1  # a match may overlap the tail, but not be it
        while True:
            found = past.rfind(pattern, first, end)
            if found < 0 or found % _BYTES == 0:
                return found
            end = found + len(pattern) - 1  # across the border of two tokens: no match

    @staticmethod
    def _unpack(data: bytes) -> list[int]:
        return [token for (token,) in _TOKEN.iter_unpack(data)]
