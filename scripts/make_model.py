#!/usr/bin/env python3
"""Write a GGUF model with random weights: the shapes that speed and memory are measured on.

    python3 scripts/make_model.py S -o S.gguf               15M parameters, 32k vocabulary, F16
    python3 scripts/make_model.py M -o M.gguf --type q8_0   0.6B parameters, 152k vocabulary
    python3 scripts/make_model.py D -o D.gguf               20M parameters, M's vocabulary

Random models never agree, so there is nothing to gain by drafting with one of them. Walking ones
do: of a token each chooses the same next one, a fixed way on, for the share of tokens it was asked
for. So M takes eight in ten of D's guesses:

    python3 scripts/make_model.py M --walk 1 -o MW.gguf
    python3 scripts/make_model.py D --walk 0.8 -o DW.gguf

The standard library is enough and the bytes depend on the options alone. The text that such a
model writes means nothing; its tokenizer, chat template and cost are real.

Laws:
- Weights are drawn so that a forward pass stays in range: spread 1/sqrt(row length).
- Rows of control tokens are zero, so their logit is 0 and greedy decoding never stops early.
- A walking model costs what the other does: the same matrices, but the output's is one of its own
  (with the embeddings', a token's best match is itself, and no layer is needed to go elsewhere).
"""

from __future__ import annotations

import argparse
import math
import random
import struct
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, product
from statistics import NormalDist
from typing import Callable

from gguf_writer import TENSOR_TYPES, Tensor, TensorType, Value, write_gguf

CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
NORMAL, CONTROL = 1, 3  # enum llama_token_type
LETTERS = "etaoinshrdlucmfwypvbgkjqxz"  # by frequency: short vocabularies get the common ones
PIECE_WEIGHTS = 1 << 20  # weights per written piece; a multiple of every block
LOUD = 16.0  # spread of a walking model's embeddings; all layers together add about 3 to it
STRIDE = 0.618  # of a step, in vocabularies: the golden section comes near no token again for long

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


@dataclass(frozen=True)
class Shape:
    """A llama-architecture model; its embeddings are tied unless it walks."""

    name: str
    n_vocab: int
    n_embd: int
    n_layer: int
    n_head: int
    n_head_kv: int
    head_size: int
    n_ff: int
    n_ctx_train: int
    tensor_type: str


SHAPES = {
    row.name: row
    for row in (
        # fmt: off
        #     name    n_vocab  n_embd  n_layer  n_head  n_head_kv  head_size  n_ff  n_ctx  type
        Shape("tiny", 512, 64, 2, 2, 1, 32, 192, 4096, "f16"),
        Shape("S", 32000, 288, 6, 6, 6, 48, 768, 8192, "f16"),
        Shape("M", 151936, 1024, 28, 16, 8, 128, 3072, 32768, "q4_0"),
        Shape("D", 151936, 64, 2, 2, 1, 32, 192, 32768, "q8_0"),
        # fmt: on
    )
}


def main() -> int:
    options = read_options()
    shape = SHAPES[options.shape]
    started = time.monotonic()
    weights = TENSOR_TYPES[options.type or shape.tensor_type]
    tensors = list(model_tensors(shape, weights, options.seed, options.walk))
    size = write_gguf(options.output, model_metadata(shape, tensors), tensors)
    print(
        f"{options.output}: {sum(t.n_weights for t in tensors) / 1e6:.1f}M parameters, "
        f"{size / 1e6:.1f} MB, {time.monotonic() - started:.1f} s"
    )
    return 0


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("-o", "--output", required=True, metavar="FILE")
    parser.add_argument(
        "--type",
        choices=sorted(set(TENSOR_TYPES) - {"f32"}),
        help="weight type (default: the shape's own)",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--walk",
        type=float,
        metavar="SHARE",
        help="go the walk that all such models go, from this share of the tokens",
    )
    return parser.parse_args()


# --- metadata and vocabulary ---------------------------------------------------------------


def model_metadata(shape: Shape, tensors: Sequence[Tensor]) -> dict[str, Value]:
    tokens, merges = vocabulary(shape.n_vocab)
    first_control = len(tokens) - len(CONTROL_TOKENS)
    main_type = tensors[0].type
    return {
        "general.architecture": "llama",
        "general.name": f"igllama random {shape.name}",
        "general.file_type": main_type.file_type,
        "general.quantization_version": 2,
        "llama.block_count": shape.n_layer,
        "llama.context_length": shape.n_ctx_train,
        "llama.embedding_length": shape.n_embd,
        "llama.feed_forward_length": shape.n_ff,
        "llama.attention.head_count": shape.n_head,
        "llama.attention.head_count_kv": shape.n_head_kv,
        "llama.attention.key_length": shape.head_size,
        "llama.attention.value_length": shape.head_size,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": shape.head_size,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": shape.n_vocab,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [NORMAL] * first_control + [CONTROL] * len(CONTROL_TOKENS),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": first_control,
        "tokenizer.ggml.eos_token_id": first_control + 2,
        "tokenizer.ggml.padding_token_id": first_control,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def vocabulary(n_vocab: int) -> tuple[list[str], list[str]]:
    """Byte tokens, then merges of frequent letters, then the control tokens; with the merges.

    Every token longer than a byte is made by exactly one merge of two earlier tokens.
    """
    tokens = list(byte_alphabet().values())
    merges = []
    for left, right in letter_merges():
        if len(tokens) == n_vocab - len(CONTROL_TOKENS):
            break
        tokens.append(left + right)
        merges.append(f"{left} {right}")
    return tokens + list(CONTROL_TOKENS), merges


def letter_merges() -> Iterator[tuple[str, str]]:
    """Pairs to merge, short ones first; `Ġ` is the space in front of a word."""
    pairs = [a + b for a, b in product(LETTERS, repeat=2)]
    yield from product(LETTERS, LETTERS)
    yield from product("Ġ", LETTERS)
    yield from product(pairs, LETTERS)
    yield from product("Ġ", pairs)
    yield from product(pairs, pairs)


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte, in byte order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    stand_ins = iter(range(0x100, 0x200))
    return {byte: chr(byte if byte in printable else next(stand_ins)) for byte in range(0x100)}


# --- weights -------------------------------------------------------------------------------


def model_tensors(
    shape: Shape, weights: TensorType, seed: int, walk: float | None = None
) -> Iterator[Tensor]:
    """Every tensor of the model.

    The output matrix is the embedding matrix (tied), or with `walk` one of its own, which goes on
    as all walking models do from that share of the tokens.
    """
    source = WeightSource(seed, weights)
    embeddings = embedding_matrix(shape, source)
    if walk is None:
        yield embeddings
    else:
        yield embedding_matrix(shape, source, LOUD)
        yield output_matrix(embeddings, walk, seed)
    for layer in range(shape.n_layer):
        yield from layer_tensors(shape, source, f"blk.{layer}")
    yield ones("output_norm.weight", shape.n_embd)


def embedding_matrix(shape: Shape, source: WeightSource, spread: float = 0.0) -> Tensor:
    return source.matrix(
        "token_embd.weight", shape.n_embd, shape.n_vocab, len(CONTROL_TOKENS), spread
    )


def output_matrix(embeddings: Tensor, share: float, seed: int) -> Tensor:
    """The row of a token is the embedding of the one before it, so that one's best match.

    Outside the share it is zero: such a token is never chosen, another one is in its place.
    """
    n_embd, n_vocab = embeddings.shape
    n_walked = n_vocab - len(CONTROL_TOKENS)
    blank = bytes(embeddings.type.n_bytes(n_embd))

    def pieces() -> Iterator[bytes]:
        first = n_walked - stride(n_walked)  # the token before token 0
        known = random.Random(f"{seed} walk").random
        for row in chain(
            islice(rows_of(embeddings), first, n_walked), islice(rows_of(embeddings), first)
        ):
            yield row if known() < share else blank
        yield from [blank] * len(CONTROL_TOKENS)

    return Tensor("output.weight", embeddings.shape, embeddings.type, pieces)


def stride(n_walked: int) -> int:
    """Return the step from a token to the next one, which leads round all of them."""
    step = round(STRIDE * n_walked)
    while math.gcd(step, n_walked) > 1:
        step += 1
    return step


def rows_of(tensor: Tensor) -> Iterator[bytes]:
    size = tensor.type.n_bytes(tensor.shape[0])
    left = b""
    for piece in tensor.data():
        left += piece
        n_whole = len(left) // size * size
        yield from (left[at : at + size] for at in range(0, n_whole, size))
        left = left[n_whole:]


def layer_tensors(shape: Shape, source: WeightSource, block: str) -> Iterator[Tensor]:
    n_embd, n_q = shape.n_embd, shape.n_head * shape.head_size
    n_kv = shape.n_head_kv * shape.head_size
    yield ones(f"{block}.attn_norm.weight", n_embd)
    yield source.matrix(f"{block}.attn_q.weight", n_embd, n_q)
    yield source.matrix(f"{block}.attn_k.weight", n_embd, n_kv)
    yield source.matrix(f"{block}.attn_v.weight", n_embd, n_kv)
    yield source.matrix(f"{block}.attn_output.weight", n_q, n_embd)
    yield ones(f"{block}.ffn_norm.weight", n_embd)
    yield source.matrix(f"{block}.ffn_gate.weight", n_embd, shape.n_ff)
    yield source.matrix(f"{block}.ffn_up.weight", n_embd, shape.n_ff)
    yield source.matrix(f"{block}.ffn_down.weight", shape.n_ff, n_embd)


def ones(name: str, length: int) -> Tensor:
    return Tensor(
        name, (length,), TENSOR_TYPES["f32"], lambda: [struct.pack(f"<{length}f", *[1.0] * length)]
    )


class WeightSource:
    """Makes matrices of one type; each gets its own stream, seeded by its name."""

    def __init__(self, seed: int, weights: TensorType) -> None:
        self.seed = seed
        self.weights = weights
        self.encode = ENCODERS[weights.name]

    def matrix(
        self, name: str, n_in: int, n_out: int, n_zero_rows: int = 0, spread: float = 0.0
    ) -> Tensor:
        """`n_out` rows of `n_in` weights, the last `n_zero_rows` of them zero."""

        def pieces() -> Iterator[bytes]:
            draw = random.Random(f"{self.seed} {name}").randbytes
            left = n_in * (n_out - n_zero_rows)
            while left:
                n_weights = min(left, PIECE_WEIGHTS)
                yield self.encode(draw, n_weights, spread or n_in**-0.5)
                left -= n_weights
            yield bytes(self.weights.n_bytes(n_in * n_zero_rows))

        return Tensor(name, (n_in, n_out), self.weights, pieces)


RandomBytes = Callable[[int], bytes]


def encode_f16(draw: RandomBytes, n_weights: int, spread: float) -> bytes:
    """Normal deviates: the high byte of each half by quantile, the low mantissa bits free."""
    high = bytes(
        struct.pack("<e", NormalDist(0, spread).inv_cdf((i + 0.5) / 256))[1] for i in range(256)
    )
    out = bytearray(2 * n_weights)
    out[0::2] = draw(n_weights)
    out[1::2] = draw(n_weights).translate(high)
    return bytes(out)


def encode_q4_0(draw: RandomBytes, n_weights: int, spread: float) -> bytes:
    """Nibbles -7..7 around zero; -8 has no partner and would bias every sum, so it becomes 0."""

    def balanced(nibble: int) -> int:
        return nibble or 8

    table = bytes(balanced(byte >> 4) << 4 | balanced(byte & 15) for byte in range(256))
    return blocks(draw(n_weights // 2).translate(table), 16, spread / deviation(7))


def encode_q8_0(draw: RandomBytes, n_weights: int, spread: float) -> bytes:
    table = bytes(byte if byte != 0x80 else 0 for byte in range(256))
    return blocks(draw(n_weights).translate(table), 32, spread / deviation(127))


def deviation(largest: int) -> float:
    """Standard deviation of -largest..largest, each equally likely and zero twice."""
    return math.sqrt(sum(n * n for n in range(1, largest + 1)) / (largest + 1))


def blocks(quants: bytes, quant_bytes: int, scale: float) -> bytes:
    """Interleave one half-precision scale with every `quant_bytes` of `quants`."""
    size = 2 + quant_bytes
    n_blocks = len(quants) // quant_bytes
    out = bytearray(size * n_blocks)
    for at, byte in enumerate(struct.pack("<e", scale)):
        out[at::size] = bytes([byte]) * n_blocks
    for at in range(quant_bytes):
        out[2 + at :: size] = quants[at::quant_bytes]
    return bytes(out)


ENCODERS: Mapping[str, Callable[[RandomBytes, int, float], bytes]] = {
    "f16": encode_f16,
    "q4_0": encode_q4_0,
    "q8_0": encode_q8_0,
}


if __name__ == "__main__":
    sys.exit(main())
