"""The threads that work on requests: a bounded number, and a short queue when all are busy.

A thread that is done takes over who waits longest, so a burst needs no more threads than places.
Some places are kept for what must always be answered.
"""

from __future__ import annotations

import threading
from _thread import start_new_thread
from collections import deque
from time import monotonic
from typing import Callable, NamedTuple

Work = Callable[[], None]


class Waiting(NamedTuple):
    until: float
    work: Work
    refuse: Work


class Crew:
    def __init__(self, n_threads: int, n_reserved: int, patience_s: float) -> None:
        """`n_reserved` more threads are for what is urgent; others wait up to `patience_s`."""
        self._n_threads, self._n_reserved = n_threads, n_reserved
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._waiting: deque[Waiting] = deque()  # all as patient, so the first is over first
        self.n_busy = 0

    @property
    def is_short(self) -> bool:
        """True while somebody waits for a thread."""
        return bool(self._waiting)

    def do(self, work: Work, refuse: Work, urgent: bool = False) -> None:
        """Have a thread do `work`, soon; or `refuse`, called later by `tick`.

        RuntimeError if the system gives no more threads.
        """
        with self._lock:
            if self.n_busy >= self._n_threads + (self._n_reserved if urgent else 0):
                self._waiting.append(Waiting(monotonic() + self._patience_s, work, refuse))
                return
            self.n_busy += 1
        try:
            # Thread.start would wait until the new thread runs: that doubles the p99 of a burst of
            # 1,000 connections. Nothing here needs the Thread object.
            start_new_thread(self._run, (work,))
        except RuntimeError:
            with self._lock:
                self.n_busy -= 1
            raise

    def tick(self, now: float) -> None:
        """Refuse who has waited too long."""
        with self._lock:
            late = []
            while self._waiting and self._waiting[0].until <= now:
                late.append(self._waiting.popleft())
        for waiting in late:
            waiting.refuse()

    def _run(self, work: Work | None) -> None:
        while work is not None:
            work()
            work = self._next()

    def _next(self) -> Work | None:
        with self._lock:
            if self._waiting and self.n_busy <= self._n_threads:
                return self._waiting.popleft().work
            self.n_busy -= 1
            return None
