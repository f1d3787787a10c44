"""The engine on fakes: a long text is tokenized beside the loop, and nobody else feels it."""

from __future__ import annotations

import contextlib
import threading

import pytest
from fakes import Bench, FakeContext, expected_tokens, never_ending

from libloader.core import RequestDone, RequestFailed, TokenEvent, TokensEvent
from libloader.engine import reading
from libloader.supervise.blame import Exit, judge
from libloader.supervise.breadcrumb import Crumb

LONG = "x" * 300  # with the bound set down below


@pytest.fixture
def bench(monkeypatch):
    """An engine whose tokenizer stops in texts of x until `gate` is open."""
    monkeypatch.setattr(reading, "LONG_CHARS", 200)
    bench = Bench(FakeContext(4096, 4), n_ctx=1024)
    bench.context.tokens_of = never_ending
    bench.gate, bench.is_reading, bench.read_in = threading.Event(), threading.Event(), []
    tokenize = bench.model.vocab.tokenize

    def slow(text, add_special, parse_special):
        bench.read_in.append(threading.current_thread().name)
        if text.startswith("x"):
            bench.is_reading.set()
            assert bench.gate.wait(10)
        return tokenize(text, add_special, parse_special)

    bench.model.vocab.tokenize = slow
    yield bench
    bench.gate.set()
    bench.engine.close()


def start_reading(bench, name="long", text=LONG, **fields):
    bench.submit(name, text, **{"max_tokens": 3, **fields})
    bench.step()
    assert bench.is_reading.wait(10)


def tokens_of(bench, name):
    return [t for e in bench.of(name, TokenEvent) for t in e.tokens]


def test_streams_go_on_while_a_long_prompt_is_read(bench):
    bench.submit("stream", "hello", max_tokens=100)
    bench.step(3)
    start_reading(bench)
    bench.step(20)
    assert len(tokens_of(bench, "stream")) == 24 and not bench.of("long")
    bench.gate.set()
    bench.run()
    prompt = [bench.model.vocab.bos, *LONG.encode()]
    assert tokens_of(bench, "long") == expected_tokens(prompt, 3, never_ending)


def test_a_short_prompt_is_read_at_once_in_the_engines_own_thread(bench):
    bench.submit("a", "hello", max_tokens=1)
    assert any(isinstance(event, TokenEvent) for event in bench.step())
    assert bench.read_in == [threading.current_thread().name]


def test_the_engine_is_not_idle_while_it_reads(bench):
    start_reading(bench)
    assert not bench.engine.idle and bench.engine.n_waiting == 1
    bench.gate.set()
    bench.run()
    assert bench.of("long", RequestDone)


def test_a_request_that_is_cancelled_while_it_is_read_says_nothing(bench):
    start_reading(bench)
    bench.engine.cancel("long")
    assert bench.step() == [] and bench.engine.idle
    bench.gate.set()
    assert bench.step(3) == []


def test_time_that_runs_out_while_a_prompt_is_read_is_told(bench):
    start_reading(bench, deadline_s=5.0)
    bench.clock.pass_s(6)
    bench.step()
    (failed,) = bench.of("long", RequestFailed)
    assert failed.error["name"] == "QueueFull" and bench.engine.idle


def test_what_is_wrong_with_a_long_prompt_is_told_to_its_own_request(bench):
    bench.submit("other", "hello", max_tokens=30)
    start_reading(bench, text="x" * 2000)
    bench.gate.set()
    bench.run()
    (failed,) = bench.of("long", RequestFailed)
    assert failed.error["name"] == "PromptTooLong"
    assert len(tokens_of(bench, "other")) == 30


def test_long_prompts_are_read_in_the_order_in_which_they_came(bench):
    start_reading(bench, "first", kind="tokenize")
    for name in ("second", "third"):
        bench.submit(name, "y" * 300, kind="tokenize")
    bench.step()
    bench.gate.set()
    bench.run()
    ends = [event.request_id for event in bench.events if isinstance(event, RequestDone)]
    assert ends == ["first", "second", "third"]


def test_a_long_text_is_answered_as_a_short_one_is(bench):
    bench.gate.set()
    bench.submit("long", LONG, kind="tokenize")
    bench.run()
    (answer,) = bench.of("long", TokensEvent)
    assert answer.tokens == (bench.model.vocab.bos, *LONG.encode())
    assert answer.pieces == ("<s>", *LONG)


def test_requests_that_are_read_count_as_waiting(bench):
    bench.engine._n_queue = 1
    start_reading(bench)
    for number in range(5):
        bench.submit(f"r{number}", "y" * 300, max_tokens=1)
    bench.step()
    refused = [event for event in bench.events if isinstance(event, RequestFailed)]
    assert refused and all(event.error["name"] == "QueueFull" for event in refused)


def test_a_crash_while_somebody_is_read_makes_that_request_the_only_suspect(bench):
    bench.submit("stream", "hello", max_tokens=100)
    bench.step(3)
    start_reading(bench)
    del bench.trail[:]
    bench.step(2)
    for phase, ids, step in bench.trail:
        crumb = Crumb(1, step, phase, tuple(ids.split()))
        assert judge(Exit("SIGSEGV"), crumb, ("stream", "long")).suspects == ("long",)


def test_a_crash_while_nothing_else_is_done_has_its_culprit(bench):
    start_reading(bench)
    bench.step()
    phase, ids, step = bench.trail[-1]
    crumb = Crumb(1, step, phase, tuple(ids.split()))
    assert judge(Exit("SIGSEGV"), crumb, ("long",)).culprit == "long"


def test_a_text_that_is_read_for_ever_stops_the_loop_in_plain_sight(bench):
    bench.submit("stream", "hello", max_tokens=100)
    start_reading(bench)
    bench.clock.pass_s(reading.OVERDUE_S + 1)
    stuck = threading.Thread(target=bench.engine.step)
    stuck.start()
    stuck.join(0.05)
    assert stuck.is_alive() and bench.trail[-1][:2] == ("tokenize", "long")
    bench.gate.set()
    stuck.join(10)
    assert not stuck.is_alive()


def test_closing_waits_for_the_thread_that_reads(bench):
    start_reading(bench)
    closing = threading.Thread(target=bench.engine.close)
    closing.start()
    closing.join(0.05)
    assert closing.is_alive()
    bench.gate.set()
    closing.join(10)
    assert not closing.is_alive()


def test_the_thread_that_reads_has_a_large_stack(bench, monkeypatch):
    sizes = []
    stack_size = threading.stack_size
    monkeypatch.setattr(threading, "stack_size", lambda *n: sizes.append(*n) or stack_size(*n))
    with contextlib.suppress(AssertionError):
        start_reading(bench)
    assert sizes[0] == reading.STACK_BYTES and sizes[1] != reading.STACK_BYTES
