"""The bound on CPU time: as tight as it says, but for a machine that is slow just then."""

from __future__ import annotations

import time

import effort
import pytest


@pytest.fixture
def cpu(monkeypatch):
    """Call it with what was used since 0.0 and what the known piece of work takes now."""

    def uses(took_s: float, work_s: float) -> None:
        monkeypatch.setattr(time, "process_time", lambda: took_s)
        monkeypatch.setattr(effort, "_piece_of_work", lambda: work_s)

    return uses


@pytest.mark.parametrize("slowness", [0.5, 1.0])
def test_on_a_usual_machine_and_on_a_fast_one_the_bound_is_what_it_says(cpu, slowness):
    cpu(1.99, slowness * effort.USUAL_S)
    effort.assert_takes_less(2.0, 0.0)
    cpu(2.01, slowness * effort.USUAL_S)
    with pytest.raises(AssertionError, match="2.01 s"):
        effort.assert_takes_less(2.0, 0.0)


def test_a_machine_that_is_slow_now_gets_as_much_longer(cpu):
    cpu(7.9, 4 * effort.USUAL_S)
    effort.assert_takes_less(2.0, 0.0)
    cpu(8.1, 4 * effort.USUAL_S)
    with pytest.raises(AssertionError, match="4.0 times slow"):
        effort.assert_takes_less(2.0, 0.0)


def test_the_known_piece_of_work_takes_some_time():
    assert effort._piece_of_work() > 0.0
