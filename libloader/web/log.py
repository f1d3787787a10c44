"""Log lines that cannot be forged by a client, and logging that cannot block or raise.

`escape` makes client text harmless inside a line; `LineFormatter` does it for whole records;
`BoundedHandler` writes on its own thread, and counts what it had to drop when the other end of
stderr is slow, full or closed.
"""

from __future__ import annotations

import logging
import queue
import threading
from typing import TextIO

_FIELD_CHARS = 512
_LINE_CHARS = 4096


def escape(text: str, limit: int = _FIELD_CHARS) -> str:
    """Return `text` as printable ASCII without line ends, cut at `limit` characters."""
    return text[:limit].encode("unicode_escape").decode("ascii")[:limit]


class LineFormatter(logging.Formatter):
    """Formats a record as exactly one line, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        printable = "".join(c if c.isprintable() else escape(c) for c in line[:_LINE_CHARS])
        return printable[:_LINE_CHARS]


class BoundedHandler(logging.Handler):
    """Hands lines to a daemon thread that writes them; never waits for the stream."""

    def __init__(self, stream: TextIO, n_lines: int = 1000) -> None:
        super().__init__()
        self.n_dropped = 0
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(n_lines)
        self._thread = threading.Thread(target=self._write_lines, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(self.format(record))
        except (
            Exception
        ):  # full, or a record that cannot be formatted: a log line is never worth more
            self.n_dropped += 1

    def stop(self, timeout_s: float = 1.0) -> None:
        """Write what waits, but not for longer than `timeout_s`."""
        try:
            self._lines.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(timeout_s)

    def _write_lines(self) -> None:
        while True:
            line = self._lines.get()
            if line is None:
                return
            try:
                self._stream.write(line + "\n")
                self._stream.flush()
            except (OSError, ValueError):  # closed, full, or a pipe that nobody reads
                self.n_dropped += 1


def start_logging(stream: TextIO, level: str = "WARNING") -> BoundedHandler:
    """Send all of Python's logging through one bounded handler to `stream`."""
    handler = BoundedHandler(stream)
    handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level)
    return handler
