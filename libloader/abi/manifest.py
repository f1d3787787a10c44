"""A folder of library files that is whole and proved by hash, or not there at all.

Beside the files lies MANIFEST.json: where they come from, and each file's size and SHA-256. The
folder is written as a temporary sibling, synced, and renamed into place last: a process that is
killed half-way leaves a sibling that nobody reads, never a folder that looks whole. Used for
`libloader/lib/<platform>/` by the fetch script and for the library inside the single file.
Names are plain file names, links point to a file beside them: nothing can leave the folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Callable, NamedTuple

from libloader import digests, errors

NAME = "MANIFEST.json"
FORMAT = 1
CHUNK_BYTES = 1 << 20
MAX_MANIFEST_BYTES = 1 << 20
ABANDONED_S = 3600.0  # writing a folder takes seconds: an older temporary sibling has no owner
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][\w.+-]*", re.ASCII)


class Entry(NamedTuple):
    """A file, or a link to a file beside it (then `sha256` is empty)."""

    sha256: str = ""
    n_bytes: int = 0
    link: str = ""


class Manifest(NamedTuple):
    platform: str  # npm's name, with its variant: linux-x64-cuda
    source: str  # for people and for "is it there already?"
    files: Mapping[str, Entry]


class Member(NamedTuple):
    """A file still to be written; `open` gives its bytes and is not called for a link."""

    name: str
    link: str
    open: Callable[[], IO[bytes]]


def dump(manifest: Manifest) -> str:
    """Return the text of MANIFEST.json, the same for the same files."""
    files = {name: _entry_to_json(entry) for name, entry in manifest.files.items()}
    content = {**manifest._asdict(), "files": files, "format": FORMAT}
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def parse(text: str) -> Manifest:
    """Read `dump`'s text; LibraryRefused if it is anything else."""
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}")
        files = {name: _entry_from_json(name, raw) for name, raw in content["files"].items()}
        return Manifest(str(content["platform"]), str(content["source"]), files)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise errors.LibraryRefused(f"{NAME} is not readable: {exc}") from None


def load(folder: Path) -> Manifest | None:
    """Return the manifest of `folder`, None if it has none."""
    try:
        with open(folder / NAME, "rb") as file:
            return parse(file.read(MAX_MANIFEST_BYTES).decode("utf-8", "replace"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise errors.LibraryRefused(f"{NAME} cannot be read: {exc.strerror or exc}") from None


def verify(folder: Path, manifest: Manifest) -> str:
    """Return "" if every file of `manifest` lies in `folder` unchanged, else what is wrong."""
    for name, entry in sorted(manifest.files.items()):
        check = _link_wrong if entry.link else _file_wrong
        wrong = check(folder / name, entry)
        if wrong:
            return f"{name} {wrong}"
    return ""


def write(
    folder: Path, members: Iterable[Member], on_bytes: Callable[[int], None] = lambda n: None
) -> dict[str, Entry]:
    """Write `members` into the existing `folder`, synced to disk; return what was written."""
    return {member.name: _write_member(folder, member, on_bytes) for member in members}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    with open(folder / NAME, "x", encoding="utf-8", newline="\n") as file:
        file.write(dump(manifest))
        _sync(file)


@contextlib.contextmanager
def staged(
    final: Path, mode: int = 0o755, keep: Callable[[Path], bool] = lambda existing: False
) -> Iterator[Path]:
    """Yield a new folder beside `final` that takes its place when the block ends well.

    An existing `final` stays if `keep` says that it is as good (another process was faster), else
    it is replaced. After an error nothing has changed.
    """
    _sweep(final)
    folder = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".part", dir=final.parent))
    try:
        yield folder
        os.chmod(folder, mode)
        _sync_folder(folder)
        _publish(folder, final, keep)
        _sync_folder(final.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_name(name: str) -> str:
    """Return `name` if it is a plain file name, else raise LibraryRefused."""
    if not PLAIN_NAME.fullmatch(name) or name == NAME:
        raise errors.LibraryRefused(f"{name!r} is not a plain file name")
    return name


def _entry_to_json(entry: Entry) -> dict[str, Any]:
    return {"link": entry.link} if entry.link else {"sha256": entry.sha256, "bytes": entry.n_bytes}


def _entry_from_json(name: str, raw: Any) -> Entry:
    check_name(name)
    if "link" in raw:
        return Entry(link=check_name(raw["link"]))
    if not re.fullmatch("[0-9a-f]{64}", raw["sha256"]) or type(raw["bytes"]) is not int:
        raise ValueError(f"the entry of {name}")
    return Entry(raw["sha256"], raw["bytes"])


def _file_wrong(path: Path, entry: Entry) -> str:
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            return "is not a plain file"
        if status.st_size != entry.n_bytes:
            return f"has {status.st_size} bytes instead of {entry.n_bytes}"
        with open(path, "rb") as file:
            return "" if hash_of(file) == entry.sha256 else "has another SHA-256: it was changed"
    except FileNotFoundError:
        return "is missing"
    except OSError as exc:
        return f"cannot be read: {exc.strerror or exc}"


def _link_wrong(path: Path, entry: Entry) -> str:
    try:
        return "" if os.readlink(path) == entry.link else f"does not point to {entry.link}"
    except OSError:
        return f"is not a link to {entry.link}"


def hash_of(file: IO[bytes]) -> str:
    digest = digests.sha256()
    for chunk in iter(lambda: file.read(CHUNK_BYTES), b""):
        digest.update(chunk)
    return digest.hexdigest()


def _write_member(folder: Path, member: Member, on_bytes: Callable[[int], None]) -> Entry:
    path = folder / check_name(member.name)
    if member.link:
        os.symlink(check_name(member.link), path)
        return Entry(link=member.link)
    digest, n_bytes = digests.sha256(), 0
    with member.open() as source, open(path, "xb") as target:
        for chunk in iter(lambda: source.read(CHUNK_BYTES), b""):
            target.write(chunk)
            digest.update(chunk)
            n_bytes += len(chunk)
            on_bytes(len(chunk))
        _sync(target)
    return Entry(digest.hexdigest(), n_bytes)


def _sync(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable, where the system can: Windows and some network file
    systems cannot, and there the hashes alone show what a power cut has spoilt."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _publish(folder: Path, final: Path, keep: Callable[[Path], bool]) -> None:
    """Rename `folder` to `final`, which fails on every system while `final` holds files."""
    for attempt in range(5):
        try:
            os.rename(folder, final)
            return
        except OSError:
            if not os.path.lexists(final):
                raise
        if keep(final):
            return
        aside = Path(f"{folder}.{attempt}.part")
        with contextlib.suppress(FileNotFoundError):  # another process moved it first
            os.rename(final, aside)
        _remove(aside)
    raise errors.LibraryRefused(f"{final} cannot be replaced: other processes keep writing it")


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def _sweep(final: Path) -> None:
    """Remove temporary siblings that killed processes left behind."""
    for left in final.parent.glob(f".{final.name}.*.part"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED_S:
                shutil.rmtree(left, ignore_errors=True)
