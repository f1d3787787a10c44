"""The native log: pieces of text with numbers from C, whole lines with `logging` levels in Python.

The C side keeps one log callback per process, so one `NativeLog` serves the one loaded library. C
may call it from any thread; a callback that is freed while C still knows it crashes the process, so
it is detached at exit (`library.py`).
"""

from __future__ import annotations

import logging
import threading
from typing import Callable

from libloader.abi import builds, structs

Deliver = Callable[[int, str], None]  # a logging level, one line without its newline

LOGGER = logging.getLogger("libllama")

# ggml_log_level was renumbered between b3995 and b4234. NONE is text without a level.
_NEWER = {0: logging.INFO, 1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}
_OLDER = {0: logging.INFO, 1: logging.INFO, 2: logging.WARNING, 3: logging.ERROR, 4: logging.DEBUG}
_RENUMBERED = builds.order("b4103")
# Warnings about what we do on purpose: slots that share one buffer of cells make it longer than the
# model's training context, but every request is held to its own slot's length.
ON_PURPOSE = ("possible training context overflow",)
_CONTINUED = 5  # goes on with the line before, at its level


class NativeLog:
    """Receives the native log; `callback` is what llama_log_set wants."""

    def __init__(self, deliver: Deliver | None = None) -> None:
        self.callback = structs.LogCallback(self._receive)
        self._deliver = deliver or _to_logging
        self._levels: dict[int, int] = _NEWER
        self._level = logging.INFO
        self._begun = ""
        self._lock = threading.Lock()
        self._is_hushed: Callable[[], bool] = bool  # bool() is False

    def set_build(self, low: int) -> None:
        """Choose the level numbers of the build that is loaded."""
        self._levels = _OLDER if low < _RENUMBERED else _NEWER

    def fatal(self, on_fatal: Callable[[str], None] | None) -> Callable[[bytes], None]:
        """Return what ggml_set_abort_callback wants: the last words before abort()."""

        def receive(text: bytes) -> None:
            line = text.decode("utf-8", "replace").strip()
            self._hand_on(logging.CRITICAL, line)
            if on_fatal is not None:
                on_fatal(line)

        return receive

    def hush_while(self, condition: Callable[[], bool]) -> None:
        """Pass on as DEBUG what C says while `condition` holds: it complains of what we do to it.

        The last condition counts. It must not raise, and is asked from any thread.
        """
        self._is_hushed = condition

    def _receive(self, number: int, text: bytes | None, _user_data: object) -> None:
        """Called from C: must never raise."""
        pieces = (text or b"").decode("utf-8", "replace")
        with self._lock:
            if number != _CONTINUED:
                self._level = self._levels.get(number, logging.INFO)
            *lines, self._begun = (self._begun + pieces).split("\n")
            level = logging.DEBUG if self._is_hushed() else self._level
        for line in lines:
            self._hand_on(level, line)

    def _hand_on(self, level: int, line: str) -> None:
        try:
            self._deliver(level, line)
        except Exception as error:  # nothing may travel back into C
            LOGGER.debug("the log callback failed: %r", error)


def _to_logging(level: int, line: str) -> None:
    if any(text in line for text in ON_PURPOSE):
        level = logging.DEBUG
    if line.strip():
        LOGGER.log(level, "%s", line)
