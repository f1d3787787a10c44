"""Four clients beside each case of the catalogue, whose text must not change by one byte.

    with home.watched():
        ...what the case does to the server...

While the case runs, each neighbour streams 200 greedy tokens, again and again, and /health is asked
ten times a second. When the case is over, `watched` asserts:
- every stream of every neighbour ended in [DONE] with the text that it has when it is alone;
- every answer of /health was one of the table in `check_health`;
- the front is back to its threads and file descriptors, and no more than 20 MB larger.
How long /health took is printed, not asserted: a busy machine is no defect.

Greedy text is the same in company only up to floating point: a batch of another shape sums in
another order, which may turn a near tie. So the neighbours ask what the model is surest of, found
out at the start; no text of the model is written here.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from serving import POCKET, ROOT, Served, events_of, serving, text_of

FLAGS = ("-t", "1", "-np", "8", "-c", "1024")
QUESTIONS = tuple(f"Count to {n}." for n in range(30, 101, 10))
N_NEIGHBOURS, N_TOKENS = 4, 200
ENDLESS = {"ignore_eos": True, "max_tokens": 100_000}
LIMIT_S = 60.0  # of any wait: reached only when something hangs
GROWTH_BYTES = 20 << 20
IS_LONG = os.environ.get("IGLLAMA_LONG") == "1"  # the catalogue's own numbers instead of CI's
CHAT = "/v1/chat/completions"


def chat_body(text: str, **fields: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, **fields}


def wait_for(condition: Any, limit_s: float = LIMIT_S) -> None:
    """Poll; the limit is only there so that a defect fails instead of hanging."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


# ---- one client ----


class Stream:
    """One streamed chat in a thread of its own; `n_events` grows while it runs."""

    def __init__(self, port: int, text: str, **fields: object) -> None:
        self.text = text
        self.raw = b""
        self.status = 0
        self.n_events = 0
        self.trouble: Exception | None = None
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
        self._connection.connect()
        self._socket = self._connection.sock  # http.client lets go of it when the answer begins
        self._body = json.dumps(chat_body(text, stream=True, **fields))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._connection.request("POST", CHAT, self._body, {"Connection": "close"})
            with self._connection.getresponse() as response:
                self.status = response.status
                for line in response:
                    self.raw += line
                    self.n_events += line.startswith(b"data: ")
        except Exception as exc:  # shown by whoever waits for this stream
            self.trouble = exc
        finally:
            self._connection.close()

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def has_begun(self) -> bool:
        """True when text has come: the first event only names the role."""
        return self.n_events > 1 or self.is_over

    def leave(self) -> None:
        """Hang up in the middle."""
        with suppress(OSError):  # it may be over already
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(LIMIT_S)

    def events(self) -> list[Any]:
        """Wait for the end and return all payloads; a client that hangs fails the test."""
        self._thread.join(LIMIT_S)
        assert self.is_over, "a client hangs"
        if self.trouble:
            raise self.trouble
        return events_of(self.raw)

    def partial_text(self) -> str:
        """The text of all events that arrived whole, also of a stream that was cut off."""
        whole = self.raw.replace(b"\r\n", b"\n").rpartition(b"\n\n")[0]
        return text_of([e for e in events_of(whole) if isinstance(e, dict) and "choices" in e])


class Neighbour:
    """Asks the same again and again until told that it is enough; keeps every stream."""

    def __init__(self, port: int, question: str, repeats: bool) -> None:
        self.question = question
        self.streams: list[Stream] = []
        self.trouble: Exception | None = None
        self._port, self._repeats = port, repeats
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._stream()
            while self._repeats and not self._enough.is_set():
                self._stream()
        except Exception as exc:  # raised again by `texts`, in the test's thread
            self.trouble = exc

    def _stream(self) -> None:
        stream = Stream(self._port, self.question, max_tokens=N_TOKENS, ignore_eos=True)
        self.streams.append(stream)
        stream.events()

    @property
    def n_events(self) -> int:
        return sum(stream.n_events for stream in self.streams)

    def has_begun(self) -> bool:
        return self.trouble is not None or (bool(self.streams) and self.streams[0].has_begun())

    def stop(self) -> None:
        self._enough.set()
        self._thread.join(LIMIT_S)

    def texts(self) -> list[str]:
        """What each stream said; fails if one did not come to its proper end."""
        self.stop()
        if self.trouble:
            raise self.trouble
        all_events = [stream.events() for stream in self.streams]
        assert all(events[-1] == "[DONE]" for events in all_events), all_events[-1][-1]
        return [text_of(events) for events in all_events]


# ---- the watch on /health ----

STATES = {"ok": 200, "loading model": 503, "restarting": 503, "stalled": 503, "failed": 503,
          "draining": 503}  # fmt: skip


def check_health(status: int, headers: Any, raw: bytes) -> str:
    """Assert that one answer is of the table; return its state."""
    answer = json.loads(raw)
    assert STATES[answer["status"]] == status, answer
    assert headers["Content-Type"].startswith("application/json")
    assert (headers["Retry-After"] is None) == (status == 200)
    assert isinstance(answer["restarts"], int)
    assert {type(answer["running"]), type(answer["waiting"])} == {int}
    return str(answer["status"])


class HealthWatch:
    """Asks /health ten times a second; one connection each, as a monitor does."""

    def __init__(self, port: int) -> None:
        self.states: set[str] = set()
        self.took_ms: list[float] = []
        self.trouble: Exception | None = None
        self._port = port
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._enough.wait(0.1):
                began = time.monotonic()
                self.states.add(check_health(*ask_health(self._port)))
                self.took_ms.append((time.monotonic() - began) * 1e3)
        except Exception as exc:  # raised again by `stop`
            self.trouble = exc

    def stop(self) -> None:
        self._enough.set()
        self._thread.join(LIMIT_S)

    def check(self) -> None:
        self.stop()
        if self.trouble:
            raise self.trouble


def ask_health(port: int) -> tuple[int, Any, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
    try:
        connection.request("GET", "/health", headers={"Connection": "close"})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


# ---- what /proc says of a process; Linux only ----


class Vitals(NamedTuple):
    n_threads: int
    n_fds: int
    resident_bytes: int


HAS_PROC = os.path.exists("/proc/self/status")


def vitals(pid: int) -> Vitals:
    if not HAS_PROC:
        return Vitals(0, 0, 0)
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    resident = re.search(r"VmRSS:\s+(\d+) kB", status)
    return Vitals(
        len(os.listdir(f"/proc/{pid}/task")),
        len(os.listdir(f"/proc/{pid}/fd")),
        int(resident.group(1)) << 10 if resident else 0,
    )


def cpu_s(pid: int) -> float:
    """User and system time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children_of(pid: int) -> list[int]:
    """Pids of the children; each belongs to the thread that spawned it."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread just ended
            found.update(map(int, (task / "children").read_text(encoding="ascii").split()))
    return sorted(found)


def is_gone(pid: int) -> bool:
    """True when a process has ended, also while nobody has fetched its exit code."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


# ---- a server with neighbours ----


class Watch:
    """What runs beside a case."""

    def __init__(self, home: Home, repeats: bool) -> None:
        self.health = HealthWatch(home.port)
        self.neighbours = [Neighbour(home.port, text, repeats) for text in home.expected]

    def wait_until_all_stream(self) -> None:
        wait_for(lambda: all(neighbour.has_begun() for neighbour in self.neighbours))

    def n_events(self) -> list[int]:
        """How many events each neighbour has received until now."""
        return [neighbour.n_events for neighbour in self.neighbours]

    def stop(self) -> None:
        for part in [*self.neighbours, self.health]:
            part.stop()


class Home:
    """A running server, and what its neighbours say when they are alone (by question)."""

    def __init__(self, served: Served, expected: dict[str, str]) -> None:
        self.served = served
        self.expected = expected
        self.port = served.port
        self.pid = served.process.pid
        self._log = ""

    def post(self, **fields: object) -> tuple[int, dict[str, Any]]:
        """Send a chat request made of `fields` alone; return status and answer."""
        return self.served.post(CHAT, fields)  # type: ignore[no-any-return]

    def ask(self, text: str, **fields: object) -> tuple[int, dict[str, Any]]:
        """Send a greedy chat request with one user message."""
        return self.post(**chat_body(text, **fields))

    def stream(self, text: str, **fields: object) -> Stream:
        return Stream(self.port, text, **fields)

    def health(self) -> dict[str, Any]:
        return self.served.get("/health")[1]  # type: ignore[no-any-return]

    def engine_pid(self) -> int:
        """The engine child's pid; waits while it is being replaced."""
        wait_for(lambda: len(children_of(self.pid)) == 1)
        return children_of(self.pid)[0]

    def wait_until_free(self) -> None:
        wait_for(lambda: (self.health()["running"], self.health()["waiting"]) == (0, 0))

    def log(self) -> str:
        """All that the server has printed until now, after its start."""
        while not self.served.lines.empty():
            self._log += self.served.lines.get() or ""
        return self._log

    @contextmanager
    def watched(self, repeats: bool = True) -> Iterator[Watch]:
        """Run the four neighbours beside the body of the `with`, then check everything.

        Without `repeats`, each streams once: for faults that count visits.
        """
        wait_for(lambda: self.health()["status"] == "ok")
        before = vitals(self.pid)
        watch = Watch(self, repeats)
        try:
            watch.wait_until_all_stream()
            yield watch
        finally:
            watch.stop()
        for neighbour in watch.neighbours:
            assert set(neighbour.texts()) == {self.expected[neighbour.question]}
        watch.health.check()
        self._check_vitals(before)
        self._print_figures(watch, before)

    def _check_vitals(self, before: Vitals) -> None:
        def is_back() -> bool:
            now = vitals(self.pid)
            return now.n_threads <= before.n_threads and now.n_fds <= before.n_fds

        wait_for(is_back, 10)
        assert vitals(self.pid).resident_bytes - before.resident_bytes <= GROWTH_BYTES

    def _print_figures(self, watch: Watch, before: Vitals) -> None:
        took_ms = sorted(watch.health.took_ms) or [0.0]
        n_streams = sum(len(neighbour.streams) for neighbour in watch.neighbours)
        grown = (vitals(self.pid).resident_bytes - before.resident_bytes) / 1e6
        print(
            f"{n_streams} neighbour streams; /health {len(took_ms)} times, "
            f"p99 {took_ms[int(len(took_ms) * 0.99)]:.0f} ms, {sorted(watch.health.states)}; "
            f"front {grown:+.1f} MB"
        )


# ---- starting one ----


@contextmanager
def running_home(*flags: object) -> Iterator[Home]:
    """Start a server and find out what its neighbours say when they are alone."""
    with serving(*FLAGS, *flags) as served:
        surest = sorted(QUESTIONS, key=lambda text: -smallest_margin(served, text))
        chosen = surest[:N_NEIGHBOURS]
        alone = {text: Stream(served.port, text, max_tokens=N_TOKENS, ignore_eos=True).events()
                 for text in chosen}  # fmt: skip
        yield Home(served, {text: text_of(events) for text, events in alone.items()})


def smallest_margin(served: Served, text: str) -> float:
    """How near to a tie the two best tokens come anywhere in the greedy answer."""
    fields = {"max_tokens": N_TOKENS, "ignore_eos": True, "logprobs": True, "top_logprobs": 2}
    answer = served.chat(text, **fields)
    tops = [entry["top_logprobs"] for entry in answer["choices"][0]["logprobs"]["content"]]
    return min(best["logprob"] - second["logprob"] for best, second in tops)


def altered(figures: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `serving` for a server with figures that no flag sets, see altered.py."""
    program = [sys.executable, str(ROOT / "tests" / "altered.py")]
    return {"program": program, "env": {"IGLLAMA_ALTERED": json.dumps(figures)}}


@contextmanager
def troubled(
    home: Home, fault: str = "", *flags: object, figures: dict[str, Any] | None = None, **how: Any
) -> Iterator[Home]:
    """A second server with planted `fault`s, whose neighbours must say what they say at `home`."""
    arguments = altered(figures) if figures else {}
    env = {**arguments.pop("env", {}), "IGLLAMA_TEST_MODE": "1", "IGLLAMA_FAULT": fault}
    with serving(*FLAGS, *flags, env=env, **arguments, **how) as served:
        yield Home(served, home.expected)


def start_alone(*arguments: object, env: dict[str, str] | None = None, **figures: Any) -> Any:
    """Run `igllama.py api ...` to its end; for servers that must not start."""
    program = altered(figures)["program"] if figures else [sys.executable, str(ROOT / "igllama.py")]
    extra = altered(figures)["env"] if figures else {}
    return subprocess.run(
        [*program, "api", *map(str, arguments), "-p", "0"],
        env={**os.environ, **extra, **(env or {})},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


MODEL = POCKET
