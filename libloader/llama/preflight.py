"""Checks of a GGUF file's meaning that llama.cpp leaves to asserts: past them a load may abort.

`gguf.read` proves that the file can be walked; this module, that what it says fits together. Each
rule stands for an abort or a crash seen with files made of random changes (in parentheses where);
whether an architecture is supported is libllama's to say, and it says so without dying.

Laws:
- Only what no build survives is refused: a file that some llama.cpp runs must pass.
- A refusal names the key or tensor at fault.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import NamedTuple, NoReturn

from libloader.errors import ModelFileInvalid
from libloader.llama import ggml_types
from libloader.llama.gguf import STRING, GGUFFile, Tensor

TOKENS = "tokenizer.ggml.tokens"
FLOATS, INTEGERS = (6,), (4, 5)  # value types that an array beside the tokens may have
NO_TOKEN = (-1, 0xFFFFFFFF)  # how some converters write "there is none"
TOKEN_ID_KEYS = tuple(
    f"tokenizer.ggml.{name}_token_id"
    for name in (
        "bos", "eos", "eot", "eom", "unknown", "seperator", "separator", "padding", "cls", "mask",
        "prefix", "suffix", "middle", "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep",
        "fim_sep",
    )
)  # fmt: skip
SENTENCEPIECE = "llama"
# tokenizing any text aborts with these
NO_VOCABULARY = ("none", "no_vocab")
BYTE_TOKENS = [b"<0x%02X>" % byte for byte in range(256)]

F32 = 0
NOT_FOR_WEIGHTS = {24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64"}
WEIGHTS = re.compile(r"(^|\.)(token_embd|output|attn_\w+|ffn_(gate|up|down)\w*)\.weight$")
ATTENTION = re.compile(r"^blk\.\d+\.attn_(q|k|v|qkv)\.weight$")
EXPERTS_LIMIT = 1024  # LLAMA_MAX_EXPERTS is smaller, how small depends on the build


class Range(NamedTuple):
    """`<architecture>.<key>` must be a number in low..high where it is given."""

    key: str
    low: float
    high: float


RANGES = (
    Range("context_length", 1, 1 << 31),
    Range("embedding_length", 1, 1 << 20),
    Range("block_count", 1, 512),  # LLAMA_MAX_LAYERS
    Range("attention.head_count", 0, 1 << 16),
    Range("attention.layer_norm_epsilon", 0, 1),  # ggml_norm
    Range("attention.layer_norm_rms_epsilon", 0, 1),
    Range("attention.group_norm_epsilon", 0, 1),
    Range("expert_count", 0, EXPERTS_LIMIT),
    Range("pooling_type", -1, 4),  # build_pooling
)


def check(model: GGUFFile) -> None:
    """Raise ModelFileInvalid unless libllama may be shown this file. Reads the vocabulary."""
    if not model.architecture:
        _fail(model, "general.architecture is missing: it is no language model")
    if not model.all_tensors:
        _fail(model, "it holds a vocabulary but no tensors")
    for row in RANGES:
        _check_range(model, row)
    _check_experts(model)
    _check_heads(model)
    _check_rope(model)
    for tensor in model.all_tensors:
        _check_tensor(model, tensor)
    _check_vocabulary(model)


def _fail(model: GGUFFile, reason: str) -> NoReturn:
    raise ModelFileInvalid(f"{model.path}: {reason}")


def _check_range(model: GGUFFile, row: Range) -> None:
    key = f"{model.architecture}.{row.key}"
    value = model.metadata.get(key)
    if not isinstance(value, (int, float)):
        return
    if math.isnan(value) or not row.low <= value <= row.high:
        _fail(model, f"{key} is {value}, not in {row.low}..{row.high}")


def _check_experts(model: GGUFFile) -> None:
    """A mixture must use at least one of its experts, a dense model none (llama-model.cpp)."""
    n_experts, n_used = (model.of_architecture(f"expert_{key}") for key in ("count", "used_count"))
    if not min(1, n_experts) <= n_used <= n_experts:
        _fail(model, f"it uses {n_used} of {n_experts} experts per token")


def _check_heads(model: GGUFFile) -> None:
    """No heads is what Mamba's and RWKV's converters write; where there is attention it divides."""
    key = f"{model.architecture}.attention.head_count"
    if model.metadata.get(key) != 0:
        return
    tensor = next((each.name for each in model.all_tensors if ATTENTION.search(each.name)), "")
    if tensor:
        _fail(model, f"{key} is 0, but there is {tensor}")


def _check_rope(model: GGUFFile) -> None:
    """A head cannot rotate more numbers than it has (ggml_rope)."""
    n_heads = max(1, model.of_architecture("attention.head_count"))
    per_head = model.of_architecture("embedding_length") // n_heads
    n_rotated = model.of_architecture("rope.dimension_count")
    if per_head and n_rotated > model.of_architecture("attention.key_length", per_head):
        _fail(model, f"{model.architecture}.rope.dimension_count is {n_rotated}: more than a head")


def _check_tensor(model: GGUFFile, tensor: Tensor) -> None:
    """Norms and biases are added or multiplied, which ggml only does with plain numbers."""
    known = ggml_types.TYPES.get(tensor.type)
    is_vector = len(tensor.shape) < 2
    is_added = "norm" in tensor.name or tensor.name.endswith(".bias")
    wrong_vector = is_vector and known and (known.n_block > 1 or (is_added and tensor.type != F32))
    wrong_weight = tensor.type in NOT_FOR_WEIGHTS and WEIGHTS.search(tensor.name)
    if wrong_vector or wrong_weight:
        kind = ggml_types.type_name(tensor.type)
        _fail(model, f"tensor {tensor.name} is stored as {kind}, which ggml cannot compute with")


def _check_vocabulary(model: GGUFFile) -> None:
    where = model.array(TOKENS)
    kind = model.text("tokenizer.ggml.model")
    if kind in NO_VOCABULARY or where is None or where.type != STRING or where.length == 0:
        _fail(model, "it has no vocabulary, so it cannot be given text")
    _check_parallel_array(model, "tokenizer.ggml.scores", FLOATS, where.length)
    _check_parallel_array(model, "tokenizer.ggml.token_type", INTEGERS, where.length)
    for key in TOKEN_ID_KEYS:
        token = model.metadata.get(key)
        inside = isinstance(token, int) and (0 <= token < where.length or token in NO_TOKEN)
        if token is not None and not inside:
            _fail(model, f"{key} is {token}, the vocabulary has {where.length:,} tokens")
    _check_tokens(model, kind)


def _check_parallel_array(model: GGUFFile, key: str, kinds: tuple[int, ...], length: int) -> None:
    """An array that is indexed by token must be of its type and not shorter than the vocabulary."""
    found = model.metadata.get(key)
    where = model.array(key)
    if found is None:
        return
    if where is None or where.type not in kinds or where.length < length:
        _fail(model, f"{key} does not hold one number for each of the {length:,} tokens")


def _check_tokens(model: GGUFFile, kind: str) -> None:
    """No token twice, and every byte can be spelled (llama-vocab.cpp, load and byte_to_token)."""
    # C reads a token up to its first NUL; empty ones get a name of their own.
    tokens = [token.partition(b"\0")[0] for token in model.strings(TOKENS)]
    unique = set(tokens)
    unique.discard(b"")
    if len(unique) + tokens.count(b"") != len(tokens):
        twice, _ = Counter(token for token in tokens if token).most_common(1)[0]
        _fail(model, f"{TOKENS} holds {twice.decode('utf-8', 'replace')[:40]!r} twice")
    if kind == SENTENCEPIECE:
        missing = [token for token in BYTE_TOKENS if token not in unique]
        if missing:
            _fail(model, f"{TOKENS} lacks {missing[0].decode()}: some text has no tokens")
