"""The library that travels inside the single file, unpacked once into a private folder.

dlopen needs files on a disk, so this is the one place that writes without being asked by a flag:
whoever built the file with `build_pyz.py --with-lib` asked for it. Where: `--lib-cache DIR` (also
IGLLAMA_LIB_CACHE), else the user's cache folder, else, without a home, one folder of this user in
the temporary directory. Laws:

- The folder belongs to this user and nobody else may write to it; else it is not used.
- Its name holds the hash of the manifest inside the file, so releases never share a folder. The
  folders of older releases stay, as another process may run on one: delete them at will.
- Every start compares every file's SHA-256 with that manifest before anything is loaded.
- Two processes at once write two temporary folders; the first rename wins, the other uses it.

Inside the zip: embedded/<platform>/MANIFEST.json and the files that it lists.
"""

from __future__ import annotations

import os
import stat
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from libloader import digests, errors
from libloader.abi import manifest, platforms
from libloader.abi.platforms import Platform

PREFIX = "embedded/"
CACHE_NAME = "igllama"


def embedded_folders(
    archive: Path, platform: Platform, lib_cache: str, environ: Mapping[str, str]
) -> Iterator[str]:
    """Yield the folders on disk with `archive`'s libraries for `platform`, unpacked if need be.

    Yields nothing if `archive` is not a single file with a library inside. Raises LibraryRefused.
    """
    if not zipfile.is_zipfile(archive):
        return
    with zipfile.ZipFile(archive) as zip_file:
        for name in platforms.folders_for(platform, _platforms_inside(zip_file)):
            yield str(_unpack(zip_file, name, lib_cache, environ))


def cache_folder(lib_cache: str, environ: Mapping[str, str]) -> Path:
    """Return the private folder to unpack into, made if need be; LibraryRefused if none is fit.

    A folder that was asked for is used or refused; the usual ones are tried in turn.
    """
    if lib_cache:
        return _private(Path(lib_cache).absolute(), "--lib-cache")
    reasons = []
    for place in _usual_caches(environ):
        try:
            return _private(place, "the cache folder")
        except errors.LibraryRefused as exc:
            reasons.append(str(exc))
    raise errors.LibraryRefused("; ".join(reasons) + ". Name a folder of yours with --lib-cache")


def _usual_caches(environ: Mapping[str, str]) -> list[Path]:
    parents = [environ.get("XDG_CACHE_HOME", ""), environ.get("LOCALAPPDATA", "")]
    if environ.get("HOME"):
        parents.append(os.path.join(environ["HOME"], ".cache"))
    found = [Path(parent, CACHE_NAME) for parent in parents if os.path.isabs(parent)]
    return [*found, Path(tempfile.gettempdir(), f"{CACHE_NAME}-{_user_id()}")]


def _user_id() -> int:
    return os.geteuid() if hasattr(os, "geteuid") else 0


def _private(folder: Path, called: str) -> Path:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status, parent = folder.lstat(), folder.parent.stat()
    except OSError as exc:
        raise errors.LibraryRefused(
            f"{called} {folder} cannot be made: {exc.strerror or exc}"
        ) from None
    wrong = _not_private(status)
    if parent.st_mode & stat.S_IWOTH and not parent.st_mode & stat.S_ISVTX and os.name != "nt":
        wrong = f"anybody may rename it, as anybody may write to {folder.parent}"
    if wrong:
        raise errors.LibraryRefused(f"{called} {folder} is not used: {wrong}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise errors.LibraryRefused(f"{called} {folder} is not writable")
    return folder


def _not_private(status: os.stat_result) -> str:
    """Say why a folder with this status could be changed by somebody else, or return ""."""
    if not stat.S_ISDIR(status.st_mode):
        return "it is not a folder (links are not followed)"
    if not hasattr(os, "geteuid"):
        return ""  # Windows: the folders of a user are private by their ACL
    if status.st_uid != os.geteuid():
        return f"it belongs to user {status.st_uid}, this process runs as {os.geteuid()}"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others may write to it (mode {stat.S_IMODE(status.st_mode):o})"
    return ""


def _platforms_inside(zip_file: zipfile.ZipFile) -> list[str]:
    suffix = "/" + manifest.NAME
    return [
        name[len(PREFIX) : -len(suffix)]
        for name in zip_file.namelist()
        if name.startswith(PREFIX) and name.endswith(suffix)
    ]


def _unpack(
    zip_file: zipfile.ZipFile, name: str, lib_cache: str, environ: Mapping[str, str]
) -> Path:
    text = zip_file.read(f"{PREFIX}{name}/{manifest.NAME}")
    wanted = manifest.parse(text.decode("utf-8", "replace"))
    digest = digests.sha256(text).hexdigest()
    final = cache_folder(lib_cache, environ) / f"{manifest.check_name(name)}-{digest[:16]}"
    if not _fit(final, wanted):
        try:
            _write(zip_file, name, wanted, final)
        except (OSError, zipfile.BadZipFile) as exc:
            raise errors.LibraryRefused(f"it cannot be unpacked to {final}: {exc}") from None
    return final


def _fit(folder: Path, wanted: manifest.Manifest) -> bool:
    """Whether `folder` is private and holds exactly `wanted`."""
    try:
        private = not _not_private(folder.lstat())
        return (
            private
            and set(os.listdir(folder)) == {*wanted.files, manifest.NAME}
            and not manifest.verify(folder, wanted)
        )
    except OSError:
        return False


def _write(zip_file: zipfile.ZipFile, name: str, wanted: manifest.Manifest, final: Path) -> None:
    with manifest.staged(final, mode=0o700, keep=partial(_fit, wanted=wanted)) as folder:
        members = (
            manifest.Member(file, entry.link, partial(zip_file.open, f"{PREFIX}{name}/{file}"))
            for file, entry in wanted.files.items()
        )
        written = manifest.write(folder, members)
        damaged = sorted(file for file in written if written[file] != wanted.files[file])
        if damaged:
            raise errors.LibraryRefused(
                f"{zip_file.filename} is damaged: {', '.join(damaged)} inside has another SHA-256"
            )
        manifest.write_manifest(folder, wanted)
