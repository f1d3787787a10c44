"""What a route's function is given: one request, and the ways to answer it.

A function answers exactly once, by a reply or by a stream, on the thread that called it; a stream
may also be opened, fed and finished by another thread. Raising is an answer too.
"""

from __future__ import annotations

import os
from typing import Callable

from libloader.errors import ClientGone
from libloader.web import events
from libloader.web.problems import Fields, Reply, to_json
from libloader.web.request import Head
from libloader.web.response import encode_head
from libloader.web.shared import Shared
from libloader.web.stream import ResponseStream
from libloader.web.wire import Wire

JSON = "application/json"
_BODYLESS = (204, 304)


class Exchange:
    def __init__(self, head: Head, wire: Wire, shared: Shared, *, may_persist: bool) -> None:
        self.method = head.method
        self.path = head.path
        self.query = head.query
        self.headers = head.headers
        self.path_params: dict[str, str] = {}
        self.peer = wire.peer
        self.request_id = new_request_id()
        self.api_key = ""  # the name of the key used, never the key; "" = none needed
        self.body = b""
        self.body_is_read = head.length == 0
        self.status = 0  # of the answer; 0 = not answered yet
        self.persists = False  # the connection can carry another request; the answer's head says so
        self._head = head
        self._wire = wire
        self._shared = shared
        self._may_persist = may_persist and head.keep_alive
        self._stream: ResponseStream | None = None

    def reply(
        self, status: int, body: bytes = b"", content_type: str = JSON, headers: Fields = ()
    ) -> None:
        """Send a whole answer, in one piece with its head. A client that has gone gets nothing."""
        fields: list[tuple[str, str]] = []
        if status not in _BODYLESS:
            fields = [("Content-Type", content_type), ("Content-Length", str(len(body)))]
        with_body = self.method != "HEAD" and status not in _BODYLESS
        head = self._answer_head(status, (*fields, *headers))
        self._wire.unwatch()
        if self._wire.lost:
            return
        try:
            self._wire.send_all(head + body if with_body else head)
        except ClientGone:
            self.persists = False

    def reply_json(self, value: object, status: int = 200, headers: Fields = ()) -> None:
        self.reply(status, to_json(value), JSON, headers)

    def reply_text(
        self, text: str, status: int = 200, content_type: str = "text/plain; charset=utf-8",
        headers: Fields = (),
    ) -> None:  # fmt: skip
        self.reply(status, text.encode("utf-8", "replace"), content_type, headers)

    def reply_error(self, reply: Reply) -> None:
        self.reply(reply.status, to_json(reply.body), JSON, reply.headers)

    def open_stream(self, content_type: str = events.SSE, headers: Fields = ()) -> ResponseStream:
        """Send the head of a streamed answer; return the stream. Never blocks; any one thread."""
        chunked = self._head.minor == 1
        # HTTP/1.0 has no chunks: there the end of the connection is the end of the answer.
        self._may_persist = self._may_persist and chunked
        framing: Fields = (("Transfer-Encoding", "chunked"),) if chunked else ()
        fields = (("Content-Type", content_type), *events.STREAM_FIELDS, *framing, *headers)
        head = self._answer_head(200, fields)
        self._stream = ResponseStream(
            self._wire,
            head,
            chunked=chunked,
            silent=self.method == "HEAD",
            ping_s=self._shared.settings.ping_s if content_type == events.SSE else 0.0,
        )
        return self._stream

    def on_gone(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once, on the watcher's thread, if the client goes too early.

        That is: before the answer has been sent. The callback must not block.
        """
        self._wire.call_when_gone(callback)
        self._wire.watch()

    @property
    def gone(self) -> bool:
        return self._wire.lost

    def settle(self) -> None:
        """Wait until the answer is out; the wire then belongs to the connection's thread again."""
        if self._stream is not None:
            self._stream.wait()
        assert self.status or self._wire.lost, f"{self.method} {self.path} was not answered"
        self._wire.unwatch()
        self.persists = self.persists and not self._wire.lost

    def abort_stream(self) -> bool:
        """Break off a stream that has begun; False if there is none."""
        if self._stream is not None:
            self._stream.abort()
        return self._stream is not None

    def _answer_head(self, status: int, fields: Fields) -> bytes:
        assert not self.status, f"{self.method} {self.path} was answered twice"
        self.status = status
        # An unread body must not become the next request.
        self.persists = self._may_persist and self.body_is_read and not self._shared.draining
        cors = self._shared.origins.fields(self.headers.get("origin"), self._head.host)
        common = (("X-Request-Id", self.request_id), *connection_field(self._head, self.persists))
        return encode_head(status, self._head.minor, (*fields, *cors, *common))


def connection_field(head: Head, persists: bool) -> Fields:
    """Announce what differs from the version's default."""
    if not persists:
        return (("Connection", "close"),)
    return () if head.minor == 1 else (("Connection", "keep-alive"),)


def new_request_id() -> str:
    return "req_" + os.urandom(12).hex()
