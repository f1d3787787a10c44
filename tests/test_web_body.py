"""The body readers without I/O: lengths and chunks, well formed and hostile."""

from __future__ import annotations

import pytest

from libloader.web.body import ChunkedBody, LengthBody, body_reader
from libloader.web.problems import HttpProblem
from libloader.web.settings import WebSettings

SETTINGS = WebSettings(body_bytes=1000, head_bytes=200, line_bytes=100, n_chunks=50)


def decode(data: bytes, piece: int = 0) -> tuple[bytes, bytes, bool]:
    """Feed `data` in pieces; return (payload, rest of the buffer, done)."""
    body, buffer, payload = ChunkedBody(SETTINGS), bytearray(), b""
    step = piece or max(1, len(data))
    for start in range(0, len(data), step):
        buffer += data[start : start + step]
        payload += body.take(buffer)
    return payload, bytes(buffer), body.done


def status_of(data: bytes) -> int:
    try:
        _, _, done = decode(data)
    except HttpProblem as problem:
        return problem.status
    return 200 if done else 0


def test_a_body_of_known_length_takes_nothing_of_the_next_request():
    body, buffer = LengthBody(5), bytearray(b"ab")
    assert body.take(buffer) == b"ab" and not body.done
    buffer += b"cdeGET /"
    assert body.take(buffer) == b"cde" and body.done
    assert buffer == b"GET /"


@pytest.mark.parametrize("piece", [0, 1, 2, 3, 7])
def test_chunks_are_joined_whatever_pieces_they_arrive_in(piece):
    """A05"""
    data = b'3\r\nabc\r\n1;ext=1;q="x"\r\nd\r\n0A\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\nGET /'
    payload, rest, done = decode(data, piece)
    assert (payload, done) == (b"abcd0123456789", True)
    assert rest == b"GET /"


def test_chunks_of_one_byte_are_fine():
    """A05"""
    assert decode(b"1\r\nx\r\n" * 20 + b"0\r\n\r\n") == (b"x" * 20, b"", True)


@pytest.mark.parametrize(
    "data",
    [
        b"FFFFFFFFFFFFFFFFF\r\n",
        b"-1\r\n",
        b"+1\r\n",
        b"0x5\r\nabcde\r\n0\r\n\r\n",
        b"5_0\r\n",
        b"\r\n",
        b" 5\r\nabcde\r\n0\r\n\r\n",
        b"5 \r\nabcde\r\n0\r\n\r\n",
        b"5 ;ext\r\nabcde\r\n0\r\n\r\n",
        b"5\nabcde\r\n0\r\n\r\n",
        b"5\rabcde\r\n0\r\n\r\n",
        b"5;a\rb\r\nabcde\r\n0\r\n\r\n",
        b"5;a\x00\r\nabcde\r\n0\r\n\r\n",
        b"5\r\nabcdef\r\n0\r\n\r\n",
        b"5\r\nabcde0\r\n\r\n",
        b"5\r\nabcde\n0\r\n\r\n",
        b"5\r\nabcde\rX0\r\n\r\n",
        b"5;" + b"x" * 2000,
        b"5;" + b"x" * 2000 + b"\r\nabcde\r\n0\r\n\r\n",
        b"0\r\nno colon\r\n\r\n",
        b"0\r\n folded: x\r\n\r\n",
        b"0\r\nT: x\n\r\n",
        b"0\r\nContent-Length: 5\r\n\r\n",
        b"0\r\ntransfer-encoding: chunked\r\n\r\n",
        b"0\r\nT: " + b"x" * 200,
    ],
)
def test_a_malformed_chunk_is_refused(data):
    """A06"""
    assert status_of(data) == 400


def test_what_is_refused_is_not_collected_first():
    """A06: an extension of a megabyte is refused after the first kilobyte."""
    body, buffer, fed = ChunkedBody(WebSettings()), bytearray(b"5;"), 0
    with pytest.raises(HttpProblem):
        while fed < 1 << 20:
            buffer += b"x" * 256
            fed += 256
            body.take(buffer)
    assert fed <= 2048


def test_the_sum_of_the_chunks_is_bounded_before_they_arrive():
    """A06 C09"""
    assert status_of(b"3E8\r\n") == 0
    assert status_of(b"3E9\r\n") == 413
    assert status_of(b"FFFFFFFFFFFFFFFF\r\n") == 413


def test_a_body_may_not_be_cut_into_countless_chunks():
    """A06: each chunk costs a step of Python; a megabyte of single bytes would cost a second."""
    assert status_of(b"1\r\nx\r\n" * 49 + b"0\r\n\r\n") == 200
    assert status_of(b"1\r\nx\r\n" * 50 + b"0\r\n\r\n") == 413


def test_trailers_are_bounded_together():
    """A06"""
    assert status_of(b"0\r\n" + b"T: x\r\n" * 40) == 431


def test_an_announced_length_is_checked_before_a_byte_is_read():
    """C09"""
    assert isinstance(body_reader(1000, SETTINGS), LengthBody)
    with pytest.raises(HttpProblem) as caught:
        body_reader(1001, SETTINGS)
    assert caught.value.status == 413
