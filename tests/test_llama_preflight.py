"""What a walkable GGUF file may still say that llama.cpp would abort on."""

from __future__ import annotations

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


def test_a_file_without_a_vocabulary_is_refused_unless_it_says_that_it_has_none(check):
    with pytest.raises(ModelFileInvalid, match="tokenizer.ggml.tokens is missing"):
        check(ARCHITECTURE)
    check(ARCHITECTURE, files.key("tokenizer.ggml.model", STRING, "no_vocab"))


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


@pytest.mark.parametrize("count", [0, 2**31])
def test_counts_that_nobody_could_compute_with_are_refused(check, count):
    with pytest.raises(ModelFileInvalid, match=f"llama.block_count is {count}"):
        check(ARCHITECTURE, TOKENS, files.key("llama.block_count", U32, count))
