"""A request's body out of a growing buffer, by length or in chunks. No I/O.

Law: nothing of the next request is ever taken; what does not follow RFC 9112 7.1 to the letter is a
400. Chunk extensions and trailers are checked, bounded and dropped.
"""

from __future__ import annotations

import re
from typing import Union

from libloader.web.problems import HttpProblem, bad_request
from libloader.web.request import parse_field
from libloader.web.settings import WebSettings

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t\x20-\x7e\x80-\xff]*)?")
_SIZE_LINE_BYTES = 1024
_NOT_IN_TRAILERS = ("content-length", "transfer-encoding", "host")  # RFC 9110 6.5.1


class LengthBody:
    """A body of known length."""

    def __init__(self, length: int) -> None:
        self._left = length

    @property
    def done(self) -> bool:
        return self._left == 0

    def take(self, buffer: bytearray) -> bytes:
        """Remove what belongs to the body from `buffer` and return it."""
        piece = bytes(buffer[: self._left])
        del buffer[: len(piece)]
        self._left -= len(piece)
        return piece


class ChunkedBody:
    """A chunked body; `take` may be called with any number of new bytes in the buffer."""

    def __init__(self, settings: WebSettings) -> None:
        self._settings = settings
        self._left: int | None = None  # bytes to come of the open chunk; None = a size line is next
        self._n_bytes = 0
        self._n_chunks = 0
        self._n_trailer_bytes = 0
        self._in_trailer = False
        self.done = False

    def take(self, buffer: bytearray) -> bytes:
        """Remove the payload that has arrived from `buffer` and return it."""
        pieces: list[bytes] = []
        position = 0  # [0, position) of the buffer is used up
        while not self.done:
            used = self._step(buffer, position, pieces)
            if used is None:
                break
            position = used
        del buffer[:position]
        return b"".join(pieces)

    def _step(self, buffer: bytearray, start: int, pieces: list[bytes]) -> int | None:
        """Use one line or one run of data; return the new position, None if more is needed."""
        if self._in_trailer:
            return self._trailer_line(buffer, start)
        if self._left is None:
            return self._size_line(buffer, start)
        if self._left == 0:
            return self._chunk_end(buffer, start)
        piece = bytes(buffer[start : start + self._left])
        self._left -= len(piece)
        pieces.append(piece)
        return start + len(piece) if piece else None

    def _size_line(self, buffer: bytearray, start: int) -> int | None:
        line = _line(buffer, start, _SIZE_LINE_BYTES)
        if line is None:
            return None
        match = _SIZE_LINE.fullmatch(line)
        if match is None:
            raise bad_request("a chunk does not begin with its size in hexadecimal digits")
        self._open_chunk(int(match[1], 16))
        return start + len(line) + 2

    def _open_chunk(self, size: int) -> None:
        self._n_bytes += size
        self._n_chunks += 1
        check_size(self._n_bytes, self._settings)
        if self._n_chunks > self._settings.n_chunks:
            raise HttpProblem(413, f"the body has more than {self._settings.n_chunks} chunks")
        self._left, self._in_trailer = size, size == 0

    def _chunk_end(self, buffer: bytearray, start: int) -> int | None:
        ending = bytes(buffer[start : start + 2])
        if not b"\r\n".startswith(ending):
            raise bad_request("a chunk is longer than its size says")
        if len(ending) < 2:
            return None
        self._left = None
        return start + 2

    def _trailer_line(self, buffer: bytearray, start: int) -> int | None:
        line = _line(buffer, start, self._settings.line_bytes)
        if line is None:
            return None
        self._n_trailer_bytes += len(line) + 2
        if self._n_trailer_bytes > self._settings.head_bytes:
            raise HttpProblem(
                431, f"the trailers are longer than {self._settings.head_bytes} bytes"
            )
        if line and parse_field(line)[0].lower() in _NOT_IN_TRAILERS:
            raise bad_request("a trailer must not say how the message is framed")
        self.done = not line
        return start + len(line) + 2


Body = Union[LengthBody, ChunkedBody]


def body_reader(length: int | None, settings: WebSettings) -> Body:
    """Return the reader for a body of `length` bytes (None = chunked), or refuse its size."""
    if length is None:
        return ChunkedBody(settings)
    check_size(length, settings)
    return LengthBody(length)


def check_size(n_bytes: int, settings: WebSettings) -> None:
    if n_bytes > settings.body_bytes:
        raise HttpProblem(413, f"the body is larger than {settings.body_bytes} bytes")


def _line(buffer: bytearray, start: int, limit: int) -> bytes | None:
    """Return the line at `start` without its CRLF; None if it is not complete yet."""
    end = buffer.find(b"\n", start, start + limit + 2)
    if end < 0:
        if len(buffer) - start > limit + 1:
            raise bad_request(f"a line of the chunked body is longer than {limit} bytes")
        return None
    if end == start or buffer[end - 1] != 0x0D:
        raise bad_request("a line of the chunked body does not end in CR LF")
    return bytes(buffer[start : end - 1])
