"""The real engine in its child, killed and broken: every neighbour's text must stay the same."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time

import pytest
from serving import POCKET
from supervise_fakes import QUICK, Client, send, wait_for

from libloader import core, errors
from libloader.supervise import launch
from libloader.supervise.limits import Limits
from libloader.supervise.supervisor import Options, Supervisor

pytestmark = [
    pytest.mark.native,
    pytest.mark.usefixtures("native_library"),
    pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals"),
]

COMMAND = launch.module_command("libloader.engine_child")
GREEDY = core.Sampling(temperature=0)
# What the model is sure of: a batch of another shape sums in another order, and may only turn a
# near tie. Long enough that all run at once.
QUESTIONS = ["Tell me a story.", "Write a poem."] + [f"Count to {n}." for n in range(50, 101, 10)]
STORIES = [f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n" for q in QUESTIONS]


def ask(name: str, text: str, n_tokens: int = 150) -> core.Request:
    prompts = (core.Prompt(segments=((text, True),)),)
    return core.Request(name, "generate", prompts, sampling=GREEDY, max_tokens=n_tokens)


class Started:
    """A supervisor over the real engine, stopped at the end."""

    def __init__(self, limits: Limits = QUICK, model: object = POCKET, **options: int) -> None:
        settings = core.EngineSettings(model=str(model), n_parallel=9, n_ctx=512, n_threads=1)
        self.engine = Supervisor(
            settings, Options(COMMAND, test_mode=True, limits=limits, **options)
        )

    def __enter__(self) -> Supervisor:
        self.engine.start()
        return self.engine

    def __exit__(self, *_: object) -> None:
        self.engine.stop()


@pytest.fixture(scope="module")
def stories():
    """What the model tells when nothing goes wrong, each story alone in its engine."""
    with Started() as engine:
        texts = []
        for number, story in enumerate(STORIES):
            client = send(engine, ask(f"story-{number}", story))
            client.wait(60)
            texts.append(client.text)
    return texts


def tell_all(engine: Supervisor) -> list[Client]:
    clients = [send(engine, ask(f"story-{n}", story)) for n, story in enumerate(STORIES)]
    for client in clients:
        assert client.started.wait(30)
    return clients


def check(clients: list[Client], stories: list[str]) -> None:
    for client in clients:
        client.wait(60)
    assert [client.failure for client in clients] == [""] * len(clients)
    assert [client.text for client in clients] == stories


def test_eight_streams_and_twenty_waiting_survive_the_crash_of_a_ninth(stories, monkeypatch):
    monkeypatch.setenv("IGLLAMA_FAULT", "grammar_init:segv:9:1")
    with Started() as engine:
        clients = tell_all(engine)
        bad = send(engine, ask("bad", "boom"))
        waiting = [send(engine, ask(f"waiting-{n}", f"Count to {n}", 5)) for n in range(20)]
        check(clients, stories)
        for client in [bad, *waiting]:
            client.wait(60)
        status = engine.status()
    assert bad.failure == "EngineCrashed"
    assert {client.failure for client in waiting} == {""}
    assert (status.restarts, status.last_exit) == (1, "SIGSEGV")


def test_an_abort_in_a_shared_decode_is_replayed_for_everybody(stories, monkeypatch):
    monkeypatch.setenv("IGLLAMA_FAULT", "decode:abort:60:1")
    with Started() as engine:
        check(tell_all(engine), stories)
        assert engine.status().last_exit == "SIGABRT"


def test_kills_from_outside_cost_a_pause_and_no_character(stories):
    with Started() as engine:
        clients = tell_all(engine)
        for kills in range(3):
            pid = engine._line.child.pid
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda kills=kills: engine.status().restarts > kills)
            wait_for(lambda: engine.status().state == "ok")
        check(clients, stories)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_a_stream_alone_goes_on_after_its_engine_died_amid_it(how):
    endless = core.Sampling(temperature=0, ignore_eos=True)
    long = dataclasses.replace(ask("long", STORIES[0], 450), sampling=endless)
    with Started() as engine:
        whole = send(engine, long)
        whole.wait(60)
        client = send(engine, dataclasses.replace(long, id="again"))
        assert client.started.wait(30)
        os.kill(engine._line.child.pid, how)
        client.wait(60)
        assert (client.failure, client.text) == ("", whole.text)
        assert engine.status().last_exit == how.name


def test_a_frame_cut_in_half_costs_no_character(stories, monkeypatch):
    monkeypatch.setenv("IGLLAMA_FAULT", "ipc_write:abort:40:1")
    with Started() as engine:
        check(tell_all(engine), stories)
        assert engine.status().restarts == 1


def test_a_hang_in_a_native_call_is_ended(stories, monkeypatch):
    monkeypatch.setenv("IGLLAMA_FAULT", "decode:hang:60:1")
    limits = Limits(hung_s=3.0, hung_prefill_s=3.0, p99_factor=0.0, tick_s=0.05)
    with Started(limits) as engine:
        clients = tell_all(engine)
        wait_for(lambda: engine.status().state == "stalled", 30)
        check(clients, stories)
        assert engine.status().last_exit.startswith("hung in ")


def test_a_child_that_runs_out_of_memory_is_a_crash_like_any_other(monkeypatch):
    monkeypatch.setenv("IGLLAMA_FAULT", "sample:oom:5:1")
    with Started(memory_limit_bytes=2 << 30) as engine:
        client = send(engine, ask("a", STORIES[0]))
        client.wait(60)
        assert client.failure == "EngineCrashed"
        after = send(engine, ask("b", STORIES[1]))
        after.wait(60)
        assert after.failure == ""


def test_native_noise_of_an_abort_reaches_no_client_and_names_no_one(monkeypatch, caplog):
    monkeypatch.setenv("IGLLAMA_FAULT", "tokenize:abort:1:1")
    with Started() as engine:
        client = send(engine, ask("a", "hello"))
        client.wait(60)
    assert client.failure == "EngineCrashed"
    assert "SIGABRT" in client.events[-1].error["message"]
    assert "engine ended: SIGABRT in tokenize" in caplog.text


@pytest.mark.parametrize("fault", ["load:segv", "load:abort", "load:raise"])
def test_a_crash_at_load_is_one_line_within_five_seconds(fault, monkeypatch):
    monkeypatch.setenv("IGLLAMA_FAULT", fault)
    engine = Started().engine
    began = time.monotonic()
    with pytest.raises(errors.StartError) as caught:
        engine.start()
    assert time.monotonic() - began < 5
    assert "\n" not in str(caught.value)
    engine.stop()


def test_a_truncated_model_is_one_line_that_names_it(tmp_path):
    short = tmp_path / "short.gguf"
    short.write_bytes(POCKET.read_bytes()[:100_000])
    engine = Started(model=short).engine
    with pytest.raises(errors.StartError, match="short.gguf"):
        engine.start()
    engine.stop()
