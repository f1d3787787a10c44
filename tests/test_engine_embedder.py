"""Embeddings on fakes: packing, politeness beside chat, limits, failures."""

from __future__ import annotations

import base64
import math
import struct
from array import array

import pytest
from fakes import BOS, EOS, Bench, FakeContext, never_ending, past_of, vector_of_past

from libloader.core import EmbeddingEvent, Prompt, RequestDone, RequestFailed, TokenEvent
from libloader.errors import CapabilityMissing


@pytest.fixture
def bench():
    bench = Bench(FakeContext())
    bench.context.tokens_of = never_ending
    return bench


def vector_of(event):
    data = base64.b64decode(event.vector)
    return struct.unpack(f"<{len(data) // 4}f", data)


def expected_vector(tokens):
    past = past_of(tokens)
    raw = (float(past & 0xFF), float(past >> 8 & 0xFF), 1.0)
    norm = math.sqrt(sum(x * x for x in raw))
    return pytest.approx([x / norm for x in raw], rel=1e-6)


def vectors(bench, name):
    return {e.index: vector_of(e) for e in bench.of(name, EmbeddingEvent)}


def test_each_input_gets_its_own_vector_of_length_one(bench):
    bench.submit("a", ("one", [5, 6, 7]), kind="embed")
    bench.run()
    got = vectors(bench, "a")
    assert list(got[0]) == expected_vector([BOS, *b"one"])
    assert list(got[1]) == expected_vector([5, 6, 7])
    assert bench.of("a", RequestDone)[0].usage == (7, 0, 0)


def test_inputs_of_several_requests_share_a_batch(bench):
    for name in "abc":
        bench.submit(name, ("x", "yy"), kind="embed")
    bench.run()
    assert len(bench.embedding_context.batches) == 1
    assert len(vectors(bench, "c")) == 2


def test_a_batch_holds_no_more_than_fits(bench):
    bench.submit("a", tuple([1] * 20 for _ in range(10)), kind="embed")
    bench.run()
    assert [len(batch) for batch in bench.embedding_context.batches] == [60, 60, 60, 20]


def test_no_more_inputs_share_a_batch_than_there_are_sequences(bench):
    bench.submit("a", tuple([number] for number in range(20)), kind="embed")
    bench.run()
    assert [len(batch) for batch in bench.embedding_context.batches] == [8, 8, 4]


def test_nothing_stays_in_the_cache(bench):
    bench.submit("a", ("one", "two"), kind="embed")
    bench.run()
    assert bench.embedding_context.n_used == 0


def test_chat_gets_a_token_in_every_step_meanwhile(bench):
    bench.submit("chat", max_tokens=20)
    bench.step()
    bench.submit("many", tuple([1] * 60 for _ in range(10)), kind="embed")
    for _ in range(10):
        events = bench.step()
        assert [e for e in events if isinstance(e, TokenEvent)]
        assert len([e for e in events if isinstance(e, EmbeddingEvent)]) == 1


def test_an_input_longer_than_a_batch_is_refused_with_both_numbers(bench):
    bench.submit("a", ("short", [1] * 65), kind="embed")
    bench.run()
    (event,) = bench.of("a", RequestFailed)
    assert event.error["name"] == "PromptTooLong" and event.error["param"] == "input"
    assert "65" in event.error["message"] and "64" in event.error["message"]
    assert bench.embedding_context.batches == []


def test_an_empty_input_is_refused():
    bench = Bench(bos=-1)
    bench.submit("a", "", kind="embed")
    bench.run()
    assert bench.of("a", RequestFailed)[0].error["param"] == "input"


def test_an_input_that_breaks_the_batch_fails_alone(bench):
    context = bench.embedding_context
    context.fault = lambda batch: -1 if any(row[0] == 66 for row in batch.rows) else None
    bench.submit("good", [65], kind="embed")
    bench.submit("bad", [66], kind="embed")
    bench.submit("fine", [67], kind="embed")
    bench.run()
    assert bench.of("bad", RequestFailed)[0].error["name"] == "DecodeFailed"
    assert list(vectors(bench, "good")[0]) == expected_vector([65])
    assert list(vectors(bench, "fine")[0]) == expected_vector([67])


def test_a_cancelled_request_is_taken_out_of_the_line(bench):
    bench.submit("a", tuple([1] * 60 for _ in range(10)), kind="embed")
    bench.step()
    bench.engine.cancel("a")
    bench.step()
    assert bench.engine.idle and len(bench.embedding_context.batches) == 1


def test_a_request_whose_time_runs_out_among_its_inputs_fails_and_leaves_nothing(bench):
    bench.embedding_context.cost_s = lambda n_rows: 1.0
    bench.embedding_context.clock = bench.clock
    bench.submit("late", tuple([1] * 60 for _ in range(10)), kind="embed", deadline_s=2.5)
    bench.submit("after", ([1], [2]), kind="embed")
    bench.run()
    assert len(bench.of("late", EmbeddingEvent)) == 3
    (failed,) = bench.of("late", RequestFailed)
    assert failed.error["name"] == "QueueFull" and "time ran out" in failed.error["message"]
    assert len(vectors(bench, "after")) == 2
    assert bench.embedding_context.n_used == 0 and bench.engine.idle
    assert bench.engine.n_waiting == 0 and bench.engine._next_deadline_s == math.inf


def test_without_an_embedding_context_only_embeddings_fail(bench):
    def refuse():
        raise CapabilityMissing("this build aborts on mean pooling")

    bench.engine._embedder._open = refuse
    bench.submit("a", kind="embed")
    bench.submit("b", max_tokens=2)
    bench.run()
    assert bench.of("a", RequestFailed)[0].error["name"] == "CapabilityMissing"
    assert bench.of("b", RequestDone)


def test_embeddings_wait_in_the_same_bounded_queue():
    bench = Bench(n_queue=2, n_parallel=1)
    for number in range(6):
        bench.submit(f"r{number}", kind="embed")
    bench.step()
    failed = [e.request_id for e in bench.events if isinstance(e, RequestFailed)]
    assert failed == ["r3", "r4", "r5"]


def test_scores_are_told_as_they_are(bench):
    bench.embedding_context.pooling_name = "rank"
    bench.submit("a", Prompt(segments=(("q", False), ("d", False)), is_pair=True), kind="embed")
    bench.run()
    past = past_of([BOS, *b"q", EOS, *b"d", EOS])
    assert vectors(bench, "a")[0] == tuple(vector_of_past(past))


def test_vectors_are_left_alone_if_asked(bench):
    bench.submit("a", ([1, 2], [3]), kind="embed", raw_vectors=True)
    bench.run()
    assert vectors(bench, "a")[1] == tuple(vector_of_past(past_of([3])))


def test_without_pooling_each_token_has_its_vector(bench):
    bench.embedding_context.pooling_name = "none"
    bench.submit("a", ([1, 2], [3]), kind="embed")
    bench.run()
    first = [*vector_of_past(past_of([1])), *vector_of_past(past_of([1, 2]))]
    assert vectors(bench, "a") == {0: tuple(first), 1: tuple(vector_of_past(past_of([3])))}


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("broken", [[math.nan], [math.inf], [math.inf, -math.inf]])
def test_an_input_without_numbers_fails_alone(bench, broken, raw):
    context = bench.embedding_context
    right = context.embeddings_seq
    context.embeddings_seq = lambda seq_id: (
        array("f", [*broken, 1.0])
        if context.cells[seq_id][-1].past == past_of([66])
        else right(seq_id)
    )
    bench.submit("good", [65], kind="embed")
    bench.submit("bad", [66], kind="embed", raw_vectors=raw)
    bench.run()
    assert bench.of("bad", RequestFailed)[0].error["name"] == "NanLogits"
    assert list(vectors(bench, "good")[0]) == expected_vector([65])


@pytest.mark.parametrize(("n_gpu_layers", "sizes"), [(0, [250, 250, 100]), (-1, [600])])
def test_on_a_cpu_batches_stay_where_attention_is_cheap(n_gpu_layers, sizes):
    bench = Bench(n_gpu_layers=n_gpu_layers)
    bench.embedding_context = FakeContext(2048, 32, n_batch=2048, n_ubatch=2048)
    bench.submit("a", tuple([1] * 50 for _ in range(12)), kind="embed")
    bench.run()
    assert [len(batch) for batch in bench.embedding_context.batches] == sizes


def test_a_long_input_is_decoded_whole_all_the_same():
    bench = Bench()
    bench.embedding_context = FakeContext(2048, 32, n_batch=2048, n_ubatch=2048)
    bench.submit("a", ([1] * 300, [2] * 2000), kind="embed")
    bench.run()
    assert [len(batch) for batch in bench.embedding_context.batches] == [300, 2000]
