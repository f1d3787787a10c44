"""The vocabulary of a model: text to token ids, token ids to bytes.

Laws:
- Token ids come from clients: one out of range is a FieldInvalid, raised by `abi.guards`, for in
  every build C would abort.
- Bytes, not text, come out: a token may hold half a UTF-8 character.
- All methods may be called from any thread while the model is open.
"""

from __future__ import annotations

import ctypes
from typing import Any

from libloader.errors import FieldInvalid, PromptTooLong
from libloader.llama.gguf import GGUFFile
from libloader.llama.handle import Handle
from libloader.llama.token_tree import TokenTree

PIECE_BYTES = 64  # room for almost every token; a longer one is asked for again
INT32_MIN, INT32_MAX = -(1 << 31), (1 << 31) - 1
CONTROL = 3  # in tokenizer.ggml.token_type
WORDPIECE = "bert"  # in tokenizer.ggml.model
SIZES_APART = 128  # tokens that one vocabulary may have more than another and be the same
N_COMPARED = 4096  # tokens whose text is compared
EXTRA_TOKENS = 16  # what add_special may add around the text


class Vocab:
    """Borrows the vocabulary from its model: nothing to close here."""

    def __init__(self, lib: Any, model: Handle, file: GGUFFile) -> None:
        self._lib, self._model, self._file = lib, model, file
        self._pointer = lib.llama_model_get_vocab(model.pointer)
        self.n_tokens: int = lib.llama_vocab_n_tokens(self._pointer)
        self.bos: int = lib.llama_vocab_bos(self._pointer)  # -1 where there is none
        self.eos: int = lib.llama_vocab_eos(self._pointer)
        self.eot: int = lib.llama_vocab_eot(self._pointer)
        self.adds_bos: bool = bool(lib.llama_vocab_get_add_bos(self._pointer))
        self._control_tokens: tuple[int, ...] | None = None
        self._hidden_tokens: frozenset[int] | None = None
        self._special_tokens: tuple[str, ...] | None = None
        self._tree: TokenTree | None = None

    @property
    def pointer(self) -> Any:
        """The native vocabulary, for a C call; EngineUnavailable once its model is closed."""
        assert self._model.pointer is not None
        return self._pointer

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """Return token ids; with `parse_special` the text of control tokens becomes the token.

        Lone surrogates, which JSON can carry, become question marks: UTF-8 has none.
        """
        raw = text.encode("utf-8", "replace")
        if len(raw) > INT32_MAX - EXTRA_TOKENS:
            raise PromptTooLong(f"a text of {len(raw):,} bytes is too long to tokenize")
        room = len(raw) + EXTRA_TOKENS
        n_tokens, tokens = self._tokenize(raw, room, add_special, parse_special)
        if n_tokens == INT32_MIN:
            raise PromptTooLong(f"a text of {len(raw):,} bytes has too many tokens")
        if n_tokens < 0:
            n_tokens, tokens = self._tokenize(raw, -n_tokens, add_special, parse_special)
        return tokens[: max(0, n_tokens)]

    def _tokenize(
        self, raw: bytes, room: int, add_special: bool, parse_special: bool
    ) -> tuple[int, list[int]]:
        buffer = (ctypes.c_int32 * room)()
        n_tokens = self._lib.llama_tokenize(
            self.pointer, raw, len(raw), buffer, room, add_special, parse_special
        )
        return n_tokens, buffer[: max(0, min(n_tokens, room))]

    def piece(self, token: int, special: bool = False) -> bytes:
        """Return the bytes that `token` adds to the text; control tokens only with `special`."""
        n_bytes, raw = self._piece(token, PIECE_BYTES, special)
        if n_bytes < 0:
            n_bytes, raw = self._piece(token, -n_bytes, special)
        return raw[: max(0, n_bytes)]

    def _piece(self, token: int, room: int, special: bool) -> tuple[int, bytes]:
        buffer = ctypes.create_string_buffer(room)
        n_bytes: int = self._lib.llama_token_to_piece(self.pointer, token, buffer, room, 0, special)
        return n_bytes, buffer.raw

    def is_eog(self, token: int) -> bool:
        """Say whether `token` ends a generation (end of text, of a turn, of a message)."""
        return bool(self._lib.llama_vocab_is_eog(self.pointer, token))

    def pair(self, first: list[int], second: list[int]) -> list[int]:
        """Return a question and a text as llama.cpp hands them to a model that ranks."""
        lib, pointer = self._lib, self.pointer
        sep: int = lib.llama_vocab_sep(pointer)
        eos = [self.eos if self.eos >= 0 else sep] * bool(lib.llama_vocab_get_add_eos(pointer))
        middle = [*eos, *[sep] * (self._adds_sep() and sep >= 0)]
        return [*[self.bos] * self.adds_bos, *first, *middle, *second, *eos]

    def _adds_sep(self) -> bool:
        if self._lib.has("add_sep"):
            return bool(self._lib.llama_vocab_get_add_sep(self.pointer))
        says = self._file.metadata.get("tokenizer.ggml.add_sep_token")
        return self._file.text("tokenizer.ggml.model") == WORDPIECE if says is None else bool(says)

    def require(self, token: int) -> None:
        """Raise FieldInvalid unless `token` is in the vocabulary."""
        if not 0 <= token < self.n_tokens:
            raise FieldInvalid(f"token {token} is not in the vocabulary (0..{self.n_tokens - 1})")

    @property
    def control_tokens(self) -> tuple[int, ...]:
        """Ids of the tokens that are control, not text."""
        if self._control_tokens is None:
            kinds = self._file.numbers("tokenizer.ggml.token_type")[: self.n_tokens]
            self._control_tokens = tuple(i for i, kind in enumerate(kinds) if kind == CONTROL)
        return self._control_tokens

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """Text of every control token: what a user's text must not turn into a token."""
        if self._special_tokens is None:
            pieces = (self.piece(token, special=True) for token in self.control_tokens)
            texts = (piece.decode("utf-8", "replace") for piece in pieces)
            self._special_tokens = tuple(text for text in texts if text)
        return self._special_tokens

    @property
    def eog_tokens(self) -> tuple[int, ...]:
        """Ids of the tokens that end a generation; `ignore_eos` forbids them."""
        ends = (token for token in (self.eos, self.eot) if token >= 0)
        return tuple(sorted({t for t in (*self.control_tokens, *ends) if self.is_eog(t)}))

    @property
    def hidden_tokens(self) -> frozenset[int]:
        """Ids of the control tokens that end nothing: their text is not shown."""
        if self._hidden_tokens is None:
            self._hidden_tokens = frozenset(t for t in self.control_tokens if not self.is_eog(t))
        return self._hidden_tokens

    @property
    def tree(self) -> TokenTree:
        """The tokens by prefix; made when first asked for, half a second for 150,000."""
        if self._tree is None:
            self._tree = TokenTree(map(self.piece, range(self.n_tokens)), self.hidden_tokens)
        return self._tree


def why_apart(one: Vocab, other: Vocab) -> str:
    """Say why the tokens of two models do not mean the same; "" if they do.

    One may have some more at its end, as padding. The text of all tokens takes long to compare:
    some thousands, spread over the whole, show any other vocabulary.
    """
    n, n_other = one.n_tokens, other.n_tokens
    if abs(n - n_other) > SIZES_APART:
        return f"its vocabulary has {n_other:,} tokens, not {n:,}"
    for name in ("bos", "eos", "adds_bos"):
        mine, its = getattr(one, name), getattr(other, name)
        if mine != its:
            return f"its {name.replace('_', ' ')} is {its}, not {mine}"
    if one.special_tokens != other.special_tokens:
        return "its special tokens are others"
    both = min(n, n_other)
    for token in range(0, both, max(1, both // N_COMPARED)):
        mine, its = one.piece(token, special=True), other.piece(token, special=True)
        if mine != its:
            return f"its token {token} is {its!r}, not {mine!r}"
    return ""
