"""Signals, shutting down, a full disk and what /health says in each state (F15, H)."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from neighbours import (
    ENDLESS,
    LIMIT_S,
    MODEL,
    Home,
    ask_health,
    chat_body,
    check_health,
    children_of,
    is_gone,
    troubled,
    wait_for,
)
from serving import ROOT, events_of, text_of

pytestmark = [
    pytest.mark.native,
    pytest.mark.usefixtures("native_library"),
    pytest.mark.skipif(sys.platform != "linux", reason="/proc and POSIX signals"),
]

HELLO = "Hello!"


@contextmanager
def starting(fault: str, *flags: str):
    """A server that hangs or crawls while it loads; yields (process, port). No Home: no block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(ROOT / "igllama.py"), "api", str(MODEL), "-p", str(port), *flags]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "IGLLAMA_TEST_MODE": "1", "IGLLAMA_FAULT": fault},
    )
    try:
        yield process, port
    finally:
        process.kill()
        process.communicate()


def answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


# ---- the truth table of /health ----


def test_health_while_loading_is_503_and_requests_are_told_to_come_again():
    """H06: the port is open before the model is loaded."""
    with starting("load:hang") as (_, port):
        wait_for(lambda: answers(port))
        assert check_health(*ask_health(port)) == "loading model"
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
        connection.request("POST", "/v1/chat/completions", json.dumps(chat_body(HELLO)))
        with connection.getresponse() as response:
            assert response.status == 503
            assert int(response.headers["Retry-After"]) >= 1
            assert json.loads(response.read())["error"]["code"] == "engine_unavailable"
        connection.close()


def test_health_says_loading_until_it_is_ok():
    """H06: a load that crawls ends."""
    with starting("load:slow") as (_, port):
        wait_for(lambda: answers(port))
        seen = []
        while not seen or seen[-1] != "ok":
            seen.append(check_health(*ask_health(port)))
        assert set(seen) <= {"loading model", "ok"}


def test_health_is_true_in_every_state_after_loading(home: Home):
    """H06: ok, stalled, restarting, failed; the engine is frozen or gone in three of them."""
    limits = {"hung_s": 60.0, "stalled_part": 0.01, "backoff_s": [1.5], "crashes_max": 1}
    with troubled(home, "sample:hang:5:1", figures={"limits": limits}) as broken:
        assert state_of(broken) == ("ok", 0)
        stuck = broken.stream(HELLO, **ENDLESS)
        wait_for(lambda: state_of(broken) == ("stalled", 0))
        os.kill(broken.engine_pid(), signal.SIGKILL)
        wait_for(lambda: state_of(broken) == ("restarting", 1))
        wait_for(lambda: state_of(broken) == ("ok", 1))
        stuck.leave()
        os.kill(broken.engine_pid(), signal.SIGKILL)
        wait_for(lambda: state_of(broken) == ("failed", 2))


def state_of(home: Home) -> tuple[str, int]:
    status, headers, raw = ask_health(home.port)
    return check_health(status, headers, raw), json.loads(raw)["restarts"]


# ---- ends ----


def test_what_runs_and_what_waits_is_finished_before_the_end(home: Home):
    """H01: eight streams in their slots, four that wait; no new client is let in."""
    with troubled(home, "decode:drag") as ending:
        questions = [*home.expected] * 3
        streams = [ending.stream(q, max_tokens=100, ignore_eos=True) for q in questions]
        wait_for(lambda: (ending.health()["running"], ending.health()["waiting"]) == (8, 4))
        ending.served.process.terminate()
        wait_for(lambda: not answers(ending.port))
        for stream in streams:
            events = stream.events()
            assert events[-1] == "[DONE]"
            assert events[-2]["choices"][0]["finish_reason"] == "length"
            assert home.expected[stream.text].startswith(text_of(events))
        assert ending.served.process.wait(LIMIT_S) == 0


def test_health_says_draining_on_a_connection_that_was_open(home: Home):
    """H06 H01: each connection ends with that answer, so several are kept."""
    with troubled(home, "decode:slow") as ending:
        kept = [http.client.HTTPConnection("127.0.0.1", ending.port) for _ in range(50)]
        for connection in kept:
            connection.connect()
        stream = ending.stream(HELLO, max_tokens=60, ignore_eos=True)
        wait_for(stream.has_begun)
        ending.served.process.terminate()
        wait_for(lambda: not answers(ending.port))
        wait_for(lambda: ask_health_on(kept.pop()) == "draining")
        assert not stream.is_over
        for connection in kept:
            connection.close()
        assert stream.events()[-1] == "[DONE]"


def ask_health_on(connection: http.client.HTTPConnection) -> str:
    connection.request("GET", "/health")
    with connection.getresponse() as response:
        assert response.headers["Connection"] == "close"
        state = check_health(response.status, response.headers, response.read())
    connection.close()
    return state


def test_what_cannot_finish_is_told_so(home: Home):
    """H01: plain answers too, and those that wait."""
    with troubled(home, "decode:slow", "-np", "2", "--drain-timeout", "0.3") as ending:
        running = [ending.stream(HELLO, **ENDLESS) for _ in range(2)]
        wait_for(lambda: all(stream.has_begun() for stream in running))
        waiting = ending.stream(HELLO, **ENDLESS)
        wait_for(lambda: ending.health()["waiting"] == 1)
        assert ending.served.stop() == 0
        for stream in running:
            assert stream.events()[-1]["error"]["code"] == "server_shutdown"
        wait_for(lambda: waiting.is_over)
        assert waiting.status == 503
        assert json.loads(waiting.raw)["error"]["code"] == "server_shutdown"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_ends_at_once(home: Home, number):
    """H02"""
    with troubled(home, "decode:slow") as ending:
        engine = ending.engine_pid()
        stream = ending.stream(HELLO, **ENDLESS)
        wait_for(stream.has_begun)
        ending.served.process.send_signal(number)
        wait_for(lambda: not answers(ending.port))
        assert not stream.is_over
        ending.served.process.send_signal(number)
        assert ending.served.process.wait(LIMIT_S) == 0
        wait_for(lambda: stream.is_over)
        assert "[DONE]" not in events_of(stream.raw)
        assert is_gone(engine)


def test_ctrl_c_of_a_terminal_does_not_reach_the_engine(home: Home):
    """H02: it has a session of its own, and a stray SIGINT means nothing to it."""
    with home.watched():
        engine = home.engine_pid()
        assert os.getpgid(engine) != os.getpgid(home.pid)
        assert os.getsid(engine) != os.getsid(home.pid)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(engine, number)
        assert home.ask(HELLO)[0] == 200
        assert home.engine_pid() == engine


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_loading_is_a_clean_end(number):
    """F15"""
    with starting("load:hang") as (process, port):
        wait_for(lambda: answers(port) and len(children_of(process.pid)) == 1)
        engine = children_of(process.pid)[0]
        began = time.monotonic()
        process.send_signal(number)
        output, _ = process.communicate(timeout=LIMIT_S)
        assert (process.returncode, output) == (0, "")
        assert is_gone(engine)
        print(f"F15: {time.monotonic() - began:.2f} s from the signal to the end")


def test_a_signal_between_two_engines_is_a_clean_end(home: Home):
    """F15"""
    with troubled(home, figures={"limits": {"backoff_s": [30.0]}}) as ending:
        os.kill(ending.engine_pid(), signal.SIGKILL)
        wait_for(lambda: ending.health()["status"] == "restarting")
        assert ending.served.stop() == 0


def test_a_signal_while_decoding_leaves_no_abort_in_the_log(home: Home):
    """F15: with all slots busy and no patience."""
    with troubled(home, "", "--drain-timeout", "0", "--log-level", "info") as ending:
        streams = [ending.stream(HELLO, **ENDLESS) for _ in range(8)]
        wait_for(lambda: all(stream.has_begun() for stream in streams))
        engine = ending.engine_pid()
        assert ending.served.stop() == 0
        assert is_gone(engine)
        log = ending.log()
        assert not any(word in log for word in ("SIGABRT", "Traceback", "Fatal", "terminate"))
        for stream in streams:
            wait_for(lambda stream=stream: stream.is_over)


# ---- a full disk ----


def test_a_full_disk_ends_the_saving_of_prefixes_and_nothing_else(home: Home, tmp_path):
    """H05: no file may grow beyond 4 KiB; a saved prefix of these is some 100 KiB."""
    folder = tmp_path / "prefixes"
    flags = ("--cache-dir", folder, "--cache-ram", "0", "-np", "4", "-c", "512")
    with troubled(home, "", *flags, figures={"file_bytes": 4096}) as full:
        for number in range(12):
            text = f"{number} " + "abcdefgh " * 30
            assert full.ask(text, max_tokens=2)[0] == 200
        with full.watched():
            assert full.ask(HELLO)[0] == 200
        assert full.health()["restarts"] == 0
        wait_for(lambda: list(folder.iterdir()) == [])
        wait_for(lambda: str(folder) in full.log())


def test_with_room_on_the_disk_the_same_prompts_are_saved(home: Home, tmp_path):
    """H05: the counterpart, so that the case above is known to write."""
    folder = tmp_path / "prefixes"
    flags = ("--cache-dir", folder, "--cache-ram", "0", "-np", "4", "-c", "512")
    with troubled(home, "", *flags, figures={"file_bytes": 64 << 20}) as roomy:
        for number in range(12):
            roomy.ask(f"{number} " + "abcdefgh " * 30, max_tokens=2)
        wait_for(lambda: any(path.stat().st_size > 4096 for path in folder.iterdir()))
