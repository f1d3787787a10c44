"""The engine on fakes: who runs when, who waits, who shares, who leaves."""

from __future__ import annotations

import pytest
from fakes import Bench, FakeContext, expected_tokens, never_ending

from libloader.core import (
    ChoiceDone,
    DryRunEvent,
    ProgressEvent,
    RequestDone,
    RequestFailed,
    TokenEvent,
)
from libloader.engine.prefix_store import PrefixStore


def endless(context=None, **settings):
    bench = Bench(context or FakeContext(), **settings)
    bench.context.tokens_of = never_ending
    return bench


def tokens_of(bench, name, index=0):
    return [t for e in bench.of(name, TokenEvent) if e.index == index for t in e.tokens]


def done(bench, name):
    (event,) = bench.of(name, RequestDone)
    return event


def test_streams_that_run_get_a_token_in_every_step_while_a_long_prompt_arrives():
    bench = endless()
    bench.submit("stream", max_tokens=40)
    bench.step()
    bench.submit("long", [1] * 200, max_tokens=1)
    for _ in range(14):
        assert len([e for e in bench.step() if e.request_id == "stream"]) == 1


def test_no_step_holds_more_rows_than_one_ubatch():
    bench = endless(FakeContext(2048, 4, n_batch=64, n_ubatch=16))
    for number in range(4):
        bench.submit(f"r{number}", [number + 1] * 100, max_tokens=5)
    bench.run()
    assert max(map(len, bench.context.batches)) == 16


def beside_streams(n_streams, step_s=0.010, row_s=0.001):
    """Streams that run, on a machine where a step takes `step_s` and each prompt row more."""
    context = FakeContext(1 << 16, 8, n_batch=512, n_ubatch=512)
    context.cost_s = lambda n_rows: step_s + row_s * max(0, n_rows - n_streams)
    bench = endless(context, n_parallel=8, n_ctx=9000)
    bench.submit("warm", [9] * 100, max_tokens=1)
    for number in range(n_streams):
        bench.submit(f"stream {number}", max_tokens=3000)
    bench.step(10)
    return bench


def gaps_of_next_steps(bench, n):
    """Seconds that each of the next `n` steps takes."""
    gaps = []
    for _ in range(n):
        began_s = bench.clock.now_s
        bench.step()
        gaps.append(bench.clock.now_s - began_s)
    return gaps


def test_a_long_prompt_holds_no_stream_up_for_more_than_three_of_its_steps():
    """D18: an 8k-token prompt beside 4 streams, and on a slower machine."""
    for row_s in (0.0002, 0.001, 0.002):
        bench = beside_streams(4, 0.010, row_s)
        bench.submit("long", [1] * 8000, max_tokens=1)
        gaps = gaps_of_next_steps(bench, 1000)
        assert sorted(gaps)[-11] <= 3 * 0.010
        assert len(bench.of("stream 3", TokenEvent)) >= 1000


def test_what_rows_cost_is_learned_and_asked_with_the_past_behind_them(monkeypatch):
    bench = beside_streams(2)
    pace, noted, asked = bench.engine._scheduler.pace, [], []
    note, chunk = pace.note, pace.chunk
    monkeypatch.setattr(pace, "note", lambda *each: noted.append(each) or note(*each))
    monkeypatch.setattr(pace, "chunk", lambda *each: asked.append(each) or chunk(*each))
    bench.submit("long", [1] * 4000, max_tokens=1)
    bench.step(200)
    sizes = [n_rows for _, n_rows, *_ in noted if n_rows > 1]
    pasts = [n_past for _, n_rows, _, _, n_past in noted if n_rows > 1]
    assert len(sizes) > 2 and pasts == [sum(sizes[:i]) for i in range(len(sizes))]
    assert [n_past for _, _, n_past in asked] == pasts


def test_one_stream_alone_lets_a_prompt_take_more():
    bench = beside_streams(1)
    bench.submit("long", [1] * 8000, max_tokens=1)
    assert 0.030 < max(gaps_of_next_steps(bench, 50)[3:]) <= 0.070 + 1e-9


def test_a_brief_prompt_does_not_wait_for_a_long_one_beside_streams():
    bench = beside_streams(4)
    bench.submit("long", [1] * 8000, max_tokens=1)
    bench.step(5)
    bench.submit("brief", [2] * 60, max_tokens=1)
    bench.step(1)
    assert done(bench, "brief")
    assert not bench.of("long", RequestDone)


def test_a_brief_prompt_does_not_wait_for_a_long_one_that_is_alone():
    bench = beside_streams(0)
    bench.submit("long", [1] * 8000, max_tokens=1)
    bench.step(2)
    bench.submit("brief", [2] * 60, max_tokens=1)
    bench.step(1)
    assert done(bench, "brief") and not bench.of("long", RequestDone)


def test_the_end_of_a_long_prompt_is_not_taken_for_a_brief_one():
    bench = beside_streams(4)
    bench.submit("long", [1] * 600, max_tokens=1)
    gaps = gaps_of_next_steps(bench, 80)
    assert done(bench, "long") and max(gaps[3:]) <= 0.030


def test_prompts_that_come_together_are_read_together():
    bench = beside_streams(1, 0.012, 0.002)
    for number in range(6):
        bench.submit(f"r{number}", [number] * 20, max_tokens=1)
    bench.step(2)
    assert all(bench.of(f"r{number}", RequestDone) for number in range(6))


def test_while_nothing_changes_nothing_is_planned():
    bench = beside_streams(4)
    scheduler, planned = bench.engine._scheduler, []
    usual = scheduler.plan
    scheduler.plan = lambda: planned.append(1) or usual()
    bench.step(10)
    assert not planned and len(bench.context.batches[-1]) == 4
    bench.submit("more", max_tokens=2)
    bench.step(10)
    assert done(bench, "more") and 2 <= len(planned) <= 4
    bench.engine.cancel("stream 0")
    bench.step(10)
    assert len(bench.context.batches[-1]) == 3


def test_rows_of_a_batch_are_in_order_of_seq_id():
    bench = endless()
    for number in range(4):
        bench.submit(f"r{number}", max_tokens=3 + number)
    bench.run()
    for batch in bench.context.batches:
        seq_ids = [seq_id for _, _, seq_id, _ in batch]
        assert seq_ids == sorted(seq_ids)


def test_a_cancelled_stream_is_gone_with_the_next_step_and_says_no_more():
    bench = endless()
    bench.submit("a")
    bench.step(3)
    bench.engine.cancel("a")
    assert bench.step() == [] and bench.engine.idle
    assert all(chain.closed for chain in bench.chains)


def test_a_cancelled_request_in_the_queue_is_never_decoded():
    bench = endless(n_parallel=1)
    bench.submit("runs", max_tokens=5)
    bench.submit("waits", "secret")
    bench.step()
    bench.engine.cancel("waits")
    bench.run()
    assert bench.of("waits") == []
    assert bench.context.n_decoded == 6 + 4


def test_cancel_during_prefill_frees_the_slot_at_once():
    bench = endless(FakeContext(1024, 1), n_parallel=1)
    bench.submit("long", [1] * 500)
    bench.step(2)
    bench.engine.cancel("long")
    bench.submit("next", max_tokens=1)
    bench.step()
    assert done(bench, "next").usage.n_completion == 1


def test_cancelling_what_is_unknown_does_nothing():
    bench = endless()
    bench.engine.cancel("nobody")
    assert bench.step() == []


def test_what_a_cancelled_request_computed_is_reused():
    bench = endless()
    bench.submit("a", [1] * 100)
    bench.step(4)
    bench.engine.cancel("a")
    bench.submit("b", [1] * 100, max_tokens=1)
    bench.run()
    assert done(bench, "b").usage.n_cached == 64


def test_a_deadline_ends_a_running_stream_with_what_it_has():
    bench = endless()
    bench.submit("a", deadline_s=1.0)
    bench.step(3)
    bench.clock.pass_s(1.5)
    bench.run()
    assert len(tokens_of(bench, "a")) == 3
    assert bench.of("a", ChoiceDone)[0].reason == "length"


def test_a_deadline_that_passes_in_the_queue_fails_with_a_time_to_retry():
    bench = endless(n_parallel=1)
    bench.submit("runs", max_tokens=50)
    bench.submit("waits", deadline_s=1.0)
    bench.step()
    bench.clock.pass_s(1.5)
    bench.step()
    (event,) = bench.of("waits", RequestFailed)
    assert event.error["name"] == "QueueFull" and event.error["retry_after_s"] >= 1


def test_text_held_back_is_told_when_the_deadline_comes():
    bench = endless()
    bench.context.tokens_of = lambda past: ord("S")
    bench.submit("a", stop=("SS!",), deadline_s=1.0)
    bench.step(4)
    bench.clock.pass_s(2)
    bench.run()
    assert "".join(e.text for e in bench.of("a", TokenEvent)) == "SSSS"


def test_the_queue_is_bounded():
    bench = endless(n_parallel=1, n_queue=2)
    for number in range(5):
        bench.submit(f"r{number}", max_tokens=5)
    bench.step()
    failed = [e.request_id for e in bench.events if isinstance(e, RequestFailed)]
    assert failed == ["r3", "r4"]


def test_embeddings_are_not_refused_for_those_who_wait_for_a_slot():
    bench = endless(n_parallel=1, n_queue=2)
    for number in range(3):
        bench.submit(f"r{number}", max_tokens=5)
        bench.submit(f"e{number}", kind="embed")
    bench.run()
    assert not [e for e in bench.events if isinstance(e, RequestFailed)]


def test_a_replayed_request_is_not_refused_for_a_full_queue():
    bench = endless(n_parallel=1, n_queue=1)
    for number in range(4):
        bench.submit(f"r{number}", max_tokens=5, resume=((97,),))
    bench.run()
    assert not [e for e in bench.events if isinstance(e, RequestFailed)]


def test_the_time_to_retry_is_measured():
    bench = endless(n_parallel=1, n_queue=1)
    bench.context.cost_s = lambda n_rows: 5.0
    bench.submit("a", max_tokens=4)
    bench.run()
    for name in "bcd":
        bench.submit(name, max_tokens=4)
    bench.step()
    (event,) = bench.of("d", RequestFailed)
    assert event.error["retry_after_s"] == pytest.approx(2 * 20 + 20, abs=21)


def test_how_long_requests_last_is_told_of_each_kind_of_work_and_only_once_it_is_known():
    bench = endless(n_parallel=1)
    assert not [name for name in bench.engine.figures() if name.startswith("service_s_")]
    bench.context.cost_s = lambda n_rows: 5.0
    bench.embedding_context.clock, bench.embedding_context.cost_s = bench.clock, lambda n: 2.0
    bench.submit("a", max_tokens=4)
    bench.run()
    bench.submit("b", kind="embed")
    bench.run()
    bench.submit("c", kind="dry_run")
    bench.run()
    figures = bench.engine.figures()
    told = [figures[f"service_s_{line}"] for line in ("slot", "embed", "read")]
    assert told == pytest.approx([20.0, 2.0, 0.0])


def test_keys_take_turns():
    bench = endless(n_parallel=1)
    for number in range(3):
        bench.submit(f"many{number}", max_tokens=1, fair_key="many")
    bench.submit("one", max_tokens=1, fair_key="one")
    bench.run()
    order = [e.request_id for e in bench.events if isinstance(e, RequestDone)]
    assert order == ["many0", "one", "many1", "many2"]


def test_within_a_key_the_first_comes_first():
    bench = endless(n_parallel=2)
    for number in range(6):
        bench.submit(f"r{number}", max_tokens=2)
    bench.run()
    order = [e.request_id for e in bench.events if isinstance(e, RequestDone)]
    assert order == [f"r{number}" for number in range(6)]


@pytest.mark.parametrize("unified", [True, False])
def test_a_conversation_goes_on_without_computing_its_past_again(unified):
    bench = endless(FakeContext(unified=unified))
    bench.submit("first", [7] * 50, max_tokens=10)
    bench.run()
    past = [7] * 50 + tokens_of(bench, "first")
    bench.submit("second", [*past, 8, 9], max_tokens=1)
    bench.run()
    assert done(bench, "second").usage == (62, 59, 1)
    assert tokens_of(bench, "second") == expected_tokens([*past, 8, 9], 1, never_ending)


@pytest.mark.parametrize("unified", [True, False])
def test_a_prefix_is_taken_from_a_stream_that_still_runs(unified):
    bench = endless(FakeContext(unified=unified))
    bench.submit("first", [7] * 50)
    bench.step(6)
    bench.submit("second", [7] * 49 + [8], max_tokens=2)
    bench.step(3)
    assert done(bench, "second").usage == (50, 49, 2)
    bench.engine.cancel("first")
    bench.run()


def test_cells_of_a_shared_prefix_are_counted_once():
    bench = endless()
    bench.submit("a", [7] * 100, n=4)
    bench.step(10)
    assert bench.engine.n_cells_used < 150


@pytest.mark.parametrize("can_cut", [True, False])
@pytest.mark.parametrize("unified", [True, False])
def test_a_prefix_that_arrives_many_times_at_once_is_computed_once(unified, can_cut):
    bench = endless(FakeContext(8192, 8, unified=unified, can_cut=can_cut), n_parallel=8)
    prefix = [3] * 300
    for number in range(8):
        bench.submit(f"r{number}", [*prefix, 100 + number, 5], max_tokens=3)
    bench.run()
    assert bench.context.n_decoded <= 300 + 8 * (2 + 3)
    for number in range(8):
        expected = expected_tokens([*prefix, 100 + number, 5], 3, never_ending)
        assert tokens_of(bench, f"r{number}") == expected


def test_those_who_waited_for_a_cancelled_prefill_go_on_with_what_there_is():
    bench = endless()
    for name in "abc":
        bench.submit(name, [3] * 100, max_tokens=2)
    bench.step(3)
    bench.engine.cancel("a")
    bench.run()
    assert done(bench, "b").usage.n_cached == 48
    assert done(bench, "c").usage.n_cached == 99
    assert tokens_of(bench, "c") == expected_tokens([3] * 100, 2, never_ending)


def test_cache_prompt_false_computes_everything():
    bench = endless()
    bench.submit("a", [3] * 50, max_tokens=1)
    bench.run()
    bench.submit("b", [3] * 50, max_tokens=1, cache_prompt=False)
    bench.run()
    assert done(bench, "b").usage.n_cached == 0
    assert done(bench, "b").timings["prompt_n"] == 50


def test_another_conversation_does_not_cost_a_cached_one_its_slot():
    bench = endless()
    bench.submit("system", [3] * 60 + [1] * 40, max_tokens=1)
    bench.run()
    bench.submit("branch", [3] * 60 + [2] * 40, max_tokens=1)
    bench.run()
    bench.submit("again", [3] * 60 + [1] * 40 + [9], max_tokens=1)
    bench.run()
    assert done(bench, "branch").usage.n_cached == 60
    assert done(bench, "again").usage.n_cached == 100


def test_a_memory_that_cannot_be_cut_reuses_only_whole_pasts():
    bench = endless(FakeContext(can_cut=False))
    bench.submit("a", [3] * 50, max_tokens=4)
    bench.run()
    past = [3] * 50 + tokens_of(bench, "a")[:-1]
    bench.submit("cut", [3] * 40 + [5] * 10, max_tokens=2)
    bench.run()
    assert done(bench, "cut").usage.n_cached == 0
    assert tokens_of(bench, "cut") == expected_tokens([3] * 40 + [5] * 10, 2, never_ending)
    bench.submit("whole", [*past, 6], max_tokens=2)
    bench.run()
    assert done(bench, "whole").usage.n_cached == len(past)
    assert tokens_of(bench, "whole") == expected_tokens([*past, 6], 2, never_ending)


def test_what_a_memory_can_do_is_known_before_anything_was_tried():
    assert Bench(FakeContext(can_cut=True)).engine._scheduler.slots.can_cut
    assert not Bench(FakeContext(can_cut=False)).engine._scheduler.slots.can_cut


@pytest.mark.parametrize("unified", [True, False])
def test_choices_share_the_prefill_where_memory_can_only_be_copied_whole(unified):
    bench = endless(FakeContext(4096, 4, unified=unified, can_cut=False))
    bench.submit("a", [7] * 300, n=4, max_tokens=5)
    bench.run()
    assert done(bench, "a").timings["prompt_n"] == 300 + 3
    for index in range(4):
        assert tokens_of(bench, "a", index) == expected_tokens([7] * 300, 5, never_ending)


def test_prompts_that_part_at_several_places_each_wait_for_their_part():
    bench = endless(FakeContext(4096, 8, can_cut=False), n_parallel=8)
    prompts = {f"r{n}": [3] * n + [100 + n] * 40 for n in (50, 90, 120, 200)}
    for name, prompt in {"r0": [3] * 250, **prompts}.items():
        bench.submit(name, prompt, max_tokens=3)
    bench.run()
    assert bench.context.n_decoded <= 250 + 4 * 40 + 5 * 3
    for name, prompt in prompts.items():
        assert tokens_of(bench, name) == expected_tokens(prompt, 3, never_ending)


def test_nobody_waits_for_a_memory_that_has_gone_past_what_it_could_give():
    bench = endless(FakeContext(4096, 4, can_cut=False))
    bench.submit("long", [3] * 1000, max_tokens=1)
    bench.step(5)
    bench.submit("brief", [3] * 20 + [5] * 20, max_tokens=1)
    bench.run()
    ended = [event.request_id for event in bench.events if isinstance(event, RequestDone)]
    assert ended == ["brief", "long"] and done(bench, "brief").usage.n_cached == 0


def uncut(n_ubatch=16):
    """Requests that are told beforehand what they will find, in a memory that cannot be cut."""
    context = FakeContext(4096, 4, can_cut=False, n_ubatch=n_ubatch)
    bench = endless(context, store=PrefixStore(1 << 20))

    def ask(name, prompt):
        bench.submit(f"{name} dry", prompt, kind="dry_run")
        bench.submit(name, prompt, max_tokens=3)
        bench.run()
        (dry,) = bench.of(f"{name} dry", DryRunEvent)
        assert dry.cached[0][1] == done(bench, name).usage.n_cached
        assert tokens_of(bench, name) == expected_tokens(prompt, 3, never_ending)
        return done(bench, name).usage.n_cached

    return ask, bench


def test_a_prompt_that_comes_again_is_known_but_for_its_last_token():
    ask, bench = uncut()
    prompt = list(range(100))
    assert [ask(name, prompt) for name in "abc"] == [0, 99, 99]
    assert bench.context.n_decoded == 100 + 2 + (1 + 2) * 2
    told = tokens_of(bench, "a")
    assert ask("goes on", [*prompt, *told[:-1], 7, 8]) == 102
    assert ask("goes on otherwise", [*prompt, 7, 8]) == 99


def test_where_two_prompts_parted_a_third_one_begins():
    ask, _ = uncut()
    common = list(range(60))
    assert ask("first", [*common, *[200] * 40]) == 0
    assert ask("second", [*common, *[201] * 40]) == 0
    assert ask("third", [*common, *[202] * 40]) == 60


def test_a_brief_prompt_and_one_that_is_not_to_be_kept_are_read_in_one_go():
    _, bench = uncut(n_ubatch=64)
    bench.submit("brief", [3] * 16, max_tokens=1)
    bench.run()
    bench.submit("private", [4] * 16, max_tokens=1, cache_prompt=False)
    bench.run()
    assert len(bench.context.batches) == 2


def test_a_state_that_the_store_cannot_hold_is_not_copied():
    bench = endless(FakeContext(4096, 4, can_cut=False), store=PrefixStore(100))
    bench.context.state_seq_size = lambda seq_id: 101
    bench.context.state_seq_get = None
    bench.submit("a", [3] * 100, max_tokens=1)
    bench.run()
    assert done(bench, "a")


def test_an_overbooked_cache_lets_the_newest_wait_and_nobody_fails():
    bench = endless(FakeContext(1024, 4), n_ctx=1024)
    for number in range(4):
        bench.submit(f"r{number}", [number + 1] * 300, max_tokens=600)
    bench.run(4000)
    for number in range(4):
        assert len(tokens_of(bench, f"r{number}")) == 600
    assert bench.engine.counters.n_refused_batches == 0


def test_cached_prefixes_give_way_to_running_sequences():
    bench = endless(FakeContext(256, 4), n_ctx=256)
    for number in range(3):
        bench.submit(f"r{number}", [number + 1] * 60, max_tokens=1)
    bench.run()
    bench.submit("large", [9] * 200, max_tokens=50)
    bench.run()
    assert len(tokens_of(bench, "large")) == 50
    assert bench.engine.counters.n_refused_batches == 0


def test_a_long_prefill_reports_progress():
    bench = endless()
    bench.submit("a", [1] * 40, max_tokens=1)
    bench.run()
    assert [tuple(e) for e in bench.of("a", ProgressEvent)] == [
        ("a", 40, 0, 16), ("a", 40, 0, 32),
    ]  # fmt: skip


def test_figures_count_what_happened():
    bench = endless()
    bench.submit("a", [1] * 40, max_tokens=3)
    bench.submit("b", [1] * 5000)
    bench.run()
    figures = bench.engine.figures()
    assert figures["n_prompt_tokens"] == 40 and figures["n_completion_tokens"] == 3
    assert figures["failed_PromptTooLong"] == 1 and figures["n_running"] == 0


def test_histograms_count_queue_first_token_gaps_and_rows():
    bench = endless(n_parallel=1)
    bench.context.cost_s = lambda n_rows: 0.02
    bench.submit("a", [1] * 16, max_tokens=5)
    bench.submit("b", [1] * 16, max_tokens=1)
    bench.run()
    bench.engine.figures()
    figures = bench.engine.figures()  # nothing is counted twice
    assert figures["queue_s_count"] == 2 and figures["queue_s_le_0.001"] == 1
    assert figures["first_token_s_le_0.025"] == 1 and figures["first_token_s_count"] == 2
    assert figures["token_gap_s_count"] == 4
    assert figures["token_gap_s_sum"] == pytest.approx(0.08)
    assert figures["batch_rows_sum"] == 16 + 4 + 1


def test_a_model_that_only_embeds_says_so():
    bench = Bench(can_generate=False)
    bench.submit("a")
    bench.run()
    assert bench.of("a", RequestFailed)[0].error["name"] == "FieldUnsupported"


def running_ids(bench):
    return sorted({seq_id for _, _, seq_id, _ in bench.context.batches[-1]})


def test_with_streams_of_their_own_running_sequences_become_neighbours():
    bench = endless(FakeContext(1024, 8, unified=False), n_parallel=8)
    for number in range(8):
        bench.submit(f"r{number}", [number + 1] * 9, max_tokens=5 if number in (1, 2, 4, 6) else 60)
    bench.step()
    while bench.engine.n_running > 4:
        bench.step()
    bench.step(20)
    ids = running_ids(bench)
    assert ids == list(range(ids[0], ids[0] + 4))
    bench.run()
    for number in (0, 3, 5, 7):
        assert tokens_of(bench, f"r{number}") == expected_tokens([number + 1] * 9, 60, never_ending)


def test_a_prefix_that_was_moved_is_still_found():
    bench = endless(FakeContext(1024, 4, unified=False), n_parallel=4)
    for number in range(4):
        bench.submit(f"r{number}", [number + 1] * 30, max_tokens=40 if number in (0, 3) else 4)
    bench.step(20)
    bench.submit("again", [*[1] * 30, 99], max_tokens=1)
    bench.submit("other", [*[4] * 30, 99], max_tokens=1)
    bench.run()
    assert done(bench, "again").usage.n_cached == done(bench, "other").usage.n_cached == 30


def test_in_a_unified_cache_nobody_is_moved():
    bench = endless(FakeContext(1024, 4), n_parallel=4)
    for number in range(4):
        bench.submit(f"r{number}", [number + 1] * 9, max_tokens=60 if number in (0, 3) else 4)
    bench.step(30)
    assert running_ids(bench) == [0, 3]
