"""An engine that cruises: many steps in one call, and the same said as one by one."""

from __future__ import annotations

import threading

import pytest
from fakes import (
    BOS,
    EOS,
    Bench,
    FakeChain,
    FakeCompany,
    FakeContext,
    expected_tokens,
    never_ending,
)

from libloader.core import ChoiceDone, RequestDone, RequestFailed, Sampling, TokenEvent
from libloader.engine.cruise import TOGETHER_S
from libloader.errors import NanLogits

PROMPT = [BOS, *b"to the sea"]


def cruising(context=None, goes_on=lambda now_s: True, **settings):
    bench = Bench(context or FakeContext(), **settings)
    bench.context.tokens_of = never_ending
    bench.company = FakeCompany(bench, goes_on)
    return bench


def tokens_of(bench, name):
    return [t for e in bench.of(name, TokenEvent) for t in e.tokens]


def n_decodes(bench):
    return bench.engine.counters.n_batches


def n_calls_to_end(bench):
    """Return how many steps were asked for until the engine was idle."""
    n = 0
    while not bench.engine.idle:
        bench.step()
        n += 1
    return n


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("n_streams", [1, 3])
def test_many_steps_are_made_in_one_call(streamed, n_streams):
    bench = cruising()
    for i in range(n_streams):
        bench.submit(f"r{i}", [*PROMPT, i], max_tokens=50, streamed=streamed)
    assert n_calls_to_end(bench) < 10
    assert 50 <= n_decodes(bench) < 60
    for i in range(n_streams):
        assert tokens_of(bench, f"r{i}") == expected_tokens([*PROMPT, i], 50, never_ending)


def test_what_is_said_is_what_is_said_step_by_step():
    answers = []
    for company in (True, False):
        bench = Bench()
        bench.company = FakeCompany(bench) if company else None
        for i in range(5):
            bench.submit(f"r{i}", [*PROMPT, i], max_tokens=10 * i + 1, n=1 + i % 2)
        bench.run()
        answers.append({f"r{i}": bench.of(f"r{i}", TokenEvent, ChoiceDone) for i in range(5)})
        figures = bench.engine.figures()
        answers.append({k: v for k, v in figures.items() if k.startswith("n_")})
    assert answers[0] == answers[2]
    assert answers[1] == answers[3]


def test_a_stream_is_told_on_another_thread_and_a_plain_answer_is_not():
    bench = cruising()
    bench.submit("plain", PROMPT, max_tokens=30, streamed=False)
    bench.run()
    assert bench.company.told == []
    bench.submit("stream", PROMPT, max_tokens=30)
    bench.run()
    assert len(bench.company.told) > 20
    assert bench.company.threads == {"teller"}


def test_no_step_follows_once_there_is_something_else_to_do():
    answers = iter([True, True, False])
    bench = cruising(goes_on=lambda now_s: next(answers))
    bench.submit("a", PROMPT, max_tokens=100)
    bench.step(2)  # the prompt, and a step that shows that nothing is new
    before = n_decodes(bench)
    bench.step()
    assert n_decodes(bench) - before == 3
    bench.engine.check_integrity()


def test_a_deadline_ends_a_cruise_and_what_was_generated_is_the_answer():
    bench = cruising()
    bench.context.cost_s = lambda n_rows: 1.0
    bench.submit("a", PROMPT, max_tokens=-1, deadline_s=10.0)
    bench.run()
    assert 8 <= len(tokens_of(bench, "a")) <= 10
    assert bench.of("a", ChoiceDone)[0].reason == "length"


def test_the_token_that_ends_a_text_is_treated_as_ever():
    bench = Bench()
    bench.company = FakeCompany(bench)
    prompts = [[*PROMPT, i] for i in range(40)]
    for i, prompt in enumerate(prompts):
        bench.submit(f"r{i}", prompt, max_tokens=60)
    bench.run()
    said = [tokens_of(bench, f"r{i}") for i in range(40)]
    assert said == [expected_tokens(prompt, 60) for prompt in prompts]
    assert any(EOS in tokens for tokens in said), "the test asks for nothing"


@pytest.mark.parametrize(
    "fields", [{"stop": ("#",)}, {"top_logprobs": 2}, {"kind": "choose", "labels": ("yes", "no")}]
)
def test_whoever_needs_a_look_at_each_token_gets_it(fields):
    bench = cruising()
    bench.submit("a", PROMPT, max_tokens=20, **fields)
    alone = Bench()
    alone.context.tokens_of = never_ending
    alone.submit("a", PROMPT, max_tokens=20, **fields)
    bench.run()
    alone.run()
    assert bench.of("a") == alone.of("a")
    assert bench.company.told == []


def test_numbers_that_are_none_end_one_request_of_a_cruise():
    class Nan(FakeChain):
        def sample(self, context, row):
            if len(self.accepted) == 20 and self.sampling.seed == 7:
                raise NanLogits("the model produced no numbers")
            return super().sample(context, row)

    bench = cruising(open_chain=Nan)
    bench.submit("good", PROMPT, max_tokens=40)
    bench.submit("bad", [*PROMPT, 9], max_tokens=40, sampling=Sampling(seed=7))
    bench.run()
    assert [e.error["name"] for e in bench.of("bad", RequestFailed)] == ["NanLogits"]
    assert len(tokens_of(bench, "bad")) == 20
    assert tokens_of(bench, "good") == expected_tokens(PROMPT, 40, never_ending)


@pytest.mark.parametrize("code", [1, 2, -1, -3])
def test_a_batch_that_is_refused_once_costs_a_cruise_nothing(code):
    bench = cruising()
    n_seen = [0]

    def refuses_the_20th(batch):
        n_seen[0] += 1
        return code if n_seen[0] == 20 else None

    bench.context.fault = refuses_the_20th
    bench.submit("a", PROMPT, max_tokens=40)
    bench.submit("b", [*PROMPT, 9], max_tokens=40)
    bench.run()
    assert tokens_of(bench, "a") == expected_tokens(PROMPT, 40, never_ending)
    assert tokens_of(bench, "b") == expected_tokens([*PROMPT, 9], 40, never_ending)


def test_a_full_cache_ends_a_cruise_before_it_is_full():
    bench = cruising(FakeContext(96, 2), n_parallel=2, n_ctx=96)
    bench.submit("old", [BOS, 1] * 20, max_tokens=1)
    bench.run()
    bench.submit("new", [BOS, 2] * 10, max_tokens=70)
    bench.run()
    assert tokens_of(bench, "new") == expected_tokens([BOS, 2] * 10, 70, never_ending)


def test_streams_that_share_more_cells_than_there_are_do_not_overshoot():
    bench = cruising(FakeContext(96, 2), n_parallel=2, n_ctx=96)
    shared = [BOS, 1] * 30
    bench.submit("a", [*shared, 2], max_tokens=12)
    bench.step()
    bench.submit("b", [*shared, 3], max_tokens=12)
    bench.run()
    for name, last in ("a", 2), ("b", 3):
        assert tokens_of(bench, name) == expected_tokens([*shared, last], 12, never_ending)


def test_text_that_cannot_be_made_is_an_error_of_the_engine():
    bench = cruising()
    bench.submit("a", PROMPT, max_tokens=40)
    bench.step()
    bench.engine._teller._events = lambda said: 1 // 0
    with pytest.raises(ZeroDivisionError):
        bench.run()


def test_an_error_in_telling_is_an_error_of_the_engine():
    bench = cruising()

    def tell(events):
        raise BrokenPipeError("nobody is there any more")

    bench.company.tell = tell
    bench.submit("a", PROMPT, max_tokens=40)
    with pytest.raises(BrokenPipeError):
        bench.run()


def test_tokens_that_follow_one_another_soon_are_told_together():
    for step_s, n_tokens in ((TOGETHER_S / 3.9, 4), (TOGETHER_S * 2, 1)):
        bench = cruising()
        bench.context.cost_s = lambda n_rows, step_s=step_s: step_s
        told = []
        bench.company.tell = lambda events, told=told: told.append(len(events))
        real_wake, teller = bench.engine._teller.wake, bench.engine._teller
        teller.wake = lambda wake=real_wake, finish=teller.finish: (wake(), finish())
        bench.submit("a", PROMPT, max_tokens=40)
        bench.run()
        assert sum(told) >= 36 and max(told) == n_tokens, told


def test_what_was_said_before_the_teller_woke_is_told_in_one_piece_and_in_order():
    bench = cruising()
    bench.submit("a", PROMPT, max_tokens=2)
    bench.step()
    (sequence,) = bench.engine._scheduler.running
    told, teller = [], bench.engine._teller
    teller.begin([sequence], told.append)
    teller.said += [((token,), 0.5 * token) for token in b"abc"]
    teller.wake()
    teller.finish()
    assert [[event.text for event in events] for events in told] == [["a", "b", "c"]]


def test_an_engine_that_closes_ends_its_teller():
    bench = cruising()
    before = set(threading.enumerate())
    bench.submit("a", PROMPT, max_tokens=10)
    bench.run()
    (teller,) = set(threading.enumerate()) - before
    assert teller.name == "teller"
    bench.engine.close()
    assert not teller.is_alive()


def test_a_crash_in_a_cruise_names_all_who_are_in_it():
    bench = cruising()
    bench.submit("a", PROMPT, max_tokens=40)
    bench.submit("b", [*PROMPT, 9], max_tokens=40)
    bench.run()
    decodes = [ids for phase, ids, _ in bench.trail if phase == "decode"]
    assert len(decodes) > 30 and set(decodes) <= {"a b", "a", "b"}
    bench.submit("c", PROMPT, max_tokens=40)
    bench.trail.clear()
    bench.run()
    marks = [(phase, ids) for phase, ids, _ in bench.trail]
    alone = marks[marks.index(("decode", "c")) :]
    assert len(alone) < 20, "one mark is enough for one request"
    assert alone[: alone.index(("ipc_write", ""))][-1] == ("decode", "c")


def test_who_comes_during_a_cruise_is_served_next():
    bench = cruising()
    n_asked = [0]

    def goes_on(now_s):
        n_asked[0] += 1
        if n_asked[0] == 5:
            bench.submit("late", [*PROMPT, 9], max_tokens=3)
        return n_asked[0] < 5 or n_asked[0] > 8

    bench.company.goes_on = goes_on
    bench.submit("a", PROMPT, max_tokens=100)
    bench.run()
    ends = [e.request_id for e in bench.events if isinstance(e, RequestDone)]
    assert ends == ["late", "a"]
