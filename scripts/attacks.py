#!/usr/bin/env python3
"""Clients that mean harm, and one that takes the time meanwhile. soak.py --figures runs them.

    python3 scripts/attacks.py slow-header PORT [--clients 1000] [--seconds 20]
    python3 scripts/attacks.py probe PORT [--seconds 20]       prints milliseconds as JSON

    slow-header    a request line, then a header byte every two seconds
    slow-body      a head that promises a body, then a byte of it every two seconds
    slow-reader    a streamed answer without end is asked for, and not one byte of it read
    probe          GET /health on a new connection, 50 times a second
    burst          all clients connect at once and send one GET /health each

Each is a process of its own with one thread: what it measures is the server, not its neighbours in
the interpreter. A client whose connection is closed comes back. Needs epoll, that is Linux.
"""

from __future__ import annotations

import argparse
import errno
import json
import resource
import select
import socket
import sys
import time
from contextlib import suppress
from typing import Callable

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
HEADER = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
BODY = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{"
ENDLESS = json.dumps(
    {
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "stream": True,
        "ignore_eos": True,
        "max_tokens": 100_000,
        "logprobs": True,
        "top_logprobs": 20,
    }
).encode()
READER = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"
    % (len(ENDLESS), ENDLESS)
)
# name: what is sent at once, and what again and again
ATTACKS = {"slow-header": (HEADER, b"x"), "slow-body": (BODY, b" "), "slow-reader": (READER, b"")}
PERIOD_S = 2.0
PROBE_S = 0.02
LIMIT_S = 30.0
SMALL_BUFFER = 2048


class Attackers:
    """Connections that are kept open and busy with next to nothing."""

    def __init__(self, port: int, n_clients: int, first: bytes, again: bytes) -> None:
        self._address = ("127.0.0.1", port)
        self._first, self._again = first, again
        self._epoll = select.epoll()
        self._open: dict[int, socket.socket] = {}
        self._due: list[tuple[float, socket.socket | None]] = []  # None = connect anew
        now = time.monotonic()
        self._due = [(now + 0.5 * n / n_clients, None) for n in range(n_clients)]
        self.n_closed = 0

    def run(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for fd, _ in self._epoll.poll(0.01):
                self._closed(fd)
            self._act(time.monotonic())

    def _act(self, now: float) -> None:
        due = [item for item in self._due if item[0] <= now]
        self._due = [item for item in self._due if item[0] > now]
        for _, client in due:
            if client is None:
                client = self._connect()
            elif client.fileno() >= 0 and self._again:
                with suppress(OSError):
                    client.send(self._again)
            if client.fileno() >= 0:
                self._due.append((now + PERIOD_S, client))

    def _connect(self) -> socket.socket:
        client = socket.socket()
        if not self._again:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        client.settimeout(1.0)
        try:
            client.connect(self._address)
            client.setblocking(False)
            client.send(self._first)
        except OSError:
            self._come_back(client)
            return client
        self._open[client.fileno()] = client
        self._epoll.register(client.fileno(), select.EPOLLRDHUP | select.EPOLLHUP)
        return client

    def _closed(self, fd: int) -> None:
        client = self._open.pop(fd)
        self._epoll.unregister(fd)
        self._come_back(client)

    def _come_back(self, client: socket.socket) -> None:
        client.close()
        self.n_closed += 1
        self._due.append((time.monotonic() + PERIOD_S, None))


def attack(wanted: argparse.Namespace) -> None:
    attackers = Attackers(wanted.port, wanted.clients, *ATTACKS[wanted.what])
    attackers.run(wanted.seconds)
    print(json.dumps({"closed": attackers.n_closed}))


def probe(wanted: argparse.Namespace) -> None:
    """Print how many milliseconds each GET /health took; a failed one counts as LIMIT_S."""
    took_ms, until = [], time.monotonic() + wanted.seconds
    while time.monotonic() < until:
        began = time.monotonic()
        status = health_status(wanted.port)
        took_ms.append((time.monotonic() - began if status else LIMIT_S) * 1e3)
        time.sleep(max(0.0, PROBE_S - (time.monotonic() - began)))
    print(json.dumps(took_ms))


def health_status(port: int) -> int:
    """Ask on a new connection; 0 = no answer."""
    try:
        with socket.create_connection(("127.0.0.1", port), LIMIT_S) as client:
            client.sendall(HEALTH)
            answer = b"".join(iter(lambda: client.recv(4096), b""))
    except OSError:
        return 0
    return int(answer.split()[1]) if b"restarts" in answer else 0


def burst(wanted: argparse.Namespace) -> None:
    """Print how long each of many clients at once took; -1 = no answer with status 200."""
    epoll, clients = select.epoll(), {}
    began = time.monotonic()
    for _ in range(wanted.clients):
        client = socket.socket()
        client.setblocking(False)
        if client.connect_ex(("127.0.0.1", wanted.port)) in (0, errno.EINPROGRESS):
            clients[client.fileno()] = (client, bytearray(), time.monotonic())
            epoll.register(client.fileno(), select.EPOLLOUT)
    took_ms = []
    while clients and time.monotonic() - began < LIMIT_S:
        for fd, events in epoll.poll(1.0):
            client, answer, started = clients[fd]
            if not follow(epoll, client, events, answer):
                good = answer.startswith(b"HTTP/1.1 200 ") and b"restarts" in answer
                took_ms.append((time.monotonic() - started) * 1e3 if good else -1)
                client.close()
                del clients[fd]
    print(json.dumps(took_ms + [-1] * (wanted.clients - len(took_ms))))


def follow(epoll: select.epoll, client: socket.socket, events: int, answer: bytearray) -> bool:
    """Take one client of a burst a step on; False at its end."""
    try:
        if events & select.EPOLLOUT and not events & select.EPOLLERR:
            client.send(HEALTH)
            epoll.modify(client.fileno(), select.EPOLLIN)
            return True
        data = client.recv(4096)
    except OSError:
        answer.clear()
        return False
    answer += data
    return bool(data)


ACTS: dict[str, Callable[[argparse.Namespace], None]] = {
    **dict.fromkeys(ATTACKS, attack),
    "probe": probe,
    "burst": burst,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=ACTS)
    parser.add_argument("port", type=int)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20.0)
    wanted = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    ACTS[wanted.what](wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
