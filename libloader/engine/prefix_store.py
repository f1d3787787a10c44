"""Saved sequence states: prefixes that left the KV cache, in RAM and, if asked, on disk.

Lives here: what is kept, what gives way, the way back. Not here: files (prefix_file.py), who asks
(prefix_cache.py), how a state is taken from libllama or put into it (slot.py).

Laws:
- The RAM level never holds more than its budget; what leaves it goes to disk if there is one.
- Among states the least recently used gives way: a state's size grows with its tokens and so does
  the cost to compute them again, which leaves the age. One that another state begins with is worth
  nothing beside it, where that can be cut, and goes at once.
- The engine thread never waits for a disk: files are read and written by one thread here. A disk
  that is full, gone or read-only ends the saving with one warning, never the serving.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Callable, NamedTuple

from libloader.core import Adapters
from libloader.engine.prefix_file import Folder

MAX_PENDING_BYTES = 64 << 20  # states that wait for the disk are in memory beside the RAM budget

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
    def level(self) -> str:
        return "disk" if self.state is None else "ram"


class Loading(NamedTuple):
    """A state on its way out of the store; the first `n` of its tokens are wanted."""

    saved: Saved
    level: str
    n: int
    state: Future[bytes | None]


class PrefixStore:
    """All saved states, least recently used first. `on_drop` hears of each that is gone."""

    def __init__(self, ram_bytes: int, folder: Folder | None = None, disk_bytes: int = 0) -> None:
        self._ram_bytes = ram_bytes
        self._disk_bytes = disk_bytes
        self._folder = folder
        self._all: OrderedDict[Saved, None] = OrderedDict()
        self._pending: list[tuple[int, Future[None]]] = []
        self.on_drop: Callable[[Saved], None] = lambda saved: None
        self.n_ram_bytes = 0
        self._bytes_per_token = 0.0  # of the latest state; 0 = none was seen
        self._disk = ThreadPoolExecutor(1, "prefix-disk") if folder else None
        for entry in folder.index() if folder else ():
            saved = Saved(entry.tokens, entry.adapters, entry.n_bytes, None, entry.name)
            self._all[saved] = None
        self._shrink_disk()

    def __iter__(self) -> Iterator[Saved]:
        return iter(list(self._all))

    @property
    def takes(self) -> bool:
        """False where nothing can be saved: then no state need be copied out of libllama."""
        return self._ram_bytes > 0 or self._folder is not None

    @property
    def most_bytes(self) -> int:
        """The size of the largest state that can be kept."""
        return max(self._ram_bytes, self._disk_bytes if self._folder is not None else 0)

    @property
    def outlives_us(self) -> bool:
        """True where states are found again after a restart."""
        return self._folder is not None

    def can_hold(self, n_tokens: int) -> bool:
        """Say whether a state of so many tokens would find room here, by the latest one's size."""
        return self.takes and n_tokens * self._bytes_per_token <= self._ram_bytes

    def put(
        self, tokens: list[int], state: bytes, adapters: Adapters = (), *, can_cut: bool = True
    ) -> Saved | None:
        """Keep `state`; None if it is larger than all there is.

        One that can be cut makes those that it begins with superfluous.
        """
        alike = [saved for saved in self._all if can_cut and saved.adapters == adapters]
        for shorter in [saved for saved in alike if _begins(tokens, saved.tokens)]:
            self._drop(shorter)
        self._bytes_per_token = len(state) / len(tokens)
        saved = Saved(tokens, adapters, len(state), state, "")
        self._all[saved] = None
        self.n_ram_bytes += saved.n_bytes
        self._shrink(self._ram_bytes)
        return saved if saved in self._all else None

    def touch(self, saved: Saved) -> None:
        """Note that `saved` was used."""
        self._all.move_to_end(saved)

    def fetch(self, saved: Saved) -> Future[bytes | None]:
        """Return the state, at once or when the disk has given it; None if the file is no good."""
        self.touch(saved)
        if saved.state is not None or self._disk is None or self._folder is None:
            ready: Future[bytes | None] = Future()
            ready.set_result(saved.state)
            return ready
        return self._disk.submit(self._folder.read, saved.name, saved.tokens, saved.adapters)

    def forget(self, saved: Saved) -> None:
        """Drop a state that turned out to be of no use."""
        if saved in self._all:
            self._drop(saved)

    def close(self) -> None:
        """Bring to disk what is in RAM, and wait for it."""
        if self._folder is not None:
            for saved in list(self._all):
                if self._is_disk_behind():
                    wait([write for _, write in self._pending])
                self._leave_ram(saved)
        if self._disk is not None:
            self._disk.shutdown()

    def _shrink(self, budget: int) -> None:
        for saved in [each for each in self._all if each.state is not None]:
            if self.n_ram_bytes <= budget:
                return
            self._leave_ram(saved)

    def _leave_ram(self, saved: Saved) -> None:
        state = saved.state
        if state is None:
            return
        if self._folder is None or self._disk is None or self._is_disk_behind():
            self._drop(saved)
            return
        if not saved.name:
            what = (saved.tokens, saved.adapters)
            saved.name = self._folder.name_for(*what)
            write = self._disk.submit(self._folder.write, saved.name, *what, state)
            self._pending.append((saved.n_bytes, write))
        saved.state = None
        self.n_ram_bytes -= saved.n_bytes
        self._shrink_disk()

    def _shrink_disk(self) -> None:
        on_disk = [saved for saved in self._all if saved.state is None]
        n_bytes = sum(saved.n_bytes for saved in on_disk)
        for saved in on_disk:
            if n_bytes <= self._disk_bytes:
                return
            n_bytes -= saved.n_bytes
            self._drop(saved)

    def _is_disk_behind(self) -> bool:
        self._pending = [(n, write) for n, write in self._pending if not write.done()]
        return sum(n for n, _ in self._pending) > MAX_PENDING_BYTES

    def _drop(self, saved: Saved) -> None:
        del self._all[saved]
        if saved.state is not None:
            self.n_ram_bytes -= saved.n_bytes
        if saved.name and self._disk is not None and self._folder is not None:
            self._disk.submit(self._folder.remove, saved.name)
        self.on_drop(saved)


def _begins(tokens: list[int], beginning: list[int]) -> bool:
    return len(beginning) <= len(tokens) and tokens[: len(beginning)] == beginning
