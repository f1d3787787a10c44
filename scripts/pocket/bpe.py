"""Byte-level BPE: training on our own corpus and encoding exactly as llama.cpp does.

What lives here: the GPT-2 split (tokenizer.ggml.pre = "gpt-2", the one rule that no llama.cpp
release has changed), merges learned within the split pieces, and a greedy encoder.

Laws:
- Bytes outside ASCII are never merged: one character is then several tokens, and whoever
  streams text must join them. That is what a test model is for.
- Digits are never merged with each other, so that arithmetic sees every digit.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

# GPT-2's pattern; \p{L} is spelled [^\W\d_] because re lacks Unicode properties
SPLIT = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")

Pair = tuple[str, str]


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte, in byte order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    stand_ins = iter(range(0x100, 0x200))
    return {byte: chr(byte if byte in printable else next(stand_ins)) for byte in range(0x100)}


ALPHABET = byte_alphabet()


def pieces(text: str) -> list[tuple[str, ...]]:
    """Split `text` and spell each piece in the byte alphabet."""
    return [
        tuple(ALPHABET[byte] for byte in piece.encode("utf-8")) for piece in SPLIT.findall(text)
    ]


class Tokenizer:
    """Vocabulary and merges. Ids: bytes in byte order, merges in rank order, special tokens."""

    def __init__(self, merges: Sequence[Pair], special: Sequence[str]) -> None:
        self.merges = list(merges)
        self.special = list(special)
        self.tokens = [*ALPHABET.values(), *(a + b for a, b in merges), *special]
        self.id_of = {token: index for index, token in enumerate(self.tokens)}
        self._rank = {pair: rank for rank, pair in enumerate(self.merges)}
        self._special_split = re.compile("(" + "|".join(map(re.escape, special)) + ")")
        self._cache: dict[tuple[str, ...], list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, special tokens recognised."""
        ids: list[int] = []
        for number, part in enumerate(self._special_split.split(text)):
            if number % 2:
                ids.append(self.id_of[part])
            else:
                for piece in pieces(part):
                    ids += self._encode_piece(piece)
        return ids

    def plain_parts(self, text: str) -> list[str]:
        """`text` without its special tokens."""
        return self._special_split.split(text)[::2]

    def decode(self, ids: Iterable[int]) -> str:
        byte_of = {char: byte for byte, char in ALPHABET.items()}
        first_special = len(self.tokens) - len(self.special)
        raw = b""
        for index in ids:
            token = self.tokens[index]
            raw += token.encode() if index >= first_special else bytes(byte_of[c] for c in token)
        return raw.decode("utf-8", "replace")

    def _encode_piece(self, piece: tuple[str, ...]) -> list[int]:
        if piece not in self._cache:
            self._cache[piece] = [self.id_of[symbol] for symbol in self._merged(piece)]
        return self._cache[piece]

    def _merged(self, symbols: Sequence[str]) -> Sequence[str]:
        """Apply the earliest-learned merge until none applies."""
        while len(symbols) > 1:
            pairs = zip(symbols, symbols[1:])
            best = min(pairs, key=lambda pair: self._rank.get(pair, len(self._rank)))
            if best not in self._rank:
                break
            symbols = merge(symbols, best)
        return symbols


def train(texts: Iterable[str], n_merges: int) -> list[Pair]:
    """Learn merges: the most frequent pair first, ties by text, so that a run repeats exactly."""
    words = Counter(piece for text in texts for piece in pieces(text))
    merges: list[Pair] = []
    while len(merges) < n_merges:
        counts: Counter[Pair] = Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:]):
                counts[pair] += count
        candidates = [pair for pair in counts if allowed(*pair)]
        if not candidates:
            break
        best = min(candidates, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        words = Counter({merge(word, best): count for word, count in words.items()})
    return merges


def allowed(left: str, right: str) -> bool:
    if any(ord(char) > 0x7F for char in (left + right).replace("Ġ", "").replace("Ċ", "")):
        return False
    return not (left[-1:].isdigit() and right[:1].isdigit())


def merge(symbols: Sequence[str], pair: Pair) -> tuple[str, ...]:
    merged: list[str] = []
    index = 0
    while index < len(symbols):
        if tuple(symbols[index : index + 2]) == pair:
            merged.append(symbols[index] + symbols[index + 1])
            index += 2
        else:
            merged.append(symbols[index])
            index += 1
    return tuple(merged)
