"""Faults on purpose, to prove what supervision promises. Only in a child started in test mode.

IGLLAMA_FAULT=point:action[:nth[:generations]][,more]: the nth time that the engine reaches `point`
(for `slow` and `drag` every time from there on), counted in each child, it does `action`; only in
the first so many generations of children if that is given. Points are the phases of the breadcrumb
(load, tokenize, grammar_init, decode with or without prompts in it, sample, detok, ...) and
ipc_write, which first writes half a frame.

The production code has no fault in its path: the function that marks the breadcrumb is wrapped.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Callable

from libloader.supervise.loop import Mark

_OOM_PIECE_BYTES = 64 << 20
_OOM_PIECES = 32


def _segv() -> None:
    signal.raise_signal(signal.SIGSEGV)  # in this thread, as a real one


def _out_of_memory() -> None:
    """Take memory until the process's limit says no (or enough is taken), then end as C++ does."""
    hoard: list[bytearray] = []
    with contextlib.suppress(MemoryError):
        while len(hoard) < _OOM_PIECES:
            hoard.append(bytearray(_OOM_PIECE_BYTES))
    hoard.clear()
    os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
    os.abort()


def _hang() -> None:
    while True:
        time.sleep(3600)


def _raise() -> None:
    raise RuntimeError("a fault on purpose")


def _slow() -> None:
    time.sleep(0.05)


def _drag() -> None:
    """Slow enough that others overlap, quick enough that hundreds are no wait."""
    time.sleep(0.005)


def _noise() -> None:
    """What native code prints: text without an end, and bytes that are no text."""
    os.write(1, b"noise on stdout")
    os.write(2, b"\xff\x00noise on stderr\n")


ACTIONS: dict[str, Callable[[], None]] = {
    "segv": _segv,
    "abort": os.abort,
    "oom": _out_of_memory,
    "hang": _hang,
    "raise": _raise,
    "slow": _slow,
    "drag": _drag,
    "noise": _noise,
}
REPEATED = ("slow", "drag")


class Fault:
    """One planted fault: counts the visits of its point."""

    def __init__(self, text: str, generation: int) -> None:
        fields = text.split(":")
        self.point = fields[0]
        self._act = ACTIONS[fields[1]]
        self._repeats = fields[1] in REPEATED
        self._left = int(fields[2]) if len(fields) > 2 else 1
        if len(fields) > 3 and generation > int(fields[3]):
            self._left = -1

    def visit(self) -> None:
        if self._left < 0:
            return
        self._left -= 1
        if self._left <= 0:
            self._left = 1 if self._repeats else -1
            self._act()

    @property
    def is_next(self) -> bool:
        return self._left == 1


def read(text: str, generation: int) -> list[Fault]:
    """Return the faults that IGLLAMA_FAULT asks for. KeyError or ValueError if it is malformed."""
    return [Fault(part, generation) for part in text.split(",") if part]


def in_mark(mark: Mark, faults: list[Fault]) -> Mark:
    """Return `mark` with the faults behind it: the breadcrumb is true when the fault strikes."""

    def marked(phase: str, ids: str, step: int) -> None:
        mark(phase, ids, step)
        point = "decode" if phase == "prefill" else phase
        for fault in faults:
            if fault.point == point:
                fault.visit()

    return marked


def spare_marks(faults: list[Fault]) -> bool:
    """Say whether none strikes at a phase of the engine: not every step of a cruise is marked."""
    return all(fault.point == "ipc_write" for fault in faults)


def in_write(write: Callable[[bytes], None], faults: list[Fault]) -> Callable[[bytes], None]:
    """Return `write` that may die in the middle of a frame."""
    planted = [fault for fault in faults if fault.point == "ipc_write"]

    def written(frame: bytes) -> None:
        half = len(frame) // 2 if any(fault.is_next for fault in planted) else 0
        if half:
            write(frame[:half])
        for fault in planted:
            fault.visit()
        write(frame[half:])

    return written if planted else write
