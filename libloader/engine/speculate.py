"""Guessing the next tokens of a sequence from its own past: prompt lookup.

Text repeats itself: names, code, quotations. Where the last tokens have occurred before, what
followed them then is a good guess for what follows now:

    past   a b c d e ... a b c         the last tokens, found again
                 ^ what comes next     and as long as it comes: d, e, ...

Each new token is compared with what would have been guessed, whether it was guessed or not. So how
well guessing goes is known before a row is paid for it, and text that does not repeat pays nothing.

Lives here: what is guessed for one sequence. Not here: how much is worth guessing (wager.py), who
decodes it (decoding.py).
"""

from __future__ import annotations

from struct import Struct
from typing import Protocol

N_MATCH = 3  # so many last tokens are looked for
FIRST_CHANCE, MEMORY = 0.5, 8  # that a guess is right; the tokens that this estimate spans
LONGEST_PAUSE = 3  # tokens between two searches that find nothing
WINDOW = 1 << 13  # tokens that are searched, from the end

_TOKEN = Struct("<i")
_BYTES = _TOKEN.size


class Guesser(Protocol):
    """Guesses the next tokens of one sequence. One that `is_sure` knows them: it costs nothing."""

    n_drafted: int
    n_accepted: int

    @property
    def is_sure(self) -> bool: ...

    @property
    def chance(self) -> float:
        """That the next guess is right; 0 where there is none to make."""

    def guess(self, n: int) -> list[int]:
        """Return at most `n` tokens that may come next."""

    def push(self, token: int) -> None:
        """Append a token of the sequence."""

    def learn(self, n_guessed: int, n_right: int) -> None:
        """Take note of how a guess went."""

    def close(self) -> None:
        """The sequence has ended."""


class Lookup:
    """The past of one sequence, and how well guessing from it goes."""

    __slots__ = ("n_drafted", "n_accepted", "_past", "_next", "_chance", "_pause", "_pausing")
    is_sure = False

    def __init__(self, tokens: list[int]) -> None:
        self.n_drafted = 0
        self.n_accepted = 0
        self._past = bytearray(b"".join(map(_TOKEN.pack, tokens)))
        self._chance = FIRST_CHANCE
        self._pause = 0  # how long the last pause was meant to be
        self._pausing = 0  # tokens left of it
        self._next = -1  # where in the past the next token stands, if all goes on as it did then
        self._search()

    @property
    def chance(self) -> float:
        return self._chance if self._next >= 0 else 0.0

    def push(self, token: int) -> None:
        """Append a token, and see whether it is the expected one. Hot."""
        past, at = self._past, self._next
        data = _TOKEN.pack(token)
        if at >= 0:
            is_right = past.startswith(data, at)
            self._chance += (is_right - self._chance) / MEMORY
            self._next = at + _BYTES if is_right else -1
        past += data
        if self._next < 0:
            self._search()

    def guess(self, n: int) -> list[int]:
        """Return the `n` tokens that may come next, or none; a loop is thought to go on."""
        if self._next < 0:
            return []
        known = self._past[self._next : self._next + n * _BYTES]
        tokens = [token for (token,) in _TOKEN.iter_unpack(known)]
        return [tokens[place % len(tokens)] for place in range(n)]

    def learn(self, n_guessed: int, n_right: int) -> None:
        self.n_drafted += n_guessed
        self.n_accepted += n_right

    def close(self) -> None:
        pass

    def _search(self) -> None:
        """Look for the last tokens, but ever more rarely while they are not found."""
        if self._pausing:
            self._pausing -= 1
            return
        found = self._find()
        if found >= 0:
            self._next, self._pause = found + N_MATCH * _BYTES, 0
        else:
            self._pause = self._pausing = min(1 + 2 * self._pause, LONGEST_PAUSE)

    def _find(self) -> int:
        """Return where the last tokens occurred before, latest first; -1 if nowhere."""
        past = self._past
        tail = len(past) - N_MATCH * _BYTES
        if tail <= 0:
            return -1
        pattern, first = bytes(past[tail:]), max(0, len(past) - WINDOW * _BYTES)
        end = len(past) - 1  # a match may overlap the tail, but not be it
        while True:
            found = past.rfind(pattern, first, end)
            if found < 0 or found % _BYTES == 0:
                return found
            end = found + len(pattern) - 1  # across the border of two tokens: no match
