"""Prompts in, checked token ids out; and the answers to tokenize and detokenize.

Lives here: every check that a prompt must pass before native code or the scheduler sees it.

Laws:
- What a user typed never becomes a control token, yet a prompt is tokenized in one piece wherever
  that is safe: words that touch a template's text must merge as they did in training.
- A prompt that cannot fit by its bytes alone is refused without being tokenized.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate
from re import Pattern

from libloader.core import Prompt
from libloader.engine.ports import VocabPort
from libloader.errors import FieldInvalid, PromptTooLong

Segments = tuple[tuple[str, bool], ...]
PLAUSIBLE_PIECE_BYTES = 8  # below this many bytes per token no prompt is worth the bound's check


class PromptReader:
    """Reads prompts for sequences of at most `n_ctx` tokens."""

    def __init__(self, vocab: VocabPort, n_ctx: int) -> None:
        self._vocab = vocab
        self.bos = vocab.bos  # -1 where there is none
        self._n_ctx = n_ctx
        self._control = _any_of(vocab.special_tokens)
        self._longest_piece_bytes = 0  # found when first needed: it reads the whole vocabulary

    def read(self, prompt: Prompt) -> list[int]:
        """Return the prompt's tokens: at least one, and room for one more in the context."""
        if prompt.tokens is None:
            self._check_bytes(prompt.segments)
            tokens = self.tokenize(prompt)
        else:
            tokens = self._checked(prompt.tokens, "prompt")
        if not tokens and self._vocab.bos >= 0:
            tokens = [self._vocab.bos]
        if not tokens:
            raise FieldInvalid("the prompt is empty and the model has no BOS", param="prompt")
        if len(tokens) >= self._n_ctx:
            raise too_long(f"{len(tokens)} tokens", self._n_ctx)
        return tokens

    def tokenize(self, prompt: Prompt, param: str = "prompt") -> list[int]:
        """Return the tokens of `prompt` (its ids, checked, if it has ids), however many.

        `param` is the request field to name if an id is wrong.
        """
        if prompt.tokens is not None:
            return self._checked(prompt.tokens, param)
        if prompt.is_pair:
            first, second = (
                self._vocab.tokenize(text, False, False) for text, _ in prompt.segments
            )
            return self._vocab.pair(first, second)
        tokens: list[int] = []
        for index, (text, parse_special) in enumerate(self._pieces(prompt.segments)):
            add_special = prompt.add_special and index == 0
            tokens += self._vocab.tokenize(text, add_special, parse_special)
        return tokens

    def count(self, prompt: Prompt) -> list[int]:
        """Return the prompt's tokens as `read` does, however many, unless its bytes tell enough."""
        if prompt.tokens is None:
            self._check_bytes(prompt.segments)
        tokens = self.tokenize(prompt)
        return tokens or ([self._vocab.bos] if self._vocab.bos >= 0 else [])

    def spellings(self, text: str) -> list[list[int]]:
        """Return the tokens of an answer that is `text`: exactly, and as at a text's beginning.

        They differ where the vocabulary puts a space before the first word of a text.
        """
        line, both = (self._vocab.tokenize(each, False, False) for each in ("\n", "\n" + text))
        as_first = self._vocab.tokenize(text, False, False)
        exact = both[len(line) :] if both[: len(line)] == line else as_first
        return [exact] if exact == as_first else [exact, as_first]

    def text_of(self, tokens: tuple[int, ...]) -> str:
        pieces = [self._vocab.piece(token, True) for token in self._checked(tokens, "tokens")]
        return b"".join(pieces).decode("utf-8", "replace")

    def _checked(self, tokens: tuple[int, ...], param: str) -> list[int]:
        n_vocab = self._vocab.n_tokens
        if tokens and not 0 <= min(tokens) <= max(tokens) < n_vocab:
            wrong = next(token for token in tokens if not 0 <= token < n_vocab)
            message = f"token id {wrong} is not in the vocabulary (0 to {n_vocab - 1})"
            raise FieldInvalid(message, param=param)
        return list(tokens)

    def _pieces(self, segments: Segments) -> Segments:
        """Join segments into one, but for those whose typed text holds part of a control token."""
        if self._control is None:
            return (("".join(text for text, _ in segments), True),)
        spans = _spans(segments)
        trusted = [span for span, (_, parse) in zip(spans, segments) if parse]
        unsafe = [
            match.span()
            for match in self._control.finditer("".join(text for text, _ in segments))
            if not any(a <= match.start() and match.end() <= b for a, b in trusted)
        ]
        alone = [
            not parse and any(a < end and start < b for a, b in unsafe)
            for (start, end), (_, parse) in zip(spans, segments)
        ]
        return _joined(segments, alone)

    def _check_bytes(self, segments: Segments) -> None:
        n_chars = sum(len(text) for text, _ in segments)
        if n_chars <= self._n_ctx * PLAUSIBLE_PIECE_BYTES:
            return
        n_bytes = sum(len(text.encode("utf-8")) for text, _ in segments)
        if n_bytes > self._n_ctx * self._longest_piece():
            at_least = n_bytes // self._longest_piece() + 1
            raise too_long(f"at least {at_least} tokens ({n_bytes} bytes)", self._n_ctx)

    def _longest_piece(self) -> int:
        if not self._longest_piece_bytes:
            vocab = self._vocab
            self._longest_piece_bytes = max(
                len(vocab.piece(token, True)) for token in range(vocab.n_tokens)
            )
        return self._longest_piece_bytes


def too_long(size: str, limit: int, param: str = "prompt") -> PromptTooLong:
    message = f"the {param} has {size}, the context of a sequence holds {limit}"
    return PromptTooLong(f"{message}; shorten it or start with a larger --ctx-size", param=param)


def _any_of(texts: Sequence[str]) -> Pattern[str] | None:
    longest_first = sorted(filter(None, texts), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _spans(segments: Segments) -> list[tuple[int, int]]:
    """Return where each segment lies in the joined text."""
    ends = list(accumulate(len(text) for text, _ in segments))
    return list(zip([0, *ends], ends))


def _joined(segments: Segments, alone: list[bool]) -> Segments:
    """Return the segments as pieces: those that stand alone as plain text, the others joined."""
    pieces: list[tuple[str, bool]] = []
    for (text, _), stands_alone in zip(segments, alone):
        if pieces and pieces[-1][1] and not stands_alone:
            pieces[-1] = (pieces[-1][0] + text, True)
        else:
            pieces.append((text, not stands_alone))
    return tuple(pieces)
