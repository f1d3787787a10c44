"""Names: platforms as npm's packages call them, and library files as each system calls them.

A platform is `system-machine`: linux-x64, linux-arm64, mac-arm64, win-x64, ... A folder or package
may add a variant: mac-arm64-metal, linux-x64-cuda. Nothing here touches the disk or the libraries;
every rule takes the platform as a value, so that one machine can reason about another.
"""

from __future__ import annotations

import re
import struct
import sys
import sysconfig
from collections.abc import Iterable
from platform import machine as machine_name
from typing import NamedTuple


class Platform(NamedTuple):
    """Where a library shall run; `str()` of it is npm's name without a variant."""

    system: str  # linux, mac, win, or sys.platform's word for another ELF system
    machine: str  # x64, x86, arm64, armv7l, ... as npm says; another word is kept as it is

    def __str__(self) -> str:
        return f"{self.system}-{self.machine}"


class FileNames(NamedTuple):
    """How one family of systems names its files."""

    llama: re.Pattern[str]
    ggml: re.Pattern[str]  # libggml, libggml-base, backends
    shared: re.Pattern[str]  # any shared library
    usual: str  # the plain name, for messages
    binary: str  # the header that such a file must have


SYSTEMS = {"linux": "linux", "darwin": "mac", "win32": "win", "cygwin": "win"}
SPOKEN = {"linux": "Linux", "mac": "macOS", "win": "Windows"}

MACHINES = {
    "x86_64": "x64", "amd64": "x64", "x64": "x64",
    "i386": "x86", "i586": "x86", "i686": "x86", "x86": "x86", "win32": "x86",
    "aarch64": "arm64", "arm64": "arm64", "armv8l": "armv7l", "armv7l": "armv7l",
}  # fmt: skip
NARROW = {"x64": "x86", "arm64": "armv7l"}  # a 32-bit Python under a 64-bit kernel

# The tag between name and ending: libllama.b9842.so, libllama.metal.v0.4.0.dylib, llama.v0.4.0.dll.
_TAG = r"(\.[\w.+-]+)?"

ELF_NAMES = FileNames(
    llama=re.compile(rf"libllama{_TAG}\.so(\.\d+)*"),
    ggml=re.compile(r"libggml([.-][\w.+-]+)?\.so(\.\d+)*"),
    shared=re.compile(r"[\w.+-]+\.so(\.\d+)*"),
    usual="libllama.so",
    binary="ELF",
)
MAC_NAMES = FileNames(
    llama=re.compile(rf"libllama{_TAG}\.(dylib|so)"),
    ggml=re.compile(r"libggml([.-][\w.+-]+)?\.(dylib|so)"),  # backends end in .so on macOS too
    shared=re.compile(r"[\w.+-]+\.(dylib|so|metal|metallib)"),
    usual="libllama.dylib",
    binary="Mach-O",
)
WINDOWS_NAMES = FileNames(
    llama=re.compile(rf"(lib)?llama{_TAG}\.dll", re.IGNORECASE),
    ggml=re.compile(r"(lib)?ggml([.-][\w.+-]+)?\.dll", re.IGNORECASE),
    shared=re.compile(r"[\w.+-]+\.dll", re.IGNORECASE),
    usual="llama.dll",
    binary="PE",
)
FILE_NAMES = {"mac": MAC_NAMES, "win": WINDOWS_NAMES}

# Shared libraries of llama.cpp's tools and of other bindings: nothing here needs them.
_UNNEEDED = re.compile(
    r"(lib)?(llama-common|llava|mtmd|llama-.*-impl|cpp-httplib)\b.*", re.IGNORECASE
)


def identify(sys_platform: str, machine: str, pointer_bytes: int) -> Platform:
    """Name a platform from what Python says of itself; `machine` is the kernel's word."""
    system = SYSTEMS.get(sys_platform, re.sub(r"\d+$", "", sys_platform))
    name = MACHINES.get(machine.lower(), machine.lower())
    return Platform(system, NARROW.get(name, name) if pointer_bytes == 4 else name)


def here() -> Platform:
    """Return the platform of this process: a library is loaded into Python, not into the kernel."""
    machine = machine_name()
    if sys.platform == "win32":  # an x64 Python on Windows for ARM: the interpreter counts
        machine = sysconfig.get_platform().rpartition("-")[2]
    return identify(sys.platform, machine, struct.calcsize("P"))


def file_names(platform: Platform) -> FileNames:
    return FILE_NAMES.get(platform.system, ELF_NAMES)


def parse(name: str) -> Platform:
    """Return the platform of a folder or package name such as mac-arm64-metal."""
    system, _, rest = name.partition("-")
    return Platform(system, rest.partition("-")[0])


def folders_for(platform: Platform, names: Iterable[str]) -> list[str]:
    """Return those of `names` that are for `platform`; variants (-cuda, -metal) come first,
    because only a person who wants one fetches it."""
    plain = str(platform)
    fitting = [name for name in names if name == plain or name.startswith(plain + "-")]
    return sorted(fitting, key=lambda name: (name == plain, name))


def llama_files(platform: Platform, names: Iterable[str]) -> list[str]:
    """Return the names that a libllama may have, the best first: plain, then newest release."""
    pattern = file_names(platform).llama
    fitting = [name for name in names if pattern.fullmatch(name) and not _UNNEEDED.fullmatch(name)]
    return sorted(fitting, key=lambda name: _by_release(name, file_names(platform).usual))


def library_files(platform: Platform, names: Iterable[str]) -> list[str]:
    """Return the names of all shared libraries that may belong to a libllama beside them."""
    pattern = file_names(platform).shared
    return sorted(n for n in names if pattern.fullmatch(n) and not _UNNEEDED.fullmatch(n))


def _by_release(name: str, usual: str) -> tuple[bool, bool, list[int], str]:
    """Sort key: v0.5.0 is newer than b9842, and b9842 than b3889."""
    numbers = [-int(digits) for digits in re.findall(r"\d+", name)]
    return name.lower() != usual, not re.search(r"\.v\d", name), numbers, name
