"""Finds a libllama: the candidates in each place, and the first that loads wins.

With `--lib` or IGLLAMA_LIB only that file or folder is looked at: who names a library wants that
one. Without, the places of `places.PLACES` in turn. What a file's own header shows is refused
before anything is loaded (`refusal`); what shows only when it is loaded (missing symbols, unknown
layout) comes from the loader as an exception. When nothing works, one error lists every place,
every candidate and its reason, and what to do.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Callable, NamedTuple, TypeVar

from libloader import errors
from libloader.abi import places, platforms, refusal
from libloader.abi.places import Host
from libloader.abi.platforms import Platform

T = TypeVar("T")


class Candidate(NamedTuple):
    """A file that may be libllama. `refusal` is "" if nothing speaks against loading it."""

    path: str
    origin: str
    refusal: str


class Place(NamedTuple):
    """What one row of PLACES led to on this host."""

    origin: str
    looked_in: tuple[str, ...]  # folders
    candidates: tuple[Candidate, ...]


def candidates(lib: str = "", *, lib_cache: str = "", host: Host | None = None) -> list[Candidate]:
    """Return every candidate in the order in which they would be tried. Loads nothing."""
    host = _with_cache(host or Host.here(), lib_cache)
    return [candidate for place in _search(lib, host) for candidate in place.candidates]


def find_library(
    lib: str, try_load: Callable[[str], T], *, lib_cache: str = "", host: Host | None = None
) -> T:
    """Return `try_load`'s value for the first candidate that it loads.

    `try_load` gets an absolute path and raises LibraryRefused (or a class below it) or OSError.
    Raises LibraryNotFound, whose message lists all that was looked at.
    """
    host = _with_cache(host or Host.here(), lib_cache)
    opened: dict[str, str] = {}  # name of a ggml library -> the refused candidate that loaded it
    looked: list[Place] = []
    for place in _search(lib, host):
        refused = []
        for candidate in place.candidates:
            reason = candidate.refusal or refusal.shadowed(candidate.path, opened, host)
            if not reason:
                try:
                    return try_load(candidate.path)
                except (errors.LibraryRefused, OSError) as exc:
                    reason = str(exc) or type(exc).__name__
                    if isinstance(exc, (errors.LayoutMismatch, errors.SymbolsMissing)):
                        needs = refusal.ggml_needs(candidate.path, host)
                        opened.update(dict.fromkeys(needs, candidate.path))
            refused.append(candidate._replace(refusal=reason))
        looked.append(place._replace(candidates=tuple(refused)))
    raise errors.LibraryNotFound(_explain(lib or _lib_from(host), looked, host))


def _with_cache(host: Host, lib_cache: str) -> Host:
    return dataclasses.replace(host, lib_cache=lib_cache) if lib_cache else host


def _lib_from(host: Host) -> str:
    return host.environ.get("IGLLAMA_LIB", "")


def _search(lib: str, host: Host) -> Iterator[Place]:
    """Yield places one by one: what a later place costs is not paid if an earlier one works."""
    named = lib or _lib_from(host)
    if named:
        yield _named(named, "--lib" if lib else "IGLLAMA_LIB", host)
        return
    seen: set[str] = set()
    for origin, folders_of in places.PLACES:
        try:
            yield _place(origin, list(folders_of(host)), seen, host, host.platform)
        except errors.LibraryRefused as exc:
            yield Place(origin, (), (Candidate(str(host.root), origin, str(exc)),))


def _named(lib: str, origin: str, host: Host) -> Place:
    path = os.path.abspath(lib)
    if os.path.isdir(path):
        return _named_folder(path, origin, host)
    exists = os.path.lexists(path)
    reason = refusal.reason(path, host) if exists else "there is no such file or folder"
    return Place(origin, (), (Candidate(path, origin, reason),))


def _named_folder(path: str, origin: str, host: Host) -> Place:
    """Look below `path`; if it holds libraries of other systems only, show those, refused."""
    folders = list(places.below(path, host))
    for system in (host.platform.system, *platforms.SPOKEN):
        place = _place(origin, folders, set(), host, host.platform._replace(system=system))
        if place.candidates:
            break
    return place


def _place(
    origin: str, folders: Iterable[str], seen: set[str], host: Host, named_as: Platform
) -> Place:
    """Look into `folders` for files named as on `named_as`; a file that was seen before, under
    whatever name, is not repeated."""
    looked_in, found = list(dict.fromkeys(folders)), []
    for folder in looked_in:
        for name in platforms.llama_files(named_as, places.names_in(folder) or []):
            path = os.path.join(folder, name)
            if os.path.realpath(path) not in seen:
                seen.add(os.path.realpath(path))
                found.append(Candidate(path, origin, refusal.reason(path, host)))
    return Place(origin, tuple(looked_in), tuple(found))


def _explain(lib: str, looked: Sequence[Place], host: Host) -> str:
    usual = platforms.file_names(host.platform).usual
    lines = [f"no usable libllama ({usual}) for {_spoken(host)}. Looked at:"]
    for place in looked:
        lines.append(f"  {place.origin}: {_spoken_place(place)}")
        lines += [f"    {c.path}: {c.refusal}" for c in place.candidates]
    return "\n".join([*lines, "What to do:", *(f"  - {line}" for line in _remedies(lib, host))])


def _spoken(host: Host) -> str:
    glibc = f", glibc {refusal.dotted(host.glibc)}" if host.glibc != (0, 0) else ""
    system = platforms.SPOKEN.get(host.platform.system, host.platform.system)
    return f"{system} {host.platform.machine}{glibc}"


def _spoken_place(place: Place) -> str:
    if place.candidates:
        return f"{len(place.candidates)} refused"
    existing = [folder for folder in place.looked_in if os.path.isdir(folder)]
    if existing:
        return f"no libllama in {', '.join(existing)}"
    absent = ", no ".join(place.looked_in[:2])
    more = f" (and {len(place.looked_in) - 2} more)" if len(place.looked_in) > 2 else ""
    return f"there is no {absent}{more}" if absent else "none"


def _remedies(lib: str, host: Host) -> list[str]:
    remedies = [] if not lib else ["leave --lib and IGLLAMA_LIB out to search the usual places"]
    if host.root.is_dir():
        remedies.append("with network: python3 scripts/fetch_libllama.py")
    return [
        *remedies,
        "without: unpack a llama.cpp release for this system and name its folder with --lib FOLDER",
        "or install llama.cpp with your system's package manager",
    ]
