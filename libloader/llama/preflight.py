"""Checks of a GGUF file's meaning that llama.cpp leaves to asserts: past them a load may abort.

`gguf.read` proves that the file can be walked; this module, that the numbers in it fit together.
It knows the vocabulary and the counts that llama.cpp divides by or indexes with, nothing else:
whether an architecture is supported is libllama's to say.
"""

from __future__ import annotations

from typing import NamedTuple, NoReturn

from libloader.errors import ModelFileInvalid
from libloader.llama.gguf import STRING, GGUFFile

TOKENS = "tokenizer.ggml.tokens"
FLOATS, INTEGERS = (6,), (4, 5)
TOKEN_ID_KEYS = tuple(
    f"tokenizer.ggml.{name}_token_id"
    for name in (
        "bos", "eos", "eot", "eom", "unknown", "seperator", "separator", "padding", "cls", "mask",
        "prefix", "suffix", "middle", "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep",
        "fim_sep",
    )
)  # fmt: skip
NO_TOKEN = (-1, 0xFFFFFFFF)  # how some converters write "there is none"


class Count(NamedTuple):
    """A hyperparameter that must be in 1..limit where it is given."""

    key: str
    limit: int


COUNTS = (
    Count("context_length", 1 << 31),
    Count("embedding_length", 1 << 20),
    Count("block_count", 1 << 12),
    Count("attention.head_count", 1 << 16),
)


def check(model: GGUFFile) -> None:
    """Raise ModelFileInvalid, naming the key at fault, unless libllama may be shown this file."""
    if not model.architecture:
        _fail(model, "general.architecture is missing: it is no language model")
    if not model.all_tensors:
        _fail(model, "it holds a vocabulary but no tensors")
    for count in COUNTS:
        _check_count(model, count)
    _check_vocabulary(model)


def _fail(model: GGUFFile, reason: str) -> NoReturn:
    raise ModelFileInvalid(f"{model.path}: {reason}")


def _check_count(model: GGUFFile, count: Count) -> None:
    key = f"{model.architecture}.{count.key}"
    value = model.metadata.get(key)
    if isinstance(value, int) and not 0 < value <= count.limit:
        _fail(model, f"{key} is {value}")


def _check_vocabulary(model: GGUFFile) -> None:
    kind = model.text("tokenizer.ggml.model")
    tokens = model.array(TOKENS)
    if kind in ("none", "no_vocab"):
        return
    if tokens is None or tokens.type != STRING or tokens.length == 0:
        _fail(model, f"{TOKENS} is missing: it has no vocabulary")
    _check_parallel_array(model, "tokenizer.ggml.scores", FLOATS, tokens.length)
    _check_parallel_array(model, "tokenizer.ggml.token_type", INTEGERS, tokens.length)
    for key in TOKEN_ID_KEYS:
        token = model.metadata.get(key)
        inside = isinstance(token, int) and (0 <= token < tokens.length or token in NO_TOKEN)
        if token is not None and not inside:
            _fail(model, f"{key} is {token}, the vocabulary has {tokens.length:,} tokens")


def _check_parallel_array(model: GGUFFile, key: str, kinds: tuple[int, ...], length: int) -> None:
    """An array that is indexed by token must be of its type and not shorter than the vocabulary."""
    found = model.metadata.get(key)
    where = model.array(key)
    if found is None:
        return
    if where is None or where.type not in kinds or where.length < length:
        _fail(model, f"{key} does not hold one number for each of the {length:,} tokens")
