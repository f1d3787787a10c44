"""The engine on fakes with --context-shift: a full context forgets its older half and goes on.

A cell of the fake remembers all tokens that were ever decoded before it, shifted out or not; so a
cell that served a sequence which never had those tokens would show in what that sequence says.
"""

from __future__ import annotations

import pytest
from fakes import BOS, Bench, FakeContext, could_say, expected_tokens, never_ending

from libloader.core import ChoiceDone, RequestDone, TokenEvent

N_CTX = 64


def shifting(context=None, **settings):
    settings = {"n_ctx": N_CTX, "context_shift": True, "n_parallel": 4, **settings}
    bench = Bench(context or FakeContext(4 * N_CTX, 4), **settings)
    bench.context.tokens_of = never_ending
    return bench


def tokens_of(bench, name, index=0):
    return [t for e in bench.of(name, TokenEvent) if e.index == index for t in e.tokens]


def timings(bench, name):
    (done,) = bench.of(name, RequestDone)
    return done.timings


def held(bench):
    """The tokens of the one sequence that runs, as its slot has them."""
    (sequence,) = bench.engine._scheduler.running
    return list(sequence.slot.tokens)


def test_a_full_context_ends_the_answer_where_nobody_asked_for_shifts():
    bench = shifting(context_shift=False)
    bench.submit("a", [1] * 10, max_tokens=200)
    bench.run()
    assert len(tokens_of(bench, "a")) == N_CTX - 10
    assert "context_shifts" not in timings(bench, "a")


def test_with_shifts_an_answer_goes_on_to_its_own_limit():
    bench = shifting()
    bench.submit("a", [1] * 10, max_tokens=200)
    bench.run()
    assert tokens_of(bench, "a") == expected_tokens([1] * 10, 200, never_ending)
    assert [e.reason for e in bench.of("a", ChoiceDone)] == ["length"]


def test_shifts_are_counted_in_the_answer_and_in_the_figures():
    bench = shifting()
    bench.submit("a", [1] * 10, max_tokens=200)
    bench.run()
    # 54 tokens fill the context, then every (63 // 2 =) 31 more
    assert timings(bench, "a")["context_shifts"] == 5 and timings(bench, "a")["truncated"]
    assert bench.engine.figures()["n_context_shifts"] == 5


def test_half_of_what_is_not_kept_goes_and_the_rest_moves_up():
    bench = shifting()
    prompt = list(range(1, 11))
    bench.submit("a", prompt, max_tokens=200, n_keep=3)
    while bench.engine.counters.n_context_shifts == 0:
        bench.step()
    told = [*prompt, *tokens_of(bench, "a")]
    assert held(bench) == [*told[:3], *told[33:63]]


def test_bos_is_always_kept():
    bench = shifting()
    bench.submit("a", [BOS, *range(1, 11)], max_tokens=200)
    while bench.engine.counters.n_context_shifts < 4:
        bench.step()
    assert held(bench)[0] == BOS


def test_minus_one_keeps_the_whole_prompt():
    bench = shifting()
    prompt = list(range(1, 31))
    bench.submit("a", prompt, max_tokens=200, n_keep=-1)
    while bench.engine.counters.n_context_shifts < 4:
        bench.step()
    assert held(bench)[:30] == prompt


def test_a_request_that_would_keep_everything_still_goes_on():
    bench = shifting()
    bench.submit("a", [1] * 62, max_tokens=80, n_keep=1000)
    bench.run()
    assert len(tokens_of(bench, "a")) == 80


def test_usage_counts_what_was_shifted_out():
    bench = shifting()
    bench.submit("a", [1] * 40, max_tokens=200)
    bench.run()
    (done,) = bench.of("a", RequestDone)
    assert (done.usage.n_prompt, done.usage.n_completion) == (40, 200)


def test_an_answer_without_limit_ends_all_the_same():
    bench = shifting()
    bench.submit("a", [1] * 10)
    bench.run()
    assert len(tokens_of(bench, "a")) == N_CTX


def test_shifted_cells_serve_nobody_else():
    bench = shifting()
    bench.submit("a", list(range(1, 11)), max_tokens=100, n_keep=4)
    bench.run()
    window = [*range(1, 5), *tokens_of(bench, "a")[-40:]]
    bench.submit("b", window, max_tokens=8)
    bench.run()
    assert tokens_of(bench, "b") == expected_tokens(window, 8, never_ending)


def test_nobody_shares_shifted_cells_with_a_sequence_that_runs():
    bench = shifting()
    bench.submit("a", list(range(1, 11)), max_tokens=1000, n_keep=4)
    while bench.engine.counters.n_context_shifts < 2:
        bench.step()
    window = held(bench)
    bench.submit("b", window, max_tokens=8)
    while not bench.of("b", RequestDone):
        bench.step()
    assert tokens_of(bench, "b") == expected_tokens(window, 8, never_ending)


def test_what_was_kept_before_a_shift_is_still_reused():
    bench = shifting()
    bench.submit("a", list(range(1, 31)), max_tokens=100, n_keep=-1)
    bench.run()
    bench.submit("b", [*range(1, 31), 99], max_tokens=2)
    bench.run()
    (done,) = bench.of("b", RequestDone)
    assert done.usage.n_cached == 30


def test_choices_that_share_their_prompt_shift_without_disturbing_each_other():
    bench = shifting()
    bench.submit("a", list(range(1, 51)), max_tokens=60, n=3)
    bench.run()
    for index in range(3):
        assert could_say(list(range(1, 51)), tokens_of(bench, "a", index), N_CTX, never_ending)
        assert len(tokens_of(bench, "a", index)) == 60


def test_a_replay_after_a_crash_goes_on_behind_its_shifts():
    whole = shifting()
    whole.submit("a", [1] * 10, max_tokens=150)
    whole.run()
    told = tokens_of(whole, "a")
    bench = shifting()
    bench.submit("a", [1] * 10, max_tokens=150, resume=(tuple(told[:90]),))
    bench.run()
    assert len(tokens_of(bench, "a")) == 60
    assert could_say([1] * 10, told[:90] + tokens_of(bench, "a"), N_CTX, never_ending)


def test_a_chain_that_is_opened_for_a_replay_sees_every_token():
    bench = shifting()
    told = expected_tokens([1] * 10, 90, never_ending)
    bench.submit("a", [1] * 10, max_tokens=91, resume=(tuple(told),))
    bench.run()
    assert bench.chains[0].accepted[:90] == told


@pytest.mark.parametrize("unified", [True, False])
def test_many_sequences_shift_side_by_side(unified):
    bench = shifting(FakeContext(4 * N_CTX, 4, unified=unified))
    for number in range(6):
        bench.submit(f"r{number}", [number + 1] * 20, max_tokens=150)
    bench.run()
    for number in range(6):
        assert could_say([number + 1] * 20, tokens_of(bench, f"r{number}"), N_CTX, never_ending)
        assert len(tokens_of(bench, f"r{number}")) == 150


def test_guesses_go_on_over_a_shift():
    bench = shifting(lookup=True)
    bench.context.tokens_of = lambda past: 7
    bench.submit("a", [1] * 10, max_tokens=300)
    bench.run()
    assert tokens_of(bench, "a") == [7] * 300
    assert timings(bench, "a")["draft_n_accepted"] > 100
