"""The soak: it runs, and what must not be it notices."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time

import pytest
from serving import ROOT
from web_client import wait_until, web_server

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


@pytest.mark.skipif(sys.platform != "linux", reason="epoll")
@pytest.mark.parametrize("what", ["slow-header", "slow-body", "slow-reader"])
def test_attackers_stay_for_as_long_as_they_are_told(what):
    routes = {("POST", "/v1/chat/completions"): lambda exchange: exchange.reply(200, b"x" * 9)}
    with web_server(routes) as web:
        ran = attacks(what, web.port, "--clients", "20", "--seconds", "1.0")
        wait_until(lambda: web.figure("connections") >= 20)
        assert set(json.loads(ran.communicate(timeout=30)[0])) == {"closed"}


@pytest.mark.skipif(sys.platform != "linux", reason="epoll")
def test_a_burst_and_a_probe_tell_how_long_each_answer_took():
    routes = {("GET", "/health"): lambda exchange: exchange.reply_json({"restarts": 0})}
    with web_server(routes) as web:
        burst = told_by("burst", web.port, "--clients", "30")
        probe = told_by("probe", web.port, "--seconds", "0.3")
    assert len(burst) == 30 and min(burst) > 0
    assert probe and max(probe) < 30_000


@pytest.mark.skipif(sys.platform != "linux", reason="epoll")
def test_an_answer_that_is_no_health_counts_as_none():
    with web_server({("GET", "/health"): lambda exchange: exchange.reply_json({})}) as web:
        burst = told_by("burst", web.port, "--clients", "5")
    assert burst == [-1] * 5


def attacks(what: str, port: int, *options: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "scripts" / "attacks.py"), what, str(port), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def told_by(what: str, port: int, *options: str) -> list:
    return json.loads(attacks(what, port, *options).communicate(timeout=60)[0])


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
