"""Saved sequence states: prefixes that left the KV cache, in RAM and, if asked, on disk.

Lives here: what is kept, what gives way, the way back. Not here: files (prefix_file.py), who asks
(prefix_cache.py), how a state is taken from libllama or put into it (slot.py).

Laws:
- The RAM level never holds more than its budget; what leaves it goes to disk if there is one.
- Among states the least recently used gives way: a state's size grows with its tokens and so does
  the cost to compute them again, which leaves the age. What comes from RAM to disk counts as used
  then.
- No call's cost grows with the number of states: the engine thread makes them all.
- The disk level counts whole files, those of other models, libraries and settings too: these are of
  no use here and go first (prefix_file.py says what that means for two servers on one folder).
- The engine thread waits for a disk only at the end: one thread here reads and writes the files,
  and what a disk that is behind has no time for is lost. A disk that is full, gone or read-only
  ends the saving with one warning, never the serving; what it then does not hold is dropped, so
  that nobody is promised it or waits for it.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Callable, NamedTuple

from libloader.core import Adapters
from libloader.engine.prefix_file import Folder, file_bytes

MAX_PENDING_BYTES = 64 << 20  # states that wait for the disk are in memory beside the RAM budget
TELL_S = 2.0  # after which the end of a server says what it waits for

logger = logging.getLogger(__name__)


class Saved:
    """The state of a sequence outside the KV cache. `state` is None while it is only on disk."""

    __slots__ = ("tokens", "adapters", "n_bytes", "state", "name")

    def __init__(
        self, tokens: list[int], adapters: Adapters, n_bytes: int, state: bytes | None, name: str
    ) -> None:
        self.tokens = tokens
        self.adapters = adapters  # with which it was computed
        self.n_bytes = n_bytes
        self.state = state
        self.name = name  # of its file; "" if there is none

    @property
    def n_file_bytes(self) -> int:
        return file_bytes(len(self.tokens), len(self.adapters), self.n_bytes)

    @property
    def level(self) -> str:
        return "disk" if self.state is None else "ram"


class Loading(NamedTuple):
    """A state on its way out of the store; the first `n` of its tokens are wanted."""

    saved: Saved
    level: str
    n: int
    state: Future[bytes | None]


class PrefixStore:
    """All saved states, on disk and in RAM. `on_drop` hears of each that is gone."""

    def __init__(self, ram_bytes: int, folder: Folder | None = None, disk_bytes: int = 0) -> None:
        self._ram_bytes = ram_bytes
        self._disk_bytes = disk_bytes
        self._folder = folder
        # Both least recently used first.
        self._in_ram: OrderedDict[Saved, None] = OrderedDict()
        self._on_disk: OrderedDict[Saved, None] = OrderedDict()
        self._pending: deque[tuple[Saved, Future[bool]]] = deque()  # the disk does them in order
        self._is_closing = self._is_told = False
        self.on_drop: Callable[[Saved], None] = lambda saved: None
        self.n_ram_bytes = self._n_disk_bytes = self._n_pending_bytes = 0
        self._bytes_per_token = 0.0  # of the latest state; 0 = none was seen
        self._disk = ThreadPoolExecutor(1, "prefix-disk") if folder else None
        for entry in folder.index() if folder else ():
            saved = Saved(entry.tokens, entry.adapters, entry.n_bytes, None, entry.name)
            self._on_disk[saved] = None
            self._n_disk_bytes += saved.n_file_bytes
        # Files of no use to us: names and sizes, oldest first.
        self._others = OrderedDict(
            (each.name, each.n_bytes) for each in (folder.others if folder else ())
        )
        self._n_disk_bytes += sum(self._others.values())
        self._shrink_disk()

    def __iter__(self) -> Iterator[Saved]:
        return iter([*self._on_disk, *self._in_ram])

    @property
    def takes(self) -> bool:
        """False where nothing can be saved: then no state need be copied out of libllama."""
        return self._ram_bytes > 0 or self.outlives_us

    @property
    def most_bytes(self) -> int:
        """The size of the largest state that can be kept."""
        return max(self._ram_bytes, self._disk_bytes if self.outlives_us else 0)

    @property
    def outlives_us(self) -> bool:
        """True where states are found again after a restart."""
        return self._folder is not None and self._folder.is_writable

    def can_hold(self, n_tokens: int) -> bool:
        """Say whether a state of so many tokens would find room here, by the latest one's size."""
        return self.takes and n_tokens * self._bytes_per_token <= self._ram_bytes

    def fits(self, n_tokens: int, n_bytes: int) -> bool:
        """Say whether a state of this size can be kept: if not, it need not even be copied."""
        self._bytes_per_token = n_bytes / n_tokens
        return n_bytes <= self.most_bytes

    def put(self, tokens: list[int], state: bytes, adapters: Adapters = ()) -> Saved | None:
        """Keep `state`; None if it is larger than all there is."""
        self._bytes_per_token = len(state) / len(tokens)
        saved = Saved(tokens, adapters, len(state), state, "")
        self._in_ram[saved] = None
        self.n_ram_bytes += saved.n_bytes
        if saved.n_bytes > self._ram_bytes:  # nobody need make room for it
            self._leave_ram(saved)
        while self.n_ram_bytes > self._ram_bytes:
            self._leave_ram(next(iter(self._in_ram)))
        return saved if saved in self._level_of(saved) else None

    def touch(self, saved: Saved) -> None:
        """Note that `saved` was used."""
        self._level_of(saved).move_to_end(saved)

    def fetch(self, saved: Saved) -> Future[bytes | None]:
        """Return the state, at once or when the disk has given it; None if the file is no good."""
        self.touch(saved)
        if saved.state is not None or self._disk is None or self._folder is None:
            ready: Future[bytes | None] = Future()
            ready.set_result(saved.state)
            return ready
        return self._disk.submit(self._folder.read, saved.name, saved.tokens, saved.adapters)

    def forget(self, saved: Saved) -> None:
        """Drop a state that is of no use: its file is no good, or a longer one begins with it."""
        if saved in self._level_of(saved):
            self._drop(saved)

    def settle(self) -> None:
        """Take note of what the disk has done: what it could not write is dropped."""
        while self._pending and self._pending[0][1].done():
            saved, write = self._pending.popleft()
            self._n_pending_bytes -= saved.n_bytes
            if not write.result():
                self.forget(saved)
                self._forget_all_if_gone()

    def begin_to_close(self) -> None:
        """From now on wait for a disk that is behind, instead of going on without it."""
        self._is_closing = True

    def close(self) -> None:
        """Bring to disk what is in RAM, and wait for it."""
        self.begin_to_close()
        for saved in list(self._in_ram) if self.outlives_us else ():
            self._leave_ram(saved)
        if self._disk is not None:
            self._wait_for_disk()
            self._disk.shutdown()

    def _level_of(self, saved: Saved) -> OrderedDict[Saved, None]:
        return self._on_disk if saved.state is None else self._in_ram

    def _leave_ram(self, saved: Saved) -> None:
        state = saved.state
        assert state is not None
        fits = saved.n_file_bytes <= self._disk_bytes and not self._is_disk_behind()
        if self._folder is None or self._disk is None or not (fits and self.outlives_us):
            self._drop(saved)
            return
        del self._in_ram[saved]
        self.n_ram_bytes -= saved.n_bytes
        saved.state, saved.name = None, self._folder.name_for(saved.tokens, saved.adapters)
        self._on_disk[saved] = None
        self._n_disk_bytes += saved.n_file_bytes - self._others.pop(saved.name, 0)
        self._shrink_disk()  # what is removed is removed before this one is written
        what = (saved.name, saved.tokens, saved.adapters, state)
        self._pending.append((saved, self._disk.submit(self._folder.write, *what)))
        self._n_pending_bytes += saved.n_bytes

    def _shrink_disk(self) -> None:
        while self._n_disk_bytes > self._disk_bytes and self._others:
            name, n_bytes = self._others.popitem(last=False)
            self._n_disk_bytes -= n_bytes
            if self._disk is not None and self._folder is not None:
                self._disk.submit(self._folder.remove_other, name)
        while self._n_disk_bytes > self._disk_bytes:
            self._drop(next(iter(self._on_disk)))

    def _is_disk_behind(self) -> bool:
        self.settle()
        if self._is_closing and self._n_pending_bytes > MAX_PENDING_BYTES:
            self._wait_for_disk()
        return self._n_pending_bytes > MAX_PENDING_BYTES

    def _wait_for_disk(self) -> None:
        """Wait until all is written that was to be; whoever waits with us learns for what."""
        late = wait([write for _, write in self._pending], TELL_S).not_done
        if late and not self._is_told:
            self._is_told = True
            logger.warning("the disk is slow: prefixes are still being saved")
        wait(late)
        self.settle()

    def _forget_all_if_gone(self) -> None:
        if self._folder is not None and self._folder.is_gone:
            for saved in list(self._on_disk):
                self._drop(saved)

    def _drop(self, saved: Saved) -> None:
        del self._level_of(saved)[saved]
        if saved.state is None:
            self._n_disk_bytes -= saved.n_file_bytes
        else:
            self.n_ram_bytes -= saved.n_bytes
        if saved.name and self._disk is not None and self._folder is not None:
            self._disk.submit(self._folder.remove, saved.name)
        self.on_drop(saved)
