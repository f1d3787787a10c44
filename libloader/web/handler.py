"""One connection: read a head, check it, read the body, call the route's function, and again.

http.server gives the seams (setup, handle, finish, send_error); its parsing, its replies and its
files are not used: see `request` for ours. Each step that can refuse stands before the next one
that costs something: route (404, 405), Host and Origin (403), key (401), body (413, 415, 408).
"""

from __future__ import annotations

import logging
import socket
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from time import monotonic
from typing import TYPE_CHECKING, Any

from libloader.errors import ClientGone, IgllamaError
from libloader.web.body import body_reader
from libloader.web.exchange import JSON, Exchange, new_request_id
from libloader.web.lobby import Arrival
from libloader.web.log import escape
from libloader.web.origins import PREFLIGHT
from libloader.web.problems import HttpProblem, Reply, internal_error, to_json
from libloader.web.request import Head
from libloader.web.response import CONTINUE, SERVER, encode_head
from libloader.web.shared import Shared
from libloader.web.wire import Wire

if TYPE_CHECKING:  # the server imports this module; ssl may be missing
    import ssl

    from libloader.web.server import Listener

log = logging.getLogger("igllama.web")

_BODY_READ_BYTES = 64 * 1024


class Handler(BaseHTTPRequestHandler):
    server: Listener
    protocol_version = "HTTP/1.1"

    # http.server's seams

    def __init__(self, wire: Wire, client_address: Any, server: Listener) -> None:
        """Not http.server's own, which would serve at once: this one is told when to."""
        self.request, self.client_address, self.server = wire, client_address, server
        self.setup()

    def setup(self) -> None:
        self.wire: Wire = self.request
        self.shared: Shared = self.server.shared
        self.arrival = Arrival(self.shared.settings, self._is_refused)
        self.close_connection = False
        self._n_borrowed_bytes = 0

    def handle(self) -> None:
        """Serve what has arrived; unless `close_connection`, the wire then waits for more."""
        while not self.close_connection and self.arrival.look(self.wire.inbox):
            self.handle_one_request()
            if not self.close_connection:
                self.close_connection = not self.shared.admission.begin_reading(self.wire)

    def shake_hands(self, context: ssl.SSLContext) -> None:
        """Begin TLS; the first request is then waited for like any other."""
        self.close_connection = True  # should it fail
        self.shared.admission.hold_thread(self.wire)
        self.wire.start_tls(context)
        self.close_connection = False

    def handle_one_request(self) -> None:
        """Serve one request; `close_connection` then says whether another may follow."""
        self.close_connection = True
        self._exchange: Exchange | None = None
        self._started = monotonic()
        try:
            self._serve()
        except ClientGone:
            self.shared.count("client_gone")
        except Exception as error:  # thread top: every request ends in a reply or a closed stream
            self._answer_error(error)
        finally:
            self.shared.budget.give_back(self._n_borrowed_bytes)
            self._n_borrowed_bytes = 0
        self._log_answer()

    def finish(self) -> None:
        pass  # the server closes the wire in shutdown_request

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """http.server's own errors, should it ever make one: ours are JSON."""
        self._answer_error(HttpProblem(code, message or ""))

    def version_string(self) -> str:
        return SERVER

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("%s: %s", self.wire.peer, escape(format % args))

    # One request

    def _serve(self) -> None:
        head = self.arrival.take()
        limits = self.shared.settings
        may_persist = self.arrival.n_heads < limits.n_requests_per_connection
        exchange = Exchange(head, self.wire, self.shared, may_persist=may_persist)
        self._exchange = exchange
        passed = self.shared.check(head)
        if passed is None:
            exchange.reply(204, headers=PREFLIGHT)
        else:
            exchange.path_params, exchange.api_key = passed.path_params, passed.api_key
            exchange.body = self._read_body(head)
            exchange.body_is_read = True
            self._begin_work()
            passed.function(exchange)
        exchange.settle()
        self.close_connection = not exchange.persists

    def _is_refused(self, head: Head) -> bool:
        """True if no body could save this request: it is answered before one is read."""
        try:
            self.shared.check(head)
            body_reader(head.length, self.shared.settings)
        except HttpProblem:
            return True
        return False

    def _read_body(self, head: Head) -> bytes:
        body = body_reader(head.length, self.shared.settings)
        if head.wants_continue and not body.done and not self.wire.inbox:
            self.wire.send_all(CONTINUE)
        pieces: list[bytes] = []
        started = monotonic()
        self.shared.admission.hold_thread(self.wire)
        while True:
            piece = body.take(self.wire.inbox)
            self._borrow(len(piece))
            pieces.append(piece)
            if body.done:
                return b"".join(pieces)
            try:
                if not self.wire.fill(self._body_deadline(started), _BODY_READ_BYTES):
                    raise ClientGone("the client hung up within a body")
            except socket.timeout:
                raise HttpProblem(408, "the body did not arrive in time") from None

    def _body_deadline(self, started: float) -> float:
        """A client gets body_s for any pause, and a lowest rate over the whole body."""
        limits = self.shared.settings
        earned_s = self._n_borrowed_bytes / limits.rate_bytes_per_s
        return min(monotonic(), started + earned_s) + limits.body_s

    def _borrow(self, n_bytes: int) -> None:
        self.shared.budget.borrow(n_bytes)
        self._n_borrowed_bytes += n_bytes

    def _begin_work(self) -> None:
        if not self.shared.admission.begin_work(self.wire):
            raise ClientGone("this connection was shed")

    # Errors

    def _answer_error(self, error: BaseException) -> None:
        exchange = self._exchange
        reply = self._describe(error, exchange.request_id if exchange else "")
        self.shared.count_refusal(reply)
        if exchange is None:
            self._refuse(reply)
        elif exchange.abort_stream() or exchange.status or exchange.gone:
            exchange.settle()
        else:
            exchange.reply_error(reply)
            exchange.settle()
            self.close_connection = not exchange.persists

    def _describe(self, error: BaseException, request_id: str) -> Reply:
        """Return the reply for any error; one that nobody expected is logged with its traceback."""
        try:
            reply = self.shared.describe_error(error)
        except Exception as second:  # the description must not cost the client its answer
            log.error("describing an error failed: %s", escape(repr(second)))
            reply = internal_error()
        if reply.status >= 500 and not isinstance(error, (HttpProblem, IgllamaError)):
            log.error("unexpected error in %s", request_id or "a request", exc_info=error)
        return reply

    def _refuse(self, reply: Reply) -> None:
        """Answer a request that could not be read, and close."""
        body = to_json(reply.body)
        fields = (
            ("Content-Type", JSON),
            ("Content-Length", str(len(body))),
            *self.shared.origins.fields("", ""),
            ("X-Request-Id", new_request_id()),
            ("Connection", "close"),
            *reply.headers,
        )
        self.shared.count(f"status_{reply.status}")
        self.shared.count_answer("", reply.status)
        with suppress(ClientGone):
            self.wire.send_all(encode_head(reply.status, 1, fields) + body)

    def _log_answer(self) -> None:
        exchange = self._exchange
        if exchange is None:
            return
        if exchange.status:
            self.shared.count(f"status_{exchange.status}")
            self.shared.count_answer(exchange.path, exchange.status)
        if log.isEnabledFor(logging.INFO):
            ms = (monotonic() - self._started) * 1000
            what = f"{exchange.method} {escape(exchange.path)} {exchange.status}"
            log.info("%s %s %.0f ms %s", self.wire.peer, what, ms, exchange.request_id)
