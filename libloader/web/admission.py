"""Who is inside: the connections of one server, and the memory lent for bodies.

A connection is either *reading* (it owes us a request: silent, slow, or between two requests) or
*working* (we owe it an answer). Some of the reading already *hold* a thread, for a long body. When
all places are taken, the one that has been reading longest is shed, provided it had a fair time;
only when everybody is being worked for, the newcomer is refused. A newcomer may wait for a moment
in the kernel's backlog first: bursts pass by themselves.
"""

from __future__ import annotations

import threading
from time import monotonic

from libloader.web.problems import HttpProblem
from libloader.web.settings import WebSettings
from libloader.web.wire import Wire


class Admission:
    def __init__(self, settings: WebSettings) -> None:
        self._settings = settings
        self._changed = threading.Condition()
        self._reading: dict[Wire, float] = {}  # since when; the one that waits longest is first
        self._working: set[Wire] = set()
        self._holding: dict[Wire, float] = {}  # of the reading: who has a thread, and since when
        self._shed: set[Wire] = set()  # told to go, not gone yet: no longer counted
        self._all_working_since = 0.0
        self.n_shed = 0
        self.n_refused = 0

    def admit(self, wire: Wire) -> bool:
        """Let `wire` in, waiting a moment for a place if need be; False = refuse it."""
        with self._changed:
            if self._too_many_of(wire.ip) or not self._make_room():
                self.n_refused += 1
                return False
            self._reading[wire] = monotonic()
            return True

    def leave(self, wire: Wire) -> None:
        with self._changed:
            self._reading.pop(wire, None)
            self._holding.pop(wire, None)
            self._working.discard(wire)
            self._shed.discard(wire)
            self._changed.notify_all()

    def begin_reading(self, wire: Wire) -> bool:
        """Note that `wire` owes a request from now on; False if it was shed."""
        with self._changed:
            self._holding.pop(wire, None)
            if wire in self._working:
                self._working.remove(wire)
                self._changed.notify_all()
            elif self._reading.pop(wire, None) is None:
                return False
            self._reading[wire] = monotonic()
            return True

    def hold_thread(self, wire: Wire) -> None:
        """Note that a thread waits for what `wire` still owes."""
        with self._changed:
            self._holding[wire] = monotonic()

    def begin_work(self, wire: Wire) -> bool:
        """Note that we owe `wire` an answer: it is safe now; False if it was shed."""
        with self._changed:
            self._holding.pop(wire, None)
            if self._reading.pop(wire, None) is None:
                return False
            self._working.add(wire)
            if not self._reading:
                self._all_working_since = monotonic()
            return True

    def shed_longest_reading(self) -> None:
        """Make somebody go who owes us a request: file descriptors have run out."""
        with self._changed:
            for victim in list(self._reading)[:1]:
                self._make_go(victim)

    def shed_longest_holding(self) -> None:
        """Make somebody go for whom a thread has waited too long: others need the thread."""
        with self._changed:
            wire, since = next(iter(self._holding.items()), (None, 0.0))
            if wire is not None and monotonic() - since >= self._settings.shed_after_s:
                self._make_go(wire)

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Wait until nobody is owed an answer; False after `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._working, timeout_s)

    def wait_until_empty(self, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not (self.n_open() or self._shed), timeout_s)

    def cut_all(self) -> None:
        with self._changed:
            for wire in [*self._reading, *self._working]:
                self._make_go(wire)

    def n_open(self) -> int:
        return len(self._reading) + len(self._working)

    def n_working(self) -> int:
        return len(self._working)

    # Under the lock.

    def _too_many_of(self, ip: str) -> bool:
        cap = self._settings.n_connections_per_ip
        inside = (*self._reading, *self._working) if cap and ip else ()
        return bool(inside) and sum(wire.ip == ip for wire in inside) >= cap

    def _make_room(self) -> bool:
        """Wait, shed or give up until there is a place."""
        fair_s = self._settings.shed_after_s
        while self.n_open() >= self._settings.n_connections:
            victim, since = next(iter(self._reading.items()), (None, self._all_working_since))
            wait_s = since + fair_s - monotonic()
            if wait_s > 0:
                self._changed.wait(wait_s)
            elif victim is not None:
                self._make_go(victim)
            else:
                return False  # it has been so for a while: waiting longer helps nobody
        return True

    def _make_go(self, wire: Wire) -> None:
        self._reading.pop(wire, None)
        self._holding.pop(wire, None)
        self._working.discard(wire)
        self._shed.add(wire)
        self.n_shed += 1
        wire.cut()


class BodyBudget:
    """Memory that the bodies of all running requests may hold together."""

    def __init__(self, n_bytes: int) -> None:
        self._left = n_bytes
        self._lock = threading.Lock()

    def borrow(self, n_bytes: int) -> None:
        """Take `n_bytes`, or refuse the request: 503."""
        with self._lock:
            if n_bytes > self._left:
                message = "too many large requests at once; try again in a moment"
                raise HttpProblem(503, message, headers=(("Retry-After", "1"),))
            self._left -= n_bytes

    def give_back(self, n_bytes: int) -> None:
        with self._lock:
            self._left += n_bytes
