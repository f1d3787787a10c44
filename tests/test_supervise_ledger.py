"""Requests over the lives of several engines."""

from __future__ import annotations

import pytest
from supervise_fakes import ask

from libloader import core
from libloader.supervise.blame import Verdict
from libloader.supervise.ledger import Ledger
from libloader.supervise.limits import Limits
from libloader.supervise.lines import Lines

NOBODY = Verdict()


def ledger_of(*names: str) -> Ledger:
    ledger = Ledger(Limits(), Lines(4, 60))
    for name in names:
        ledger.add(ask(name), 0.0)
    return ledger


def sent(ledger: Ledger, now: float = 0.0) -> list[str]:
    return [request.id for request in ledger.due(now)]


def token(name: str, number: int = 1, index: int = 0) -> core.TokenEvent:
    return core.TokenEvent(name, index, "x", (number,))


def done(name: str) -> core.RequestDone:
    return core.RequestDone(name, core.Usage(), {})


def test_requests_are_sent_once_and_in_order():
    ledger = ledger_of("a", "b", "c")
    assert sent(ledger) == ["a", "b", "c"]
    assert sent(ledger) == []


def test_after_a_crash_all_are_sent_again_in_their_first_order():
    ledger = ledger_of("a", "b", "c")
    sent(ledger)
    ledger.take(token("c"))
    assert ledger.engine_lost(NOBODY) == []
    ledger.add(ask("d"), 1.0)
    assert sent(ledger) == ["a", "b", "c", "d"]


def test_a_replayed_request_carries_the_tokens_that_its_client_has():
    ledger = Ledger(Limits(), Lines(4, 60))
    ledger.add(ask("a", n=2), 0.0)
    sent(ledger)
    for number, index in ((1, 0), (2, 1), (3, 0)):
        assert ledger.take(token("a", number, index))
    ledger.engine_lost(NOBODY)
    (request,) = ledger.due(0.0)
    assert request.resume == ((1, 3), (2,))


def test_a_request_without_an_answer_yet_is_sent_as_it_was():
    ledger = ledger_of("a")
    sent(ledger)
    ledger.engine_lost(NOBODY)
    assert list(ledger.due(0.0)) == [ask("a")]


def test_a_deadline_goes_on_running_over_a_crash():
    ledger = Ledger(Limits(), Lines(4, 60))
    ledger.add(ask("a", deadline_s=10.0), 100.0)
    assert [request.deadline_s for request in ledger.due(104.0)] == [6.0]
    ledger.engine_lost(NOBODY)
    assert [request.deadline_s for request in ledger.due(200.0)] == [0.001]


def test_a_finished_choice_is_not_told_twice():
    ledger = ledger_of("a")
    sent(ledger)
    finish = core.ChoiceDone("a", 0, "stop")
    assert ledger.take(finish)
    ledger.engine_lost(NOBODY)
    sent(ledger)
    assert not ledger.take(finish)
    assert not ledger.take(token("a"))
    assert ledger.take(done("a"))


def test_progress_is_told_again_only_while_there_is_no_token():
    ledger = ledger_of("a", "b")
    sent(ledger)
    ledger.take(token("b"))
    ledger.engine_lost(NOBODY)
    sent(ledger)
    assert ledger.take(core.ProgressEvent("a", 9, 0, 4))
    assert not ledger.take(core.ProgressEvent("b", 9, 0, 4))


def test_nothing_passes_after_the_last_event_or_a_removal():
    ledger = ledger_of("a", "b", "c")
    sent(ledger)
    assert ledger.take(done("a"))
    assert ledger.remove("b")
    assert not any(ledger.take(event) for event in (token("a"), done("a"), token("b"), done("b")))
    assert ledger.ids() == ["c"]


def test_a_removed_request_that_no_engine_has_needs_no_cancel():
    ledger = ledger_of("a")
    assert not ledger.remove("a")
    assert not ledger.remove("a")
    assert sent(ledger) == []


def test_an_engine_that_speaks_of_a_choice_nobody_asked_for_is_absurd():
    ledger = ledger_of("a")
    sent(ledger)
    with pytest.raises(ValueError, match="choice 1 of 1"):
        ledger.take(token("a", index=1))


def test_the_culprit_fails_and_the_others_go_on():
    ledger = ledger_of("a", "b")
    sent(ledger)
    assert ledger.engine_lost(Verdict(("b",), culprit="b")) == ["b"]
    ledger.remove("b")
    assert sent(ledger) == ["a"]


def test_suspects_run_alone_until_each_has_passed_its_first_step():
    ledger = ledger_of("a", "b", "c")
    sent(ledger)
    ledger.engine_lost(Verdict(("a", "c"), suspects=("a", "c")))
    assert sent(ledger) == ["a"]
    assert sent(ledger) == []
    ledger.take(token("a"))
    assert sent(ledger) == ["c"]
    ledger.take(done("c"))
    assert sent(ledger) == ["b"]


def test_a_suspect_that_crashes_alone_fails_and_the_trial_goes_on():
    ledger = ledger_of("a", "b", "c")
    sent(ledger)
    ledger.engine_lost(Verdict(("a", "b", "c"), suspects=("a", "b", "c")))
    assert sent(ledger) == ["a"]
    ledger.take(token("a"))
    assert sent(ledger) == ["b"]
    assert ledger.engine_lost(Verdict(("b",), suspects=("b",))) == ["b"]
    ledger.remove("b")
    assert sent(ledger) == ["c"]
    ledger.take(token("c"))
    assert sent(ledger) == ["a"]


def test_a_set_that_crashes_twice_fails_as_a_whole():
    ledger = ledger_of("a", "b")
    both = Verdict(("a", "b"), suspects=("a", "b"))
    sent(ledger)
    assert ledger.engine_lost(both) == []
    for name in ("a", "b"):
        assert sent(ledger) == [name]
        ledger.take(token(name))
    assert ledger.engine_lost(both) == ["a", "b"]


def test_a_suspect_that_is_cancelled_does_not_hold_up_the_trial():
    ledger = ledger_of("a", "b")
    sent(ledger)
    ledger.engine_lost(Verdict(("a", "b"), suspects=("a", "b")))
    assert sent(ledger) == ["a"]
    assert ledger.remove("a")
    assert sent(ledger) == ["b"]


def test_no_request_outlives_any_number_of_engines():
    ledger = ledger_of("a")
    for _ in range(Limits().lives_max):
        sent(ledger)
        ledger.take(token("a"))
        assert ledger.engine_lost(NOBODY) == []
    sent(ledger)
    assert ledger.engine_lost(Verdict(("a",))) == ["a"]


def test_a_request_that_only_waited_is_charged_for_nothing():
    ledger = ledger_of("a")
    for _ in range(50):
        sent(ledger)
        assert ledger.engine_lost(NOBODY) == []
