"""One client's socket, shared between threads under one rule.

    phase      who touches the socket                           how
    parked     the watcher only                                 never waiting: it owes us a request
    blocking   the connection's own thread only                 with a deadline for every call
    watched    the watcher reads; any thread may `offer` bytes  never waiting, under the wire's lock

A wire is watched from `watch` to `unwatch`: while an answer is being made or streamed. What the
client sends meanwhile (the next requests) waits in the inbox. The end of its input then means that
it has gone, also when it only closed its sending side: an answer that is not finished by then is
cancelled. What a slow client leaves unread waits in the backlog, up to a limit.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Callable

from libloader.errors import ClientGone
from libloader.web import tls
from libloader.web.settings import WebSettings
from libloader.web.watch import READ, WRITE, Channel, Watcher

if TYPE_CHECKING:
    import ssl

# What the kernel keeps for a slow reader, before our backlog begins.
_STREAM_SEND_BUFFER_BYTES = 256 * 1024


class Wire(Channel):
    def __init__(
        self, sock: socket.socket, peer: str, ip: str, settings: WebSettings, watcher: Watcher
    ) -> None:
        self.sock = sock
        self.peer = peer
        self.ip = ip
        self.inbox = bytearray()
        self.lost = False  # the client has gone, or we gave it up; nothing is sent any more
        self._at_end = False  # its input has ended
        self._settings = settings
        self._watcher = watcher
        self._lock = threading.Lock()
        self._watched = self._was_watched = False
        self._backlog = bytearray()
        self._is_last = False  # the backlog is the end of the answer
        self._give_up_at = 0.0  # if the backlog has not moved by then
        self._settled = threading.Event()  # the watched answer is sent, or never will be
        self._on_gone: Callable[[], None] | None = None
        self._on_tick: Callable[[float], None] | None = None
        self.sent_at = 0.0

    # Parked: the watcher's thread.

    def park(self) -> None:
        """Begin the parked phase; it ends when the watcher hands the wire to a thread."""
        self._was_watched = True
        with suppress(OSError):  # it may have been cut
            self.sock.setblocking(False)

    def poll(self, n_bytes: int) -> bool:
        """Add what has arrived to the inbox, without waiting; False at the end of the input."""
        try:
            data = self.sock.recv(n_bytes)
            while data and tls.pending(self.sock):  # decrypted already: no selector tells of it
                self.inbox += data
                data = self.sock.recv(n_bytes)
        except tls.WOULD_BLOCK:
            return True
        except OSError:
            data = b""
        self.inbox += data
        self._at_end = not data
        return bool(data)

    # Blocking phase: the connection's own thread.

    def start_tls(self, context: ssl.SSLContext) -> None:
        """Shake hands, within the handshake's deadline. OSError if the client cannot."""
        self.lost = True  # until it has succeeded: nothing can be said before
        self.sock = tls.shake_hands(self.sock, context, self._settings.handshake_s)
        self.lost = False

    def fill(self, deadline: float, n_bytes: int) -> bool:
        """Wait for input and add it to the inbox; False at its end. socket.timeout if late."""
        left_s = deadline - monotonic()
        if left_s <= 0:
            raise socket.timeout
        self.sock.settimeout(left_s)
        try:
            data = self.sock.recv(n_bytes)
        except socket.timeout:
            raise
        except OSError:
            data = b""
        self.inbox += data
        self._at_end = not data
        return bool(data)

    def send_all(self, data: bytes) -> None:
        """Send `data`, at the pace of the client but not for ever. ClientGone if that fails."""
        limits, view = self._settings, memoryview(data)
        deadline = monotonic() + limits.send_s + len(data) / limits.rate_bytes_per_s
        try:
            while view:
                left_s = deadline - monotonic()
                self.sock.settimeout(max(0.001, min(left_s, limits.send_s)))
                view = view[self.sock.send(view) :]
        except OSError:
            self.lost = True
            raise ClientGone("the client closed its connection or stopped reading") from None

    def close(self) -> None:
        """The last call. The socket stays for a while if the client may still be reading."""
        self.unwatch()
        lingers = not (self.lost or self._at_end)
        if lingers or self._was_watched:
            self._watcher.retire(self, lingers)
        else:
            self.sock.close()

    def cut(self) -> None:
        """End the connection from any thread: its own wakes up and finds the end of input."""
        with suppress(OSError):  # the plain method: SSLSocket's would change the object as well
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)

    # Between the phases.

    def watch(self) -> None:
        """Begin the watched phase, if it has not begun. Any one thread."""
        with self._lock:
            if self.lost:
                self._settled.set()  # nothing will be sent: nobody shall wait for it
            if self._watched or self.lost:
                return
            self._watched = self._was_watched = True
            self.sock.setblocking(False)
        self._watcher.sync(self)

    def unwatch(self) -> None:
        """End the watched phase: from here the calling thread owns the socket."""
        with self._lock:
            self._on_gone = self._on_tick = None
            self._is_last = False
            self._settled.clear()
            was_watched, self._watched = self._watched, False
        if was_watched:
            self._watcher.sync(self)

    def call_when_gone(self, callback: Callable[[], None]) -> None:
        """Have the watcher call `callback` once when the client goes before `unwatch`."""
        with self._lock:
            self._on_gone = callback
            if self.lost:
                self._tell_gone()

    # Watched phase: any thread.

    def begin_stream(self, head: bytes, on_tick: Callable[[float], None] | None) -> None:
        """Send `head`; from then on, not before, the watcher calls `on_tick` now and then."""
        with suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _STREAM_SEND_BUFFER_BYTES)
        self.watch()
        self.offer(head)
        self._on_tick = on_tick

    def offer(self, data: bytes, is_last: bool = False) -> None:
        """Send `data` now or keep it for later; never blocks. Hot: once per token and stream."""
        with self._lock:
            if not self._watched or self.lost or self._is_last:
                return
            self._is_last = is_last
            if self._backlog:
                self._backlog += data
            else:
                self._send_or_keep(data)
            if len(self._backlog) > self._settings.backlog_bytes:
                self._lose()
            elif is_last:
                self._begin_end()

    def abandon(self) -> None:
        """Send nothing more and end the connection; nobody is told that the client has gone."""
        with self._lock:
            self._on_gone = None
            self._lose()

    def wait_settled(self, timeout_s: float | None = None) -> bool:
        """Sleep until the answer is sent or the client is lost; False after `timeout_s`."""
        return self._settled.wait(timeout_s)

    # Channel: the watcher's thread.

    def mask(self) -> int:
        if not self._watched or self.lost:
            return 0
        wants_input = len(self.inbox) <= self._settings.ahead_bytes
        return (READ if wants_input else 0) | (WRITE if self._backlog else 0)

    def readable(self) -> None:
        with self._lock:
            if not self._watched or self.lost:
                return
            try:
                data = self.sock.recv(4096)
            except tls.WOULD_BLOCK:
                return
            except OSError:
                data = b""
            self.inbox += data
            if not data:
                self._lose()

    def writable(self) -> None:
        with self._lock:
            if self._watched and self._backlog and not self.lost:
                del self._backlog[: self._send_some(self._backlog)]
                self._settle_if_sent()

    def tick(self, now: float) -> None:
        with self._lock:
            if self._backlog and now >= self._give_up_at:
                self._lose()
        on_tick = self._on_tick
        if on_tick is not None:
            on_tick(now)

    # Under the lock.

    def _send_or_keep(self, data: bytes) -> None:
        n_sent = self._send_some(data)
        if n_sent < len(data) and not self.lost:
            self._backlog += data[n_sent:]
            self._give_up_at = monotonic() + self._settings.send_s
            self._watcher.sync(self)

    def _send_some(self, data: bytes | bytearray) -> int:
        """Send what the kernel takes now, and return how much that was."""
        try:
            n_sent = self.sock.send(data)
        except tls.WOULD_BLOCK:
            return 0
        except OSError:
            self._lose()
            return 0
        self.sent_at = monotonic()
        if not self._is_last:
            self._give_up_at = self.sent_at + self._settings.send_s
        return n_sent

    def _begin_end(self) -> None:
        """From here the whole rest has one deadline, which single bytes do not move."""
        limits = self._settings
        rest_s = len(self._backlog) / limits.rate_bytes_per_s
        self._give_up_at = monotonic() + limits.send_s + rest_s
        self._settle_if_sent()

    def _settle_if_sent(self) -> None:
        if self._is_last and not self._backlog and not self.lost:
            self._on_gone = None  # who goes now has the whole answer
            self._settled.set()

    def _lose(self) -> None:
        if self.lost:
            return
        self.lost = True
        self._backlog.clear()
        self._settled.set()
        self._tell_gone()
        self._watcher.sync(self)

    def _tell_gone(self) -> None:
        callback, self._on_gone = self._on_gone, None
        if callback is not None:
            self._watcher.soon(callback)
