"""The one thread that waits for many sockets, so that nobody else has to poll.

It reads what connections in the lobby send, sees clients hang up while their answers are being
made, sends what slow clients left unread, keeps silent event streams alive and swallows the last
input of closing connections.

Laws:
- The selector belongs to the watcher's thread; others hand it work with `soon` and `sync`.
- A socket that was ever watched is closed by the watcher, after it has let go of it: a reused file
  descriptor can never be mistaken for its predecessor.
- Channels never block, and an exception in one never reaches another.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
from collections import deque
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Callable

from libloader.web import tls
from libloader.web.settings import WebSettings

log = logging.getLogger("igllama.web")

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
_MAX_LINGERING = 256  # beyond it a closing connection is closed at once


class Channel:
    """A socket with its interests. All methods but `mask` run on the watcher's thread."""

    sock: socket.socket

    def mask(self) -> int:
        """Return READ and WRITE as wanted now; 0 = let go of the socket."""
        raise NotImplementedError

    def readable(self) -> None:
        raise NotImplementedError

    def writable(self) -> None:
        raise NotImplementedError

    def tick(self, now: float) -> None:
        """Called some times a second while watched: the place for deadlines."""
        raise NotImplementedError


class Watcher:
    def __init__(self, settings: WebSettings) -> None:
        self._settings = settings
        waits_s = (settings.linger_s, settings.send_s, settings.ping_s, settings.head_s)
        self._tick_s = min(1.0, *waits_s, settings.idle_s, settings.body_s) / 4
        self._selector = selectors.DefaultSelector()
        self._masks: dict[Channel, int] = {}  # what is registered
        self._lingering: set[Channel] = set()
        self._on_tick: list[Callable[[float], None]] = []
        self._todo: deque[Callable[[], None]] = deque()
        self._bell, self._bell_end = socket.socketpair()
        self._rung = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="http-watcher", daemon=True)

    def start(self) -> None:
        self._bell.setblocking(False)
        self._bell_end.setblocking(False)
        self._selector.register(self._bell_end, READ, None)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what still lingers is closed."""
        self._stopping = True
        if self._thread.is_alive():
            self._ring()
            self._thread.join()
        else:
            self._close_all()

    def soon(self, work: Callable[[], None]) -> None:
        """Have the watcher's thread call `work`. Any thread; never blocks."""
        self._todo.append(work)
        if threading.get_ident() != self._thread.ident:
            self._ring()

    def sync(self, channel: Channel) -> None:
        """Have the watcher look at `channel.mask()` again. Any thread; never blocks."""
        self.soon(lambda: self._sync(channel))

    def retire(self, channel: Channel, lingers: bool) -> None:
        """Let go of the channel and close its socket, first swallowing input if it `lingers`."""
        self.soon(lambda: self._retire(channel, lingers))
        if not self._thread.is_alive():
            self._close(channel)

    def call_at_ticks(self, work: Callable[[float], None]) -> None:
        """Have `work` called with the time, some times a second. Before `start`."""
        self._on_tick.append(work)

    def n_watched(self) -> int:
        return len(self._masks)

    def _ring(self) -> None:
        if not self._rung:
            self._rung = True
            with suppress(OSError):  # full: it is ringing already
                self._bell.send(b"\0")

    def _run(self) -> None:
        next_tick = 0.0
        while not self._stopping:
            # Order matters: the flag falls before the list is emptied, see `soon`.
            self._rung = False
            while self._todo:
                _guarded(self._todo.popleft())
            now = monotonic()
            if now >= next_tick:
                next_tick = now + self._tick_s
                self._tick(now)
            if not self._todo:
                self._wait(max(0.0, next_tick - now))
        self._close_all()

    def _tick(self, now: float) -> None:
        for work in self._on_tick:
            _guarded(partial(work, now))
        for channel in list(self._masks):
            _guarded(partial(channel.tick, now))
            _guarded(partial(self._sync, channel))

    def _wait(self, timeout_s: float) -> None:
        for key, events in self._selector.select(timeout_s):
            channel: Channel | None = key.data
            if channel is None:
                with suppress(OSError):
                    self._bell_end.recv(4096)
                continue
            if events & READ:
                _guarded(channel.readable)
            if events & WRITE:
                _guarded(channel.writable)
            _guarded(partial(self._sync, channel))

    def _sync(self, channel: Channel) -> None:
        wanted, current = channel.mask(), self._masks.get(channel, 0)
        if wanted == current:
            return
        if not wanted:
            self._let_go(channel)
            return
        if current:
            self._selector.modify(channel.sock, wanted, channel)
        else:
            self._selector.register(channel.sock, wanted, channel)
        self._masks[channel] = wanted

    def _let_go(self, channel: Channel) -> None:
        if self._masks.pop(channel, 0):
            self._selector.unregister(channel.sock)

    def _retire(self, channel: Channel, lingers: bool) -> None:
        self._let_go(channel)
        if lingers and len(self._lingering) < _MAX_LINGERING and not self._stopping:
            rest = Lingering(channel.sock, self._settings, self._close)
            self._lingering.add(rest)
            self._sync(rest)
            rest.readable()  # often the end is there already
        else:
            channel.sock.close()

    def _close(self, channel: Channel) -> None:
        self._let_go(channel)
        self._lingering.discard(channel)
        channel.sock.close()

    def _close_all(self) -> None:
        """The end, reached once by the thread, or by `stop` if the thread never ran."""
        while self._todo:
            _guarded(self._todo.popleft())
        for channel in list(self._masks):
            _guarded(partial(self._close, channel))
        self._selector.close()
        self._bell.close()
        self._bell_end.close()


class Lingering(Channel):
    """A connection after its last answer: input is thrown away until the client closes too.

    Closing with unread input makes the kernel send a reset, which can overtake the answer: a client
    that is still sending its 20 MB would never read why they were refused.
    """

    def __init__(
        self, sock: socket.socket, settings: WebSettings, close: Callable[[Channel], None]
    ) -> None:
        self.sock = tls.plain_socket(sock)
        self._close = close
        self._until = monotonic() + settings.linger_s
        self._bytes_left = settings.linger_bytes
        self._open = True
        self.sock.setblocking(False)
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def mask(self) -> int:
        return READ if self._open else 0

    def readable(self) -> None:
        try:
            n_bytes = len(self.sock.recv(256 * 1024))
        except tls.WOULD_BLOCK:
            return
        except OSError:
            n_bytes = 0
        self._bytes_left -= n_bytes
        if n_bytes == 0 or self._bytes_left < 0:
            self._end()

    def writable(self) -> None:
        pass

    def tick(self, now: float) -> None:
        if now >= self._until:
            self._end()

    def _end(self) -> None:
        self._open = False
        self._close(self)


def _guarded(work: Callable[[], None]) -> None:
    try:
        work()
    except Exception:  # thread top: one channel's fault must not reach the others
        log.exception("the watcher met an unexpected error")
