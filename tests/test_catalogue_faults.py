"""Engines that crash, hang, run out of memory or cannot load, seen over HTTP (F, D14).

Each planted fault names the visit of a point at which it strikes, so nothing depends on time: the
neighbours stream once, their four visits come first, and a fifth is the case's own.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import sys
import threading
import time

import gguf_files
import pytest
from neighbours import (
    ENDLESS,
    IS_LONG,
    MODEL,
    Home,
    Stream,
    chat_body,
    children_of,
    cpu_s,
    start_alone,
    troubled,
    vitals,
    wait_for,
)
from serving import events_of, text_of

from libloader import core, errors
from libloader.supervise import launch
from libloader.supervise.supervisor import Options, Supervisor

pytestmark = [
    pytest.mark.native,
    pytest.mark.usefixtures("native_library"),
    pytest.mark.skipif(sys.platform != "linux", reason="/proc and POSIX signals"),
]

HELLO = "Hello!"
# What a hung call may take here: long for a machine that is busy, short for a test.
IMPATIENT = {"hung_s": 3.0, "hung_prefill_s": 3.0, "p99_factor": 0.0}
FIFTH_CHAIN = "grammar_init:{}:5:1"  # of the first engine; the neighbours open four


def test_a_crash_costs_one_request_and_neither_neighbours_nor_twenty_who_wait(home: Home):
    """F01: whichever of 21 opens the fifth chain is the one that ends the engine."""
    with troubled(home, FIFTH_CHAIN.format("segv")) as broken, broken.watched(repeats=False):
        streams = [broken.stream(f"Count to {n}.", max_tokens=10) for n in range(21)]
        for stream in streams:
            wait_for(lambda stream=stream: stream.is_over)
        crashed = [stream for stream in streams if stream.status != 200]
        assert [(stream.status, error_of(stream)["code"]) for stream in crashed] == [
            (500, "engine_crash")
        ]
        assert all(s.events()[-1] == "[DONE]" for s in streams if s.status == 200)
        health = broken.health()
        assert (health["restarts"], health["last_exit"]) == (1, "SIGSEGV")


def error_of(stream: Stream) -> dict[str, str]:
    return json.loads(stream.raw)["error"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("fault", "n_restarts"),
    [
        ("decode:abort:60:1", 1),  # F02: nobody is to blame, everybody is replayed
        ("ipc_write:abort:40:1", 1),  # F10: half a frame is a crash, never a wrong token
        ("sample:noise:30,load:noise", 0),  # F11: native code prints to its stdout and stderr
    ],
)
def test_what_happens_to_the_engine_costs_no_character(home: Home, fault, n_restarts):
    """F02 F10 F11"""
    with troubled(home, fault, "--log-level", "info") as broken:
        with broken.watched(repeats=False):
            wait_for(lambda: broken.health()["restarts"] == n_restarts)
        assert broken.ask(HELLO)[0] == 200
        assert broken.health()["restarts"] == n_restarts
        wait_for(lambda: "noise" not in fault or "noise on stderr" in broken.log())


def test_those_who_were_there_in_two_crashes_fail_and_the_engine_goes_on(home: Home):
    """F02: also in the engine that replays them, the 60th decode aborts."""
    with troubled(home, "decode:abort:60:2") as broken:
        streams = [broken.stream(q, max_tokens=200, ignore_eos=True) for q in home.expected]
        endings = []
        for stream in streams:
            *_, last = stream.events()
            endings.append("done" if last == "[DONE]" else last["error"]["code"])
            assert home.expected[stream.text].startswith(stream.partial_text())
        assert set(endings) <= {"done", "engine_crash"}
        assert "engine_crash" in endings
        assert broken.ask(HELLO)[0] == 200
        assert broken.health()["restarts"] == 2


def test_kills_under_sixteen_streams_hang_nobody_and_change_no_text(home: Home):
    """F03: 10 kills here; the catalogue's 100 with IGLLAMA_LONG=1.

    A kill may come from the system for want of memory. So whoever is alone in the engine's hands
    twice when it comes is failed: at most one stream for each kill.
    """
    n_kills = 100 if IS_LONG else 10
    patient = {"crashes_max": 10_000, "backoff_s": [0.0], "lives_max": 10_000}
    with troubled(home, figures={"limits": patient}) as broken:
        clients = Clients(broken, 16)
        took_ms = []
        for number in range(1, n_kills + 1):
            clients.wait_for_ends(4 if IS_LONG else 1)
            took_ms.append(kill_and_time(broken, number))
        clients.check()
        assert broken.health()["restarts"] == n_kills
    took_ms.sort()
    assert len(clients.failed) <= n_kills
    print(
        f"F03: {n_kills} kills, {clients.n_streams} streams, 0 hung, {len(clients.failed)} failed "
        f"with engine_crash; ready again after "
        f"{took_ms[len(took_ms) // 2]:.0f} ms (median), {took_ms[-1]:.0f} ms (most); "
        f"longest pause of a stream {clients.longest_gap_s * 1e3:.0f} ms"
    )


def kill_and_time(home: Home, number: int) -> float:
    """Kill the engine while it works; return the ms until /health says that it is back."""
    wait_for(lambda: home.health()["running"] >= 8)
    os.kill(home.engine_pid(), signal.SIGKILL)
    began = time.monotonic()
    wait_for(lambda: home.health()["restarts"] == number)
    wait_for(lambda: home.health()["status"] == "ok")
    return (time.monotonic() - began) * 1e3


class Clients:
    """So many clients that stream one answer after another until told that it is enough."""

    def __init__(self, home: Home, n_clients: int) -> None:
        self.n_streams = 0
        self.longest_gap_s = 0.0
        self.failed: list[str] = []  # the text until then
        self.trouble: list[str] = []
        self._numbers, self._ends = itertools.count(1), itertools.count(1)
        self._n_ended = 0
        self._home = home
        self._enough = threading.Event()
        questions = [*home.expected] * (n_clients // len(home.expected))
        self._threads = [threading.Thread(target=self._run, args=(q,)) for q in questions]
        for thread in self._threads:
            thread.start()

    def _run(self, question: str) -> None:
        while not self._enough.is_set():
            # No two bodies are the same: one that met two kills would be refused the third time.
            self.n_streams = next(self._numbers)
            fields = {"max_tokens": 200, "ignore_eos": True, "min_keep": self.n_streams}
            stream = self._home.stream(question, **fields)
            self._watch(stream)
            self._n_ended = next(self._ends)
            try:
                self._judge(stream)
            except Exception as exc:  # told in `check`
                self.trouble.append(repr(exc))

    def _judge(self, stream: Stream) -> None:
        """The whole text and [DONE], or the beginning of it and an error."""
        whole = self._home.expected[stream.text]
        *events, last = stream.events() if stream.status == 200 else [json.loads(stream.raw)]
        text = text_of(events)
        if last == "[DONE]":
            assert text == whole
        else:
            assert last["error"]["code"] == "engine_crash"
            assert whole.startswith(text)
            self.failed.append(text)

    def _watch(self, stream: Stream) -> None:
        n_events, since = 0, time.monotonic()
        while not stream.is_over:
            time.sleep(0.02)
            if stream.n_events > n_events > 1:
                self.longest_gap_s = max(self.longest_gap_s, time.monotonic() - since)
            if stream.n_events > n_events:
                n_events, since = stream.n_events, time.monotonic()

    def wait_for_ends(self, n_streams: int) -> None:
        """Wait until so many more streams have ended."""
        goal = self._n_ended + n_streams
        wait_for(lambda: self._n_ended >= goal)

    def check(self) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive(), "a client hangs"
        assert self.trouble == []


def test_a_hang_is_ended_blamed_and_told_by_health(home: Home):
    """F04"""
    figures = {"limits": IMPATIENT}
    with troubled(home, FIFTH_CHAIN.format("hang"), figures=figures) as broken:
        with broken.watched(repeats=False) as watch:
            status, answer = broken.ask(HELLO)
            assert (status, answer["error"]["code"]) == (500, "engine_crash")
        assert "stalled" in watch.health.states
        assert broken.health()["last_exit"].startswith("hung in ")


def test_a_hang_in_sample_is_the_fault_of_whoever_is_sampled(home: Home):
    """F04"""
    with troubled(home, "sample:hang:5:1", figures={"limits": IMPATIENT}) as broken:
        assert broken.ask(HELLO, **ENDLESS)[0] == 500
        with broken.watched():
            assert broken.ask(HELLO)[0] == 200


def test_a_body_that_crashes_the_engine_is_refused_from_the_third_time_on(home: Home):
    """F05: ten times the same; two restarts in all."""
    with troubled(home, "tokenize:segv:1:2") as broken:
        answers = [broken.ask(HELLO) for _ in range(2)]
        with broken.watched():
            answers += [broken.ask(HELLO) for _ in range(8)]
        assert [status for status, _ in answers] == [500] * 2 + [422] * 8
        assert {a["error"]["code"] for _, a in answers[2:]} == {"engine_crash_repeat"}
        assert broken.health()["restarts"] == 2


def test_an_engine_that_keeps_crashing_is_left_alone_and_then_tried_again(home: Home):
    """F06"""
    limits = {"crashes_max": 2, "probe_first_s": 2.0}
    with troubled(home, "decode:abort:1:3", figures={"limits": limits}) as broken:
        statuses = [broken.ask(f"Count to {n}.")[0] for n in (1, 2)]
        assert set(statuses) <= {500, 503}
        wait_for(lambda: broken.health()["status"] == "failed")
        status, headers, _ = broken.served.request("POST", "/v1/chat/completions", chat_body(HELLO))
        assert (status, int(headers["Retry-After"]) >= 1) == (503, True)
        assert children_of(broken.pid) == []
        used_s = cpu_s(broken.pid)
        time.sleep(0.5)
        assert cpu_s(broken.pid) - used_s < 0.25  # it does not spin
        wait_for(lambda: broken.health()["status"] == "ok")  # the probe
        with broken.watched():
            assert broken.ask(HELLO)[0] == 200


def unknown_architecture() -> bytes:
    raw = gguf_files.tiny_llama()
    return raw.replace(gguf_files.string("llama"), gguf_files.string("lhama"), 1)


@pytest.mark.parametrize(
    ("content", "env"),
    [
        (lambda: MODEL.read_bytes()[:100_000], {}),
        (lambda: random.Random(5).randbytes(5000), {}),
        (unknown_architecture, {}),
        (MODEL.read_bytes, {"IGLLAMA_LIB": "/nowhere/libllama.so"}),
    ],
    ids=["truncated", "garbage", "unknown-architecture", "no-library"],
)
def test_what_cannot_be_loaded_is_exit_code_1_and_one_line(tmp_path, content, env):
    """F07"""
    model = tmp_path / "model.gguf"
    model.write_bytes(content())
    done = start_alone(model, env=env)
    lines = [line for line in done.stderr.splitlines() if line.startswith("igllama: ")]
    assert (done.returncode, len(lines), done.stdout) == (1, 1, ""), done.stderr
    assert "Traceback" not in done.stderr


def test_an_engine_whose_model_file_is_gone_comes_back_with_it(home: Home, tmp_path):
    """F07: it was ready before, so the front stays and says `failed`."""
    model = tmp_path / "model.gguf"
    shutil.copy(MODEL, model)
    limits = {"crashes_max": 1, "probe_first_s": 0.5}
    with troubled(home, figures={"limits": limits}, model=model) as broken:
        model.rename(tmp_path / "elsewhere")
        os.kill(broken.engine_pid(), signal.SIGKILL)
        wait_for(lambda: broken.health()["status"] == "failed")
        (tmp_path / "elsewhere").rename(model)
        wait_for(lambda: broken.health()["status"] == "ok")
        with broken.watched():
            assert broken.ask(HELLO)[0] == 200


def test_an_engine_out_of_memory_is_a_crash_like_any_other(home: Home):
    """F08: RLIMIT_AS above what the model needs."""
    with troubled(home, FIFTH_CHAIN.format("oom"), "--memory-limit", 2048) as broken:
        with broken.watched(repeats=False):
            status, answer = broken.ask(HELLO)
            assert (status, answer["error"]["code"]) == (500, "engine_crash")
            assert "out of memory, limited by --memory-limit" in answer["error"]["message"]
            assert broken.health()["last_exit"].endswith("limited by --memory-limit")
        assert broken.ask(HELLO)[0] == 200


@pytest.mark.parametrize("limit_mib", [120, 140, 160])
def test_a_model_beyond_the_memory_limit_is_one_clear_line_at_the_start(limit_mib):
    """F08 F07: less than interpreter, library, model and context take, whichever of them it is."""
    done = start_alone(MODEL, "--memory-limit", limit_mib, "-t", 1)
    assert done.returncode == 1
    assert "limited by --memory-limit" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_a_memory_limit_too_small_for_a_thread_is_one_clear_line_too():
    """F08"""
    done = start_alone(MODEL, "--memory-limit", 80, "-t", 1)
    words = "the system gives the engine no thread with a stack of 64 MiB: raise --memory-limit"
    assert done.returncode == 1
    assert done.stderr.startswith(f"igllama: {words}")
    assert done.stderr.count("\n") == 1


def test_a_front_that_stands_still_loses_nothing(home: Home):
    """F12: a second, with 16 streams; the engine holds what it cannot write."""
    with troubled(home) as broken, broken.watched():
        streams = [broken.stream(q, max_tokens=200, ignore_eos=True) for q in home.expected] * 3
        before = vitals(broken.engine_pid()).resident_bytes
        engine = broken.engine_pid()
        os.kill(broken.pid, signal.SIGSTOP)
        time.sleep(1.0)
        grown = vitals(engine).resident_bytes - before
        os.kill(broken.pid, signal.SIGCONT)
        for stream in streams:
            assert text_of(stream.events()) == home.expected[stream.text]
        assert grown <= 8 << 20
        assert broken.health()["restarts"] == 0


def test_a_machine_that_sleeps_is_no_hung_engine(home: Home):
    """F16: front and engine stand still for longer than a hang may take."""
    figures = {"limits": {**IMPATIENT, "hung_s": 1.5, "hung_prefill_s": 1.5}}
    with troubled(home, figures=figures) as broken, broken.watched():
        engine = broken.engine_pid()
        for pid in (broken.pid, engine):
            os.kill(pid, signal.SIGSTOP)
        time.sleep(3.0)
        for pid in (engine, broken.pid):
            os.kill(pid, signal.SIGCONT)
        assert broken.ask(HELLO)[0] == 200
        assert broken.health()["restarts"] == 0
        assert broken.engine_pid() == engine


def test_changed_model_files_never_hurt_the_front(tmp_path):
    """F13: 10 seeded mutations of a whole file here, 500 with IGLLAMA_LONG=1."""
    raw = gguf_files.tiny_llama()
    ends = {"ready": 0, "refused": 0, "crashed": 0}
    for seed in range(500 if IS_LONG else 10):
        model = gguf_files.write(tmp_path / "mutant.gguf", mutated(raw, random.Random(seed)))
        ends[how_it_starts(model)] += 1
    print(f"F13: {ends}")
    assert ends["crashed"] <= sum(ends.values()) // 10


def mutated(raw: bytes, rng: random.Random) -> bytes:
    """Change up to three bytes of the header, where all that is parsed lies."""
    changed = bytearray(raw)
    for _ in range(rng.randint(1, 3)):
        changed[rng.randrange(8000)] = rng.randrange(256)
    return bytes(changed)


def how_it_starts(model: str) -> str:
    command = launch.module_command("libloader.engine_child")
    settings = core.EngineSettings(model=model, n_ctx=64, n_parallel=1, n_threads=1)
    supervisor = Supervisor(settings, Options(command))
    try:
        supervisor.start()
        return "ready"
    except errors.ModelFileInvalid:
        return "refused"
    except errors.StartError as exc:
        return "crashed" if "(SIG" in str(exc) else "refused"
    finally:
        supervisor.stop()


def test_a_seed_gives_the_same_text_after_a_restart(home: Home):
    """D14"""

    def tell() -> str:
        fields = {"temperature": 1.5, "seed": 2**64 - 5, "max_tokens": 60, "cache_prompt": False}
        answer = broken.post(**{**chat_body("Tell me a story."), **fields})[1]
        return answer["choices"][0]["message"]["content"]  # type: ignore[no-any-return]

    with troubled(home) as broken:
        before = tell()
        os.kill(broken.engine_pid(), signal.SIGKILL)
        wait_for(lambda: broken.health()["restarts"] == 1)
        wait_for(lambda: broken.health()["status"] == "ok")
        assert tell() == before


def test_a_stream_that_is_cut_by_a_crash_is_well_formed_to_its_end(home: Home):
    """F01: once the headers are out, an error event ends it, and no [DONE]."""
    with troubled(home, "sample:segv:9:1") as broken:
        stream = broken.stream(HELLO, **ENDLESS)
        wait_for(lambda: stream.is_over)
        events = events_of(stream.raw)
        assert stream.status == 200
        assert events[-1]["error"]["code"] == "engine_crash"
        assert "[DONE]" not in events
