"""Who crashed the engine, and for how long a body is refused."""

from __future__ import annotations

import dataclasses

import pytest
from supervise_fakes import ask

from libloader import core
from libloader.supervise.blame import (
    ONE_REQUEST_PHASES,
    Exit,
    PoisonList,
    Verdict,
    body_key,
    describe_exit,
    judge,
)
from libloader.supervise.breadcrumb import Crumb
from libloader.supervise.limits import Limits

SEGV, KILL, HUNG = Exit("SIGSEGV"), Exit("SIGKILL", "outside"), Exit("hung", "hung")
SENT = ("a", "b", "c")


@pytest.mark.parametrize("phase", sorted(ONE_REQUEST_PHASES))
@pytest.mark.parametrize("end", [SEGV, HUNG])
def test_who_was_alone_in_hand_is_the_culprit(phase, end):
    assert judge(end, Crumb(9, 1, phase, ("b",)), SENT) == Verdict(("b",), culprit="b")


def test_a_batch_has_suspects_and_no_culprit():
    verdict = judge(SEGV, Crumb(9, 1, "decode", ("a", "b")), SENT)
    assert verdict == Verdict(("a", "b"), suspects=("a", "b"))


def test_a_batch_whose_names_are_unknown_makes_everyone_a_suspect():
    assert judge(HUNG, Crumb(9, 1, "decode"), SENT) == Verdict(SENT, suspects=SENT)


def test_a_kill_from_outside_is_nobodys_fault():
    assert judge(KILL, Crumb(9, 1, "decode", ("a",)), SENT) == Verdict(("a",))


def test_a_kill_while_one_request_was_in_hand_may_have_been_its_memory():
    assert judge(KILL, Crumb(9, 1, "sample", ("a",)), SENT) == Verdict(("a",), suspects=("a",))


@pytest.mark.parametrize("phase", ["idle", "load", "ipc_write", ""])
def test_between_requests_nobody_is_to_blame(phase):
    assert judge(SEGV, Crumb(9, 1, phase), SENT) == Verdict()


@pytest.mark.parametrize(
    ("returncode", "name", "cause"),
    [
        (-11, "SIGSEGV", "fault"),
        (-9, "SIGKILL", "outside"),
        (-6, "SIGABRT", "fault"),
        (-64, "SIGRTMAX", "fault"),
        (-50, "signal 50", "fault"),
        (0, "exit code 0", "fault"),
        (70, "exit code 70", "fault"),
    ],
)
def test_exits_are_named_for_people(returncode, name, cause):
    assert describe_exit(returncode) == Exit(name, cause)


def test_the_same_body_has_the_same_key_whoever_sends_it():
    one = ask("a", "hello", sampling=core.Sampling(seed=1))
    two = dataclasses.replace(
        one, id="b", fair_key="k", streamed=False, sampling=core.Sampling(seed=2)
    )
    assert body_key(one) == body_key(two)
    assert body_key(one) != body_key(ask("a", "hello!"))
    assert body_key(one) != body_key(dataclasses.replace(one, stop=("x",)))


def test_a_body_is_refused_for_ten_minutes_after_its_second_crash():
    poison = PoisonList(Limits())
    poison.count(ask("a"), 0.0)
    assert poison.refused_s(ask("b"), 1.0) == 0.0
    poison.count(ask("b"), 1.0)
    assert poison.refused_s(ask("c"), 1.0) == 600.0
    assert poison.refused_s(ask("c", "another"), 1.0) == 0.0
    assert poison.refused_s(ask("c"), 601.0) == 0.0


def test_crashes_that_lie_far_apart_refuse_nothing():
    poison = PoisonList(Limits())
    poison.count(ask("a"), 0.0)
    poison.count(ask("b"), 600.0)
    assert poison.refused_s(ask("c"), 600.0) == 0.0
    poison.count(ask("c"), 1199.0)
    assert poison.refused_s(ask("d"), 1199.0) == 600.0


def test_the_table_of_bodies_is_bounded():
    poison = PoisonList(Limits(poison_bodies=8))
    for number in range(1000):
        for _ in range(5):
            poison.count(ask("x", str(number % 500)), float(number))
    assert len(poison._crashes) == 8
    assert len(poison._refused_until) <= 8
    assert all(len(times) <= 2 for times in poison._crashes.values())


def test_only_the_latest_bodies_are_remembered():
    poison = PoisonList(Limits(poison_bodies=3))
    for body in ("one", "one", "two", "three", "four"):
        poison.count(ask("x", body), 0.0)
    assert poison.refused_s(ask("y", "one"), 1.0) == 0.0
