"""A budget for thoughts: once it is spent, the think block is closed in the model's stead.

Lives here: counting the tokens of a think block, and which tokens come instead of sampled ones. Not
here: what the blocks of a model look like (chat/budget.py), what becomes of the text (the front).

Laws:
- The chain inside never notices: tokens that are put in are accepted by it, as if it had chosen
  them, so a grammar and repetition penalties stay right.
- All state follows from the tokens accepted: a replay ends up where the first run was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable

from libloader.core import Thinking
from libloader.engine.ports import ChainPort
from libloader.errors import GrammarInvalid

BEFORE, INSIDE, AFTER = range(3)  # where the text is


class ThinkingChain:
    """The sampler chain of a sequence whose thoughts have a budget; owns the chain inside.

    `closing` are the tokens that close the block, `piece` gives a token's bytes.
    """

    def __init__(
        self,
        chain: ChainPort,
        budget: Thinking,
        closing: Sequence[int],
        piece: Callable[[int, bool], bytes],
    ) -> None:
        self._chain = chain
        self._budget = budget
        self._begin, self._end = budget.begin.encode(), budget.end.encode()
        self._closing = list(closing)
        self._piece = piece
        self._n_left = budget.n_max
        self._text = b""  # as much of its end as a tag may still be in
        self._put_in: list[int] = []  # tokens that come next, whatever the model would say
        self._state = BEFORE
        if budget.opened:
            self._enter()

    def sample(self, context: Any, row: int) -> int:
        token = self._put_in[0] if self._put_in else -1
        if token >= 0:
            try:
                self._chain.accept(token)
            except GrammarInvalid:  # the block may not end here: then the model goes on
                self._put_in.clear()
                self._leave(b"")
                token = -1
        if token < 0:
            token = self._chain.sample(context, row)
        self._note(token)
        return token

    def accept(self, token: int) -> None:
        self._chain.accept(token)
        self._note(token)

    def accept_prompt(self, tokens: Sequence[int]) -> None:
        self._chain.accept_prompt(tokens)

    def close(self) -> None:
        self._chain.close()

    def _note(self, token: int) -> None:
        """Follow the text. Hot: once per token."""
        if self._put_in:
            self._put_in.pop(0)
            if not self._put_in:
                self._leave(b"")
            return
        if self._state == AFTER and not self._budget.again:
            return
        self._text += self._piece(token, True)
        if self._state == INSIDE:
            self._think()
        else:
            self._look_for_a_block()

    def _think(self) -> None:
        """One more token of thoughts, unless it ended them."""
        _, found, rest = self._text.partition(self._end)
        if found:
            self._leave(rest)
            return
        self._text = self._text[-len(self._end) :]
        self._n_left -= 1
        if self._n_left <= 0 and not self._is_ending():
            self._put_in = list(self._closing)

    def _is_ending(self) -> bool:
        """Say whether the model may be about to write the end itself."""
        return any(self._text.endswith(self._end[:n]) for n in range(1, len(self._end)))

    def _look_for_a_block(self) -> None:
        """A block begins the answer; of several, the others begin anywhere."""
        if self._budget.again:
            _, found, rest = self._text.partition(self._begin)
            self._text = rest if found else self._text[-len(self._begin) :]
            if found:
                self._enter()
            return
        self._text = self._text.lstrip()
        if self._text.startswith(self._begin):
            self._text = self._text[len(self._begin) :]
            self._enter()
        elif not self._begin.startswith(self._text):
            self._state = AFTER

    def _enter(self) -> None:
        self._state = INSIDE
        if self._n_left <= 0:
            self._put_in = list(self._closing)

    def _leave(self, rest: bytes) -> None:
        self._state, self._text = AFTER, rest
