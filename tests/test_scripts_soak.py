"""The soak: it runs, and what must not be it notices."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time

import pytest
from serving import ROOT

SPEC = importlib.util.spec_from_file_location("soak", ROOT / "scripts" / "soak.py")
soak = importlib.util.module_from_spec(SPEC)
sys.modules["soak"] = soak
SPEC.loader.exec_module(soak)


class NoWeather:
    back_ms = [12.0, 30.0]


FIGURES = [soak.Figures(0.0, 30.0, 50.0, 10, 8), soak.Figures(1.0, 31.0, 50.0, 11, 8)]


def verdict(tally, log: str = "") -> int:
    return soak.report(tally, NoWeather(), FIGURES, 0.1, log)


def test_refusals_that_a_kill_explains_are_counted_and_forgiven():
    tally = soak.Tally()
    client = soak.Client(0, tally, 1, None)
    client._refused(500, {"error": {"code": "engine_crash"}})
    tally.answered("Hello!", "Hi!", time.monotonic())
    assert verdict(tally) == 0
    assert tally.counts["engine_crash"] == 1


def test_another_text_for_the_same_question_is_noticed():
    tally = soak.Tally()
    for text in ("Hi!", "Hi!", "Ha!"):
        tally.answered("Hello!", text, time.monotonic())
    assert verdict(tally) == 1


@pytest.mark.parametrize("code", ["decode_failed", "internal_error", None])
def test_an_error_that_nothing_explains_is_noticed(code):
    tally = soak.Tally()
    soak.Client(0, tally, 1, None)._refused(500, {"error": {"code": code}})
    assert verdict(tally) == 1


def test_a_malformed_request_that_is_served_is_noticed():
    tally = soak.Tally()
    client = soak.Client(0, tally, 1, None)
    client._must_refuse(200, b"{}")
    client._must_refuse(400, b"{}")
    assert verdict(tally) == 1


def test_a_traceback_in_the_log_is_noticed():
    assert verdict(soak.Tally(), "Traceback (most recent call last):\n  boom") == 1


def test_a_client_without_an_answer_is_noticed():
    tally = soak.Tally()
    tally.problem("hung", "plain")
    assert verdict(tally) == 1


@pytest.mark.native
@pytest.mark.usefixtures("native_library")
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_few_seconds_of_bad_weather_hurt_nobody():
    command = [sys.executable, str(ROOT / "scripts" / "soak.py"), "--minutes", "0.08"]
    done = subprocess.run(
        [*command, "--clients", "6", "--kill-every", "1.5", "--threads", "1"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing that must not be" in done.stdout
