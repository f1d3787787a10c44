"""Nothing that a build is known to die of reaches C: every guard, on calls that only record."""

from __future__ import annotations

import ctypes
import threading

import pytest

from libloader import errors
from libloader.abi import guards, hazards, layouts, structs
from libloader.abi.builds import Bracket

N_VOCAB, N_BATCH, N_SEQ_MAX = 100, 8, 4
MODEL, VOCAB, CTX, CHAIN = 1, 2, 3, 50

TYPES = {
    name: structs.struct_type(name, layouts.of(name)[-1].rows)
    for name in ("llama_batch", "llama_token_data", "llama_token_data_array")
}


class Native:
    """Records what reached C. `answers` maps a function to its result, or to a callable."""

    def __init__(self, **answers) -> None:
        self.reached: list[tuple] = []
        self.answers = {
            "llama_model_get_vocab": VOCAB,
            "llama_vocab_n_tokens": N_VOCAB,
            "llama_init_from_model": CTX,
            "llama_n_batch": N_BATCH,
            "llama_model_has_encoder": False,
            "llama_max_parallel_sequences": 64,
            "llama_sampler_name": b"top-k",
            "llama_get_logits_ith": True,
            **answers,
        }

    def call(self, name: str):
        def record(*arguments):
            self.reached.append((name, *arguments))
            answer = self.answers.get(name, 0)
            return answer(*arguments) if callable(answer) else answer

        return record

    def names(self) -> list[str]:
        return [call[0] for call in self.reached]


ALL_CALLS = (
    "llama_model_get_vocab", "llama_vocab_n_tokens", "llama_init_from_model", "llama_free",
    "llama_n_batch", "llama_model_has_encoder", "llama_max_parallel_sequences", "llama_decode",
    "llama_encode", "llama_token_to_piece", "llama_detokenize", "llama_vocab_is_eog",
    "llama_vocab_get_text", "llama_memory_seq_rm", "llama_memory_seq_cp", "llama_memory_seq_keep",
    "llama_memory_seq_pos_max", "llama_sampler_chain_add", "llama_sampler_clone",
    "llama_sampler_free", "llama_sampler_sample", "llama_sampler_name", "llama_sampler_apply",
    "llama_sampler_init_grammar", "llama_get_logits_ith",
)  # fmt: skip


def guarded(native: Native, *hazards_present: str) -> dict:
    calls = {name: native.call(name) for name in ALL_CALLS}
    made = guards.Guards(calls, lambda name: name in hazards_present, TYPES)
    return {**calls, **made.guarded()}


def context_params(layout_id="C13", **fields) -> structs.Params:
    layout = next(x for x in layouts.of("llama_context_params") if x.id == layout_id)
    params = structs.Params(structs.struct_type("c", layout.rows), bytes(structs.BLOCK_BYTES))
    for name, value in {"n_seq_max": N_SEQ_MAX, "n_batch": N_BATCH, **fields}.items():
        params.set(name, value)
    return params


def with_context(native: Native, *present: str, **fields) -> dict:
    lib = guarded(native, *present)
    lib["llama_init_from_model"](MODEL, context_params(**fields))
    native.reached.clear()
    return lib


def batch_of(tokens, seq_ids=None):
    n = len(tokens)
    ids = seq_ids if seq_ids is not None else [[0]] * n
    lists = [(ctypes.c_int32 * max(1, len(each)))(*each) for each in ids]
    pointer = ctypes.POINTER(ctypes.c_int32)
    batch = TYPES["llama_batch"](
        n_tokens=n,
        token=(ctypes.c_int32 * max(1, n))(*tokens),
        n_seq_id=(ctypes.c_int32 * max(1, n))(*map(len, ids)),
        seq_id=(pointer * max(1, n))(*(ctypes.cast(each, pointer) for each in lists)),
    )
    batch.alive = lists
    return batch


# --- batches ---


def test_a_right_batch_reaches_c():
    native = Native()
    lib = with_context(native)
    assert lib["llama_decode"](CTX, batch_of([0, N_VOCAB - 1], [[0], [1, 3]])) == 0
    assert native.names() == ["llama_decode"]


@pytest.mark.parametrize(
    ("tokens", "seq_ids", "words"),
    [
        ([], None, "a batch of 0 tokens"),
        ([1] * (N_BATCH + 1), None, "a batch of 9 tokens, n_batch is 8"),
        ([1, N_VOCAB], None, "token is not in the vocabulary"),
        ([-1], None, "token is not in the vocabulary"),
        ([1], [[N_SEQ_MAX]], "seq_id 4 is not in 0..3"),
        ([1, 1], [[0], [0, -1]], "seq_id -1 is not in 0..3"),
        ([1], [[]], "belongs to no sequence"),
    ],
)
def test_a_wrong_batch_never_reaches_c(tokens, seq_ids, words):
    native = Native()
    lib = with_context(native, kv_unified=False)
    with pytest.raises(errors.DecodeFailed, match=words):
        lib["llama_decode"](CTX, batch_of(tokens, seq_ids))
    assert native.names() == []


def test_a_model_without_encoder_is_not_asked_to_encode():
    native = Native()
    lib = with_context(native)
    with pytest.raises(errors.CapabilityMissing, match="no encoder"):
        lib["llama_encode"](CTX, batch_of([1]))
    assert native.names() == []


def test_a_full_cache_is_1_in_every_build():
    native = Native(llama_decode=-3)
    assert with_context(native, "kv_full_minus_3")["llama_decode"](CTX, batch_of([1])) == 1
    assert with_context(native)["llama_decode"](CTX, batch_of([1])) == -3


def test_only_one_thread_decodes_in_builds_with_a_shared_counter():
    inside, seen = threading.Semaphore(1), []

    def decode(ctx, batch):
        alone = inside.acquire(blocking=False)
        seen.append(alone)
        started.wait(0.05)
        if alone:
            inside.release()
        return 0

    started = threading.Event()
    lib = with_context(Native(llama_decode=decode), "decode_lock")
    threads = [
        threading.Thread(target=lib["llama_decode"], args=(CTX, batch_of([1]))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True, True, True]


# --- contexts ---


def test_more_sequences_than_the_build_can_is_refused_before_c():
    native = Native(llama_max_parallel_sequences=64)
    with pytest.raises(errors.ModelLoadFailed, match="at most 64 sequences"):
        guarded(native)["llama_init_from_model"](MODEL, context_params(n_seq_max=65, n_batch=99))
    assert "llama_init_from_model" not in native.names()


def test_a_batch_smaller_than_the_sequences_is_refused_where_it_aborts():
    params = context_params(n_seq_max=16)
    with pytest.raises(errors.ModelLoadFailed, match="n_batch must be at least the 16"):
        guarded(Native(), "outputs_per_batch")["llama_init_from_model"](MODEL, params)
    assert guarded(Native())["llama_init_from_model"](MODEL, params) == CTX


def test_mean_pooling_is_refused_where_it_aborts():
    params = context_params(pooling_type=guards.POOLING_MEAN)
    with pytest.raises(errors.CapabilityMissing, match="mean pooling"):
        guarded(Native(), "mean_pooling")["llama_init_from_model"](MODEL, params)


def test_a_context_that_was_not_made_is_none_and_not_remembered():
    native = Native(llama_init_from_model=None)
    assert guarded(native)["llama_init_from_model"](MODEL, context_params()) is None
    assert "llama_n_batch" not in native.names()


# --- sequences ---


@pytest.mark.parametrize("name", ["llama_memory_seq_keep", "llama_memory_seq_pos_max"])
@pytest.mark.parametrize("seq_id", [-1, N_SEQ_MAX, 1 << 30])
def test_a_sequence_that_does_not_exist_never_reaches_c(name, seq_id):
    native = Native()
    lib = with_context(native, kv_unified=False)
    with pytest.raises(errors.DecodeFailed, match="seq_id"):
        lib[name](CTX, seq_id)
    assert native.names() == []


def test_all_sequences_are_removed_one_by_one():
    native = Native(llama_memory_seq_rm=True)
    lib = with_context(native, kv_unified=False)
    assert lib["llama_memory_seq_rm"](CTX, -1, 0, -1) is True
    assert [call[2] for call in native.reached] == [0, 1, 2, 3]


def test_with_a_shared_cache_sequence_ids_go_up_to_the_limit_of_the_build():
    native = Native()
    lib = with_context(native, kv_unified=True)
    lib["llama_memory_seq_pos_max"](CTX, 63)
    with pytest.raises(errors.DecodeFailed):
        lib["llama_memory_seq_pos_max"](CTX, 64)


@pytest.mark.parametrize(("p0", "p1"), [(5, -1), (0, 5), (-1, 0)])
def test_a_part_of_a_sequence_is_not_copied_between_own_streams(p0, p1):
    native = Native()
    lib = with_context(native, kv_unified=False)
    with pytest.raises(errors.DecodeFailed, match="whole sequences"):
        lib["llama_memory_seq_cp"](CTX, 0, 1, p0, p1)
    lib["llama_memory_seq_cp"](CTX, 0, 1, -1, -1)
    assert native.reached == [("llama_memory_seq_cp", CTX, 0, 1, -1, -1)]


def test_a_part_of_a_sequence_is_copied_in_a_shared_cache():
    native = Native()
    with_context(native, kv_unified=True)["llama_memory_seq_cp"](CTX, 0, 1, 0, 5)
    assert native.names() == ["llama_memory_seq_cp"]


# --- tokens ---


@pytest.mark.parametrize("token", [-1, N_VOCAB, 1 << 31])
@pytest.mark.parametrize(
    ("name", "rest"),
    [("llama_token_to_piece", (None, 0, 0, False)), ("llama_vocab_is_eog", ()),
     ("llama_vocab_get_text", ())],
)  # fmt: skip
def test_a_token_id_beyond_the_vocabulary_is_the_clients_error(name, rest, token):
    native = Native()
    with pytest.raises(errors.FieldInvalid, match=r"is not in the vocabulary \(0\.\.99\)"):
        guarded(native)[name](VOCAB, token, *rest)
    assert name not in native.names()


def test_detokenize_looks_at_every_token():
    native = Native()
    tokens = (ctypes.c_int32 * 3)(1, 2, N_VOCAB)
    lib = guarded(native)
    lib["llama_detokenize"](VOCAB, tokens, 2, None, 0, False, False)
    with pytest.raises(errors.FieldInvalid):
        lib["llama_detokenize"](VOCAB, tokens, 3, None, 0, False, False)


# --- samplers ---


def test_a_chain_without_a_picking_sampler_is_not_sampled_from():
    native = Native()
    lib = with_context(native)
    lib["llama_sampler_chain_add"](CHAIN, 51)
    with pytest.raises(errors.DecodeFailed, match="picks a token"):
        lib["llama_sampler_sample"](CHAIN, CTX, 0)
    assert "llama_sampler_sample" not in native.names()


@pytest.mark.parametrize("name", guards.SELECTING)
def test_a_chain_that_picks_may_sample_and_so_may_its_clone(name):
    native = Native(llama_sampler_name=name, llama_sampler_clone=60, llama_sampler_sample=7)
    lib = with_context(native)
    lib["llama_sampler_chain_add"](CHAIN, 51)
    assert lib["llama_sampler_sample"](CHAIN, CTX, 0) == 7
    assert lib["llama_sampler_sample"](lib["llama_sampler_clone"](CHAIN), CTX, 0) == 7


def test_the_address_of_a_freed_chain_is_forgotten():
    native = Native(llama_sampler_name=b"greedy")
    lib = with_context(native)
    lib["llama_sampler_chain_add"](CHAIN, 51)
    lib["llama_sampler_free"](CHAIN)
    with pytest.raises(errors.DecodeFailed):
        lib["llama_sampler_sample"](CHAIN, CTX, 0)


def test_a_row_without_logits_is_not_sampled():
    native = Native(llama_sampler_name=b"dist", llama_get_logits_ith=False)
    lib = with_context(native)
    lib["llama_sampler_chain_add"](CHAIN, 51)
    with pytest.raises(errors.DecodeFailed, match="row 3 of the last batch has no logits"):
        lib["llama_sampler_sample"](CHAIN, CTX, 3)


def test_a_grammar_that_constrains_nothing_is_taken_for_broken():
    native = Native(llama_sampler_init_grammar=70)
    lib = guarded(native, "grammar_silent")
    assert lib["llama_sampler_init_grammar"](VOCAB, b"root ::= (", b"root") is None
    assert native.names().count("llama_sampler_free") == 1


def test_a_grammar_that_constrains_its_trial_is_made():
    def forbid_first(sampler, array):
        pointer = ctypes.cast(array._obj.data, ctypes.POINTER(TYPES["llama_token_data"]))
        pointer[0].logit = -float("inf")

    native = Native(llama_sampler_init_grammar=70, llama_sampler_apply=forbid_first)
    lib = guarded(native, "grammar_silent")
    assert lib["llama_sampler_init_grammar"](VOCAB, b'root ::= "a"', b"root") == 70
    assert native.reached[-1] == ("llama_sampler_init_grammar", VOCAB, b'root ::= "a"', b"root")


# --- hazards as data ---


def test_a_hazard_is_present_in_its_builds_and_in_brackets_that_touch_them():
    assert hazards.present("decode_lock", Bracket(4424, 4463))
    assert hazards.present("decode_lock", Bracket(4302, 4400))
    assert not hazards.present("decode_lock", Bracket(6042, 6160))
    assert hazards.present("streams_copy_whole", Bracket(100_600, 10**9))


def test_an_unknown_hazard_is_an_error_of_ours():
    with pytest.raises(KeyError):
        hazards.present("rain", Bracket(0, 1))


def test_every_hazard_that_a_guard_asks_for_exists():
    asked: set[str] = set()

    def remember(name: str) -> bool:
        asked.add(name)
        return True

    native = Native(llama_sampler_init_grammar=70)
    calls = {name: native.call(name) for name in ALL_CALLS}
    lib = guards.Guards(calls, remember, TYPES).guarded()
    lib["llama_init_from_model"](MODEL, context_params())
    lib["llama_decode"](CTX, batch_of([1]))
    lib["llama_sampler_init_grammar"](VOCAB, b"", b"root")
    assert asked <= {item.name for item in hazards.HAZARDS}
    assert "decode_lock" in asked and "grammar_silent" in asked
