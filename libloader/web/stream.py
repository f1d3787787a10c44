"""An answer that grows: server-sent events or NDJSON, in chunked encoding.

Any one thread offers payloads and never waits for the client; the wire keeps what is unread.
"""

from __future__ import annotations

from time import monotonic

from libloader.web import events
from libloader.web.wire import Wire


class ResponseStream:
    """Ends by `finish` (a proper end), by `abort`, or because the client has gone."""

    def __init__(
        self, wire: Wire, head: bytes, *, chunked: bool, silent: bool, ping_s: float
    ) -> None:
        """`silent`: the answer to HEAD; `ping_s` 0 = no comments (they exist in SSE only)."""
        self._wire = wire
        self._chunked = chunked
        self._silent = silent
        self._ping_s = ping_s
        wire.begin_stream(head, self._ping if ping_s and not silent else None)

    @property
    def gone(self) -> bool:
        """The client has hung up, stopped reading, or was given up."""
        return self._wire.lost

    def offer(self, payload: bytes) -> None:
        """Send `payload` (one or more whole events) without ever blocking. Hot.

        A payload for a client that has gone is dropped; `on_gone` tells of that.
        """
        if payload and not self._silent:
            self._wire.offer(events.chunk(payload) if self._chunked else payload)

    def finish(self, payload: bytes = b"") -> None:
        """Send `payload` and the end of the answer. Any one thread; never blocks."""
        if self._silent:
            self._wire.offer(b"", is_last=True)
            return
        data = events.chunk(payload) if self._chunked and payload else payload
        self._wire.offer(data + events.LAST_CHUNK if self._chunked else data, is_last=True)

    def abort(self) -> None:
        """Close the connection without the end, so that the client can tell that it is missing."""
        self._wire.abandon()

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until all is sent or the client has gone; False after `timeout` seconds."""
        return self._wire.wait_settled(timeout)

    def _ping(self, now: float) -> None:
        if now - self._wire.sent_at >= self._ping_s:
            self._wire.sent_at = monotonic()  # also when it only joins the backlog
            self.offer(events.comment())
