"""LoRA adapters: the check of their files, and what they do on the real library."""

from __future__ import annotations

import contextlib
import os
import random
from array import array

import gguf_files
import pytest
from gguf_files import BOOL, F32, I32, STRING
from serving import POCKET, serving

from libloader.core import (
    EngineSettings,
    Prompt,
    Request,
    RequestDone,
    RequestFailed,
    Sampling,
    TokenEvent,
)
from libloader.engine.build import build_engine
from libloader.errors import ModelFileInvalid, StartError
from libloader.llama import gguf, lora

MODEL = gguf.read(str(POCKET))
RANK = 4
KEYS = {
    "general.type": (STRING, "adapter"),
    "general.architecture": (STRING, MODEL.architecture),
    "adapter.type": (STRING, "lora"),
    "adapter.lora.alpha": (F32, 8.0),
}
WEIGHTS = {tensor.name: tensor.shape for tensor in MODEL.all_tensors}
CHANGED = [name for name in WEIGHTS if name.endswith(("attn_q.weight", "ffn_down.weight"))]


def tensors_for(names, seed=1, spread=0.3):
    """Return random A and B for weights of the pocket model: name -> (shape, numbers)."""
    chance = random.Random(seed)

    def numbers(*shape):
        return shape, array("f", [chance.gauss(0, spread) for _ in range(shape[0] * shape[1])])

    made = {}
    for name in names:
        n_in, n_out = WEIGHTS[name]
        made[f"{name}.lora_a"] = numbers(n_in, RANK)
        made[f"{name}.lora_b"] = numbers(RANK, n_out)
    return made


def adapter_file(path, tensors=None, **changed):
    """Write an adapter of the pocket model; keys are changed by name, None leaves one out."""
    keys = {**KEYS, **{name.replace("__", "."): item for name, item in changed.items()}}
    encoded = gguf_files.encoded({name: item for name, item in keys.items() if item is not None})
    body = gguf_files.with_data(encoded, tensors_for(CHANGED) if tensors is None else tensors)
    return gguf_files.write(path, body)


@pytest.fixture
def checked(tmp_path):
    def check(tensors=None, **changed):
        lora.check(gguf.read(adapter_file(tmp_path / "a.gguf", tensors, **changed)), MODEL)

    return check


def test_an_adapter_that_fits_is_taken(checked):
    checked()
    checked(adapter__lora__alpha=None)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"general__type": None}, "general.type is missing"),
        ({"general__type": (STRING, "model")}, "general.type is model"),
        ({"adapter__type": (STRING, "dora")}, "adapter.type is dora"),
        ({"general__architecture": (STRING, "gemma")}, "made for gemma"),
        ({"adapter__lora__alpha": (STRING, "8")}, "adapter.lora.alpha"),
        ({"adapter__lora__alpha": (BOOL, True)}, "adapter.lora.alpha"),
        ({"adapter__alora__invocation_tokens": (I32, [1, 2])}, "aLoRA"),
    ],
)
def test_what_is_no_adapter_for_this_model_is_refused_with_words(checked, changed, words):
    with pytest.raises(ModelFileInvalid, match=words):
        checked(**changed)


def without(name):
    return {key: item for key, item in tensors_for(CHANGED).items() if key != name}


def reshaped(name, *shape):
    return {**tensors_for(CHANGED), name: (shape, array("f", [0.5] * (shape[0] * shape[1])))}


Q = CHANGED[0]


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({}, "changes no tensor"),
        (without(f"{Q}.lora_a"), "only lora_b"),
        (without(f"{Q}.lora_b"), "only lora_a"),
        ({**tensors_for(CHANGED), "odd": ((4, 4), array("f", [0.0] * 16))}, "odd is no part"),
        (reshaped(f"{Q}.lora_a", WEIGHTS[Q][0] + 32, RANK), "do not fit"),
        (reshaped(f"{Q}.lora_b", RANK, WEIGHTS[Q][1] + 1), "do not fit"),
        (reshaped(f"{Q}.lora_b", RANK + 1, WEIGHTS[Q][1]), "do not fit"),
        (
            {n.replace("blk.0.", "blk.99."): t for n, t in tensors_for(CHANGED).items()},
            "the model has no tensor blk.99",
        ),
    ],
)
def test_tensors_that_do_not_fit_the_model_are_refused_and_named(checked, tensors, words):
    with pytest.raises(ModelFileInvalid, match=words):
        checked(tensors)


def test_a_norm_that_a_converter_left_in_is_skipped(checked):
    checked({**tensors_for(CHANGED), "output_norm.weight": ((4, 1), array("f", [1.0] * 4))})


def test_whatever_the_bytes_are_a_file_is_taken_or_refused(tmp_path):
    path = tmp_path / "a.gguf"
    adapter_file(path)
    good = path.read_bytes()
    n_head = gguf.read(str(path)).data_start
    n_taken = 0
    for seed in range(300):
        chance, changed = random.Random(seed), bytearray(good)
        for _ in range(chance.randrange(1, 4)):
            changed[chance.randrange(n_head)] = chance.randrange(256)
        path.write_bytes(changed)
        with contextlib.suppress(ModelFileInvalid):
            lora.check(gguf.read(str(path)), MODEL)
            n_taken += 1
    assert 0 < n_taken < 300


@contextlib.contextmanager
def engine_of(*files, **settings):
    settings = {"n_ctx": 256, "n_parallel": 4, "lora_init_without_apply": True, **settings}
    engine = build_engine(
        EngineSettings(
            model=str(POCKET),
            lib=os.environ.get("IGLLAMA_LIB", ""),
            n_threads=1,
            lora=tuple((str(file), 1.0) for file in files),
            **settings,
        )
    )
    try:
        yield engine
    finally:
        engine.close()


PROMPT = "The quick brown fox jumps over the lazy dog, and then it goes home to sleep. "


def request(name, adapters):
    return Request(
        name,
        "generate",
        (Prompt(segments=((PROMPT, False),)),),
        sampling=Sampling(temperature=0.0, ignore_eos=True),
        max_tokens=24,
        lora=adapters,
    )


def run(engine, asked):
    """Submit all at once; return (tokens, cached tokens) by name."""
    for name, adapters in asked.items():
        engine.submit(request(name, adapters))
    tokens, cached = {name: [] for name in asked}, {}
    while not engine.idle:
        for event in engine.step():
            assert not isinstance(event, RequestFailed), event
            if isinstance(event, TokenEvent):
                tokens[event.request_id] += event.tokens
            if isinstance(event, RequestDone):
                cached[event.request_id] = event.usage.n_cached
    return {name: (tokens[name], cached[name]) for name in asked}


ASKED = {"base": None, "zero": ((0, 0.0),), "one": ((0, 1.0),), "half": ((0, 0.5),),
         "other": ((1, 1.0),), "both": ((0, 0.7), (1, 0.7))}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    return [adapter_file(folder / f"{seed}.gguf", tensors_for(CHANGED, seed)) for seed in (1, 2)]


@pytest.mark.native
def test_requests_with_different_adapters_at_once_get_the_text_that_they_get_alone(files):
    alone = {}
    for name, adapters in ASKED.items():
        with engine_of(*files) as engine:
            alone[name] = run(engine, {name: adapters})[name][0]
    with engine_of(*files) as engine:
        together = run(engine, ASKED)
    with engine_of() as engine:
        plain = run(engine, {"base": None})["base"][0]
    assert {name: tokens for name, (tokens, _) in together.items()} == alone
    assert alone["base"] == alone["zero"] == plain
    different = [alone[name] for name in ("base", "one", "half", "other", "both")]
    assert all(a != b for i, a in enumerate(different) for b in different[:i])


@pytest.mark.native
def test_a_cached_prefix_serves_only_the_adapters_that_it_was_computed_with(files, tmp_path):
    settings = {"cache_dir": str(tmp_path), "n_parallel": 1}
    with engine_of(*files, **settings) as engine:
        first = run(engine, {"one": ((0, 1.0),)})["one"]
        assert first[1] == 0
        assert run(engine, {"base": None})["base"][1] == 0
        assert run(engine, {"half": ((0, 0.5),)})["half"][1] == 0
        again = run(engine, {"one": ((0, 1.0),)})["one"]
        assert again[0] == first[0] and again[1] > 0
    with engine_of(*files[::-1], **settings) as engine:
        assert run(engine, {"one": ((0, 1.0),)})["one"][1] == 0
        restarted = run(engine, {"one": ((1, 1.0),)})["one"]
        assert restarted[0] == first[0] and restarted[1] > 0


@pytest.mark.native
@pytest.mark.parametrize("content", [b"", b"GGUF", b"\x00" * 100, b"GGUF" + b"\xff" * 500])
def test_garbage_is_a_refusal_at_the_start(tmp_path, content):
    path = tmp_path / "garbage.gguf"
    path.write_bytes(content)
    with pytest.raises(StartError, match="garbage.gguf"), engine_of(path):
        pass


@pytest.mark.native
@pytest.mark.parametrize("path", ["/nowhere/adapter.gguf", str(POCKET)])
def test_a_file_that_is_no_adapter_is_a_refusal_at_the_start(path):
    with pytest.raises(StartError, match="gguf: "), engine_of(path):
        pass


@pytest.mark.native
def test_over_http_adapters_are_listed_and_chosen_by_request(files):
    first, second = files
    flags = ("-t", "1", "-c", "256", "--lora", first, "--lora-scaled", f"{second}:0.25")
    with serving(*flags, "--lora-init-without-apply") as served:
        assert served.get("/lora-adapters")[1] == [
            {"id": 0, "path": first, "scale": 0.0},
            {"id": 1, "path": second, "scale": 0.0},
        ]
        texts = {
            str(chosen): served.chat("Hello!", max_tokens=16, **fields)["choices"][0]["message"]
            for chosen, fields in (
                ("plain", {}),
                ("zero", {"lora": [{"id": 0, "scale": 0}]}),
                ("one", {"lora": [{"id": 0, "scale": 2}]}),
            )
        }
        assert texts["plain"] == texts["zero"] != texts["one"]
        status, answer = served.post(
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "a"}], "lora": [{"id": 2, "scale": 1}]},
        )
        assert (status, answer["error"]["param"]) == (400, "lora")


@pytest.mark.native
def test_scales_of_the_command_line_hold_where_a_request_says_nothing(files):
    with serving("-t", "1", "-c", "256", "--lora-scaled", f"{files[0]}:2") as served:
        assert served.get("/lora-adapters")[1] == [{"id": 0, "path": files[0], "scale": 2.0}]
        plain = served.chat("Hello!", max_tokens=16)["choices"][0]["message"]
        same = served.chat("Hello!", max_tokens=16, lora=[{"id": 0, "scale": 2}])
        none = served.chat("Hello!", max_tokens=16, lora=[])
        assert plain == same["choices"][0]["message"] != none["choices"][0]["message"]
