"""Loading a model and asking its vocabulary, on a real libllama."""

from __future__ import annotations

from types import SimpleNamespace

import gguf_files as files
import pytest

from libloader.core import EngineSettings
from libloader.errors import (
    EngineUnavailable,
    FieldInvalid,
    ModelFileInvalid,
    ModelLoadFailed,
)
from libloader.llama import gguf
from libloader.llama.model import Model

pytestmark = pytest.mark.native


@pytest.fixture
def load(native_library, tmp_path):
    """Load a model from bytes; closed at the end of the test."""
    models = []

    def loaded(raw: bytes, progress=lambda done: None, **settings) -> Model:
        path = files.write(tmp_path / "model.gguf", raw)
        models.append(Model.load(native_library, path, EngineSettings(**settings), progress))
        return models[-1]

    yield loaded
    for model in models:
        model.close()


def test_a_loaded_model_knows_its_figures(tiny_model):
    assert tiny_model.architecture == "llama"
    assert tiny_model.n_embd == files.N_EMBD
    assert tiny_model.n_layer == files.N_LAYER
    assert tiny_model.n_ctx_train == files.N_CTX
    assert tiny_model.n_params == tiny_model.file.n_params
    assert tiny_model.chat_template == files.TEMPLATE
    assert tiny_model.tool_template == ""
    assert "llama" in tiny_model.description
    assert tiny_model.metadata("general.name") == "tiny"
    assert not tiny_model.is_encoder_decoder


def test_the_template_for_tools_is_read_where_the_file_has_one(load):
    named = {"tokenizer.chat_template.tool_use": (files.STRING, "tools: {{ tools }}")}
    model = load(files.tiny_llama(files.encoded(named)))
    assert (model.chat_template, model.tool_template) == (files.TEMPLATE, "tools: {{ tools }}")


def test_kv_elements_count_the_heads_that_keys_and_values_have(tiny_model):
    per_layer = files.N_EMBD // files.N_HEAD * files.N_HEAD_KV
    assert tiny_model.kv_elements_per_token() == (per_layer * files.N_LAYER,) * 2


def test_a_model_without_attention_loads_and_has_no_keys_and_values(load):
    model = load(files.tiny_mamba())
    assert model.architecture == "mamba" and model.generates
    assert model.kv_elements_per_token() == (0, 0)


@pytest.mark.parametrize("can_tell", [True, False])
@pytest.mark.parametrize(
    ("make", "has_state"),
    [(files.tiny_mamba, True), (files.tiny_jamba, True), (files.tiny_llama, False)],
)
def test_a_memory_that_cannot_be_cut_is_known(
    load, native_library, monkeypatch, make, has_state, can_tell
):
    """By libllama's word, or by the file where the build has none."""
    if make is files.tiny_jamba and not native_library.has("hybrid"):
        pytest.skip("this libllama may not know hybrid models")
    model = load(make())
    if not can_tell:
        monkeypatch.setattr(model, "lib", SimpleNamespace(has=lambda capability: False))
    assert model.has_state == has_state


@pytest.mark.parametrize(("mmap", "mlock"), [(True, False), (False, False), (True, True)])
def test_a_model_loads_mapped_read_or_locked(load, mmap, mlock):
    assert load(files.tiny_llama(), use_mmap=mmap, use_mlock=mlock).vocab.n_tokens == files.N_VOCAB


def test_loading_reports_progress_up_to_the_end(load):
    seen = []
    load(files.tiny_llama(), seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_an_error_in_the_progress_report_stops_the_loading_and_comes_out(load):
    def refuse(done: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(files.tiny_llama(), refuse)


def test_a_broken_file_is_refused_before_libllama_sees_it(load):
    with pytest.raises(ModelFileInvalid, match="truncated"):
        load(files.tiny_llama()[:-5000])


def test_a_split_model_loads_from_its_first_part(native_library, tmp_path):
    paths = [
        files.write(tmp_path / f"tiny-{number:05d}-of-00003.gguf", raw)
        for number, raw in enumerate(files.tiny_llama_split(3), 1)
    ]
    whole = files.write(tmp_path / "whole.gguf", files.tiny_llama())
    with Model.load(native_library, paths[0], EngineSettings()) as model:
        assert model.n_params == gguf.read(whole).n_params


def test_what_libllama_refuses_is_one_line_with_the_path(load):
    raw = files.tiny_llama().replace(b"blk.1.attn_k.weight", b"blk.1.attn_z.weight")
    with pytest.raises(ModelLoadFailed, match=r"model\.gguf: libllama .* cannot load"):
        load(raw)


def test_a_closed_model_refuses_to_work(load):
    model = load(files.tiny_llama())
    model.close()
    with pytest.raises(EngineUnavailable):
        model.vocab.tokenize("a", True, True)


# The vocabulary


@pytest.mark.parametrize("text", ["hello world", "", "é 日本 🙂", "a\0b", " " * 300, "x" * 5000])
def test_text_comes_back_from_its_tokens(tiny_model, text):
    vocab = tiny_model.vocab
    tokens = vocab.tokenize(text, False, False)
    assert b"".join(map(vocab.piece, tokens)).decode() == text


def test_merges_are_used(tiny_model):
    assert len(tiny_model.vocab.tokenize("hello world", False, False)) == 2


def test_bos_is_added_when_asked_for(tiny_model):
    vocab = tiny_model.vocab
    assert vocab.adds_bos
    assert vocab.tokenize("a", True, False)[0] == vocab.bos
    assert vocab.tokenize("a", False, False)[0] != vocab.bos


def test_control_tokens_in_text_are_parsed_only_when_asked_for(tiny_model):
    vocab = tiny_model.vocab
    assert vocab.tokenize("<|im_end|>", False, True) == [vocab.eot]
    assert vocab.eot not in vocab.tokenize("<|im_end|>", False, False)


def test_control_tokens_have_text_only_when_asked_for(tiny_model):
    vocab = tiny_model.vocab
    assert vocab.piece(vocab.eot) == b""
    assert vocab.piece(vocab.eot, special=True) == b"<|im_end|>"
    assert vocab.special_tokens == tuple(files.SPECIALS)


def test_end_of_generation_tokens_are_known(tiny_model):
    vocab = tiny_model.vocab
    assert vocab.eog_tokens == (vocab.eos, vocab.eot)
    assert not vocab.is_eog(0)


@pytest.mark.parametrize("token", [-1, files.N_VOCAB, 2**31, -(2**31)])
def test_tokens_out_of_the_vocabulary_are_refused_not_handed_to_c(tiny_model, token):
    with pytest.raises(FieldInvalid):
        tiny_model.vocab.piece(token)
    with pytest.raises(FieldInvalid):
        tiny_model.vocab.is_eog(token)


def test_lone_surrogates_do_not_stop_the_tokenizer(tiny_model):
    tokens = tiny_model.vocab.tokenize("a\ud800b", False, False)
    assert b"".join(map(tiny_model.vocab.piece, tokens)) == b"a?b"


def test_a_token_longer_than_the_buffer_comes_out_whole(load, monkeypatch):
    monkeypatch.setattr("libloader.llama.vocab.PIECE_BYTES", 3)
    vocab = load(files.tiny_llama()).vocab
    assert vocab.piece(vocab.eot, special=True) == b"<|im_end|>"
