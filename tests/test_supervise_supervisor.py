"""Front and engine child as real processes, with a fake engine in the child."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import sys
import threading
import time

import pytest
from supervise_fakes import QUICK, Client, ask, send, supervisor, text_of, wait_for

from libloader import core, errors
from libloader.supervise.limits import Limits

N_KILLS = 25  # scripts/soak.py does hundreds
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


@contextlib.contextmanager
def running(*args, **wishes):
    engine = supervisor(*args, **wishes)
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


def child_pid(engine) -> int:
    wait_for(lambda: engine._line is not None and engine.status().state == "ok")
    return engine._line.child.pid


def kill_child(engine) -> None:
    os.kill(child_pid(engine), signal.SIGKILL)


def test_an_answer_comes_back_through_the_child():
    with running() as engine:
        client = send(engine, ask("a", n=2))
        last = client.wait()
    assert isinstance(last, core.RequestDone)
    assert [e.index for e in client.events if isinstance(e, core.ChoiceDone)] == [0, 1]
    texts = ["", ""]
    for event in client.events:
        if isinstance(event, core.TokenEvent):
            texts[event.index] += event.text
    assert texts == [text_of("tell", 8, 0), text_of("tell", 8, 1)]


def test_a_refusal_of_the_engine_reaches_its_client_as_the_same_error():
    with running() as engine:
        client = send(engine, ask("a", "refuse me"))
        client.wait()
    assert client.failure == "PromptTooLong"
    assert client.events[-1].error["param"] == "prompt"


def test_a_refused_start_is_raised_as_the_child_said_it():
    engine = supervisor(refuse=True)
    with pytest.raises(errors.ModelFileInvalid, match="not a GGUF file"):
        engine.start()
    assert engine.status().state == "failed"
    engine.stop()


@posix_only
def test_a_crash_while_loading_is_one_clear_line():
    engine = supervisor(load="abort", noise=True)
    with pytest.raises(errors.StartError) as caught:
        engine.start()
    assert "SIGABRT" in str(caught.value)
    assert "\n" not in str(caught.value)
    engine.stop()


def test_a_command_that_does_not_exist_is_a_start_error():
    engine = supervisor()
    object.__setattr__(engine._options, "command", ["/nonexistent/python"])
    with pytest.raises(errors.StartError, match="nonexistent"):
        engine.start()


def test_a_stream_survives_a_kill_with_the_same_text():
    with running(step_s=0.01) as engine:
        client = send(engine, ask("a", max_tokens=40))
        assert client.started.wait(5)
        kill_child(engine)
        client.wait()
        status = engine.status()
    assert client.text == text_of("tell", 40)
    assert (status.restarts, status.last_exit) == (1, "SIGKILL")


@posix_only
@pytest.mark.parametrize("phase", ["tokenize", "grammar_init", "sample"])
@pytest.mark.parametrize("action", ["segv", "abort", "raise"])
def test_the_request_that_crashes_the_engine_fails_and_its_neighbours_do_not(phase, action):
    with running(step_s=0.005, n_parallel=5) as engine:
        neighbours = [send(engine, ask(f"n{i}", f"story {i}", 30)) for i in range(4)]
        assert all(client.started.wait(5) for client in neighbours)
        bad = send(engine, ask("bad", f"boom !{phase}:{action}"))
        queued = [send(engine, ask(f"q{i}", f"late {i}", 5)) for i in range(6)]
        for client in [bad, *neighbours, *queued]:
            client.wait()
        assert engine.status().restarts == 1
    assert bad.failure == "EngineCrashed"
    assert [client.text for client in neighbours] == [text_of(f"story {i}", 30) for i in range(4)]
    assert [client.text for client in queued] == [text_of(f"late {i}", 5) for i in range(6)]


@posix_only
def test_the_third_copy_of_a_poisonous_body_is_refused():
    with running() as engine:
        for name in ("a", "b"):
            client = send(engine, ask(name, "boom !grammar_init:segv"))
            client.wait()
            assert client.failure == "EngineCrashed"
            wait_for(lambda: engine.status().state == "ok")
        with pytest.raises(errors.RequestPoisoned):
            send(engine, ask("c", "boom !grammar_init:segv"))
        send(engine, ask("d")).wait()
        assert engine.status().restarts == 2


@posix_only
def test_a_decode_that_crashes_once_costs_nobody_anything(monkeypatch):
    monkeypatch.setenv("IGLLAMA_FAULT", "decode:abort:6:1")
    with running(Limits(tick_s=0.05), step_s=0.005) as engine:
        clients = [send(engine, ask(f"r{i}", f"story {i}", 20)) for i in range(8)]
        for client in clients:
            client.wait()
    assert [client.text for client in clients] == [text_of(f"story {i}", 20) for i in range(8)]


@posix_only
def test_a_decode_that_always_crashes_fails_its_requests_and_then_the_engine(monkeypatch):
    monkeypatch.setenv("IGLLAMA_FAULT", "decode:abort")
    limits = Limits(backoff_s=(0.0,), crashes_max=3, tick_s=0.02)
    with running(limits) as engine:
        clients = [send(engine, ask(f"r{i}", f"story {i}")) for i in range(4)]
        for client in clients:
            client.wait()
        assert {client.failure for client in clients} == {"EngineCrashed"}
        wait_for(lambda: engine.status().state == "failed")
        restarts = engine.status().restarts
        with pytest.raises(errors.EngineUnavailable) as caught:
            send(engine, ask("late"))
        assert 28 < caught.value.retry_after_s <= 30
        time.sleep(0.3)
        assert engine.status().restarts == restarts == 4


@posix_only
def test_a_hung_call_is_ended_and_blamed(monkeypatch):
    limits = Limits(hung_s=0.6, tick_s=0.02)
    with running(limits, step_s=0.01) as engine:
        neighbour = send(engine, ask("n", max_tokens=60))
        assert neighbour.started.wait(5)
        bad = send(engine, ask("bad", "boom !sample:hang"))
        wait_for(lambda: engine.status().state == "stalled")
        bad.wait()
        neighbour.wait()
        assert engine.status().last_exit == "hung in sample"
    assert bad.failure == "EngineCrashed"
    assert neighbour.text == text_of("tell", 60)


@pytest.mark.parametrize("how", ["partial", "length", "json", "shape", "choice", "closed"])
def test_a_broken_channel_is_a_crash_and_no_wrong_token(how):
    limits = Limits(backoff_s=(0.0,), crashes_max=1, tick_s=0.02)
    with running(limits, f"misbehave({how!r})") as engine:
        client = send(engine, ask("a"))
        client.wait()
        assert client.failure in ("EngineCrashed", "EngineUnavailable")
        assert client.text == ""
        assert engine.status().restarts == 2


@posix_only
def test_a_dead_child_whose_pipe_somebody_holds_open_is_noticed():
    limits = Limits(backoff_s=(0.0,), crashes_max=0, tick_s=0.02)
    with running(limits, "misbehave('orphan')") as engine:
        client = send(engine, ask("a"))
        client.wait(5)
        assert client.failure in ("EngineCrashed", "EngineUnavailable")


@posix_only
def test_a_frame_cut_in_half_by_a_crash_costs_no_token(monkeypatch):
    monkeypatch.setenv("IGLLAMA_FAULT", "ipc_write:abort:9:1")
    with running(step_s=0.002) as engine:
        client = send(engine, ask("a", max_tokens=20))
        client.wait()
        assert engine.status().restarts == 1
    assert client.text == text_of("tell", 20)


def test_what_native_code_prints_goes_to_the_log_and_nowhere_else(caplog, capfd):
    caplog.set_level(logging.DEBUG, "igllama.engine")
    with running(noise=True) as engine:
        send(engine, ask("a")).wait()
    assert ("igllama.engine", logging.ERROR, "an error of native code") in caplog.record_tuples
    assert sum("noise on stdout" in text for _, _, text in caplog.record_tuples) == 50
    assert "noise" not in capfd.readouterr().out


@posix_only
def test_a_child_over_its_memory_limit_is_a_crash_like_any_other():
    with running(memory_limit_bytes=700 << 20) as engine:
        bad = send(engine, ask("bad", "boom !sample:oom"))
        bad.wait()
        send(engine, ask("next")).wait()
        assert engine.status().last_exit == "SIGABRT: out of memory, limited by --memory-limit"
    assert bad.failure == "EngineCrashed"


def test_many_kills_under_sixteen_streams_hang_nobody():
    chance = random.Random(7)
    clients: list[tuple[str, Client]] = []
    with running(QUICK, n_parallel=16, step_s=0.002) as engine:
        enough = threading.Event()

        def keep_sixteen_running(lane: int) -> None:
            for turn in range(10_000):
                if enough.is_set():
                    return
                prompt = f"story {lane}.{turn}"
                client = send(engine, ask(prompt.replace(" ", "-"), prompt, 60))
                clients.append((prompt, client))
                client.wait(60)

        lanes = [threading.Thread(target=keep_sixteen_running, args=(n,)) for n in range(16)]
        for lane in lanes:
            lane.start()
        for kills in range(N_KILLS):
            time.sleep(chance.random() * 0.05)
            kill_child(engine)
            wait_for(lambda kills=kills: engine.status().restarts > kills)
        enough.set()
        for lane in lanes:
            lane.join(60)
        status = engine.status()
    assert all(client.over.is_set() for _, client in clients)
    assert {client.failure for _, client in clients} == {""}
    assert all(client.text == text_of(prompt, 60) for prompt, client in clients)
    assert status.restarts == N_KILLS


def test_a_cancelled_request_frees_its_slot():
    with running(n_parallel=1, step_s=0.005) as engine:
        endless = send(engine, ask("endless", max_tokens=10**6))
        assert endless.started.wait(5)
        waiting = send(engine, ask("waiting"))
        engine.cancel("endless")
        waiting.wait(5)
    assert endless.failure == "ClientGone"
    assert waiting.text == text_of("tell", 8)


def test_draining_finishes_what_runs_and_refuses_the_rest():
    engine = supervisor(step_s=0.005)
    engine.start()
    client = send(engine, ask("a", max_tokens=30))
    drain = threading.Thread(target=engine.drain, args=(10.0,))
    drain.start()
    wait_for(lambda: engine.status().state == "draining")
    with pytest.raises(errors.ServerDraining):
        send(engine, ask("b"))
    drain.join(10)
    assert client.text == text_of("tell", 30)
    assert client.failure == ""


def test_a_drain_that_takes_too_long_tells_the_rest():
    engine = supervisor(step_s=0.005)
    engine.start()
    client = send(engine, ask("a", max_tokens=10**6))
    assert client.started.wait(5)
    began = time.monotonic()
    engine.drain(0.2)
    assert client.failure == "ServerDraining"
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("save_s, has_time", [(0.6, True), (60.0, False)])
def test_a_stop_waits_for_what_outlives_the_engine_but_not_for_ever(tmp_path, save_s, has_time):
    limits = Limits(stop_grace_s=0.1, save_s=30.0 if has_time else 0.3, tick_s=0.02)
    engine = supervisor(limits, saved=str(tmp_path / "saved"), save_s=save_s)
    engine.start()
    began = time.monotonic()
    engine.drain(1.0)
    assert (tmp_path / "saved").exists() == has_time
    assert has_time or time.monotonic() - began < 10


def test_a_second_stop_does_not_wait(tmp_path):
    engine = supervisor(Limits(tick_s=0.02), saved=str(tmp_path / "saved"), save_s=60.0)
    engine.start()
    drain = threading.Thread(target=engine.drain, args=(1.0,))
    drain.start()
    wait_for(lambda: engine._line.child.breadcrumb.read().phase == "save")
    began = time.monotonic()
    engine.stop()
    drain.join(10)
    assert time.monotonic() - began < 5
    assert not drain.is_alive() and not (tmp_path / "saved").exists()


@posix_only
@pytest.mark.parametrize("state", ["loading", "ok", "hung", "restarting", "unread"])
def test_a_stop_leaves_no_child_in_any_state(state):
    wishes = {"load_s": 60} if state == "loading" else {}
    engine = supervisor(Limits(backoff_s=(30.0,), tick_s=0.02), **wishes)
    starter = threading.Thread(target=start_quietly, args=(engine,))
    starter.start()
    wait_for(lambda: engine._line is not None)
    pid = engine._line.child.pid
    client = Client()
    if state != "loading":
        starter.join(10)
        engine.submit(ask("a", "boom !sample:hang" if state == "hung" else "tell", 10**6), client)
    if state == "hung":
        wait_for(lambda: engine._line.child.breadcrumb.read().phase == "sample")
    if state == "restarting":
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: engine.status().state == "restarting")
    if state == "unread":
        os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    engine.stop()
    assert time.monotonic() - began < 5
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    starter.join(5)
    assert not starter.is_alive()
    if state != "loading":
        assert client.failure == "ServerDraining"


def start_quietly(engine) -> None:
    with contextlib.suppress(errors.ServerDraining):
        engine.start()


def test_a_request_that_fits_no_frame_fails_alone():
    with running() as engine:
        huge = send(engine, ask("huge", "x" * (17 << 20)))
        small = send(engine, ask("small"))
        huge.wait()
        small.wait()
    assert huge.failure == "BodyInvalid"
    assert small.failure == ""


def test_a_client_whose_delivery_fails_does_not_disturb_the_others(caplog):
    def broken(event: core.Event) -> None:
        raise RuntimeError("a bug in a handler")

    with running() as engine:
        engine.submit(ask("bad"), broken)
        good = send(engine, ask("good"))
        good.wait()
    assert good.text == text_of("tell", 8)
    assert "delivering to request bad failed" in caplog.text


def test_a_bug_in_the_policy_ends_the_engine_and_not_the_clients(caplog, monkeypatch):
    with running() as engine:
        client = send(engine, ask("a", max_tokens=10**6))
        assert client.started.wait(5)

        def broken(*_: object) -> None:
            raise RuntimeError("our bug")

        monkeypatch.setattr(engine._policy, "handle", broken)
        client.wait(5)
        assert engine.status().state == "failed"
        with pytest.raises(errors.EngineUnavailable):
            send(engine, ask("b"))
    assert "supervision failed" in caplog.text


def test_a_lost_model_file_after_a_crash_is_retried_and_said_in_the_status(tmp_path):
    limits = Limits(backoff_s=(0.0,), crashes_max=2, tick_s=0.02)
    with running(limits, load_once=str(tmp_path / "flag")) as engine:
        kill_child(engine)
        wait_for(lambda: engine.status().state == "failed")
        assert engine.status().detail == "the file is gone"


@posix_only
def test_status_answers_at_once_while_the_child_is_frozen():
    with running() as engine:
        os.kill(child_pid(engine), signal.SIGSTOP)
        send(engine, ask("a", "x" * 500_000))
        slowest = 0.0
        for _ in range(200):
            began = time.perf_counter()
            engine.status()
            slowest = max(slowest, time.perf_counter() - began)
        assert slowest < 0.05


@posix_only
def test_after_many_restarts_no_descriptor_and_no_thread_is_left():
    with running() as engine:
        kill_child(engine)
        wait_for(lambda: engine.status().restarts == 1 and engine.status().state == "ok")
        fds, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
        for turn in range(10):
            kill_child(engine)
            wait_for(lambda turn=turn: engine.status().restarts == turn + 2)
            wait_for(lambda: engine.status().state == "ok")
        assert len(os.listdir("/proc/self/fd")) <= fds + 1
        assert threading.active_count() <= threads
