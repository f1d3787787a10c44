"""The random models of scripts/make_model.py, read back without the writer's own code."""

import importlib
import math
import struct
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from llama_rows import SETTINGS, decode, generate

from libloader.core import Sampling
from libloader.llama import gguf
from libloader.llama.context import Context
from libloader.llama.model import Model

SCRIPTS = str(Path(__file__).resolve().parent.parent / "scripts")


@pytest.fixture(scope="module")
def scripts():
    """The modules of scripts/, importable under their own names."""
    sys.path.insert(0, SCRIPTS)
    try:
        yield {name: importlib.import_module(name) for name in ("make_model", "gguf_writer")}
    finally:
        sys.path.remove(SCRIPTS)


@pytest.fixture
def write(scripts, tmp_path):
    make_model, writer = scripts["make_model"], scripts["gguf_writer"]

    def write_model(shape="tiny", weights="f16", seed=1, walk=None, name="model.gguf"):
        types = writer.TENSOR_TYPES
        tensors = list(
            make_model.model_tensors(make_model.SHAPES[shape], types[weights], seed, walk)
        )
        path = tmp_path / name
        writer.write_gguf(
            str(path), make_model.model_metadata(make_model.SHAPES[shape], tensors), tensors
        )
        return path

    return write_model


def test_a_model_reads_back_with_its_own_shape(write):
    file = gguf.read(str(write()))
    assert file.metadata["general.architecture"] == "llama"
    assert file.metadata["llama.block_count"] == 2
    assert len(file.strings("tokenizer.ggml.tokens")) == 512
    assert file.n_params == 131_392


@pytest.mark.parametrize("weights", ["f16", "q4_0", "q8_0"])
def test_the_same_seed_writes_the_same_bytes_and_another_seed_does_not(write, weights):
    first = write(weights=weights, name="first.gguf").read_bytes()
    assert write(weights=weights, name="again.gguf").read_bytes() == first
    assert write(weights=weights, seed=2, name="other.gguf").read_bytes() != first


@pytest.mark.parametrize("n_vocab", [512, 32000, 151936])
def test_every_longer_token_is_one_merge_of_two_earlier_tokens(scripts, n_vocab):
    tokens, merges = scripts["make_model"].vocabulary(n_vocab)
    assert len(tokens) == n_vocab == len(set(tokens))
    known = set(tokens[:256])
    for token, merge in zip(tokens[256:-3], merges):
        left, right = merge.split(" ")
        assert token == left + right and {left, right} <= known
        known.add(token)


def test_the_draft_model_has_the_words_of_the_one_that_it_drafts_for(scripts):
    make_model = scripts["make_model"]
    tensor = make_model.ones("w", 1)
    large, small = (make_model.model_metadata(make_model.SHAPES[name], [tensor]) for name in "MD")
    words = [key for key in large if key.startswith("tokenizer.")]
    assert len(words) > 5
    assert [large[key] for key in words] == [small[key] for key in words]


# ---- models that walk ----


@pytest.fixture
def contexts(native_library, write):
    """Open written models, with room for a walk through the whole vocabulary."""
    opened = []

    def context_of(**how):
        path = write(name=f"{len(opened)}.gguf", **how)
        model = Model.load(native_library, str(path), SETTINGS)
        opened.append((model, Context(model, replace(SETTINGS, n_ctx=600, n_parallel=1))))
        return opened[-1][1]

    yield context_of
    for model, context in opened:
        context.close()
        model.close()


def next_on_the_walk(scripts, token):
    n_walked = scripts["make_model"].SHAPES["tiny"].n_vocab - 3
    return (token + scripts["make_model"].stride(n_walked)) % n_walked


def chosen_along(context, tokens):
    """Return the likeliest token after each of `tokens`, which are read one by one."""
    likeliest = []
    for position, token in enumerate(tokens):
        assert decode(context, [token], start=position) == 0
        row = list(context.logits_row(0))
        likeliest.append(row.index(max(row)))
    return likeliest


def test_the_step_of_a_walk_leads_round_the_whole_vocabulary(scripts):
    make_model = scripts["make_model"]
    for shape in make_model.SHAPES.values():
        n_walked = shape.n_vocab - 3
        assert math.gcd(make_model.stride(n_walked), n_walked) == 1
    assert make_model.stride(1000) == 619  # 618 would come back after 500 tokens


@pytest.mark.native
@pytest.mark.parametrize("weights", ["f16", "q4_0", "q8_0"])
def test_a_walking_model_goes_on_from_the_last_token_and_comes_by_none_twice(
    contexts, scripts, weights
):
    context = contexts(weights=weights, walk=1.0)
    walk = generate(context, Sampling(temperature=0.0), 500, prompt=[300, 7, 40])
    assert len(set(walk)) == 500
    assert walk == [next_on_the_walk(scripts, token) for token in [40, *walk[:-1]]]


@pytest.mark.native
def test_two_walking_models_agree_after_the_share_of_tokens_that_was_asked_for(contexts):
    walk = generate(contexts(walk=1.0), Sampling(temperature=0.0), 500)
    small = contexts(shape="tiny", weights="q8_0", walk=0.8, seed=2)
    n_agreed = sum(map(int.__eq__, chosen_along(small, walk), walk[1:]))
    assert 0.75 * 500 < n_agreed < 0.85 * 500


@pytest.mark.native
def test_a_model_that_does_not_walk_agrees_with_no_walk(contexts):
    walk = generate(contexts(walk=1.0), Sampling(temperature=0.0), 500)
    n_agreed = sum(map(int.__eq__, chosen_along(contexts(), walk), walk[1:]))
    assert n_agreed < 0.05 * 500


def test_a_walking_model_has_the_matrices_of_the_other_and_an_output_matrix(write):
    tied = gguf.read(str(write(name="tied.gguf")))
    walking = gguf.read(str(write(name="walking.gguf", walk=1.0)))
    assert walking.n_params == tied.n_params + 512 * 64


def weights_of(quants, scale_and_quants):
    scale = struct.unpack_from("<e", scale_and_quants)[0]
    return [scale * quant for quant in quants(scale_and_quants[2:])]


QUANTS = {
    "q4_0": (18, lambda raw: [n - 8 for byte in raw for n in (byte & 15, byte >> 4)]),
    "q8_0": (34, lambda raw: [byte - 256 if byte > 127 else byte for byte in raw]),
}


@pytest.mark.parametrize("weights", sorted(QUANTS))
def test_quantised_weights_have_the_spread_that_was_asked_for_and_no_bias(scripts, weights):
    source = scripts["make_model"].WeightSource(1, scripts["gguf_writer"].TENSOR_TYPES[weights])
    raw = b"".join(source.matrix("w", 256, 64).data())
    size, quants = QUANTS[weights]
    values = [w for at in range(0, len(raw), size) for w in weights_of(quants, raw[at : at + size])]
    assert len(values) == 256 * 64
    spread = (sum(w * w for w in values) / len(values)) ** 0.5
    assert spread == pytest.approx(256**-0.5, rel=0.02)
    assert sum(values) / len(values) == pytest.approx(0, abs=0.002)


def test_half_precision_weights_have_the_spread_that_was_asked_for(scripts):
    source = scripts["make_model"].WeightSource(1, scripts["gguf_writer"].TENSOR_TYPES["f16"])
    raw = b"".join(source.matrix("w", 256, 64).data())
    values = struct.unpack(f"<{256 * 64}e", raw)
    assert (sum(w * w for w in values) / len(values)) ** 0.5 == pytest.approx(1 / 16, rel=0.1)


def test_rows_of_control_tokens_are_zero(scripts):
    source = scripts["make_model"].WeightSource(1, scripts["gguf_writer"].TENSOR_TYPES["f16"])
    raw = b"".join(source.matrix("w", 32, 8, n_zero_rows=3).data())
    assert raw[-3 * 64 :] == bytes(3 * 64) and any(raw[-4 * 64 : -3 * 64])


def test_an_interrupted_run_leaves_no_file(scripts, tmp_path):
    writer = scripts["gguf_writer"]

    def broken():
        yield b"1234"
        raise KeyboardInterrupt

    tensor = writer.Tensor("w", (32,), writer.TENSOR_TYPES["f32"], broken)
    with pytest.raises(KeyboardInterrupt):
        writer.write_gguf(str(tmp_path / "model.gguf"), {"general.architecture": "llama"}, [tensor])
    assert list(tmp_path.iterdir()) == []


def test_a_matrix_of_many_pieces_has_every_byte(scripts, monkeypatch):
    make_model, writer = scripts["make_model"], scripts["gguf_writer"]
    monkeypatch.setattr(make_model, "PIECE_WEIGHTS", 1 << 10)
    tensor = make_model.WeightSource(1, writer.TENSOR_TYPES["q8_0"]).matrix("w", 96, 33, 1)
    assert sum(map(len, tensor.data())) == tensor.n_bytes == 96 * 33 // 32 * 34
