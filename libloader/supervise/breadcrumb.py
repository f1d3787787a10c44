"""A page of memory that front and engine child share: what the child is doing at this moment.

The child writes it before each call that may crash or hang; the front reads it to see that the
child lives, and after a crash to name the request that was in hand. It survives the child's death
because the front maps it too. It never touches a disk where the system can avoid that.

    bytes    0..8      beat: counts the marks; standing still means that nothing happens
             8..16     step: the number of the engine step
             16..32    phase, ASCII, NUL-padded
             32..34    length of the ids
             34..4096  ids of the requests in hand, separated by spaces
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
import tempfile
from typing import NamedTuple

SIZE = 4096
_HEAD = struct.Struct("<QQ16s")
_N_IDS = struct.Struct("<H")
_IDS_AT = _HEAD.size + _N_IDS.size


class Crumb(NamedTuple):
    """One reading. `ids` is empty when the phase concerns nobody or when they did not fit."""

    beat: int = 0
    step: int = 0
    phase: str = ""
    ids: tuple[str, ...] = ()


class Breadcrumb:
    """One side's view of the page. `address` is what the other side opens it with."""

    def __init__(self, page: mmap.mmap, address: str, fd: int = -1) -> None:
        self._page = page
        self.address = address
        self.fd = fd  # to be passed to the child; -1 where the page has a name instead
        self._beat = 0
        self._ids = ""

    @classmethod
    def create(cls) -> Breadcrumb:
        """Make a page that a child can open."""
        if sys.platform == "win32":
            name = f"igllama-{os.getpid()}-{os.urandom(8).hex()}"
            return cls(mmap.mmap(-1, SIZE, tagname=name), name)
        fd = _anonymous_file()
        os.ftruncate(fd, SIZE)
        return cls(mmap.mmap(fd, SIZE), str(fd), fd)

    @classmethod
    def open(cls, address: str) -> Breadcrumb:
        """Map the page that the front made; called in the child."""
        if sys.platform == "win32":
            return cls(mmap.mmap(-1, SIZE, tagname=address), address)
        fd = int(address)
        page = mmap.mmap(fd, SIZE)
        os.close(fd)
        return cls(page, address)

    def mark(self, phase: str, ids: str = "", step: int = 0) -> None:
        """Note `phase`, the ids it works on (space-separated), the step. Hot: about 1 us.

        The ids go first: whoever finds the new phase finds its ids too.
        """
        if ids != self._ids:
            self._write_ids(ids)
        self._beat += 1
        _HEAD.pack_into(self._page, 0, self._beat, step, phase.encode("ascii"))

    def read(self) -> Crumb:
        """Return the page as it stands; while the child runs, its parts may differ in age."""
        beat, step, phase = _HEAD.unpack_from(self._page, 0)
        (length,) = _N_IDS.unpack_from(self._page, _HEAD.size)
        ids = bytes(self._page[_IDS_AT : min(SIZE, _IDS_AT + length)])
        return Crumb(
            beat,
            step,
            phase.rstrip(b"\0").decode("ascii", "replace"),
            tuple(ids.decode("utf-8", "replace").split()),
        )

    def close(self) -> None:
        self._page.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _write_ids(self, ids: str) -> None:
        self._ids = ids
        data = ids.encode("utf-8")
        if len(data) > SIZE - _IDS_AT:
            data = b""  # a set cut in half would clear requests that are not known to be innocent
        self._page[_IDS_AT : _IDS_AT + len(data)] = data
        _N_IDS.pack_into(self._page, _HEAD.size, len(data))


def _anonymous_file() -> int:
    """Return the fd of a file without a name; the caller owns it."""
    if hasattr(os, "memfd_create"):  # Linux
        return os.memfd_create("igllama-breadcrumb")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
