"""The engine on the real library: what the fakes promise must hold with libllama too."""

from __future__ import annotations

import array
import base64
import contextlib
import math
import os
import subprocess
import sys
from pathlib import Path

import gguf_files as files
import pytest

from libloader.core import (
    DryRunEvent,
    EmbeddingEvent,
    EngineSettings,
    Prompt,
    Request,
    RequestDone,
    RequestFailed,
    Sampling,
    TokenEvent,
)
from libloader.engine.build import build_engine
from libloader.errors import ModelLoadFailed
from libloader.llama.context import Context

pytestmark = pytest.mark.native

ROOT = Path(__file__).resolve().parent.parent
POCKET = ROOT / "tests" / "models" / "pocket.gguf"
TEXTS = [
    "Hello!",
    "Count to ten: one, two",
    "The quick brown fox",
    "é 🙂 日本",
    "a",
    "zz top " * 9,
]
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="session")
def model_path(tmp_path_factory):
    """The pocket model, else one with random weights."""
    if POCKET.exists():
        return str(POCKET)
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    script = ROOT / "scripts" / "make_model.py"
    subprocess.run([sys.executable, str(script), "tiny", "-o", str(path)], check=True)
    return str(path)


@pytest.fixture(scope="session", params=["mamba", "jamba"])
def uncut_path(tmp_path_factory, request, native_library):
    """A model whose whole memory is a state, and one of which a part is."""
    if request.param == "jamba" and not native_library.has("hybrid"):
        pytest.skip("this libllama may not know hybrid models")
    raw = files.tiny_mamba() if request.param == "mamba" else files.tiny_jamba()
    return files.write(tmp_path_factory.mktemp("uncut") / f"{request.param}.gguf", raw)


@pytest.fixture
def open_engine(model_path):
    with contextlib.ExitStack() as stack:

        def make(**settings):
            settings = {"n_ctx": 256, "n_parallel": 4, "n_threads": 1, **settings}
            settings = {
                "model": model_path,
                "lib": os.environ.get("IGLLAMA_LIB", ""),
                **settings,
            }
            engine = build_engine(EngineSettings(**settings))
            run = Run(engine)
            stack.callback(run.close)
            return run

        yield make


class Run:
    """One engine and what it said."""

    def __init__(self, engine):
        self.engine = engine
        self.events = []
        self.is_closed = False
        self.cruises = False

    # What an engine asks that cruises.

    def goes_on(self, now_s):
        return True

    def tell(self, events):
        self.events += events

    def close(self):
        if not self.is_closed:
            self.is_closed = True
            self.engine.close()

    def submit(self, name, prompt, **fields):
        prompts = prompt if isinstance(prompt, tuple) else (prompt,)
        fields = {"kind": "generate", "sampling": GREEDY, "max_tokens": 24, **fields}
        as_prompts = tuple(
            Prompt(((text, False),)) if isinstance(text, str) else Prompt(tokens=tuple(text))
            for text in prompts
        )
        self.engine.submit(Request(name, prompts=as_prompts, **fields))

    def step(self):
        self.events += self.engine.step(self if self.cruises else None)
        self.engine.check_integrity()

    def finish(self):
        while not self.engine.idle:
            self.step()

    def tokens(self, name, index=0):
        events = [e for e in self.events if isinstance(e, TokenEvent)]
        return [t for e in events if (e.request_id, e.index) == (name, index) for t in e.tokens]

    def end(self, name):
        (event,) = [
            e
            for e in self.events
            if e.request_id == name and isinstance(e, (RequestDone, RequestFailed))
        ]
        return event


def alone(open_engine, texts=TEXTS, model=None, **fields):
    run = open_engine(**({"model": model} if model else {}))
    for text in texts:
        run.submit(text, text, cache_prompt=False, **fields)
        run.finish()
    return {text: run.tokens(text) for text in texts}


@pytest.mark.parametrize("kv_unified", [True, False])
@pytest.mark.parametrize("cruises", [True, False])
def test_many_at_once_say_what_each_says_alone(open_engine, kv_unified, cruises):
    expected = alone(open_engine)
    run = open_engine(kv_unified=kv_unified)
    run.cruises = cruises
    for text in TEXTS:
        run.submit(text, text)
        run.step()
    run.finish()
    assert {text: run.tokens(text) for text in TEXTS} == expected
    assert all(expected.values())


@pytest.mark.parametrize(
    "sampling", [GREEDY, Sampling(seed=3), Sampling(seed=3, repeat_penalty=1.3, repeat_last_n=16)]
)
def test_a_cruise_says_what_single_steps_say(open_engine, sampling):
    run = open_engine(n_parallel=1)
    for run.cruises in (False, True):
        run.submit(f"{run.cruises}", TEXTS[0], max_tokens=80, sampling=sampling)
        run.finish()
    assert run.tokens("True") == run.tokens("False")
    assert run.end("True").usage.n_completion == run.end("False").usage.n_completion


def test_sequences_that_change_their_slot_go_on_as_if_they_had_not(open_engine):
    expected = alone(open_engine)
    run = open_engine(kv_unified=False)
    for number, text in enumerate(["?", *TEXTS[:2], *TEXTS[2:]]):
        run.submit(text, text, max_tokens=2 if number in (1, 2) else 24)
    run.finish()
    assert {text: run.tokens(text) for text in TEXTS[2:]} == {t: expected[t] for t in TEXTS[2:]}


@pytest.mark.parametrize("kv_unified", [True, False])
def test_a_reused_prefix_changes_nothing(open_engine, kv_unified):
    prompt = [5 + i % 50 for i in range(120)]
    run = open_engine(kv_unified=kv_unified, n_ubatch=32)
    run.submit("cold", prompt)
    run.finish()
    run.submit("warm", prompt)
    run.submit("branch", [*prompt[:100], 7, 8])
    run.finish()
    run.submit("branch cold", [*prompt[:100], 7, 8], cache_prompt=False)
    run.finish()
    assert run.tokens("warm") == run.tokens("cold")
    assert run.tokens("branch") == run.tokens("branch cold")
    assert run.end("warm").usage.n_cached == 119 and run.end("branch").usage.n_cached == 100


@pytest.mark.parametrize("kv_unified", [True, False])
def test_a_saved_prefix_comes_back_from_ram_and_after_a_restart(open_engine, tmp_path, kv_unified):
    settings = {"n_parallel": 1, "kv_unified": kv_unified, "cache_dir": str(tmp_path)}
    prompt = [5 + i % 50 for i in range(150)]
    run = open_engine(**settings)
    run.submit("cold", prompt)
    run.finish()
    run.submit("other", [9] * 200)
    run.finish()
    run.submit("ram", prompt)
    run.finish()
    run.close()
    again = open_engine(**settings)
    again.submit("disk", prompt)
    again.finish()
    again.close()
    assert run.tokens("cold") == run.tokens("ram") == again.tokens("disk")
    assert run.end("ram").usage.n_cached == again.end("disk").usage.n_cached == 149


def test_choices_share_the_prefill(open_engine):
    run = open_engine()
    run.submit("a", [5 + i % 50 for i in range(90)], n=3)
    run.finish()
    assert run.tokens("a", 0) == run.tokens("a", 1) == run.tokens("a", 2) != []
    assert run.end("a").timings["prompt_n"] == 92


def test_a_replay_continues_greedy_text_identically(open_engine):
    run = open_engine()
    run.submit("whole", "Count to ten: one")
    run.finish()
    whole = run.tokens("whole")
    run.submit("rest", "Count to ten: one", resume=(tuple(whole[:5]),))
    run.finish()
    assert run.tokens("rest") == whole[5:]


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.7, seed=5)])
def test_guessing_changes_no_token(open_engine, sampling):
    expected = alone(open_engine, max_tokens=80, sampling=sampling)
    run = open_engine(lookup=True)
    for text in TEXTS:
        run.submit(text, text, max_tokens=80, sampling=sampling)
    run.finish()
    assert {text: run.tokens(text) for text in TEXTS} == expected
    if sampling == GREEDY:  # then it repeats itself for sure
        assert sum(run.end(text).timings.get("draft_n_accepted", 0) for text in TEXTS) > 0


def test_a_seed_gives_the_same_tokens_whoever_is_sampled_beside_it(open_engine):
    drawn = Sampling(temperature=1.0, seed=7)
    answers = []
    for others in ((), TEXTS[1:3]):
        run = open_engine()
        for text in others:
            run.submit(text, text, max_tokens=40, sampling=Sampling(temperature=1.5, seed=9))
        run.submit("it", TEXTS[0], max_tokens=40, sampling=drawn)
        run.finish()
        answers.append(run.tokens("it"))
    assert answers[0] == answers[1]


def test_the_same_seed_gives_the_same_tokens(open_engine):
    run = open_engine()
    for name in "ab":
        run.submit(name, "Once", sampling=Sampling(seed=42, temperature=1.5))
        run.finish()
    assert run.tokens("a") == run.tokens("b")


def test_a_full_cache_ends_a_sequence_and_hurts_nobody(open_engine):
    run = open_engine(n_ctx=256, n_parallel=2)
    endless = Sampling(temperature=0.0, ignore_eos=True)
    run.submit("a", [5] * 100, max_tokens=-1, sampling=endless)
    run.submit("b", [6] * 100, max_tokens=-1, sampling=endless)
    run.finish()
    for name in "ab":
        assert run.end(name).usage == (100, 0, run.engine.n_ctx_slot - 100)


@pytest.mark.parametrize("kv_unified", [True, False])
def test_a_full_context_goes_on_with_its_later_half(open_engine, native_library, kv_unified):
    if not native_library.has("can_shift"):  # before b4131 libllama cannot tell, and may abort
        with pytest.raises(ModelLoadFailed, match="--context-shift"):
            open_engine(context_shift=True)
        return
    run = open_engine(n_ctx=64, kv_unified=kv_unified, context_shift=True)
    for name in ("a", "b"):
        sampling = Sampling(temperature=0.0, ignore_eos=True)
        run.submit(name, "Hello!", max_tokens=200, n_keep=2, sampling=sampling)
    run.finish()
    assert len(run.tokens("a")) == len(run.tokens("b")) == 200
    assert run.end("a").timings["context_shifts"] > 3
    # What was shifted serves nobody: the same prompt is answered as by a fresh engine.
    run.submit("again", "Hello!", max_tokens=24)
    run.finish()
    assert run.tokens("again") == alone(open_engine, ["Hello!"])["Hello!"]


def test_a_memory_that_cannot_shift_is_refused_at_the_start(open_engine, monkeypatch):
    monkeypatch.setattr(Context, "can_shift", False)
    with pytest.raises(ModelLoadFailed, match="--context-shift"):
        open_engine(context_shift=True)


def test_logprobs_come_from_the_model(open_engine):
    run = open_engine()
    run.submit("a", "Hello", top_logprobs=3, max_tokens=2)
    run.finish()
    first = next(e for e in run.events if isinstance(e, TokenEvent))
    ((token, _, logprob, top),) = first.logprobs
    assert top[0][0] == token == first.tokens[0] and len(top) == 3
    assert logprob == pytest.approx(top[0][2], abs=1e-4) and logprob < 0


def test_embeddings_are_unit_vectors_whatever_they_are_packed_with(open_engine):
    run = open_engine()
    run.submit("alone", "Hello!", kind="embed")
    run.submit("chat", "Hello!")
    run.submit("packed", tuple(TEXTS * 8), kind="embed")
    run.finish()
    vectors = {}
    for event in run.events:
        if isinstance(event, EmbeddingEvent):
            vector = array.array("f", base64.b64decode(event.vector))
            assert len(vector) == run.engine.info.n_embd
            assert math.fsum(x * x for x in vector) == pytest.approx(1, abs=1e-4)
            vectors[event.request_id, event.index] = vector
    assert len(vectors) == 1 + 8 * len(TEXTS)
    cosine = sum(x * y for x, y in zip(vectors["alone", 0], vectors["packed", 6]))
    assert cosine == pytest.approx(1, abs=1e-3)


def test_a_hostile_prompt_is_refused_and_the_next_one_served(open_engine):
    run = open_engine()
    for name, prompt in (
        ("ids", [1, 10**6]),
        ("long", "x" * 10**6),
        ("many", [5] * 300),
    ):
        run.submit(name, prompt)
    run.submit("good", "Hello!")
    run.finish()
    failures = [run.end(name).error["name"] for name in ("ids", "long", "many")]
    assert failures == ["FieldInvalid", "PromptTooLong", "PromptTooLong"]
    assert run.end("good").usage.n_completion > 0


# Models whose memory is one state that cannot be cut: copied whole, in time, or not at all

LONG = [5 + i * 7 % 50 for i in range(150)]


@pytest.mark.parametrize("kv_unified", [True, False])
def test_choices_of_a_recurrent_or_hybrid_model_share_the_prefill(
    open_engine, uncut_path, kv_unified
):
    run = open_engine(model=uncut_path, kv_unified=kv_unified)
    run.submit("one", LONG, cache_prompt=False)
    run.finish()
    run.submit("four", LONG, n=4)
    run.finish()
    assert all(run.tokens("four", index) == run.tokens("one") for index in range(4))
    assert run.end("four").timings["prompt_n"] <= 150 + 3


def test_a_recurrent_or_hybrid_model_finds_a_prompt_that_comes_again_and_says_so_before(
    open_engine, uncut_path, tmp_path
):
    settings = {"model": uncut_path, "cache_dir": str(tmp_path), "n_parallel": 2}
    run = open_engine(**settings)
    for name in ("cold", "other", "warm"):
        prompt = LONG[::-1] if name == "other" else LONG
        run.submit(f"{name} dry", prompt, kind="dry_run")
        run.submit(name, prompt)
        run.finish()
        ((_, promised),) = next(
            e.cached for e in run.events if isinstance(e, DryRunEvent) and name in e.request_id
        )
        assert promised == run.end(name).usage.n_cached == (149 if name == "warm" else 0)
    run.close()
    again = open_engine(**settings)
    again.submit("disk", LONG)
    again.finish()
    assert again.end("disk").usage.n_cached == 149
    assert run.tokens("cold") == run.tokens("warm") == again.tokens("disk")


def test_a_recurrent_or_hybrid_model_is_not_shifted(open_engine, uncut_path):
    with pytest.raises(ModelLoadFailed, match="--context-shift"):
        open_engine(model=uncut_path, context_shift=True)


def test_a_recurrent_or_hybrid_model_says_to_many_at_once_what_it_says_to_each(
    open_engine, uncut_path
):
    expected = alone(open_engine, model=uncut_path)
    run = open_engine(model=uncut_path)
    for text in TEXTS:
        run.submit(text, text)
        run.step()
    run.finish()
    assert {text: run.tokens(text) for text in TEXTS} == expected
    assert all(expected.values())
