"""What a walkable GGUF file may still say that llama.cpp would abort on."""

from __future__ import annotations

import math

import gguf_files as files
import pytest
from gguf_files import F32, I32, STRING, U32

from libloader.errors import ModelFileInvalid
from libloader.llama import gguf, preflight

ARCHITECTURE = files.key("general.architecture", STRING, "llama")
TOKENS = files.key("tokenizer.ggml.tokens", STRING, ["a", "b", "c"])


@pytest.fixture
def check(tmp_path):
    """Check a file of these keys and one tensor."""

    def checked(*keys: bytes) -> None:
        raw = files.with_data(list(keys), {"t": ((1,), files.array("f", [1]))})
        preflight.check(gguf.read(files.write(tmp_path / "model.gguf", raw)))

    return checked


def test_the_tiny_llama_passes(tmp_path):
    preflight.check(gguf.read(files.write(tmp_path / "model.gguf", files.tiny_llama())))


def test_a_file_without_an_architecture_is_refused(check):
    with pytest.raises(ModelFileInvalid, match="general.architecture is missing"):
        check(TOKENS)


def test_a_file_of_only_a_vocabulary_is_refused(tmp_path):
    path = files.write(tmp_path / "model.gguf", files.header([ARCHITECTURE, TOKENS]))
    with pytest.raises(ModelFileInvalid, match="no tensors"):
        preflight.check(gguf.read(path))


@pytest.mark.parametrize("keys", [[], [files.key("tokenizer.ggml.model", STRING, "none"), TOKENS]])
def test_a_file_without_a_vocabulary_is_refused(check, keys):
    with pytest.raises(ModelFileInvalid, match="no vocabulary"):
        check(ARCHITECTURE, *keys)


@pytest.mark.parametrize("name", ["bos", "eos", "padding", "fim_pre"])
def test_a_special_token_beyond_the_vocabulary_is_refused(check, name):
    key = f"tokenizer.ggml.{name}_token_id"
    with pytest.raises(ModelFileInvalid, match=f"{key} is 3"):
        check(ARCHITECTURE, TOKENS, files.key(key, U32, 3))
    check(ARCHITECTURE, TOKENS, files.key(key, U32, 2))


def test_a_special_token_may_be_marked_as_absent(check):
    check(ARCHITECTURE, TOKENS, files.key("tokenizer.ggml.bos_token_id", U32, 0xFFFFFFFF))


@pytest.mark.parametrize(
    ("key", "kind", "items"),
    [
        ("tokenizer.ggml.scores", F32, [0.0]),
        ("tokenizer.ggml.scores", I32, [0, 0, 0]),
        ("tokenizer.ggml.token_type", I32, [1, 1]),
        ("tokenizer.ggml.token_type", F32, [1.0, 1.0, 1.0]),
        ("tokenizer.ggml.token_type", I32, 1),
    ],
)
def test_arrays_beside_the_tokens_must_be_as_long_and_of_their_type(check, key, kind, items):
    with pytest.raises(ModelFileInvalid, match=key):
        check(ARCHITECTURE, TOKENS, files.key(key, kind, items))


@pytest.mark.parametrize(
    ("key", "kind", "value"),
    [
        ("block_count", U32, 0),
        ("block_count", U32, 513),
        ("attention.head_count", U32, 65537),
        ("attention.layer_norm_rms_epsilon", F32, -1.0),
        ("attention.layer_norm_epsilon", F32, math.nan),
        ("pooling_type", U32, 5),
    ],
)
def test_numbers_that_nobody_could_compute_with_are_refused(check, key, kind, value):
    with pytest.raises(ModelFileInvalid, match=f"llama.{key} is "):
        check(ARCHITECTURE, TOKENS, files.key(f"llama.{key}", kind, value))


def test_attention_without_heads_is_refused(tmp_path):
    keys = {**files.tiny_keys(), "llama.attention.head_count": (U32, 0)}
    raw = files.with_data(files.encoded(keys), files.random_tensors(files.tiny_shapes(), 1, 1.0))
    with pytest.raises(ModelFileInvalid, match=r"head_count is 0, but there is blk\.0\.attn_q"):
        preflight.check(gguf.read(files.write(tmp_path / "model.gguf", raw)))


@pytest.mark.parametrize("make", [files.tiny_mamba, files.tiny_jamba])
def test_models_without_attention_in_any_or_some_of_their_layers_pass(tmp_path, make):
    preflight.check(gguf.read(files.write(tmp_path / "model.gguf", make())))


@pytest.mark.parametrize(("n_experts", "n_used"), [(0, 1), (8, 0), (8, 9)])
def test_experts_must_fit_their_use(check, n_experts, n_used):
    counts = {"expert_count": n_experts, "expert_used_count": n_used}
    keys = [files.key(f"llama.{name}", U32, count) for name, count in counts.items()]
    with pytest.raises(ModelFileInvalid, match=f"uses {n_used} of {n_experts} experts"):
        check(ARCHITECTURE, TOKENS, *keys)


def test_a_head_cannot_rotate_more_than_it_has(check):
    counts = {"embedding_length": 64, "attention.head_count": 2, "rope.dimension_count": 34}
    keys = [files.key(f"llama.{name}", U32, count) for name, count in counts.items()]
    with pytest.raises(ModelFileInvalid, match="rope.dimension_count is 34"):
        check(ARCHITECTURE, TOKENS, *keys)
    check(ARCHITECTURE, TOKENS, *keys, files.key("llama.attention.key_length", U32, 64))


@pytest.mark.parametrize("tokens", [["a", "b", "a"], ["a", "b", "a\0c"]])
def test_a_token_that_occurs_twice_is_refused(check, tokens):
    with pytest.raises(ModelFileInvalid, match="'a' twice"):
        check(ARCHITECTURE, files.key("tokenizer.ggml.tokens", STRING, tokens))


def test_empty_tokens_may_occur_twice(check):
    check(ARCHITECTURE, files.key("tokenizer.ggml.tokens", STRING, ["a", "", ""]))


def test_a_sentencepiece_vocabulary_must_spell_every_byte(check):
    kind = files.key("tokenizer.ggml.model", STRING, "llama")
    tokens = ["a", *(f"<0x{byte:02X}>" for byte in range(256))]
    check(ARCHITECTURE, kind, files.key("tokenizer.ggml.tokens", STRING, tokens))
    with pytest.raises(ModelFileInvalid, match="lacks <0xFF>"):
        check(ARCHITECTURE, kind, files.key("tokenizer.ggml.tokens", STRING, tokens[:-1]))


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("output_norm.weight", (32,), 8),
        ("blk.0.attn_norm.weight", (32,), 1),
        ("blk.0.attn_q.bias", (32,), 30),
        ("blk.0.attn_q.weight", (32, 1), 26),
        ("token_embd.weight", (32, 1), 28),
        ("rope_freqs.weight", (32,), 2),
    ],
)
def test_tensors_in_types_that_ggml_cannot_compute_with_are_refused(tmp_path, name, shape, kind):
    info = files.tensor_info(name, shape, kind)
    raw = files.padded(files.header([ARCHITECTURE, TOKENS], [info])) + b"\0" * 512
    with pytest.raises(ModelFileInvalid, match=f"tensor {name} is stored as"):
        preflight.check(gguf.read(files.write(tmp_path / "model.gguf", raw)))
