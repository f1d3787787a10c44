"""The load: HTTP/1.1 over plain sockets, all streams in one thread.

It shares the machine with what it measures, so it does as little as possible while a load runs:
one receive per wake-up, kept with its time. Everything is read out of the bytes afterwards.
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import time
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple

RECEIVE_BYTES = 1 << 18
TIMEOUT_S = 300.0
LOOK_S = 0.005
_TEXT = re.compile(rb'"(?:content|text)": ?"(?!")')  # a piece of text that is not empty
_PIECE = re.compile(rb'"(?:content|text)": ?("(?:[^"\\]|\\.)*")')
_COUNTS = ("prompt_tokens", "completion_tokens", "cached_tokens", "draft_n", "draft_n_accepted")


class Target(NamedTuple):
    """A server: where it listens, and its front's process id if we started it."""

    host: str
    port: int
    pid: int = 0
    said: str = ""  # what it printed at its start


class ClientClock:
    """What the client itself costs: CPU seconds and wall seconds of all loads."""

    def __init__(self) -> None:
        self.cpu_s = self.wall_s = 0.0

    @property
    def share(self) -> float:
        """Of one core, while loads ran."""
        return self.cpu_s / self.wall_s if self.wall_s else 0.0


CLOCK = ClientClock()


class Call:
    """One request: what arrived, and when each part of it did."""

    def __init__(self, target: Target, path: str, body: dict[str, Any]) -> None:
        raw = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {target.host}:{target.port}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
        )
        self.request = head.encode() + raw
        self.sock = socket.create_connection((target.host, target.port), TIMEOUT_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.parts: list[tuple[float, bytes]] = []
        self.sent_at = self.ended_at = 0.0

    def send(self) -> None:
        self.sent_at = time.perf_counter()
        self.sock.sendall(self.request)

    def receive(self) -> bool:
        """Take what is there; False at the end. Hot."""
        part = self.sock.recv(RECEIVE_BYTES)
        self.parts.append((time.perf_counter(), part))
        if part:
            return True
        self.ended_at = self.parts[-1][0]
        self.sock.close()
        return False

    # After the load.

    @property
    def data(self) -> bytes:
        return b"".join(part for _, part in self.parts)

    @property
    def seconds(self) -> float:
        return self.ended_at - self.sent_at

    @property
    def has_begun(self) -> bool:
        """True once a piece of text has come: headers and a role come before it."""
        return sum(len(_TEXT.findall(part)) for _, part in self.parts) > 1

    def text_times(self) -> list[float]:
        """Return when each piece of text came. SystemExit, with the answer, if none did."""
        times = [when for when, part in self.parts for _ in _TEXT.findall(part)]
        if not times:
            raise SystemExit(f"no text in the answer: {self.data[:600]!r}")
        return times

    @property
    def text(self) -> str:
        return "".join(json.loads(piece) for piece in _PIECE.findall(self.data))

    def counts(self) -> dict[str, int]:
        """Return the server's own token counts; SystemExit, with the answer, without `usage`."""
        data = self.data
        if b'"prompt_tokens"' not in data:
            raise SystemExit(f"no usage in the answer: {data[:600]!r}")
        found = {name: re.findall(rb'"%b": ?(\d+)' % name.encode(), data) for name in _COUNTS}
        return {name: int(numbers[-1]) if numbers else 0 for name, numbers in found.items()}


class Timer(NamedTuple):
    """Something to do later; `at` is on perf_counter."""

    at: float
    act: Callable[[], None]


class Load:
    """Calls in flight. `on_end` may add calls and timers when one has ended."""

    def __init__(self, on_end: Callable[[Call], None] = lambda call: None) -> None:
        self.calls: list[Call] = []
        self._on_end = on_end
        self._timers: list[Timer] = []
        self._selector = selectors.DefaultSelector()
        self._n_open = 0

    def add(self, call: Call) -> None:
        """Send a call now."""
        self._selector.register(call.sock, selectors.EVENT_READ, call)
        self._n_open += 1
        self.calls.append(call)
        call.send()

    def add_later(self, delay_s: float, start: Callable[[], Call]) -> None:
        assert delay_s >= 0, f"a delay of {delay_s} s"
        at = time.perf_counter() + delay_s
        self._timers.append(Timer(at, lambda: self.add(start())))

    def add_when(self, ready: Callable[[], bool], start: Callable[[], Call]) -> None:
        """Send a call once `ready`; it is asked now and then."""

        def look() -> None:
            if ready():
                self.add(start())
            else:
                self._timers.append(Timer(time.perf_counter() + LOOK_S, look))

        self._timers.append(Timer(time.perf_counter(), look))

    def run(self) -> None:
        """Wait until no call is open and no timer is left."""
        cpu, wall = time.process_time(), time.perf_counter()
        with self._selector:
            while self._n_open or self._timers:
                self._turn()
        CLOCK.cpu_s += time.process_time() - cpu
        CLOCK.wall_s += time.perf_counter() - wall

    def _turn(self) -> None:
        for key, _ in self._selector.select(self._patience_s()):
            if not key.data.receive():
                self._selector.unregister(key.fileobj)
                self._n_open -= 1
                self._on_end(key.data)
        now = time.perf_counter()
        due = [timer for timer in self._timers if timer.at <= now]
        for timer in due:
            self._timers.remove(timer)
            timer.act()

    def _patience_s(self) -> float:
        next_at = min((timer.at for timer in self._timers), default=None)
        return TIMEOUT_S if next_at is None else max(0.0, next_at - time.perf_counter())


def run_calls(calls: Sequence[Call]) -> float:
    """Send all at once and wait for all; return the seconds from the first to the last byte."""
    load = Load()
    for call in calls:
        load.add(call)
    load.run()
    return max(c.ended_at for c in calls) - min(c.sent_at for c in calls)


def chat(target: Target, text: str, n_tokens: int, **fields: Any) -> Call:
    """Return a greedy streamed chat call of exactly `n_tokens`; `fields` change the body."""
    return Call(target, "/v1/chat/completions", chat_body(text, n_tokens, **fields))


def chat_body(text: str, n_tokens: int, **fields: Any) -> dict[str, Any]:
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": n_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        **fields,
    }
    if body["stream"]:
        body["stream_options"] = {"include_usage": True}
    return {name: value for name, value in body.items() if value is not None}


def first_token_s(target: Target, text: str, **fields: Any) -> tuple[float, dict[str, int]]:
    """Return (seconds to an answer of one token, its counts)."""
    call = chat(target, text, 1, stream=False, **fields)
    return run_calls([call]), call.counts()


def get(target: Target, path: str) -> tuple[int, bytes]:
    """Return (status, body) of a GET; OSError while nobody listens."""
    with socket.create_connection((target.host, target.port), 5.0) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        data = b"".join(iter(lambda: sock.recv(RECEIVE_BYTES), b""))
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), body
