"""A context on a real libllama: decoding, the KV cache, what comes out, and what is refused."""

from __future__ import annotations

import logging
import math
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import gguf_files as files
import pytest
from llama_rows import SETTINGS, decode

from libloader.errors import DecodeFailed, EngineUnavailable, ModelLoadFailed
from libloader.llama import context as context_module
from libloader.llama.batch import Batch
from libloader.llama.context import Context
from libloader.llama.model import Model

pytestmark = pytest.mark.native

PROMPT = [10, 20, 30, 40, 50, 60]


@pytest.fixture
def open_context(tiny_model):
    """Make a context with changed settings; closed at the end of the test."""
    contexts = []

    def opened(*, embeddings: bool = False, pooling: str = "", **changes) -> Context:
        settings = replace(SETTINGS, **changes)
        contexts.append(Context(tiny_model, settings, embeddings=embeddings, pooling=pooling))
        return contexts[-1]

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture
def context(open_context):
    return open_context()


@pytest.fixture(params=[True, False], ids=["unified", "streams"])
def either(request, open_context):
    """A context of each kind of KV cache."""
    return open_context(kv_unified=request.param)


def logits_after(context, tokens, **where):
    assert decode(context, tokens, **where) == 0
    return context.logits_row(len(tokens) - 1)


# Making one


def test_sizes_are_what_libllama_made_of_the_wishes(either):
    assert either.n_ctx >= SETTINGS.n_ctx * SETTINGS.n_parallel
    assert either.n_ctx_seq >= SETTINGS.n_ctx
    assert (either.n_batch, either.n_ubatch) == (64, 64)
    assert either.n_threads == 1


@pytest.mark.parametrize(
    ("n_params", "cache_bytes", "settings", "unified"),
    [
        (15_000_000, 50 << 20, {}, True),
        (15_000_000, 500 << 20, {}, False),
        (600_000_000, 50 << 20, {}, False),
        (600_000_000, 50 << 20, {"n_parallel": 1}, True),
        (600_000_000, 50 << 20, {"n_gpu_layers": -1}, True),
        (600_000_000, 50 << 20, {"kv_unified": True}, True),
        (15_000_000, 50 << 20, {"kv_unified": False}, False),
    ],
)
def test_sequences_share_a_cache_where_that_is_faster(n_params, cache_bytes, settings, unified):
    model = SimpleNamespace(n_params=n_params, size_bytes=2 * n_params)
    wished = replace(SETTINGS, **{"n_parallel": 4, "kv_unified": None, **settings})
    assert context_module.prefers_unified(model, wished, cache_bytes) is unified


def test_batches_hold_at_least_one_row_per_slot(open_context):
    assert open_context(n_batch=1, n_ubatch=1, n_parallel=4).n_batch >= 4


def test_the_kv_cache_is_as_large_as_its_numbers(context):
    per_token = 2 * 2 * files.N_LAYER * files.N_EMBD // files.N_HEAD * files.N_HEAD_KV
    assert context.kv_bytes == context.n_ctx * per_token


def test_where_the_memory_is_a_state_its_size_counts_and_not_the_tokens(native_library, tmp_path):
    path = files.write(tmp_path / "mamba.gguf", files.tiny_mamba())
    with Model.load(native_library, path, SETTINGS) as model, Context(model, SETTINGS) as context:
        per_slot = context.kv_bytes // SETTINGS.n_parallel
        for tokens in (PROMPT, PROMPT * 9):
            context.clear()
            assert decode(context, tokens) == 0
            assert per_slot <= context.state_seq_size(0) < per_slot + 500  # what describes it
        assert not context.can_cut and not context.seq_rm(0, 3, -1)


@pytest.mark.parametrize(
    ("k", "v"),
    [
        ("f32", "f16"),
        ("f16", "f16"),
        ("bf16", "f16"),
        ("q8_0", "q8_0"),
        ("q4_0", "q4_0"),
    ],
)
def test_cache_types_go_by_their_names(open_context, k, v):
    assert decode(open_context(cache_type_k=k, cache_type_v=v), PROMPT) == 0


@pytest.mark.parametrize("flash_attn", ["auto", "on", "off"])
def test_flash_attention_goes_by_its_names(open_context, flash_attn):
    assert decode(open_context(flash_attn=flash_attn), PROMPT) == 0


def test_a_quantised_v_cache_without_flash_attention_is_refused_with_words(
    open_context,
):
    with pytest.raises(ModelLoadFailed, match="needs flash attention"):
        open_context(cache_type_v="q8_0", flash_attn="off")


def test_an_unknown_cache_type_is_refused_with_the_known_ones(open_context):
    with pytest.raises(ModelLoadFailed, match="q8_0"):
        open_context(cache_type_k="q3_k")


def test_more_slots_than_libllama_runs_are_refused(open_context):
    with pytest.raises(ModelLoadFailed, match="at most"):
        open_context(n_parallel=100_000, n_ctx=1)


def test_without_a_wish_the_context_is_the_models_own_if_memory_allows(tiny_model, monkeypatch):
    settings = replace(SETTINGS, n_ctx=0)
    assert context_module.default_n_ctx(tiny_model, settings) == files.N_CTX
    per_token = context_module.kv_bytes_per_token(tiny_model, settings) * settings.n_parallel
    free = tiny_model.size_bytes + 2 * 256 * per_token
    monkeypatch.setattr("libloader.llama.machine.available_memory_bytes", lambda: free)
    assert context_module.default_n_ctx(tiny_model, settings) == 256


# Decoding


def test_the_same_tokens_give_the_same_logits_in_every_sequence(either):
    first = logits_after(either, PROMPT)
    other = logits_after(either, PROMPT, seq_id=3)
    assert list(first) == pytest.approx(list(other), abs=1e-3)


def test_a_prompt_in_pieces_gives_the_logits_of_the_whole(context):
    whole = logits_after(context, PROMPT)
    decode(context, PROMPT[:4], seq_id=1)
    assert list(logits_after(context, PROMPT[4:], start=4, seq_id=1)) == pytest.approx(
        list(whole), abs=1e-3
    )


@pytest.mark.parametrize("tokens", [[], [-1], [files.N_VOCAB], [1] * 65])
def test_batches_that_c_would_abort_on_are_refused(context, tokens):
    with pytest.raises(DecodeFailed):
        decode(context, tokens)
    assert decode(context, PROMPT) == 0


def test_rows_that_do_not_belong_into_a_batch_are_refused(context):
    batch = Batch(context.model.lib, 1, context.n_seq_max)
    for row in [(1, 0, -1, True), (1, 0, context.n_seq_max, True), (1, -1, 0, True)]:
        with pytest.raises(DecodeFailed):
            batch.add(*row)
    batch.add(1, 0, 0, True)
    with pytest.raises(DecodeFailed, match="full"):
        batch.add(1, 1, 0, True)


def test_rows_that_go_on_are_the_next_ones(context):
    batch = Batch(context.model.lib, 4, context.n_seq_max)
    once = [(5, 6), (7, 8)]
    for start in range(2):
        batch.clear()
        for seq_id, token in enumerate(once[start]):
            batch.add(token, start, seq_id, True)
        assert context.decode(batch) == 0
    expected = [list(context.logits_row(row)) for row in range(2)]
    context.clear()
    batch.clear()
    for seq_id, token in enumerate(once[0]):
        batch.add(token, 0, seq_id, True)
    assert context.decode(batch) == 0
    batch.go_on(once[1])
    assert context.decode(batch) == 0
    again = [list(context.logits_row(row)) for row in range(2)]
    assert again == expected and context.seq_pos_max(1) == 1


def test_a_full_cache_is_code_1_and_leaves_the_context_usable(open_context):
    context = open_context(n_ctx=32, n_parallel=1)
    n_done = 0
    while (code := decode(context, [5] * 32, start=n_done)) == 0:
        n_done += 32
    assert (code, n_done) == (1, context.n_ctx)
    context.seq_rm(0, 16, -1)
    assert decode(context, PROMPT, start=16) == 0


def test_a_closed_context_refuses_to_work(context):
    context.close()
    with pytest.raises(EngineUnavailable):
        decode(context, PROMPT)


# The KV cache


def test_the_last_position_of_an_empty_sequence_is_minus_one_in_every_build(either):
    assert either.seq_pos_max(1) == -1
    decode(either, [5], seq_id=1)
    assert either.seq_pos_max(1) == 0
    decode(either, PROMPT, start=1, seq_id=1)
    assert either.seq_pos_max(1) == 6
    assert either.seq_rm(1, 1, -1)
    assert either.seq_pos_max(1) == 0
    assert either.seq_rm(1, -1, -1)
    assert either.seq_pos_max(1) == -1


def test_clearing_empties_all_sequences(either):
    decode(either, [5], seq_id=0)
    decode(either, [5], seq_id=2)
    either.clear()
    assert [either.seq_pos_max(seq_id) for seq_id in range(4)] == [-1] * 4


@pytest.mark.parametrize("n_shared", [1, 4])
def test_a_copied_prefix_counts_as_computed(either, n_shared):
    wanted = logits_after(either, [*PROMPT[:n_shared], 7, 8], seq_id=2)
    decode(either, PROMPT)
    either.seq_cp(0, 1, 0, n_shared)
    assert either.seq_pos_max(1) == n_shared - 1
    copied = logits_after(either, [7, 8], start=n_shared, seq_id=1)
    assert list(copied) == pytest.approx(list(wanted), abs=1e-3)


def test_a_removed_tail_leaves_no_trace(either):
    wanted = logits_after(either, [*PROMPT[:3], 7, 8], seq_id=2)
    decode(either, PROMPT)
    assert either.seq_rm(0, 3, -1)
    assert list(logits_after(either, [7, 8], start=3)) == pytest.approx(list(wanted), abs=1e-3)


@pytest.mark.parametrize("seq_id", [-1, 4, 2**31])
def test_sequences_that_do_not_exist_are_refused(either, seq_id):
    calls = (
        lambda: either.seq_pos_max(seq_id),
        lambda: either.seq_rm(seq_id, -1, -1),
        lambda: either.seq_cp(0, seq_id, -1, -1),
        lambda: either.seq_cp(seq_id, 0, -1, -1),
        lambda: either.embeddings_seq(seq_id),
        lambda: either.state_seq_get(seq_id),
        lambda: either.state_seq_set(seq_id, b""),
    )
    for call in calls:
        with pytest.raises(DecodeFailed):
            call()


def test_a_saved_state_goes_on_where_it_was_in_another_sequence(either):
    decode(either, PROMPT)
    saved = either.state_seq_get(0)
    wanted = logits_after(either, [7], start=6)
    assert either.state_seq_set(3, saved)
    assert either.seq_pos_max(3) == 5
    assert list(logits_after(either, [7], start=6, seq_id=3)) == pytest.approx(
        list(wanted), abs=1e-3
    )


def test_an_interrupted_decode_says_so_and_the_next_one_runs(context):
    assert decode(context, PROMPT) == 0
    if not context._interrupt.works:
        pytest.skip("this build has no abort callback that works")
    wanted = logits_after(context, [7], start=6)
    context.seq_rm(0, 6, -1)
    context.interrupt()
    assert decode(context, [7], start=6) == 2
    context.seq_rm(0, 6, -1)
    assert context.seq_pos_max(0) == 5
    assert list(logits_after(context, [7], start=6)) == list(wanted)


def test_what_libllama_says_of_an_interrupted_decode_is_no_error_and_of_others_is(context, caplog):
    if not context._interrupt.works:
        pytest.skip("this build has no abort callback that works")
    caplog.set_level(logging.DEBUG, logger="libllama")
    context.interrupt()
    assert decode(context, PROMPT) == 2
    assert {record.levelno for record in caplog.records} <= {logging.DEBUG}
    caplog.clear()
    context.seq_rm(0, 0, -1)
    assert decode(context, PROMPT, start=6) == 0
    assert decode(context, PROMPT, start=1) != 0  # its positions are there already
    assert logging.ERROR in {record.levelno for record in caplog.records}


def test_taking_a_state_needs_its_memory_once(context):
    for start in range(0, 192, 64):
        decode(context, [10 + i % 50 for i in range(64)], start=start)
    n_bytes = len(context.state_seq_get(0))
    tracemalloc.start()
    saved = context.state_seq_get(0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(saved) == n_bytes and n_bytes <= peak < 1.5 * n_bytes


def test_positions_that_are_moved_up_go_on_behind_what_stayed(either):
    if not either.can_shift:
        pytest.skip("this build cannot tell, so nothing is ever moved")
    decode(either, [*PROMPT, 70, 80])
    assert either.seq_rm(0, 2, 4)
    either.seq_add(0, 4, 8, -2)
    assert either.seq_pos_max(0) == 5
    assert decode(either, [90], start=6) == 0


def test_a_saved_state_cut_short_is_refused_and_leaves_an_empty_sequence(either):
    decode(either, PROMPT)
    saved = either.state_seq_get(0)
    assert not either.state_seq_set(1, saved[: len(saved) // 2])
    assert either.seq_pos_max(1) == -1
    assert decode(either, PROMPT, seq_id=1) == 0


# Results


@pytest.mark.parametrize("row", [-1, 0, 2, 6, 1000])
def test_rows_without_logits_are_refused(context, row):
    decode(context, PROMPT)
    with pytest.raises(DecodeFailed):
        context.logits_row(row)


def test_logits_of_a_refused_batch_cannot_be_read(context):
    decode(context, PROMPT)
    with pytest.raises(DecodeFailed):
        decode(context, [])
    batch = Batch(context.model.lib, 1, 4)
    batch.add(5, 90, 0, True)
    if context.decode(batch) != 0:  # older builds take a gap in the positions
        with pytest.raises(DecodeFailed):
            context.logits_row(0)


def test_logprobs_are_the_log_softmax_of_the_logits(context):
    logits = logits_after(context, PROMPT)
    total = math.log(math.fsum(math.exp(logit) for logit in logits))
    order = sorted(range(len(logits)), key=lambda token: -logits[token])
    own, top = context.logprobs(len(PROMPT) - 1, order[-1], 5)
    assert own == pytest.approx(logits[order[-1]] - total, abs=1e-4)
    assert [token for token, _ in top] == order[:5]
    assert [p for _, p in top] == pytest.approx([logits[i] - total for i in order[:5]], abs=1e-4)


def test_logprobs_do_not_change_the_logits(context):
    before = list(logits_after(context, PROMPT))
    assert context.logprobs(len(PROMPT) - 1, 0, 0)[1] == []
    assert list(context.logits_row(len(PROMPT) - 1)) == before


# Embeddings


def embed(context, *prompts):
    batch = Batch(context.model.lib, context.n_batch, context.n_seq_max)
    for seq_id, tokens in enumerate(prompts):
        context.seq_rm(seq_id, -1, -1)
        for position, token in enumerate(tokens):
            batch.add(token, position, seq_id, True)
    assert context.decode(batch) == 0
    return [context.embeddings_seq(seq_id) for seq_id in range(len(prompts))]


def test_a_pooled_vector_is_the_same_alone_and_in_a_batch(open_context):
    pooled = open_context(embeddings=True)
    (alone,) = embed(pooled, PROMPT)
    beside, _, again = embed(pooled, PROMPT, [7, 8], PROMPT)
    assert len(alone) == files.N_EMBD
    assert any(alone)
    assert list(beside) == pytest.approx(list(alone), abs=1e-3)
    assert list(again) == pytest.approx(list(alone), abs=1e-3)


@pytest.mark.parametrize("pooling", ["cls", "last"])
def test_pooling_goes_by_its_name(open_context, pooling):
    pooled = open_context(embeddings=True, pooling=pooling)
    assert pooled.pooling == context_module.POOLING[pooling]
    first, second = embed(pooled, [1, 2, 3], [1, 2, 4])
    assert (list(first) == pytest.approx(list(second), abs=1e-4)) == (pooling == "cls")


def test_mean_is_the_pooling_of_a_model_that_names_none_where_it_works(open_context):
    pooled = open_context(embeddings=True)
    broken = pooled.model.lib.hazard("mean_pooling")
    assert pooled.pooling == context_module.POOLING["last" if broken else "mean"]


def test_without_pooling_each_row_has_its_vector(open_context):
    context = open_context(embeddings=True, pooling="none")
    batch = Batch(context.model.lib, 2, 1)
    batch.add(5, 0, 0, True)
    batch.add(6, 1, 0, True)
    context.decode(batch)
    assert list(context.embeddings_row(0)) != list(context.embeddings_row(1))
    with pytest.raises(DecodeFailed):
        context.embeddings_seq(0)


def test_an_encoder_embeds_without_a_kv_cache(native_library, tmp_path):
    if native_library.hazard("mean_pooling"):
        pytest.skip("this build aborts on mean pooling")
    path = files.write(tmp_path / "bert.gguf", files.tiny_bert())
    with Model.load(native_library, path, SETTINGS) as model:
        tokens = model.vocab.tokenize("hello world", True, False)
        pieces = [model.vocab.piece(token, special=True).strip() for token in tokens]
        assert pieces == [b"[CLS]", b"hello", b"world", b"[SEP]"]
        assert not model.generates
        pooled = Context(model, SETTINGS, embeddings=True)
        (alone,) = embed(pooled, tokens)
        beside, _ = embed(pooled, tokens, tokens[:2])
    assert any(alone)
    assert list(beside) == pytest.approx(list(alone), abs=1e-3)


def test_an_input_to_embed_must_fit_one_micro_batch(open_context):
    pooled = open_context(embeddings=True, n_batch=64, n_ubatch=32)
    assert pooled.n_ubatch == pooled.n_batch


@pytest.mark.parametrize("n_ctx", [100, 256, 1000, 6256])
def test_sequences_with_cells_of_their_own_start_without_a_warning(open_context, caplog, n_ctx):
    context = open_context(kv_unified=False, n_ctx=n_ctx, n_parallel=5)
    assert n_ctx <= context.n_ctx_seq
    assert "divisible" not in caplog.text
