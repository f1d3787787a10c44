"""What a client sees of it: the real server on the pocket model, its engine killed and broken."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from serving import POCKET, ROOT, events_of, serving, text_of
from supervise_fakes import wait_for

pytestmark = [
    pytest.mark.native,
    pytest.mark.usefixtures("native_library"),
    pytest.mark.skipif(sys.platform != "linux", reason="/proc"),
]

FLAGS = ("-t", "1", "-np", "4", "-c", "1024")
ENDLESS = {"max_tokens": 800, "ignore_eos": True}


@contextmanager
def broken(fault: str = "", *flags: str):
    """A server in test mode whose engine has `fault`."""
    with serving(*FLAGS, *flags, env={"IGLLAMA_TEST_MODE": "1", "IGLLAMA_FAULT": fault}) as served:
        yield served


def children_of(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        direct = [int(word) for word in file.read().split()]
    tasks = os.listdir(f"/proc/{pid}/task")
    for task in tasks:  # a child belongs to the thread that spawned it
        with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
            direct += [int(word) for word in file.read().split()]
    return sorted(set(direct))


def engine_of(served) -> int:
    wait_for(lambda: len(children_of(served.process.pid)) == 1)
    return children_of(served.process.pid)[0]


def body(text: str, **fields: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, **fields}


class Streams:
    """Streamed chats in threads of their own."""

    def __init__(self, served, texts: list[str], **fields: object) -> None:
        self.served, self.fields = served, fields
        self.raw: dict[str, bytes] = {}
        self.threads = [threading.Thread(target=self._run, args=(text,)) for text in texts]
        for thread in self.threads:
            thread.start()

    def _run(self, text: str) -> None:
        request = body(text, stream=True, **self.fields)
        _, _, self.raw[text] = self.served.request("POST", "/v1/chat/completions", request)

    def wait(self) -> dict[str, list]:
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive(), "a client hangs"
        return {text: events_of(raw) for text, raw in self.raw.items()}


def as_key(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def health(served):
    status, _, raw = served.request("GET", "/health")
    return status, json.loads(raw)


def test_a_plain_answer_whose_engine_crashes_is_a_500_engine_crash():
    with broken("sample:segv:5:1") as served:
        status, answer = served.post("/v1/chat/completions", body("Tell me a story."))
        assert (status, answer["error"]["code"]) == (500, "engine_crash")
        assert served.chat("Hello!")["choices"][0]["message"]["content"] == "Hi!"


def test_a_stream_whose_engine_crashes_ends_in_an_error_event_and_no_done():
    with broken("sample:segv:5:1") as served:
        events = served.stream("Tell me a story.")
        assert events[-1]["error"]["code"] == "engine_crash"
        assert "[DONE]" not in events
        assert text_of(served.stream("Hello!")) == "Hi!"


def test_a_body_that_crashed_the_engine_twice_is_a_422():
    with broken("tokenize:segv:1:2") as served:
        answers = [served.post("/v1/chat/completions", body("Tell me a story.")) for _ in range(3)]
        assert [status for status, _ in answers] == [500, 500, 422]
        assert answers[2][1]["error"]["code"] == "engine_crash_repeat"
        assert served.chat("Hello!")["choices"][0]["message"]["content"] == "Hi!"


def test_a_queue_filled_by_one_key_refuses_neither_another_key_nor_other_work():
    keys = ("--api-key", "many", "--api-key", "few")
    with broken("decode:slow", "-np", "1", "--queue", "2", *keys) as served:

        def post(key: str, path: str = "/v1/chat/completions", **fields: object):
            return served.request("POST", path, body("Hello!", **fields), as_key(key))

        filling = [
            threading.Thread(target=post, args=("many",), kwargs={**ENDLESS, "max_tokens": 60})
            for _ in range(3)
        ]
        for thread in filling:
            thread.start()
        wait_for(lambda: health(served)[1]["waiting"] == 2)
        status, headers, _ = post("many")
        assert status == 429 and int(headers["Retry-After"]) >= 1
        assert post("many", "/v1/embeddings", input="x")[0] == 200
        assert post("few", dry_run=True)[0] == 200
        assert post("few", max_tokens=2)[0] == 200
        for thread in filling:
            thread.join()


def test_a_killed_engine_is_a_pause_in_every_stream(server):
    texts = ["Tell me a story.", "Count to ninety.", "Write a poem.", "Count to 100."]
    expected = {text: text_of(server.stream(text, max_tokens=60)) for text in texts}
    with broken("decode:slow") as served:
        streams = Streams(served, texts, max_tokens=60)
        for _ in range(2):
            time.sleep(0.4)
            os.kill(engine_of(served), signal.SIGKILL)
        for text, events in streams.wait().items():
            assert events[-1] == "[DONE]"
            assert text_of(events) == expected[text]
        assert answer_of(served)["restarts"] == 2


def test_health_says_restarting_then_ok_and_counts():
    with broken() as served:
        assert health(served)[0] == 200
        os.kill(engine_of(served), signal.SIGKILL)
        seen = set()

        def back() -> bool:
            status, answer = health(served)
            seen.add((status, answer["status"]))
            return status == 200 and answer["restarts"] == 1

        wait_for(back)
        assert answer_of(served)["last_exit"] == "SIGKILL"
        assert seen <= {(200, "ok"), (503, "restarting")}


def answer_of(served):
    return health(served)[1]


def test_health_of_an_engine_that_keeps_crashing_is_failed_with_a_retry_after():
    with broken("decode:abort") as served:
        codes = []
        for number in range(8):
            status, _ = served.post("/v1/chat/completions", body(f"Count to {number}."))
            codes.append(status)
        assert set(codes) <= {500, 503}
        wait_for(lambda: answer_of(served)["status"] == "failed")
        status, headers, _ = served.request("GET", "/health")
        assert status == 503
        assert 1 <= int(headers["Retry-After"]) <= 30


def test_sigterm_lets_running_streams_finish_and_exits_with_0():
    with broken() as served:
        streams = Streams(
            served, ["Tell me a story.", "Count to ten."], max_tokens=300, ignore_eos=True
        )
        time.sleep(0.3)
        assert served.stop() == 0
        for events in streams.wait().values():
            assert events[-1] == "[DONE]"


def test_streams_that_cannot_finish_in_the_drain_timeout_get_an_error_event():
    fault = "decode:slow"
    with broken(fault, "--drain-timeout", "0.5") as served:
        streams = Streams(served, ["Tell me a story."], **ENDLESS)
        time.sleep(0.5)
        began = time.monotonic()
        assert served.stop() == 0
        assert time.monotonic() - began < 5
        (events,) = streams.wait().values()
        assert events[-1]["error"]["code"] == "server_shutdown"


def test_a_second_sigterm_ends_at_once():
    with broken("decode:slow") as served:
        streams = Streams(served, ["Tell me a story."], **ENDLESS)
        time.sleep(0.5)
        served.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        began = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        served.process.wait(10)
        assert time.monotonic() - began < 3
        (events,) = streams.wait().values()
        assert "[DONE]" not in events


def test_when_the_server_is_killed_its_engine_is_gone_and_its_port_is_free():
    with broken() as served:
        pid = engine_of(served)
        served.process.kill()
        served.process.wait()
        wait_for(lambda: not os.path.exists(f"/proc/{pid}") or is_zombie(pid), 1.0)
        with serving(*FLAGS, "-p", str(served.port)) as again:
            assert again.port == served.port


def is_zombie(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("fault", ["load:segv", "load:abort"])
def test_a_crash_at_load_is_exit_code_1_and_one_line(fault):
    done = subprocess.run(
        [sys.executable, str(ROOT / "igllama.py"), "api", str(POCKET), "-p", "0"],
        env={**os.environ, "IGLLAMA_TEST_MODE": "1", "IGLLAMA_FAULT": fault},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("igllama:")]
    assert len(lines) == 1
    assert done.stdout == ""
