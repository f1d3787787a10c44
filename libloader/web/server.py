"""The server: one listener per address, a lobby, a crew of threads, all limits shared.

http.server's and socketserver's defaults that would hurt are replaced where they stand: the backlog
of 5, the name look-up at bind, the spinning accept loop when file descriptors run out, tracebacks
on stderr, the close that resets the client, and a thread for each connection, however silent: here
it waits in the lobby and gets one of the crew's threads for each request. `threading.stack_size` is
main's business.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from http.server import HTTPServer
from socketserver import BaseServer
from typing import Any, Callable

from libloader.web import sockets, tls
from libloader.web.auth import ApiKeys
from libloader.web.exchange import JSON, Exchange
from libloader.web.handler import Handler
from libloader.web.lobby import Lobby
from libloader.web.log import escape
from libloader.web.origins import Origins, bound_names
from libloader.web.problems import HttpProblem, default_describe, reply_of, to_json
from libloader.web.response import encode_head
from libloader.web.settings import WebSettings
from libloader.web.shared import DescribeError, RouteTable, Shared
from libloader.web.wire import Wire

__all__ = ["Exchange", "Listener", "Server"]

log = logging.getLogger("igllama.web")

_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_RELIEF_PAUSE_S = 0.05
_POLL_S = 0.5
# A client that vanished without a word is found out after about a minute.
_KEEPALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))


class Listener(HTTPServer):
    """One listening socket. Its "requests", in socketserver's word, are wires."""

    def __init__(self, listening: sockets.Listening, shared: Shared) -> None:
        # Not HTTPServer's own: it makes another socket, and its server_bind looks up names.
        BaseServer.__init__(self, listening.sock.getsockname(), Handler)
        self.socket = listening.sock
        self.shared = shared
        self._listening = listening
        self._lobby = Lobby(shared.settings, shared.watcher, self._serve, self._leave)
        self._spare_fd = _open_spare()
        self._thread = threading.Thread(target=self._listen, name="http-listener", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop accepting and close the socket; connections go on."""
        if self._thread.is_alive():
            sockets.wake(self._listening)
            self.shutdown()
            self._thread.join()
        sockets.close(self._listening)
        _close_spare(self._spare_fd)

    def _listen(self) -> None:
        self.serve_forever(_POLL_S)

    # socketserver's seams

    def get_request(self) -> tuple[Any, Any]:
        try:
            sock, address = self.socket.accept()
        except OSError as error:
            if error.errno in _OUT_OF_RESOURCES:
                self._relieve()
            raise
        peer, ip = _names_of(address)
        if ip:
            _tune(sock)
        return Wire(sock, peer, ip, self.shared.settings, self.shared.watcher), address

    def process_request(self, request: Any, client_address: Any) -> None:
        wire: Wire = request
        self.shared.count("connections")
        if not self.shared.admission.admit(wire):
            self._refuse(wire, "all connections are in use")
            return
        visitor = Handler(wire, client_address, self)
        if self.shared.tls_context is None:
            self._lobby.enter(visitor)
        else:
            self._start(visitor, partial(visitor.shake_hands, self.shared.tls_context))

    def finish_request(self, request: Any, client_address: Any) -> None:
        raise AssertionError("connections wait in the lobby, not in a thread of their own")

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection ended by an exception: trouble on the line is no news."""
        error = sys.exc_info()[1]
        wire: Wire = request
        if isinstance(error, OSError):
            log.debug("%s: %s", wire.peer, escape(repr(error)))
        else:
            log.error("unexpected error on a connection from %s", wire.peer, exc_info=error)

    # From the lobby to a thread and back.

    def _serve(self, visitor: Handler) -> None:
        """A request has arrived (the watcher's thread)."""
        head = visitor.arrival.head
        is_urgent = head is not None and self.shared.is_public(head)
        self._start(visitor, visitor.handle, is_urgent)

    def _start(self, visitor: Handler, work: Callable[[], None], is_urgent: bool = False) -> None:
        refuse = partial(self._turn_away, visitor, "every thread is busy")
        try:
            self.shared.crew.do(partial(self._work, visitor, work), refuse, is_urgent)
        except RuntimeError:  # the system gives no more threads
            self._turn_away(visitor, "no thread can be started")

    def _work(self, visitor: Handler, work: Callable[[], None]) -> None:
        """Serve on a thread of the crew; the wire then waits for more, or ends."""
        wire = visitor.wire
        try:
            work()
        except Exception:  # thread top: one connection's fault must not reach another
            visitor.close_connection = True
            self.handle_error(wire, visitor.client_address)
        if visitor.close_connection:
            self._leave(visitor)
        else:
            self._lobby.enter(visitor)

    def _leave(self, visitor: Handler) -> None:
        if visitor.arrival.head is not None:  # it hung up within a body
            self.shared.count("client_gone")
        visitor.wire.close()
        self.shared.admission.leave(visitor.wire)

    def _turn_away(self, visitor: Handler, reason: str) -> None:
        self.shared.admission.leave(visitor.wire)
        self._refuse(visitor.wire, reason)

    def _refuse(self, wire: Wire, reason: str) -> None:
        """Send a static 503 without waiting; the watcher sees to it that it arrives."""
        self.shared.count("refused_connections")
        if self.shared.tls_context is None:
            wire.sock.setblocking(False)
            with suppress(*tls.WOULD_BLOCK, OSError):
                wire.sock.send(busy_answer(reason, self.shared.origins))
        wire.close()

    def _relieve(self) -> None:
        """File descriptors have run out: turn one client away with the spare one, and breathe.

        Without this, accept fails again at once for the same waiting client, for ever.
        """
        _close_spare(self._spare_fd)
        with suppress(OSError):
            self.socket.accept()[0].close()
        self._spare_fd = _open_spare()
        self.shared.count("out_of_descriptors")
        self.shared.admission.shed_longest_reading()
        time.sleep(_RELIEF_PAUSE_S)


class Server:
    """All listeners of one process. `urls` and `ports` are as bound, so port 0 may be asked for."""

    def __init__(
        self,
        addresses: Sequence[sockets.AnyAddress],
        routes: RouteTable,
        settings: WebSettings | None = None,
        describe_error: DescribeError = default_describe,
    ) -> None:
        """Bind every address; nothing is accepted before `start`. StartError or UsageError."""
        settings = settings or WebSettings()
        tls_context = tls.server_context(settings)
        hosts = [sockets.parse_address(text).host for text in addresses if isinstance(text, str)]
        origins = Origins(settings.cors_origins, settings.allowed_hosts, bound_names(hosts))
        bound = sockets.listen(addresses, settings)
        self._shared = Shared(settings, routes, origins, describe_error, tls_context)
        self.urls = [sockets.url_of(sock, tls_context is not None) for sock, _ in bound]
        names = [sock.getsockname() for sock, _ in bound]
        self.ports: list[int] = [name[1] for name in names if isinstance(name, tuple)]
        self._listeners = [Listener(listening, self._shared) for listening in bound]

    def start(self) -> None:
        self._shared.watcher.start()
        for listener in self._listeners:
            listener.start()

    def stop_accepting(self) -> None:
        """Close the listening sockets; connections live until their next answer."""
        self._shared.draining = True
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener.stop()

    def close(self, timeout_s: float = 0.0) -> bool:
        """End it all, waiting up to `timeout_s` for answers under way; False if some were cut."""
        self.stop_accepting()
        admission = self._shared.admission
        all_answered = admission.wait_until_idle(timeout_s)
        admission.cut_all()
        admission.wait_until_empty(1.0)
        self._shared.watcher.stop()
        return all_answered

    def set_api_keys(self, keys: Iterable[str]) -> None:
        """Replace the keys; requests that were let in go on."""
        self._shared.keys = ApiKeys(keys)

    def answers(self) -> dict[tuple[str, int], int]:
        """Return how many answers went out, by the route's pattern ("" = none) and status."""
        return self._shared.answers()

    def refusals(self) -> dict[str, int]:
        """Return how many requests ended in an error, by its code."""
        return self._shared.refusals()

    def figures(self) -> dict[str, int]:
        """Return counters (connections, status_NNN, client_gone, ...) and gauges (`n_...`)."""
        shared = self._shared
        return {
            **shared.counts(),
            "shed_connections": shared.admission.n_shed,
            "n_connections": shared.admission.n_open(),
            "n_working": shared.admission.n_working(),
            "n_watched": shared.watcher.n_watched(),
        }


def busy_answer(reason: str, origins: Origins) -> bytes:
    """The answer to a connection for which there is no place."""
    reply = reply_of(HttpProblem(503, f"{reason}; try again in a moment"))
    body = to_json(reply.body)
    fields: list[tuple[str, str]] = [
        ("Content-Type", JSON),
        ("Content-Length", str(len(body))),
        ("Retry-After", "1"),
        ("Connection", "close"),
    ]
    return encode_head(503, 1, (*fields, *origins.fields("", ""))) + body


def _open_spare() -> int:
    """Open a file descriptor to be given up in need; -1 if there is none left."""
    try:
        return os.open(os.devnull, os.O_RDONLY)
    except OSError:
        return -1


def _close_spare(fd: int) -> None:
    if fd >= 0:
        os.close(fd)


def _names_of(address: Any) -> tuple[str, str]:
    """Return (peer, ip) of an accepted connection; a Unix socket's peer has neither."""
    if not isinstance(address, tuple):
        return "unix", ""
    host = str(address[0])
    return (f"[{host}]:{address[1]}" if ":" in host else f"{host}:{address[1]}"), host


def _tune(sock: socket.socket) -> None:
    with suppress(OSError):  # the client may have gone by now
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, seconds in _KEEPALIVE:
            if hasattr(socket, option):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)
