"""A little GGUF writer for tests: any header, right or wrong, and tiny models that load.

Knows nothing of libloader, so that a mistake there is not repeated here.
"""

from __future__ import annotations

import random
import struct
from array import array
from pathlib import Path

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
Keys = dict  # name -> (value type, value or list of values)
FORMATS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?"}
FORMATS.update({U64: "Q", I64: "q", F64: "d"})


def string(text) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def scalar(kind: int, value) -> bytes:
    return string(value) if kind == STRING else struct.pack("<" + FORMATS[kind], value)


def value(kind: int, item) -> bytes:
    """Encode with its type in front; a list is an array of `kind`."""
    if isinstance(item, (list, tuple)):
        head = struct.pack("<IIQ", ARRAY, kind, len(item))
        return head + b"".join(scalar(kind, each) for each in item)
    return struct.pack("<I", kind) + scalar(kind, item)


def key(name, kind: int, item) -> bytes:
    return string(name) + value(kind, item)


def tensor_info(name: str, shape, kind: int = 0, offset: int = 0) -> bytes:
    dims = struct.pack(f"<{len(shape)}Q", *shape)
    return string(name) + struct.pack("<I", len(shape)) + dims + struct.pack("<IQ", kind, offset)


def header(keys=(), tensors=(), *, version=3, n_keys=None, n_tensors=None) -> bytes:
    """A header of encoded keys and tensor infos; the counts can be made to lie."""
    n_tensors = len(tensors) if n_tensors is None else n_tensors
    n_keys = len(keys) if n_keys is None else n_keys
    head = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys)
    return head + b"".join(keys) + b"".join(tensors)


def padded(raw: bytes, alignment: int = 32) -> bytes:
    return raw + b"\0" * (-len(raw) % alignment)


def with_data(keys, tensors: dict) -> bytes:
    """A whole file: `tensors` maps a name to (shape, array of floats), stored as F32."""
    infos, data = [], b""
    for name, (shape, numbers) in tensors.items():
        infos.append(tensor_info(name, shape, 0, len(data)))
        data += padded(numbers.tobytes())
    return padded(header(keys, infos)) + data


def byte_tokens() -> list[str]:
    """The 256 characters that stand for bytes in GPT-2's byte-level BPE, in byte order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "l d", "Ġwor ld"]
CONTROL, NORMAL = 3, 1
SPECIALS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def vocabulary() -> Keys:
    tokens = byte_tokens() + [merge.replace(" ", "") for merge in MERGES] + SPECIALS
    kinds = [NORMAL] * (len(tokens) - len(SPECIALS)) + [CONTROL] * len(SPECIALS)
    bos = tokens.index("<s>")
    return {
        "tokenizer.ggml.model": (STRING, "gpt2"),
        "tokenizer.ggml.pre": (STRING, "gpt-2"),
        "tokenizer.ggml.tokens": (STRING, tokens),
        "tokenizer.ggml.token_type": (I32, kinds),
        "tokenizer.ggml.merges": (STRING, MERGES),
        "tokenizer.ggml.bos_token_id": (U32, bos),
        "tokenizer.ggml.eos_token_id": (U32, bos + 1),
        "tokenizer.ggml.eot_token_id": (U32, bos + 3),
        "tokenizer.ggml.add_bos_token": (BOOL, True),
        "tokenizer.chat_template": (STRING, TEMPLATE),
    }


N_EMBD, N_HEAD, N_HEAD_KV, N_FF, N_LAYER, N_CTX, N_VOCAB = 64, 2, 1, 96, 2, 512, 256 + 9 + 4


def hyperparameters() -> Keys:
    counts = {
        "context_length": N_CTX,
        "embedding_length": N_EMBD,
        "block_count": N_LAYER,
        "feed_forward_length": N_FF,
        "attention.head_count": N_HEAD,
        "attention.head_count_kv": N_HEAD_KV,
        "rope.dimension_count": N_EMBD // N_HEAD,
        "vocab_size": N_VOCAB,
    }
    return {
        "general.architecture": (STRING, "llama"),
        "general.name": (STRING, "tiny"),
        "general.file_type": (U32, 0),
        **{f"llama.{name}": (U32, count) for name, count in counts.items()},
        "llama.attention.layer_norm_rms_epsilon": (F32, 1e-5),
    }


def tiny_keys() -> Keys:
    """All metadata of the tiny llama, to be changed at will."""
    return {**hyperparameters(), **vocabulary()}


def encoded(keys: Keys) -> list[bytes]:
    return [key(name, kind, item) for name, (kind, item) in keys.items()]


def tiny_shapes() -> dict[str, tuple[int, ...]]:
    n_kv = N_EMBD // N_HEAD * N_HEAD_KV
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (N_EMBD, N_VOCAB)}
    for layer in range(N_LAYER):
        block = {
            "attn_norm": (N_EMBD,),
            "attn_q": (N_EMBD, N_EMBD),
            "attn_k": (N_EMBD, n_kv),
            "attn_v": (N_EMBD, n_kv),
            "attn_output": (N_EMBD, N_EMBD),
            "ffn_norm": (N_EMBD,),
            "ffn_gate": (N_EMBD, N_FF),
            "ffn_up": (N_EMBD, N_FF),
            "ffn_down": (N_FF, N_EMBD),
        }
        shapes.update({f"blk.{layer}.{name}.weight": shape for name, shape in block.items()})
    shapes["output_norm.weight"] = (N_EMBD,)
    return shapes


def tiny_llama(extra_keys=(), *, seed: int = 1, norm: float = 1.0) -> bytes:
    """A whole llama model with random weights: some 90,000 numbers, the vocabulary above."""
    tensors = random_tensors(tiny_shapes(), seed, norm)
    return with_data([*encoded(tiny_keys()), *extra_keys], tensors)


def tiny_llama_split(n_parts: int) -> list[bytes]:
    """The tiny llama in parts: the first holds the keys and the first tensors."""
    tensors = list(random_tensors(tiny_shapes(), 1, 1.0).items())
    keys = encoded(tiny_keys())
    per_part = -(-len(tensors) // n_parts)
    return [
        with_data(
            [
                *(keys if number == 0 else ()),
                key("split.no", U16, number),
                key("split.count", U16, n_parts),
                key("split.tensors.count", I32, len(tensors)),
            ],
            dict(tensors[number * per_part : (number + 1) * per_part]),
        )
        for number in range(n_parts)
    ]


def random_tensors(shapes: dict, seed: int, norm: float) -> dict:
    rng = random.Random(seed)

    def numbers(name: str, count: int) -> array:
        is_norm = name.endswith("norm.weight")
        values = [norm if is_norm else rng.gauss(0, 0.2) for _ in range(count)]
        # A state that grew instead of fading would soon be infinite.
        return array("f", [-abs(each) for each in values] if name.endswith("ssm_a") else values)

    return {
        name: (shape, numbers(name, shape[0] * (shape[1] if len(shape) > 1 else 1)))
        for name, shape in shapes.items()
    }


def tiny_qwen_ranker(template: str) -> bytes:
    """A Qwen3 with random weights that writes text and, by two labels, ranks: yes or no."""
    keys = {
        name.replace("llama.", "qwen3."): item
        for name, item in tiny_keys().items()
        if name != "tokenizer.chat_template"
    }
    head = N_EMBD // N_HEAD
    keys["general.architecture"] = (STRING, "qwen3")
    keys["qwen3.attention.key_length"] = keys["qwen3.attention.value_length"] = (U32, head)
    keys["qwen3.pooling_type"] = (U32, POOLING_RANK)
    keys["qwen3.classifier.output_labels"] = (STRING, ["yes", "no"])
    keys["tokenizer.chat_template.rerank"] = (STRING, template)
    shapes = {**tiny_shapes(), "cls.output.weight": (N_EMBD, 2)}
    for layer in range(N_LAYER):
        for name in ("attn_q_norm", "attn_k_norm"):
            shapes[f"blk.{layer}.{name}.weight"] = (head,)
    return with_data(encoded(keys), random_tensors(shapes, 1, 1.0))


N_CONV, N_INNER, N_STATE, N_DT = 4, 2 * N_EMBD, 16, 8


def tiny_mamba() -> bytes:
    """A Mamba with random weights: its memory is one state, not a key and a value per token."""
    counts = {"feed_forward_length": 0, "attention.head_count": 0}  # as the converter writes them
    shapes = {"token_embd.weight": (N_EMBD, N_VOCAB), "output_norm.weight": (N_EMBD,)}
    for layer in range(N_LAYER):
        shapes.update(_mamba_block(layer))
    return with_data(_mamba_keys("mamba", counts), random_tensors(shapes, 1, 1.0))


def tiny_jamba() -> bytes:
    """A hybrid with random weights: one layer carries a state, the next one has attention."""
    counts = {
        "feed_forward_length": N_FF,
        "attention.head_count": N_HEAD,
        "attention.head_count_kv": [0, N_HEAD_KV],
    }
    shapes = {**tiny_shapes(), **_mamba_block(0)}
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        del shapes[f"blk.0.{name}.weight"]
    for name, size in (("dt", N_DT), ("b", N_STATE), ("c", N_STATE)):
        shapes[f"blk.0.ssm_{name}_norm.weight"] = (size,)
    return with_data(_mamba_keys("jamba", counts), random_tensors(shapes, 1, 1.0))


def _mamba_keys(architecture: str, counts: dict) -> list[bytes]:
    counts = {
        "context_length": N_CTX,
        "embedding_length": N_EMBD,
        "block_count": N_LAYER,
        "ssm.conv_kernel": N_CONV,
        "ssm.inner_size": N_INNER,
        "ssm.state_size": N_STATE,
        "ssm.time_step_rank": N_DT,
        **counts,
    }
    keys: Keys = {
        "general.architecture": (STRING, architecture),
        f"{architecture}.attention.layer_norm_rms_epsilon": (F32, 1e-5),
        **{f"{architecture}.{name}": (U32, count) for name, count in counts.items()},
        **vocabulary(),
    }
    return encoded(keys)


def _mamba_block(layer: int) -> dict[str, tuple[int, ...]]:
    block = {
        "attn_norm.weight": (N_EMBD,),
        "ssm_in.weight": (N_EMBD, 2 * N_INNER),
        "ssm_conv1d.weight": (N_CONV, N_INNER),
        "ssm_conv1d.bias": (N_INNER,),
        "ssm_x.weight": (N_INNER, N_DT + 2 * N_STATE),
        "ssm_dt.weight": (N_DT, N_INNER),
        "ssm_dt.bias": (N_INNER,),
        "ssm_a": (N_STATE, N_INNER),
        "ssm_d": (N_INNER,),
        "ssm_out.weight": (N_INNER, N_EMBD),
    }
    return {f"blk.{layer}.{name}": shape for name, shape in block.items()}


BERT_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
BERT_WORDS = [*BERT_SPECIALS, "▁hello", "▁world", *(f"▁{letter}" for letter in "abcdefghij")]
POOLING_MEAN, POOLING_CLS, POOLING_RANK = 1, 2, 4
CLASSIFIER = {
    "cls.weight": (N_EMBD, N_EMBD),
    "cls.bias": (N_EMBD,),
    "cls.output.weight": (N_EMBD, 1),
    "cls.output.bias": (1,),
}


def tiny_bert(pooling: int = POOLING_MEAN, *, ranks: bool = False) -> bytes:
    """A whole BERT with random weights: an encoder without a KV cache, which only embeds.

    With `ranks` it has a classifier of one output, as cross-encoders have.
    """
    counts = {
        "context_length": N_CTX,
        "embedding_length": N_EMBD,
        "block_count": 1,
        "feed_forward_length": N_FF,
        "attention.head_count": N_HEAD,
        "pooling_type": pooling,
    }
    special = {"bos": 2, "cls": 2, "eos": 3, "seperator": 3, "unknown": 1, "padding": 0, "mask": 4}
    keys = [
        key("general.architecture", STRING, "bert"),
        *(key(f"bert.{name}", U32, count) for name, count in counts.items()),
        key("bert.attention.layer_norm_epsilon", F32, 1e-12),
        key("bert.attention.causal", BOOL, False),
        key("tokenizer.ggml.model", STRING, "bert"),
        key("tokenizer.ggml.tokens", STRING, BERT_WORDS),
        key("tokenizer.ggml.token_type", I32, bert_token_kinds()),
        key("tokenizer.ggml.scores", F32, [0.0] * len(BERT_WORDS)),
        key("tokenizer.ggml.token_type_count", U32, 2),
        *(key(f"tokenizer.ggml.{name}_token_id", U32, token) for name, token in special.items()),
    ]
    return with_data(
        keys, random_tensors({**_bert_shapes(), **(CLASSIFIER if ranks else {})}, 1, 1.0)
    )


def bert_token_kinds() -> list[int]:
    return [CONTROL if word in BERT_SPECIALS else NORMAL for word in BERT_WORDS]


def _bert_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (N_EMBD, len(BERT_WORDS)),
        "token_types.weight": (N_EMBD, 2),
        "position_embd.weight": (N_EMBD, N_CTX),
        "token_embd_norm.weight": (N_EMBD,),
        "token_embd_norm.bias": (N_EMBD,),
    }
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        shapes[f"blk.0.{name}.weight"] = (N_EMBD, N_EMBD)
        shapes[f"blk.0.{name}.bias"] = (N_EMBD,)
    for name in ("attn_output_norm", "layer_output_norm"):
        shapes[f"blk.0.{name}.weight"] = shapes[f"blk.0.{name}.bias"] = (N_EMBD,)
    shapes.update({"blk.0.ffn_up.weight": (N_EMBD, N_FF), "blk.0.ffn_up.bias": (N_FF,)})
    shapes.update({"blk.0.ffn_down.weight": (N_FF, N_EMBD), "blk.0.ffn_down.bias": (N_EMBD,)})
    return shapes


def write(path: Path, raw: bytes) -> str:
    path.write_bytes(raw)
    return str(path)
