"""Framing of streamed answers: server-sent events, NDJSON, HTTP chunks. Bytes in, bytes out."""

from __future__ import annotations

SSE = "text/event-stream"
NDJSON = "application/x-ndjson"
DONE = b"data: [DONE]\n\n"
LAST_CHUNK = b"0\r\n\r\n"

# A cache must not keep a stream, and nginx must not collect it.
STREAM_FIELDS: tuple[tuple[str, str], ...] = (
    ("Cache-Control", "no-cache"),
    ("X-Accel-Buffering", "no"),
)


def sse(data: bytes, event: str = "") -> bytes:
    """Frame `data` (usually JSON) as one event; `event` names its type, as Anthropic's API does."""
    if b"\n" in data or b"\r" in data:  # never in JSON; each line of other text needs its own field
        data = b"\ndata: ".join(data.splitlines())
    name = b"event: %b\n" % event.encode("ascii") if event else b""
    return b"%bdata: %b\n\n" % (name, data)


def comment() -> bytes:
    """An event that clients ignore; it tells them and proxies that the stream lives."""
    return b": ping\n\n"


def ndjson(data: bytes) -> bytes:
    return data + b"\n"


def chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)
