"""Saved sequence states as files of one folder.

Lives here: the format, its checks, atomic writing. Not here: which states are kept and for how long
(prefix_store.py).

    bytes  0..8     magic, with the format's version
           8..40    binding: which model, library and settings the state belongs to
          40..44    number of LoRA adapters it was computed with, little-endian as all that follows
          44..48    number of tokens
          48..56    length of the state
          56..      for each adapter 32 bytes of hash and its scale, 8 bytes; token ids, 4 bytes
                    each; the state; BLAKE2b-256 of everything before

Laws:
- A file that is damaged, cut, foreign or not a plain file is never loaded: libllama trusts what it
  is given. The size is checked when the folder is read, the checksum when the state is.
- What is wrong with a folder is said in two lines at most, however much lies in it.
- A file appears whole or not at all: written under another name, synced, renamed. That name is a
  random one: process ids repeat in containers, which may share the folder, and after a restart.
- Several servers may share a folder, each with its own limit. One sees what lay there when it
  started, and what it writes itself, so n of them fill at most n limits. Where it needs room, the
  files go first that were there and that it cannot use, oldest first, also those of a server that
  runs: that one computes again what it misses. So a file may be gone at any moment.
- Nothing is removed that is not of this format, in any version.
- The first error of the file system ends the writing, with one warning. Nothing here raises.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import struct
import sys
import time
from array import array
from collections.abc import Sequence
from typing import BinaryIO, NamedTuple

from libloader import digests
from libloader.core import Adapters

MAGIC = b"IGLKV\r\n\2"
_KIND = MAGIC[:-1]  # the same in all versions
_HEAD = struct.Struct("<8s32sIIQ")
_ADAPTER = struct.Struct("<32sd")
_DIGEST_BYTES = 32
SUFFIX, UNFINISHED = ".kv", ".tmp"
ABANDONED_S = 3600.0  # an unfinished file this old has no writer any more
MAX_TOKENS = 1 << 24  # more is damage, not a prompt
MAX_ADAPTERS = 1 << 10
N_NAMED = 3  # of the files that are ignored
FOREIGN = (
    "of no use in %s: %d saved prefixes (%.1f MiB) of another model, library, setting or adapter; "
    "they count against --cache-disk and go first"
)

logger = logging.getLogger(__name__)


class Entry(NamedTuple):
    """What the beginning of a file says of it."""

    name: str
    tokens: list[int]
    adapters: Adapters
    n_bytes: int  # of the state


class File(NamedTuple):
    """A plain file."""

    name: str
    n_bytes: int
    mtime_s: float


def file_bytes(n_tokens: int, n_adapters: int, n_state: int) -> int:
    """Return the size of the file with a state of `n_state` bytes."""
    return _HEAD.size + _ADAPTER.size * n_adapters + 4 * n_tokens + n_state + _DIGEST_BYTES


class Folder:
    """The states of one model, library and settings in one folder. One thread at a time.

    `adapters` are the hashes of the LoRA adapters, by number.
    """

    def __init__(self, path: str, binding: bytes, adapters: Sequence[bytes] = ()) -> None:
        assert all(len(digest) == 32 for digest in (binding, *adapters))
        self._path = path
        self._binding = binding
        self._digests = adapters
        self.is_writable = True  # False for good after the first failure
        self.is_gone = False  # True if the folder itself was away then
        self.others: list[File] = []  # of our format and no use to us, oldest first; see index()

    def index(self) -> list[Entry]:
        """Return an entry for each file that may be ours, oldest first; fill `others`."""
        try:
            os.makedirs(self._path, 0o700, exist_ok=True)
            files = self._plain_files()
        except OSError as error:
            self._give_up(error)
            return []
        damaged: dict[str, Exception] = {}
        entries = [self._look_at(file, damaged) for file in files]
        self._tell(damaged)
        return [entry for entry in entries if entry is not None]

    def name_for(self, tokens: list[int], adapters: Adapters = ()) -> str:
        digest = digests.blake2b(self._head(tokens, adapters, 0), digest_size=16)
        return digest.hexdigest() + SUFFIX

    def read(self, name: str, tokens: list[int], adapters: Adapters = ()) -> bytes | None:
        """Return the state of `tokens`; None if the file is not exactly what was written."""
        try:
            with self._open(name) as file:
                n_bytes = os.fstat(file.fileno()).st_size
                n_state = max(0, n_bytes - file_bytes(len(tokens), len(adapters), 0))
                head = self._head(tokens, adapters, n_state)
                # In pieces: a state is too large to be in memory twice for a moment.
                begin, state, end = file.read(len(head)), file.read(n_state), file.read()
        except OSError as error:
            logger.info("cached prefix %r cannot be read: %s", name, error)
            return None
        if begin != head or end != _digest(head, state):
            logger.warning("cached prefix %r is damaged or foreign; it is ignored", name)
            return None
        return state

    def write(self, name: str, tokens: list[int], adapters: Adapters, state: bytes) -> bool:
        """Write a state, atomically; False if it is not there, as ever after the first failure."""
        if not self.is_writable:
            return False
        unfinished = os.path.join(self._path, f"{name}.{os.urandom(8).hex()}{UNFINISHED}")
        try:
            self._write_whole(unfinished, self._head(tokens, adapters, len(state)), state)
            os.replace(unfinished, os.path.join(self._path, name))
            return True
        except FileExistsError:
            logger.info("%s is being written by another server", unfinished)
        except OSError as error:
            self._give_up(error)
            self._remove(unfinished)
        return False

    def remove(self, name: str) -> None:
        self._remove(os.path.join(self._path, name))

    def remove_other(self, name: str) -> None:
        """Remove one of `others`, unless the name has become that of something else."""
        if self._is_of_our_kind(name):
            self.remove(name)

    def _head(self, tokens: list[int], adapters: Adapters, n_state: int) -> bytes:
        """Return all that a file holds before its state; adapters in the order of their hashes."""
        packed = sorted(_ADAPTER.pack(self._digests[number], scale) for number, scale in adapters)
        head = _HEAD.pack(MAGIC, self._binding, len(adapters), len(tokens), n_state)
        return head + b"".join(packed) + _packed(tokens)

    def _plain_files(self) -> list[File]:
        """Return the plain files, oldest first, less what vanishes while the folder is read."""
        files = []
        with os.scandir(self._path) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    about = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(about.st_mode):
                        files.append(File(entry.name, about.st_size, about.st_mtime))
        return sorted(files, key=lambda file: file.mtime_s)

    def _tell(self, damaged: dict[str, Exception]) -> None:
        """Say what `index` found that is of no use."""
        if damaged:
            some = "; ".join(f"{name!r}: {damaged[name]}" for name in list(damaged)[:N_NAMED])
            some += "; ..." if len(damaged) > N_NAMED else ""
            logger.warning("ignored in %s: %d files (%s)", self._path, len(damaged), some)
        foreign = [file.n_bytes for file in self.others if file.name not in damaged]
        if foreign:
            logger.warning(FOREIGN, self._path, len(foreign), sum(foreign) / 2**20)

    def _look_at(self, file: File, damaged: dict[str, Exception]) -> Entry | None:
        """Return the entry of a file of ours; note what is not; sweep old unfinished ones."""
        if file.name.endswith(UNFINISHED) and time.time() - file.mtime_s > ABANDONED_S:
            self.remove(file.name)
        if not file.name.endswith(SUFFIX):
            return None
        try:
            with self._open(file.name) as opened:
                entry = self._read_head(file.name, opened)
        except FileNotFoundError:  # another server has removed it meanwhile
            return None
        except (OSError, struct.error, ValueError) as error:
            damaged[file.name], entry = error, None
        if entry is None and self._is_of_our_kind(file.name):
            self.others.append(file)
        return entry

    def _read_head(self, name: str, file: BinaryIO) -> Entry | None:
        """Return what the file holds, None if it is somebody else's; ValueError if not whole."""
        size = os.fstat(file.fileno()).st_size
        head = file.read(_HEAD.size)
        if not head.startswith(_KIND):
            raise ValueError("no saved prefix")
        if not head.startswith(MAGIC):
            return None
        if len(head) < _HEAD.size:
            raise ValueError("cut short or damaged")
        _, binding, n_adapters, n_tokens, n_state = _HEAD.unpack(head)
        is_possible = n_adapters <= MAX_ADAPTERS and 0 < n_tokens <= MAX_TOKENS
        if not is_possible or size != file_bytes(n_tokens, n_adapters, n_state):
            raise ValueError("cut short or damaged")
        packed = [_ADAPTER.unpack(file.read(_ADAPTER.size)) for _ in range(n_adapters)]
        if binding != self._binding or any(digest not in self._digests for digest, _ in packed):
            return None
        adapters = tuple(sorted((self._digests.index(digest), scale) for digest, scale in packed))
        return Entry(name, _unpacked(file.read(4 * n_tokens)), adapters, n_state)

    def _is_of_our_kind(self, name: str) -> bool:
        with contextlib.suppress(OSError), self._open(name) as file:
            return file.read(len(_KIND)) == _KIND
        return False

    def _open(self, name: str) -> BinaryIO:
        """Open for reading, not through a symbolic link, and not what could block."""
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        flags |= getattr(os, "O_NONBLOCK", 0)
        return os.fdopen(os.open(os.path.join(self._path, name), flags), "rb")

    def _write_whole(self, path: str, *parts: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
            for part in (*parts, _digest(*parts)):
                file.write(part)
            file.flush()
            os.fsync(file.fileno())

    def _remove(self, path: str) -> None:
        try:
            os.unlink(path)
        except OSError as error:
            logger.debug("%s cannot be removed: %s", path, error)

    def _give_up(self, error: OSError) -> None:
        self.is_gone = not os.path.isdir(self._path)
        self.is_writable = False
        logger.warning("prefixes are no longer saved in %s: %s", self._path, error)


def _digest(*parts: bytes) -> bytes:
    digest = digests.blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        digest.update(part)
    return digest.digest()


def _packed(tokens: list[int]) -> bytes:
    return _little_endian(array("i", tokens)).tobytes()


def _unpacked(data: bytes) -> list[int]:
    tokens = array("i")
    tokens.frombytes(data)
    return _little_endian(tokens).tolist()


def _little_endian(tokens: array[int]) -> array[int]:
    assert tokens.itemsize == 4
    if sys.byteorder == "big":
        tokens.byteswap()
    return tokens
