"""The pipe between front and engine child: frames, and the messages that travel in them.

Laws:
- A frame is a u32 little-endian length and that many bytes of UTF-8 JSON, at most MAX_FRAME_BYTES.
- What the child writes is data, never code, and its shape is checked here before anything acts on
  it: a child with corrupted memory may send wrong words, it cannot make the front misbehave.
  Whatever breaks the shape is a ValueError, and the front treats it as a crash.
- One frame per engine step carries all streams' events.

    front -> child   {"op": "start", "settings": core.EngineSettings, ...}
                     {"op": "submit", "request": core.Request}   {"op": "cancel", "id": ...}
                     {"op": "stop"}
    child -> front   {"op": "progress", "value": 0.0..1.0}   {"op": "ready", "info": core.ModelInfo}
                     {"op": "start_error", "error": errors.to_wire}
                     {"op": "step", "ms": how long it took, "events": [core.Event, ...],
                      "figures": {name: number} or null}
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from json.encoder import encode_basestring as _encode_text
from typing import Any, Callable, NamedTuple, Union

from libloader import core, errors

MAX_FRAME_BYTES = 16 << 20
_LENGTH = struct.Struct("<I")
# Made once: json.dumps with options builds a new encoder for each call. NaN and infinities pass on
# purpose (logit_bias holds -inf); the strict reader of client JSON is not this one.
_encode_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_read_json = json.JSONDecoder().raw_decode  # loads would look for white space, with an expression


def encode(message: Any) -> bytes:
    """Return `message` as one frame. ValueError if too long, or if its text is no UTF-8."""
    return _frame(_encode_json(message))


def encode_step(ms: float, events: Sequence[core.Event], figures: Any) -> bytes:
    """Return what one engine step brought as one frame; ValueError as `encode`. Hot."""
    texts = ",".join([_encode_event(event) for event in events])
    told = "null" if figures is None else _encode_json(figures)
    return _frame(f'{{"op":"step","ms":{ms:.3f},"events":[{texts}],"figures":{told}}}')


def _encode_event(event: core.Event) -> str:
    """Encode one event; the commonest kind as it reads, for a new encoder costs more than that."""
    if type(event) is core.TokenEvent:
        name, index, text, tokens, logprobs = event
        if logprobs is None:
            text = _encode_text(text)
            return f'["t",{_encode_text(name)},{index},{text},{list(tokens)},null]'
    return _encode_json(core.event_to_wire(event))


def _frame(text: str) -> bytes:
    payload = text.encode("utf-8")
    if len(payload) > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {len(payload)} bytes exceeds {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(payload)) + payload


def _decode_json(payload: bytes | bytearray) -> Any:
    """Return what one frame says. ValueError unless it is one JSON value and nothing else."""
    text = payload.decode("utf-8")
    message, end = _read_json(text)
    if end != len(text):
        raise ValueError("a frame holds more than one value")
    return message


def write_frame(fd: int, frame: bytes) -> None:
    """Write all of `frame`; blocks while the pipe is full. OSError when the reader is gone."""
    n_written = os.write(fd, frame)  # all of it, as a rule
    while n_written < len(frame):
        n_written += os.write(fd, memoryview(frame)[n_written:])


class FrameDecoder:
    """Turns bytes as they arrive into messages; `partial` tells of a frame cut off by a crash."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def partial(self) -> bool:
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[Any]:
        """Return the messages completed by `data`. ValueError if they cannot be frames. Hot."""
        if not self._buffer and self._is_one_frame(data):  # as a rule
            return [_decode_json(data[_LENGTH.size :])]
        self._buffer += data
        messages, start = [], 0
        while len(self._buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if length > MAX_FRAME_BYTES:
                raise ValueError(f"a frame claims {length} bytes")
            end = start + _LENGTH.size + length
            if end > len(self._buffer):
                break
            messages.append(_decode_json(self._buffer[start + _LENGTH.size : end]))
            start = end
        del self._buffer[:start]
        return messages

    @staticmethod
    def _is_one_frame(data: bytes) -> bool:
        n = len(data) - _LENGTH.size
        return 0 < n <= MAX_FRAME_BYTES and _LENGTH.unpack_from(data) == (n,)


class Progress(NamedTuple):
    """Loading goes on; `value` is 0.0..1.0."""

    value: float


class Ready(NamedTuple):
    """The engine takes requests."""

    info: core.ModelInfo


class StartRefused(NamedTuple):
    """The engine could not start and says why; it exits next."""

    error: errors.IgllamaError


class Step(NamedTuple):
    """What one engine step brought. `figures` come with some steps only."""

    ms: float
    events: tuple[core.Event, ...]
    figures: dict[str, float] | None


ChildMessage = Union[Progress, Ready, StartRefused, Step]

_NUMBER = (int, float)
# What each event's fields must be, after its tag; the ids inside are the ledger's to check.
_EVENT_FIELDS: dict[str, tuple[Any, ...]] = {
    "t": (str, int, str, list, (list, type(None))),
    "c": (str, int, str, (str, type(None)), list),
    "e": (str, int, str, int),
    "k": (str, int, list, list, str),
    "y": (str, int, int, int, int, list),
    "p": (str, int, int, int),
    "d": (str, list, dict),
    "f": (str, dict),
}


def read_child_message(data: Any) -> ChildMessage:
    """Check and rebuild one message of the child. ValueError if it is not one."""
    try:
        return _READERS[data["op"]](data)
    except (LookupError, TypeError, ValueError, AttributeError) as exc:
        raise ValueError(f"the engine sent a malformed message: {exc!r}") from exc


def _read_progress(data: dict[str, Any]) -> ChildMessage:
    return Progress(min(1.0, max(0.0, float(data["value"]))))


def _read_ready(data: dict[str, Any]) -> ChildMessage:
    return Ready(core.from_wire(core.ModelInfo, data["info"]))


def _read_start_error(data: dict[str, Any]) -> ChildMessage:
    return StartRefused(errors.from_wire(data["error"]))


def _read_step(data: dict[str, Any]) -> ChildMessage:
    figures = data["figures"]
    if figures is not None:
        figures = {str(name): float(value) for name, value in figures.items()}
    events = tuple([_read_event(event) for event in data["events"]])
    return Step(float(data["ms"]), events, figures)


_READERS: dict[str, Callable[[dict[str, Any]], ChildMessage]] = {
    "progress": _read_progress,
    "ready": _read_ready,
    "start_error": _read_start_error,
    "step": _read_step,
}


def _read_event(data: Any) -> core.Event:
    """Check one event. Hot: once per token of every stream, so the commonest kind comes first."""
    if data[0] == "t":
        _, request_id, index, text, tokens, logprobs = data
        for token in tokens:
            if type(token) is not int:
                raise ValueError("a token id is no integer")
        if logprobs is None and type(request_id) is type(text) is str and type(index) is int:
            return core.TokenEvent(request_id, index, text, tuple(tokens))
    fields, values = _EVENT_FIELDS[data[0]], data[1:]
    if len(values) != len(fields) or not all(map(isinstance, values, fields)):
        raise ValueError(f"event {data[0]!r} has the wrong fields")
    return core.event_from_wire(data)
