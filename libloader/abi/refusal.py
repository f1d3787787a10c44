"""Why a library cannot work here, in words, from its header and its neighbours' headers.

Nothing is loaded. What shows only in a loaded library (missing symbols, an unknown layout) is for
the loader to say.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from libloader import errors
from libloader.abi import binary, places, platforms
from libloader.abi.binary import Binary
from libloader.abi.places import Host

BUILT_FOR = {"ELF": "Linux", "Mach-O": "macOS", "PE": "Windows"}


def reason(path: str, host: Host) -> str:
    """Say why the library at `path` cannot work on `host`; "" if nothing speaks against it."""
    try:
        facts = binary.read(path, host.platform.machine)
        _check_host(facts, host)
        _check_ggml(facts, os.path.dirname(os.path.realpath(path)), host)
    except errors.LibraryRefused as exc:
        return str(exc)
    return ""


def shadowed(path: str, opened: Mapping[str, str], host: Host) -> str:
    """Say whether a library opened before stands in the way of the one at `path`.

    A loaded library is never unloaded, and the next one that needs a libggml of the same name gets
    the one already loaded, whatever its folder: a mix of two builds that must not run. `opened`
    maps names of ggml libraries to the candidate that brought them in.
    """
    folder = os.path.dirname(os.path.realpath(path))
    for name in ggml_needs(path, host):
        first = opened.get(name, "")
        if first and os.path.dirname(os.path.realpath(first)) != folder:
            return f"not tried: {first} was refused but left its {name} loaded; name one with --lib"
    return ""


def ggml_needs(path: str, host: Host) -> list[str]:
    """Return the file names of the ggml libraries that the one at `path` asks for."""
    try:
        return _only_ggml(binary.read(path, host.platform.machine).needs, host)
    except errors.LibraryRefused:
        return []


def dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _check_host(facts: Binary, host: Host) -> None:
    """Raise LibraryRefused if `facts` are of another system, machine, or a newer C library."""
    if facts.kind != platforms.file_names(host.platform).binary:
        wrong = f"it is a library for {BUILT_FOR[facts.kind]} ({facts.kind})"
        raise errors.LibraryRefused(f"{wrong}; {_wanted(host)}")
    if facts.machine != host.platform.machine:
        raise errors.LibraryRefused(f"it is for {facts.machine} ({facts.kind}); {_wanted(host)}")
    if host.is_this_machine:
        _check_versions(facts, host)


def _wanted(host: Host) -> str:
    return f"this Python is {host.platform}" if host.is_this_machine else f"not {host.platform}"


def _check_versions(facts: Binary, host: Host) -> None:
    musl = any(name.startswith("libc.musl") for name in facts.needs)
    for wrong, needed, has in (
        (facts.glibc > host.glibc != (0, 0), facts.glibc, host.glibc),
        (facts.macos > host.macos != (0, 0), facts.macos, host.macos),
    ):
        if wrong:
            library = "glibc" if facts.kind == "ELF" else "macOS"
            raise errors.LibraryRefused(
                f"it needs {library} {dotted(needed)}, this system has {dotted(has)}"
            )
    if musl and host.glibc != (0, 0):
        raise errors.LibraryRefused(
            f"it is built for the C library musl, this system has glibc {dotted(host.glibc)}"
        )
    if facts.glibc != (0, 0) and host.glibc == (0, 0) and host.platform.system == "linux":
        raise errors.LibraryRefused(
            f"it needs glibc {dotted(facts.glibc)}, this system has another C library (musl?)"
        )


def _check_ggml(facts: Binary, folder: str, host: Host) -> None:
    """Check the ggml libraries that are needed, and that no backend beside them is cut short:
    all of them will be mapped. A backend for other hardware or a newer system is just not used."""
    waiting, checked = _only_ggml(facts.needs, host), set()
    while waiting:
        name = waiting.pop()
        checked.add(name)
        needed = _check_needed(name, facts.folders, folder, host)
        waiting += set(_only_ggml(needed.needs, host)) - checked
    for name in sorted(set(_only_ggml(places.names_in(folder) or [], host)) - checked):
        try:
            binary.read(os.path.join(folder, name), host.platform.machine)
        except errors.LibraryRefused as exc:
            raise errors.LibraryRefused(f"{name} beside it: {exc}") from None


def _check_needed(name: str, wanted: Sequence[str], folder: str, host: Host) -> Binary:
    path = _needed_file(name, wanted, folder, host)
    if not path:
        raise errors.LibraryRefused(
            f"it needs {name}, which is neither beside it nor in the system's folders"
        )
    try:
        needed = binary.read(path, host.platform.machine)
        _check_host(needed, host)
    except errors.LibraryRefused as exc:
        raise errors.LibraryRefused(f"{name}, which it needs: {exc}") from None
    return needed


def _needed_file(name: str, wanted: Sequence[str], folder: str, host: Host) -> str:
    """Return where the loader will find `name`, "" if nowhere."""
    folders = [folder]
    folders += [re.sub(r"^(\$ORIGIN|\$\{ORIGIN\}|@loader_path)", folder, entry) for entry in wanted]
    if host.platform.system != "win":  # there, ctypes looks only beside the library
        folders += [*places.system(host), *places.homebrew(host)]
    for each in filter(os.path.isabs, folders):
        if os.path.isfile(os.path.join(each, name)):
            return os.path.join(each, name)
    return ""


def _only_ggml(names: Sequence[str], host: Host) -> list[str]:
    pattern = platforms.file_names(host.platform).ggml
    return [name for name in names if pattern.fullmatch(name)]
