"""What is reused must be what would be computed: warm against cold, on the real library.

Other kinds of memory than one full cache: a KV stream for each sequence, a sliding window.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest

from libloader.core import EngineSettings, Prompt, Request, RequestDone, Sampling, TokenEvent
from libloader.engine.build import build_engine

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import make_model  # noqa: E402
from gguf_writer import TENSOR_TYPES, write_gguf  # noqa: E402

pytestmark = pytest.mark.native

POCKET = str(ROOT / "tests" / "models" / "pocket.gguf")
WINDOW, LAYERS = 32, 6
NEARLY = 0.02  # logprobs of the same tokens computed in batches of another shape


def sliding_window_model(path: str) -> None:
    """Write a gemma3 of random weights: five layers of six look through a window."""
    shape, weights = make_model.SHAPES["tiny"], TENSOR_TYPES["f16"]
    source = make_model.WeightSource(1, weights)
    plain = list(make_model.model_tensors(shape, weights, 1))
    named = make_model.model_metadata(shape, plain).items()
    metadata = {name.replace("llama.", "gemma3."): value for name, value in named}
    metadata["general.architecture"] = "gemma3"
    metadata["gemma3.block_count"] = LAYERS
    metadata["gemma3.attention.sliding_window"] = WINDOW
    tensors = [plain[0], plain[-1]]
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        tensors += make_model.layer_tensors(shape, source, block)
        tensors += [
            make_model.ones(f"{block}.{name}.weight", length)
            for name, length in (
                ("attn_q_norm", shape.head_size), ("attn_k_norm", shape.head_size),
                ("post_attention_norm", shape.n_embd), ("post_ffw_norm", shape.n_embd),
            )
        ]  # fmt: skip
    write_gguf(path, metadata, tensors)


@pytest.fixture(scope="module")
def swa_path(tmp_path_factory, native_library):
    if not native_library.has("seq_pos_min"):
        pytest.skip("this libllama has no cache of its own for a sliding window")
    path = str(tmp_path_factory.mktemp("swa") / "swa.gguf")
    sliding_window_model(path)
    return path


@pytest.fixture
def open_engine(native_library):
    with contextlib.ExitStack() as stack:

        def make(model, **settings):
            wishes = {"n_ctx": 512, "n_parallel": 2, "n_threads": 1, **settings}
            engine = build_engine(EngineSettings(model=model, lib=native_library.path, **wishes))
            stack.callback(engine.close)
            return engine

        yield make


def ask(name, tokens, n=4, **fields):
    sampling = Sampling(temperature=0.0, ignore_eos=True)
    prompts = (Prompt(tokens=tuple(tokens)),)
    return Request(
        name, "generate", prompts, sampling=sampling, max_tokens=n, top_logprobs=0, **fields
    )


def answers(engine, *requests):
    """Run requests that come together; return (tokens, their logprobs, cached) of each."""
    for request in requests:
        engine.submit(request)
    events = []
    while not engine.idle:
        events += engine.step()
        engine.check_integrity()
    found = []
    for request in requests:
        mine = [event for event in events if event.request_id == request.id]
        told = [event for event in mine if isinstance(event, TokenEvent)]
        (done,) = [event for event in mine if isinstance(event, RequestDone)]
        tokens = [token for event in told for token in event.tokens]
        logprobs = [entry[2] for event in told for entry in event.logprobs or ()]
        found.append((tokens, logprobs, done.usage.n_cached))
    return found


def check_same(warm, cold):
    assert warm[0] == cold[0]
    assert warm[1] == pytest.approx(cold[1], abs=NEARLY)


def pieces(first, n):
    """A prompt of ordinary tokens, another one for each `first`."""
    return [100 + (first * 37 + i * 11) % 300 for i in range(n)]


@pytest.mark.parametrize("kv_unified", [True, False])
@pytest.mark.parametrize("n_kept", [299, 294, 280, 250, 40, 8])
def test_behind_a_sliding_window_a_shorter_beginning_gives_what_it_gives_cold(
    open_engine, swa_path, kv_unified, n_kept
):
    warm = open_engine(swa_path, kv_unified=kv_unified)
    cold = open_engine(swa_path, kv_unified=kv_unified)
    old = pieces(1, 300)
    for number in range(3):  # through KV and RAM: what is known is in a slot, or was pushed out
        answers(warm, ask(f"old {number}", old, n=20))
        new = ask(f"new {number}", [*old[:n_kept], *pieces(9, 5)])
        (seen,) = answers(warm, new)
        check_same(seen, answers(cold, ask("cold", new.prompts[0].tokens, cache_prompt=False))[0])
        answers(warm, ask(f"x {number}", pieces(2, 200)), ask(f"y {number}", pieces(3, 200)))


@pytest.mark.parametrize("kv_unified", [True, False])
def test_behind_a_sliding_window_a_conversation_goes_on_from_the_cache(
    open_engine, swa_path, kv_unified
):
    warm = open_engine(swa_path, kv_unified=kv_unified)
    cold = open_engine(swa_path, kv_unified=kv_unified)
    first = pieces(1, 200)
    ((said, _, _),) = answers(warm, ask("a", first, n=20))
    more = [*first, *said, *pieces(5, 10)]
    (seen,) = answers(warm, ask("b", more))
    assert seen[2] >= 219
    check_same(seen, answers(cold, ask("cold", more))[0])


def test_a_saved_state_never_gets_into_a_copy_of_somebody_else(open_engine, native_library):
    """Separate KV streams: libllama makes copies with the next decode, from what is there then."""
    warm = open_engine(POCKET, kv_unified=False)
    cold = open_engine(POCKET, kv_unified=False)
    mine, yours = pieces(1, 120), pieces(2, 100)
    answers(warm, ask("first", yours))
    answers(warm, ask("second", pieces(3, 100)))
    answers(warm, ask("third", mine))  # `yours` went to RAM
    b, c = [*mine[:110], *pieces(7, 3)], [*yours, *pieces(8, 3)]
    seen_b, seen_c = answers(warm, ask("b", b), ask("c", c))
    assert warm.figures()["n_hits_ram"] > 0 and seen_b[2] > 100
    check_same(seen_b, answers(cold, ask("cold b", b, cache_prompt=False))[0])
    check_same(seen_c, answers(cold, ask("cold c", c, cache_prompt=False))[0])


@pytest.mark.parametrize("kind", ["pocket", "swa"])
def test_who_changed_its_slot_for_a_running_sequence_is_what_it_was(open_engine, kind, request):
    path = request.getfixturevalue("swa_path") if kind == "swa" else POCKET
    warm = open_engine(path, kv_unified=False, n_parallel=3, cache_ram_mib=0)
    cold = open_engine(path, kv_unified=False)
    brief = ask("brief", pieces(2, 60), n=3)
    seen = answers(warm, ask("a", pieces(1, 60), n=60), brief, ask("c", pieces(3, 60), n=60))
    more = [*pieces(2, 60), *seen[1][0], 150]
    (again,) = answers(warm, ask("again", more))
    assert again[2] >= 62 and warm.figures()["n_hits_kv"] >= 62
    check_same(again, answers(cold, ask("cold", more, cache_prompt=False))[0])
    for number, name in ((0, "a"), (2, "c")):
        alone = ask(f"cold {name}", pieces(number + 1, 60), n=60, cache_prompt=False)
        check_same(seen[number], answers(cold, alone)[0])
