"""Log lines: one each, whatever a client writes, and never at the price of a request."""

from __future__ import annotations

import io
import logging
import os
import threading
import time

import pytest

from libloader.web.log import BoundedHandler, LineFormatter, escape

HOSTILE = "a\x1b[31mb\r\n2026-01-01 ERROR forged\u202ec\u2028d\0\udc80é"


def record(message: str, exc_info=None) -> logging.LogRecord:
    return logging.LogRecord("igllama.web", logging.ERROR, "", 0, message, (), exc_info)


def test_client_text_is_escaped_and_cut():
    """G07"""
    text = escape(HOSTILE + "x" * 10_000_000)
    assert len(text) == 512 and text.isascii() and text.isprintable()
    assert text.startswith(r"a\x1b[31mb\r\n2026")


def test_a_record_is_one_line_of_at_most_4_kib_with_its_traceback():
    """G07"""
    try:
        raise ValueError(HOSTILE + "x" * 10_000)
    except ValueError as error:
        info = (ValueError, error, error.__traceback__)
    line = LineFormatter("%(levelname)s %(message)s").format(record(HOSTILE, info))
    assert len(line) <= 4096 and len(line.splitlines()) == 1 and line.isprintable()
    assert "Traceback" in line and r"\n" in line


def test_lines_are_written_in_order_by_a_thread_of_their_own():
    stream = io.StringIO()
    handler = BoundedHandler(stream)
    for number in range(100):
        handler.emit(record(f"line {number}"))
    handler.stop()
    assert stream.getvalue().splitlines() == [f"line {number}" for number in range(100)]
    assert handler.n_dropped == 0


class Stuck(io.StringIO):
    """A stream whose reader has stopped, until `go`."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def write(self, text: str) -> int:
        assert self.go.wait(10)
        return len(text)


def test_a_reader_that_stops_costs_lines_and_no_time():
    """H04"""
    stream = Stuck()
    handler = BoundedHandler(stream, n_lines=10)
    start = time.monotonic()
    for _ in range(1000):
        handler.emit(record("x"))
    handler.stop(timeout_s=0.05)
    assert time.monotonic() - start < 1
    assert handler.n_dropped >= 980
    stream.go.set()


def test_a_closed_or_full_stream_is_counted_and_survived():
    """H04"""
    closed = io.StringIO()
    closed.close()
    handler = BoundedHandler(closed)
    handler.emit(record("x"))
    handler.stop()
    assert handler.n_dropped == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_survived():
    """H04"""
    full = open("/dev/full", "w")  # noqa: SIM115 - closing it flushes, and that fails as well
    handler = BoundedHandler(full)
    handler.emit(record("x"))
    handler.stop()
    assert handler.n_dropped == 1
    with pytest.raises(OSError):
        full.close()


def test_a_record_that_cannot_be_formatted_is_dropped():
    handler = BoundedHandler(io.StringIO())
    handler.emit(logging.LogRecord("x", logging.ERROR, "", 0, "%d", ("no number",), None))
    handler.stop()
    assert handler.n_dropped == 1
