"""What libllama says of each token, asked once: a call into C costs a hundred look-ups."""

from __future__ import annotations

from typing import NamedTuple

from libloader.engine.ports import VocabPort

MOST = 1 << 15  # tokens that are remembered: some megabytes


class Word(NamedTuple):
    """`piece` are the token's bytes; a text ends with a token that `is_eog`."""

    piece: bytes
    is_eog: bool


class Words(dict[int, Word]):
    """Words by token id, read when they are first asked for. `special`: control tokens as well."""

    def __init__(self, vocab: VocabPort, special: bool) -> None:
        super().__init__()
        self._vocab = vocab
        self._special = special

    def __missing__(self, token: int) -> Word:
        if len(self) >= MOST:
            self.clear()
        word = Word(self._vocab.piece(token, self._special), self._vocab.is_eog(token))
        self[token] = word
        return word
