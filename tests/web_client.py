"""A raw HTTP client and a small server for tests: what is sent is exactly what the test wrote.

`Client` speaks to any server. `web_server(routes, **settings)` runs the web layer alone, with
deadlines short enough for tests.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Callable

from libloader.web.exchange import Exchange
from libloader.web.problems import default_describe
from libloader.web.server import Server
from libloader.web.settings import WebSettings

DEADLINE_S = 10.0  # of any wait in a test: reached only when something is broken


@dataclass
class Response:
    status: int
    minor: int
    headers: list[tuple[str, str]]
    body: bytes = b""
    complete: bool = True  # the body came to its proper end
    chunks: list[bytes] = field(default_factory=list)

    def header(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(values) <= 1, f"{name} is there {len(values)} times"
        return values[0] if values else None

    def json(self) -> Any:
        assert (self.header("content-type") or "").startswith("application/json"), self.headers
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object, whose shape is checked."""
        error = self.json()["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"]
        return error  # type: ignore[no-any-return]


class Client:
    """One connection. `address` is (host, port), or the path of a Unix socket."""

    def __init__(
        self,
        address: tuple[str, int] | str,
        *,
        timeout_s: float = DEADLINE_S,
        wrap: Callable[[socket.socket], socket.socket] | None = None,
        receive_buffer: int = 0,
    ) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        family = socket.AF_INET6 if not isinstance(address, str) and ":" in address[0] else family
        sock = socket.socket(family, socket.SOCK_STREAM)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(timeout_s)
        try:
            sock.connect(address)
            self.sock = wrap(sock) if wrap else sock
        except BaseException:
            sock.close()
            raise
        self.buffer = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Close so that the server sees a reset instead of an end."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Response:
        self.send(request_bytes(method, path, body, headers))
        return self.response(head_only=method == "HEAD")

    def response(self, head_only: bool = False) -> Response:
        """Read one response, and not one byte of the next."""
        head = self.read_until(b"\r\n\r\n")
        response = parse_response_head(head)
        if not head_only and response.status >= 200 and response.status not in (204, 304):
            self._read_body(response)
        return response

    def read_until(self, mark: bytes) -> bytes:
        while mark not in self.buffer:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError(f"the connection ended after {self.buffer[-200:]!r}")
            self.buffer += data
        found, _, self.buffer = self.buffer.partition(mark)
        return found + mark

    def read_to_end(self) -> bytes:
        """Return all that comes until the server closes; a reset is an end as well."""
        try:
            while True:
                data = self.sock.recv(65536)
                if not data:
                    break
                self.buffer += data
        except ConnectionError:
            pass
        data, self.buffer = self.buffer, b""
        return data

    def is_closed(self) -> bool:
        """True once the server has closed; False if nothing happens for a moment."""
        self.sock.settimeout(0.15)
        try:
            return self.sock.recv(1, socket.MSG_PEEK) == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False
        except socket.timeout:  # Python 3.9: not a TimeoutError yet
            return False
        finally:
            self.sock.settimeout(DEADLINE_S)

    def _read_body(self, response: Response) -> None:
        if response.header("transfer-encoding"):
            self._read_chunks(response)
        elif response.header("content-length") is not None:
            length = int(response.header("content-length") or "")
            while len(self.buffer) < length:
                data = self.sock.recv(65536)
                if not data:
                    raise EOFError("the body is cut off")
                self.buffer += data
            response.body, self.buffer = self.buffer[:length], self.buffer[length:]
        else:
            response.body = self.read_to_end()

    def _read_chunks(self, response: Response) -> None:
        assert response.header("transfer-encoding") == "chunked"
        try:
            while True:
                size = int(self.read_until(b"\r\n"), 16)
                while len(self.buffer) < size + 2:
                    data = self.sock.recv(65536)
                    if not data:
                        raise EOFError
                    self.buffer += data
                piece, end = self.buffer[:size], self.buffer[size : size + 2]
                self.buffer = self.buffer[size + 2 :]
                assert end == b"\r\n"
                if not size:
                    break
                response.chunks.append(piece)
        except (EOFError, ConnectionError):
            response.complete = False
        response.body = b"".join(response.chunks)


def request_bytes(
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> bytes:
    fields = {"Host": "localhost", **(headers or {})}
    if body is not None and not any(name.lower() == "content-length" for name in fields):
        fields["Content-Length"] = str(len(body))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def parse_response_head(head: bytes) -> Response:
    lines = head[:-4].decode("ascii").split("\r\n")
    version, status, _phrase = lines[0].split(" ", 2)
    assert version in ("HTTP/1.0", "HTTP/1.1")
    fields = []
    for line in lines[1:]:
        name, colon, value = line.partition(": ")
        assert colon and name and "\r" not in line and "\n" not in line
        fields.append((name, value))
    return Response(int(status), int(version[-1]), fields)


def count_responses(data: bytes) -> int:
    return len(re.findall(rb"HTTP/1\.[01] [0-9]{3} ", data))


class Fixture:
    """A running server with the names that tests need."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.port = server.ports[0] if server.ports else 0

    def connect(self, **options: Any) -> Client:
        return Client(("127.0.0.1", self.port), **options)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Response:
        """Send one request over a fresh connection; `_` in a header's name stands for `-`."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        with self.connect() as client:
            return client.request(method, path, body, fields)

    def figure(self, name: str) -> int:
        return self.server.figures().get(name, 0)


def echo(exchange: Exchange) -> None:
    exchange.reply_json(
        {"method": exchange.method, "n": len(exchange.body), "key": exchange.api_key}
    )


def health(exchange: Exchange) -> None:
    exchange.reply_json({"status": "ok"})


def show(exchange: Exchange) -> None:
    exchange.reply_json(
        {"path": exchange.path, "query": exchange.query, "params": exchange.path_params}
    )


def smuggled(exchange: Exchange) -> None:
    exchange.reply_text("a smuggled request was executed", status=299)


ROUTES = {
    ("GET", "/health"): health,
    ("GET", "/show"): show,
    ("GET", "/models/{id}"): show,
    ("GET", "/echo"): echo,
    ("POST", "/echo"): echo,
    ("GET", "/SMUGGLED"): smuggled,
}


@contextmanager
def web_server(
    routes: dict[Any, Any] | None = None,
    addresses: tuple[Any, ...] = ("127.0.0.1:0",),
    describe_error: Any = default_describe,
    **settings: Any,
) -> Iterator[Fixture]:
    values = {"linger_s": 0.5, **settings}
    table = {**ROUTES, **(routes or {})}
    server = Server(addresses, table, WebSettings(**values), describe_error)
    server.start()
    try:
        yield Fixture(server)
    finally:
        server.close(1.0)


def wait_until(condition: Callable[[], bool], what: str = "") -> None:
    """Wait for `condition`, looking often; AssertionError if it never comes."""
    give_up = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < give_up, what or "the condition never came true"
        time.sleep(0.005)


def in_threads(n: int, work: Callable[[int], Any]) -> list[Any]:
    """Run `work(0)` ... `work(n - 1)` at once; return the results, or raise the first error."""
    results: list[Any] = [None] * n
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            results[index] = work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S * 3)
    if errors:
        raise errors[0]
    return results
