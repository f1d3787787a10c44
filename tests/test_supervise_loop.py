"""The loop around an engine, and the engine in a thread of its own."""

from __future__ import annotations

import json
import logging
import threading
import time

import pytest
from supervise_fakes import FakeEngine, ask, build_engine, send, text_of, wait_for

from libloader import core, errors
from libloader.supervise import loop as loop_module
from libloader.supervise.inline import InlineEngine
from libloader.supervise.loop import Cancel, EngineLoop, Report, Stop, Submit


def no_mark(phase: str, ids: str, step: int) -> None:
    pass


class Running:
    """A loop in a thread, with its reports."""

    def __init__(self, engine: FakeEngine) -> None:
        self.reports: list[Report] = []
        self.marks: list[str] = []
        self.loop = EngineLoop(
            engine, self.reports.append, lambda phase, *_: self.marks.append(phase)
        )
        self.thread = threading.Thread(target=self.loop.run)
        self.thread.start()

    def _mark(self, phase: str, ids: str, step: int) -> None:
        self.marks.append(phase)

    def stop(self) -> None:
        self.loop.post(Stop())
        self.thread.join(5)
        assert not self.thread.is_alive()

    def events(self) -> list[core.Event]:
        return [event for report in self.reports for event in report.events]


@pytest.fixture
def running():
    running = Running(FakeEngine(2, no_mark, lambda: time.sleep(0.001)))
    yield running
    if running.thread.is_alive():
        running.stop()


def test_one_report_per_step_carries_all_events_of_it(running):
    running.loop.post(Submit(ask("a", max_tokens=5)))
    running.loop.post(Submit(ask("b", max_tokens=5)))
    wait_for(lambda: sum(isinstance(e, core.RequestDone) for e in running.events()) == 2)
    assert len([report for report in running.reports if report.events]) <= 6


def test_figures_come_with_the_last_step_before_idling(running):
    running.loop.post(Submit(ask("a", max_tokens=3)))
    wait_for(lambda: any(isinstance(e, core.RequestDone) for e in running.events()))
    assert running.reports[-1].figures == {"n_running": 0.0, "n_waiting": 0.0}


def test_a_cancel_and_a_stop_do_not_wait_for_the_step_to_end(running):
    interrupted = []
    running.loop._engine.interrupt = lambda request_id="": interrupted.append(request_id)
    running.loop.post(Cancel("a"))
    running.stop()
    assert interrupted == ["a", ""]


def test_an_idle_engine_keeps_beating(running):
    wait_for(lambda: running.marks.count("idle") >= 2)


def test_a_refused_request_fails_alone(running):
    running.loop.post(Submit(ask("bad", "refuse me")))
    running.loop.post(Submit(ask("good", max_tokens=2)))
    wait_for(lambda: any(isinstance(e, core.RequestDone) for e in running.events()))
    failed = [e for e in running.events() if isinstance(e, core.RequestFailed)]
    assert [(e.request_id, e.error["name"]) for e in failed] == [("bad", "PromptTooLong")]


def test_a_bug_in_submitting_one_request_does_not_end_the_loop(running, caplog):
    running.loop.post(Submit(core.Request("bad", "generate", ())))
    running.loop.post(Submit(ask("good", max_tokens=2)))
    wait_for(lambda: any(isinstance(e, core.RequestDone) for e in running.events()))
    assert "request bad could not be submitted" in caplog.text


def test_a_cancelled_request_says_nothing_more(running):
    running.loop.post(Submit(ask("a", max_tokens=10**6)))
    wait_for(lambda: len(running.events()) > 3)
    running.loop.post(Cancel("a"))
    wait_for(lambda: running.loop._engine.idle)
    count = len(running.events())
    time.sleep(0.02)
    assert len(running.events()) == count


class Stepped:
    """A loop that is stepped by hand, `step_s` of fake time each."""

    def __init__(self, monkeypatch, step_s: float) -> None:
        self.now, self.reports = 100.0, []
        monkeypatch.setattr(loop_module, "time", self)
        self._step_s = step_s
        self._loop = EngineLoop(FakeEngine(2, no_mark, self._work), self.reports.append, no_mark)

    def monotonic(self) -> float:
        return self.now

    def _work(self) -> None:
        self.now += self._step_s

    def run(self, *requests: core.Request) -> list[list[str]]:
        """Return what kinds of events came with each report."""
        for request in requests:
            self._loop._apply(Submit(request))
        while not self._loop._engine.idle:
            self._loop._step()
        return [[type(event).__name__ for event in each.events] for each in self.reports]


def test_tokens_that_nobody_looks_at_come_in_one_report_with_the_end(monkeypatch):
    kinds = Stepped(monkeypatch, 0.001).run(ask("a", max_tokens=6, streamed=False))
    first, last = [each for each in kinds if "TokenEvent" in each]
    assert first == ["TokenEvent"]  # it shows that the engine is well with this request
    assert last == ["TokenEvent"] * 5 + ["ChoiceDone", "RequestDone"]


def test_tokens_that_nobody_looks_at_wait_for_the_figures_at_most(monkeypatch):
    step_s = loop_module.FIGURES_S / 2.5
    stepped = Stepped(monkeypatch, step_s)
    kinds = stepped.run(ask("a", max_tokens=9, streamed=False))
    assert max(each.count("TokenEvent") for each in kinds) == 3
    assert all(report.ms == pytest.approx(step_s * 1000) for report in stepped.reports)


def test_a_stream_takes_the_tokens_of_others_along_in_their_order(monkeypatch):
    stepped = Stepped(monkeypatch, 0.001)
    kinds = stepped.run(ask("a", max_tokens=6, streamed=False), ask("b", max_tokens=6))
    assert all(kinds[1:]) and sum(each.count("TokenEvent") for each in kinds) == 12
    assert sum("TokenEvent" in each for each in kinds) >= 6


class CruisingEngine(FakeEngine):
    """Makes steps for as long as it may; tells the tokens of each but the last at once."""

    def step(self, company=None):
        events = super().step()
        while (
            company is not None and self._requests and company.goes_on(loop_module.time.monotonic())
        ):
            company.tell(events)
            events = super().step()
        return events


class Cruising(Stepped):
    def __init__(self, monkeypatch, step_s: float) -> None:
        super().__init__(monkeypatch, step_s)
        self.meanwhile: list[Report] = []
        engine = CruisingEngine(2, no_mark, self._work)
        self._loop = EngineLoop(engine, self.reports.append, no_mark, self.tell)

    def tell(self, report: Report) -> None:
        self.meanwhile.append(report)
        self.reports.append(report)


def test_what_a_cruise_brings_is_told_meanwhile_and_in_order(monkeypatch):
    cruising = Cruising(monkeypatch, 0.001)
    kinds = cruising.run(ask("a", max_tokens=6), ask("b", max_tokens=9, streamed=False))
    tokens = [(e.request_id, e.tokens) for each in cruising.reports for e in each.events
              if isinstance(e, core.TokenEvent)]  # fmt: skip
    alone = Stepped(monkeypatch, 0.001)
    alone.run(ask("a", max_tokens=6), ask("b", max_tokens=9, streamed=False))
    expected = [(e.request_id, e.tokens) for each in alone.reports for e in each.events
                if isinstance(e, core.TokenEvent)]  # fmt: skip
    assert sorted(tokens) == sorted(expected)
    for name in "ab":
        assert [t for t in tokens if t[0] == name] == [t for t in expected if t[0] == name]
    assert len(cruising.meanwhile) >= 5
    assert kinds[-1][-1] == "RequestDone"


def test_a_cruise_ends_when_figures_are_due(monkeypatch):
    cruising = Cruising(monkeypatch, loop_module.FIGURES_S / 2.5)
    cruising.run(ask("a", max_tokens=20))
    with_figures = [report for report in cruising.reports if report.figures]
    assert len(with_figures) >= 6
    steps_ms = [report.ms for report in cruising.reports]
    assert max(steps_ms) == pytest.approx(loop_module.FIGURES_S / 2.5 * 1000)


def test_a_cruise_ends_when_a_command_comes(monkeypatch):
    cruising = Cruising(monkeypatch, 0.001)
    cruising.run(ask("a", max_tokens=2))  # figures are new
    assert cruising._loop.goes_on(loop_module.time.monotonic())
    cruising._loop.post(Cancel("a"))
    assert not cruising._loop.goes_on(loop_module.time.monotonic())


def inline(**wishes: object) -> InlineEngine:
    settings = core.EngineSettings(model=json.dumps(wishes), n_parallel=2)
    return InlineEngine(settings, build_engine)


def test_inline_gives_the_same_answer_as_a_child():
    engine = inline()
    assert engine.start().alias == "fake"
    client = send(engine, ask("a"))
    client.wait()
    engine.stop()
    assert client.text == text_of("tell", 8)
    assert engine.status().state == "draining"


def test_inline_raises_a_refused_start():
    engine = inline(refuse=True)
    with pytest.raises(errors.ModelFileInvalid):
        engine.start()
    assert engine.status().state == "failed"
    with pytest.raises(errors.EngineUnavailable):
        send(engine, ask("a"))


def test_inline_a_broken_engine_fails_its_requests_and_says_so(caplog):
    caplog.set_level(logging.CRITICAL, "igllama.supervise")
    engine = inline()
    engine.start()
    clients = [send(engine, ask("a", "boom !sample:raise")), send(engine, ask("b"))]
    for client in clients:
        client.wait()
        assert client.failure == "EngineCrashed"
    assert engine.status().state == "failed"
    engine.stop()


def test_inline_drains():
    engine = inline(step_s=0.002)
    engine.start()
    quick = send(engine, ask("quick", max_tokens=10))
    endless = send(engine, ask("endless", max_tokens=10**6))
    engine.drain(0.3)
    assert quick.text == text_of("tell", 10)
    assert endless.failure == "ServerDraining"
    with pytest.raises(errors.ServerDraining):
        send(engine, ask("late"))


def test_inline_cancels():
    engine = inline(step_s=0.002)
    engine.start()
    client = send(engine, ask("a", max_tokens=10**6))
    assert client.started.wait(5)
    engine.cancel("a")
    assert client.failure == "ClientGone"
    send(engine, ask("b")).wait()
    engine.stop()


def test_inline_stopped_while_loading_never_serves():
    engine = inline(load_s=0.3)
    outcome: list[BaseException] = []

    def start() -> None:
        try:
            engine.start()
        except errors.IgllamaError as error:
            outcome.append(error)

    starter = threading.Thread(target=start)
    starter.start()
    engine.stop()
    starter.join(5)
    assert [type(error) for error in outcome] == [errors.ServerDraining]
