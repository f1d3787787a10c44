"""Where connections wait for their next request, all on the watcher's one thread.

A client that is silent or slow costs a socket and a few bytes here, never a thread: a thread is
asked for when a request has come so far that somebody can work on it, or can say why not.

    came so far     then
    nothing         head_s (new) or idle_s (kept), and the connection is closed without a word
    part of a head  head_s from its first byte, then 408
    a head          if it is refused without its body, at once; else body_s, then 408
    and its body    at once; of a long or chunked one the thread reads the rest itself
"""

from __future__ import annotations

from time import monotonic
from typing import Any, Callable, Protocol

from libloader.web.problems import HttpProblem
from libloader.web.request import Head, HeadReader
from libloader.web.settings import WebSettings
from libloader.web.watch import READ, Channel, Watcher
from libloader.web.wire import Wire

_READ_BYTES = 64 * 1024
LATE_PER_TICK = 40


class Arrival:
    """What has come of a connection's next request. No I/O; one thread at a time."""

    def __init__(self, settings: WebSettings, is_refused: Callable[[Head], bool]) -> None:
        self._settings = settings
        self._is_refused = is_refused
        self._reader = HeadReader(settings)
        self.head: Head | None = None
        self.problem: HttpProblem | None = None
        self.n_heads = 0

    def look(self, inbox: bytearray) -> bool:
        """True if a thread can go on with what is in the inbox; takes a whole head out of it."""
        if self.problem is not None:
            return True
        if self.head is None:
            try:
                self.head = self._reader.take(inbox)
            except HttpProblem as problem:
                self.problem = problem
                return True
        return self.head is not None and self._has_enough(self.head, inbox)

    def take(self) -> Head:
        """Return the head, or raise why there is none; from here on the next one is waited for."""
        head, problem = self.head, self.problem
        self.head = self.problem = None
        self.n_heads += 1
        if problem is not None:
            raise problem
        assert head is not None, "nothing has arrived"
        return head

    def _has_enough(self, head: Head, inbox: bytearray) -> bool:
        if head.length is None or head.wants_continue:
            return True
        n_missing = min(head.length, self._settings.ahead_bytes) - len(inbox)
        return n_missing <= 0 or self._is_refused(head)


class Visitor(Protocol):
    """A connection with what has come of its next request."""

    wire: Wire
    arrival: Arrival


class Lobby:
    """`serve` is called, on the watcher's thread, with each visitor that a thread may have.

    `leave` is told of each that is closed here instead.
    """

    def __init__(
        self,
        settings: WebSettings,
        watcher: Watcher,
        serve: Callable[[Any], None],
        leave: Callable[[Any], None],
    ) -> None:
        self.settings = settings
        self.serve = serve
        self.leave = leave
        self._watcher = watcher
        self._n_late = 0  # this tick
        watcher.call_at_ticks(self._begin_tick)

    def enter(self, visitor: Visitor) -> None:
        """Wait for the visitor's next request; its wire is the watcher's from here. Any thread."""
        visitor.wire.park()
        self._watcher.soon(lambda: self._sit_down(visitor))

    def _sit_down(self, visitor: Visitor) -> None:
        guest = Guest(self, visitor)
        guest.readable()  # often the request is there already
        self._watcher.sync(guest)

    def may_end(self) -> bool:
        """True if one more whose time is over may end now: a thousand at once would be felt."""
        self._n_late += 1
        return self._n_late <= LATE_PER_TICK

    def _begin_tick(self, now: float) -> None:
        self._n_late = 0

    def release(self, guest: Guest, then: Callable[[Any], None]) -> None:
        """Let go of the socket and only then pass the visitor on. The watcher's thread."""
        self._watcher.sync(guest)
        self._watcher.soon(lambda: then(guest.visitor))


class Guest(Channel):
    """One visitor, waiting."""

    def __init__(self, lobby: Lobby, visitor: Visitor) -> None:
        self.sock = visitor.wire.sock
        self.visitor = visitor
        self._wire, self._arrival = visitor.wire, visitor.arrival
        self._lobby = lobby
        self._waits = True
        self._began = self._head_at = monotonic()
        self._until = self._began + self._patience_s()

    def mask(self) -> int:
        return READ if self._waits else 0

    def readable(self) -> None:
        if not self._waits:
            return
        had_bytes = bool(self._wire.inbox)
        is_open = self._wire.poll(_READ_BYTES)
        if self._arrival.look(self._wire.inbox):
            self._go(self._lobby.serve)
        elif not is_open:
            self._go(self._lobby.leave)
        elif self._wire.inbox or self._arrival.head:
            self._extend(had_bytes)

    def writable(self) -> None:
        pass

    def tick(self, now: float) -> None:
        if not self._waits or now < self._until or not self._lobby.may_end():
            return
        if not (self._wire.inbox or self._arrival.head):
            self._go(self._lobby.leave)  # silence is no request that could be answered
            return
        what = "body" if self._arrival.head else "headers"
        self._arrival.problem = HttpProblem(408, f"the {what} did not arrive in time")
        self._go(self._lobby.serve)

    def _patience_s(self) -> float:
        settings, kept = self._lobby.settings, self._arrival.n_heads > 0
        return settings.idle_s if kept and not self._wire.inbox else settings.head_s

    def _extend(self, had_bytes: bool) -> None:
        """A first byte ends the idle time; a body may last as long as it keeps to the rate."""
        settings, now = self._lobby.settings, monotonic()
        if self._arrival.head is None:
            if not had_bytes and self._arrival.n_heads:
                self._until = now + settings.head_s
            return
        if self._head_at == self._began:
            self._head_at = now
        earned_s = len(self._wire.inbox) / settings.rate_bytes_per_s
        self._until = min(now, self._head_at + earned_s) + settings.body_s

    def _go(self, then: Callable[[Any], None]) -> None:
        self._waits = False
        self._lobby.release(self, then)
