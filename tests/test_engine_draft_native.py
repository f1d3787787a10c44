"""A draft model on the real library: the pocket model for itself, and small ones of one kind."""

from __future__ import annotations

import os
from pathlib import Path

import gguf_files as files
import pytest

from libloader.core import EngineSettings, Prompt, Request, RequestDone, Sampling, TokenEvent
from libloader.engine.build import build_engine
from libloader.errors import ModelFileInvalid, ModelLoadFailed

pytestmark = pytest.mark.native

POCKET = Path(__file__).resolve().parent / "models" / "pocket.gguf"
TEXTS = ("Hello!", "Count to ten: one, two", "é 🙂 日本", "zz top " * 9)


@pytest.fixture(scope="module")
def tiny_paths(tmp_path_factory):
    """Two models with one vocabulary and other weights."""
    folder = tmp_path_factory.mktemp("drafts")
    return [files.write(folder / f"{seed}.gguf", files.tiny_llama(seed=seed)) for seed in (1, 2)]


def generate(model, draft, sampling, texts=TEXTS, max_tokens=40):
    """Return the tokens of each text, and the timings of each."""
    engine = build_engine(
        EngineSettings(
            model=str(model), model_draft=str(draft), lib=os.environ.get("IGLLAMA_LIB", ""),
            n_ctx=128, n_parallel=4, n_threads=1,
        )
    )  # fmt: skip
    tokens = {text: [] for text in texts}
    told = {}
    try:
        for text in texts:
            prompts = (Prompt(((text, True),)),)
            engine.submit(
                Request(text, "generate", prompts, sampling=sampling, max_tokens=max_tokens)
            )
        while not engine.idle:
            for event in engine.step():
                if isinstance(event, TokenEvent):
                    tokens[event.request_id] += event.tokens
                if isinstance(event, RequestDone):
                    told[event.request_id] = event.timings
    finally:
        engine.close()
    return tokens, told


@pytest.mark.parametrize("sampling", [Sampling(temperature=0.0), Sampling(temperature=0.9, seed=3)])
def test_the_pocket_model_drafts_for_itself_and_is_nearly_always_right(native_library, sampling):
    plain, _ = generate(POCKET, "", sampling)
    drafted, told = generate(POCKET, POCKET, sampling)
    assert drafted == plain
    n_drafted = sum(each.get("draft_n", 0) for each in told.values())
    n_right = sum(each.get("draft_n_accepted", 0) for each in told.values())
    assert n_drafted >= n_right > 0
    if sampling.temperature == 0:
        assert n_right > 0.9 * n_drafted


def test_a_model_that_is_often_wrong_changes_no_greedy_token(native_library, tiny_paths):
    large, small = tiny_paths
    greedy = Sampling(temperature=0.0, ignore_eos=True)
    assert generate(large, small, greedy)[0] == generate(large, "", greedy)[0]


def test_a_draft_model_of_another_vocabulary_is_refused_at_start(native_library, tiny_paths):
    with pytest.raises(ModelLoadFailed, match="cannot draft for this model: its vocabulary has"):
        generate(POCKET, tiny_paths[0], Sampling())


def test_a_draft_model_with_other_words_is_refused_at_start(native_library, tiny_paths, tmp_path):
    raw = files.tiny_llama()
    word = next(w for w in ("hello", "world") if raw.count(w.encode()))
    other = files.write(tmp_path / "other.gguf", raw.replace(word.encode(), word[::-1].encode()))
    with pytest.raises(ModelLoadFailed, match="cannot draft for this model: its token"):
        generate(tiny_paths[0], other, Sampling())


def test_a_draft_model_that_is_no_model_is_refused_at_start(native_library, tiny_paths, tmp_path):
    with pytest.raises(ModelFileInvalid):
        generate(tiny_paths[0], files.write(tmp_path / "x.gguf", b"nothing"), Sampling())
