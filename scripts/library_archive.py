"""Reads libraries out of what others publish: npm's tgz, llama.cpp's zip and tar.gz, wheels.

An archive is never unpacked as a whole: the one folder in it that holds a libllama is chosen, and
the shared libraries beside it are handed out one by one, as `manifest.Member`s with plain names.
So no path of the archive ever becomes a path on the disk; one that tries to leave it (`..`, an
absolute path, a link to elsewhere) shows that the archive is not what it claims, and is refused.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Callable, NamedTuple

try:
    from lzma import LZMAError
except ImportError:  # this Python was built without xz, so nothing raises it
    LZMAError = EOFError  # type: ignore[misc,assignment]

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from libloader import errors  # noqa: E402  (scripts run from anywhere)
from libloader.abi import find, manifest, platforms  # noqa: E402
from libloader.abi.places import Host  # noqa: E402
from libloader.abi.platforms import Platform  # noqa: E402

MAX_MEMBERS = 20_000
MAX_LINK_BYTES = 4096
MAX_DEPTH = 4  # folders below the one named with --from
MAX_UNPACKED_BYTES = 8 << 30  # a CUDA build has some 2 GiB
LICENSE_NAMES = ("LICENSE", "LICENSE.txt", "LICENSE.md")  # theirs must travel with the libraries
DAMAGED = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, LZMAError, EOFError, RuntimeError,
    NotImplementedError,
)  # fmt: skip


class Item(NamedTuple):
    """One file of an archive; `link` is what a symbolic link points to, as written in it."""

    n_bytes: int
    link: str
    open: Callable[[], IO[bytes]]


class Libraries(NamedTuple):
    """The files of one folder that make up a libllama, ready to be written."""

    folder: str  # inside the archive, for messages
    members: list[manifest.Member]
    n_bytes: int


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Mapping[str, Item]]:
    """Yield what `path`, an archive or a folder, holds: path inside it -> item.

    Raises LibraryRefused for damaged and hostile archives, also while the block reads from it.
    """
    try:
        if path.is_dir():
            yield _folder_items(path)
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as zip_file:
                yield _zip_items(zip_file)
        else:
            with tarfile.open(path) as tar:
                yield _tar_items(tar)
    except DAMAGED as exc:
        raise errors.LibraryRefused(
            f"{path.name} is not a whole zip, tar.gz, tgz or wheel: {exc or type(exc).__name__}"
        ) from None


def choose(items: Mapping[str, Item], platform_name: str) -> Libraries:
    """Return the libraries for `platform_name` (linux-x64-cuda) that lie in `items`."""
    platform = platforms.parse(platform_name)
    folder = _folder_with_llama(items, platform, platform_name)
    beside = {posixpath.basename(p): i for p, i in items.items() if posixpath.dirname(p) == folder}
    names = platforms.library_files(platform, beside)
    members = [_member(name, beside[name], names) for name in names]
    n_bytes = sum(beside[name].n_bytes for name in names)
    license_path = _license_for(folder, items)
    if license_path:
        members.append(manifest.Member("LICENSE", "", items[license_path].open))
        n_bytes += items[license_path].n_bytes
    return Libraries(folder, members, n_bytes)


def check_usable(folder: Path, platform_name: str) -> None:
    """Refuse what no machine of the platform could load, before it takes its place."""
    host = Host.here()
    wanted = platforms.parse(platform_name)
    if wanted != host.platform:
        nowhere = folder / "no-system"
        host = Host(wanted, {}, folder, system_root=nowhere, is_this_machine=False)
    found = find.candidates(str(folder), host=host)
    if all(candidate.refusal for candidate in found):
        reasons = (f"{Path(c.path).name}: {c.refusal}" for c in found)
        raise errors.LibraryRefused(f"not for {platform_name}: {'; '.join(reasons)}")


def _folder_with_llama(items: Mapping[str, Item], platform: Platform, platform_name: str) -> str:
    """Prefer a folder that is called as the platform, then the one nearest to the top."""
    folders = {
        posixpath.dirname(path)
        for path in items
        if platforms.llama_files(platform, [posixpath.basename(path)])
    }
    if not folders:
        raise errors.LibraryRefused(_no_llama(items, platform))
    return min(
        folders,
        key=lambda f: (platform_name not in f.split("/"), f.count("/"), f),
    )


def _no_llama(items: Mapping[str, Item], platform: Platform) -> str:
    """Say what an archive without a fitting libllama holds instead."""
    usual = platforms.file_names(platform).usual
    for system, spoken in platforms.SPOKEN.items():
        names = (posixpath.basename(path) for path in items)
        if platforms.llama_files(platform._replace(system=system), names):
            return (
                f"no {usual} for {platform} inside, but a libllama for {spoken}: "
                f"name the platform with --platform {system}-..."
            )
    if any(path.endswith(("CMakeLists.txt", "llama.h")) for path in items):
        return f"no {usual} inside: these are sources, a built release is needed"
    return f"no {usual} inside"


def _member(name: str, item: Item, names: list[str]) -> manifest.Member:
    if item.link and posixpath.normpath(item.link) not in names:
        raise errors.LibraryRefused(
            f"{name} is a link to {item.link!r}, not to a library beside it"
        )
    return manifest.Member(name, posixpath.normpath(item.link) if item.link else "", item.open)


def _license_for(folder: str, items: Mapping[str, Item]) -> str:
    """Return the path of the nearest license text, looking from `folder` upwards; "" if none."""
    while True:
        for name in LICENSE_NAMES:
            path = posixpath.join(folder, name)
            if path in items and not items[path].link:
                return path
        if not folder:
            return ""
        folder = posixpath.dirname(folder)


def _inside(path: str) -> str:
    """Return a path of an archive in plain form; refuse one that leaves the archive."""
    plain = path.replace("\\", "/")
    parts = plain.split("/")
    if plain.startswith("/") or ".." in parts or ":" in parts[0] or "\0" in plain:
        raise errors.LibraryRefused(f"a path in the archive leads out of it: {path!r}")
    return posixpath.normpath(plain)


def _zip_items(zip_file: zipfile.ZipFile) -> dict[str, Item]:
    files = [info for info in zip_file.infolist() if not info.is_dir()]
    _check_caps(len(files), sum(info.file_size for info in files))
    return {
        _inside(info.filename): Item(
            info.file_size, _zip_link(zip_file, info), partial(zip_file.open, info)
        )
        for info in files
    }


def _zip_link(zip_file: zipfile.ZipFile, info: zipfile.ZipInfo) -> str:
    """A link is a file whose content is the target."""
    if not stat.S_ISLNK(info.external_attr >> 16):
        return ""
    with zip_file.open(info) as file:
        return file.read(MAX_LINK_BYTES).decode("utf-8", "replace")


def _tar_items(tar: tarfile.TarFile) -> dict[str, Item]:
    """Sizes are added up before the next header is looked for: finding it decompresses them."""
    items: dict[str, Item] = {}
    n_bytes = 0
    for info in tar:
        n_bytes += info.size
        _check_caps(len(items), n_bytes)
        if info.issym():
            items[_inside(info.name)] = Item(0, info.linkname, partial(_tar_file, tar, info))
        elif info.isfile():
            items[_inside(info.name)] = Item(info.size, "", partial(_tar_file, tar, info))
    return items


def _tar_file(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(info)
    if file is None:
        raise errors.LibraryRefused(f"{info.name} cannot be read from the archive")
    return file


def _folder_items(folder: Path) -> dict[str, Item]:
    """An installation: a link that leads out of its folder is followed, as it is this system's."""
    items: dict[str, Item] = {}
    for parent, folders, names in os.walk(folder):
        relative = Path(parent).relative_to(folder)
        if len(relative.parts) >= MAX_DEPTH:
            folders.clear()
        for path in (Path(parent, name) for name in names):
            if path.is_file():
                target = os.readlink(path) if path.is_symlink() else ""
                link = target if os.path.dirname(target) == "" else ""
                items[(relative / path.name).as_posix()] = Item(
                    path.stat().st_size, link, partial(_open, path)
                )
        _check_caps(len(items), 0)
    return items


def _open(path: Path) -> IO[bytes]:
    return open(path, "rb")


def _check_caps(n_members: int, n_bytes: int) -> None:
    if n_members > MAX_MEMBERS:
        raise errors.LibraryRefused(f"the archive has more than {MAX_MEMBERS} files")
    if n_bytes > MAX_UNPACKED_BYTES:
        raise errors.LibraryRefused(
            f"the archive would unpack to more than {MAX_UNPACKED_BYTES >> 30} GiB"
        )
