"""When the engine starts again, and when a motionless one is given up."""

from __future__ import annotations

from libloader.supervise.limits import Limits
from libloader.supervise.restarts import RestartPolicy
from libloader.supervise.watchdog import Watchdog

LIMITS = Limits()


def test_the_first_restart_is_immediate_and_the_next_ones_slow_down():
    restarts = RestartPolicy(LIMITS)
    assert [restarts.crashed(float(n)) for n in range(5)] == [0.0, 0.1, 0.5, 1.0, 2.0]
    assert not restarts.failed


def test_a_sixth_crash_within_a_minute_is_failed_with_probes_up_to_five_minutes_apart():
    restarts = RestartPolicy(LIMITS)
    for now in range(5):
        restarts.crashed(float(now))
    now, delays = 5.0, []
    for _ in range(6):
        delays.append(restarts.crashed(now))
        assert restarts.failed
        now += delays[-1]
    assert delays == [30.0, 60.0, 120.0, 240.0, 300.0, 300.0]


def test_crashes_a_minute_apart_never_add_up():
    restarts = RestartPolicy(LIMITS)
    assert [restarts.crashed(n * 61.0) for n in range(20)] == [0.0] * 20


def failed() -> RestartPolicy:
    restarts = RestartPolicy(LIMITS)
    for _ in range(6):
        restarts.crashed(0.0)
    return restarts


def test_a_probe_that_gets_ready_serves_but_crashing_soon_is_failed_again():
    restarts = failed()
    restarts.ready(31.0)
    assert not restarts.failed
    assert restarts.crashed(40.0) == 60.0
    assert restarts.failed


def test_a_minute_without_a_crash_forgives_everything():
    restarts = failed()
    restarts.ready(31.0)
    assert restarts.crashed(95.0) == 0.0
    assert not restarts.failed


def watch(*readings: tuple[float, int, str], steps_ms: tuple[float, ...] = ()) -> Watchdog:
    watchdog = Watchdog(LIMITS)
    watchdog.restart(0.0)
    for ms in steps_ms:
        watchdog.step_took(ms)
    for reading in readings:
        watchdog.look(*reading)
    return watchdog


def still(phase: str, until_s: int, beat: int = 1) -> list[tuple[float, int, str]]:
    return [(float(second), beat, phase) for second in range(until_s + 1)]


def test_thirty_seconds_without_a_beat_is_hung_and_five_look_stalled():
    assert not watch(*still("sample", 5)).stalled
    assert watch(*still("sample", 6)).stalled
    assert not watch(*still("sample", 30)).hung
    assert watch(*still("sample", 31)).hung


def test_a_beat_is_a_sign_of_life_whatever_the_phase():
    readings = [(float(second), second, "decode") for second in range(100)]
    assert not watch(*readings).stalled


def test_prefill_loading_and_what_comes_before_it_may_take_longer():
    for phase in ("prefill", "load", ""):
        assert not watch(*still(phase, 300)).hung
        assert watch(*still(phase, 301)).hung


def test_a_slow_machine_is_measured_before_it_is_judged():
    slow = (3000.0,) * 50
    assert not watch(*still("decode", 60), steps_ms=slow).hung
    assert watch(*still("decode", 61), steps_ms=slow).hung


def test_time_in_which_the_front_itself_stood_still_does_not_count():
    watchdog = watch(*still("decode", 4), (3600.0, 1, "decode"))
    assert not watchdog.stalled
    assert watchdog.age_s(3600.0) == 4.0


def test_a_new_child_gets_the_full_allowance():
    watchdog = watch(*still("sample", 40))
    watchdog.restart(40.0)
    assert not watchdog.stalled
    assert watchdog.allowance_s() == LIMITS.hung_load_s
