"""The places where a libllama may lie, in the order in which they are looked at.

Rows of PLACES: what a place is called, and the folders that it means on a host. What lies in a
folder and whether that works is not asked here. Nothing depends on the running machine but
`Host.here()`: tests plant macOS and Windows on Linux.
"""

from __future__ import annotations

import os
import platform as python_platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import libloader
from libloader.abi import binary, platforms, unpack
from libloader.abi.platforms import Platform

TRIPLETS = {  # Debian's triplets, for /usr/lib/<triplet>
    "x64": "x86_64-linux-gnu", "x86": "i386-linux-gnu", "arm64": "aarch64-linux-gnu",
    "armv7l": "arm-linux-gnueabihf", "riscv64": "riscv64-linux-gnu",
    "ppc64le": "powerpc64le-linux-gnu", "s390x": "s390x-linux-gnu",
}  # fmt: skip
# Where archives, packages and builds keep their libraries, below a folder that a person names.
SUBFOLDERS = ("", "lib", "bin", "build/bin", "build/src")
LOADER_VARIABLES = {"mac": ("DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH"), "win": ("PATH",)}
MAX_CONF_BYTES = 1 << 16


@dataclass(frozen=True)
class Host:
    """Everything outside the arguments that a search depends on."""

    platform: Platform
    environ: Mapping[str, str]
    root: Path  # what holds the package libloader: a checkout, site-packages, or the single file
    sys_path: Sequence[str] = ()
    prefix: str = ""  # sys.prefix, a conda environment perhaps
    system_root: Path = Path("/")
    glibc: tuple[int, int] = (0, 0)  # (0, 0): another C library, or not Linux
    macos: tuple[int, int] = (0, 0)
    lib_cache: str = ""  # where the single file may unpack; "" = the usual private folder
    is_this_machine: bool = True  # False when files for another machine are judged

    @staticmethod
    def here() -> Host:
        # The package's own path is used, not sys.argv: it is right in a checkout, after
        # `pip install`, inside the single file and in the engine child alike.
        return Host(
            platform=platforms.here(),
            environ=os.environ,
            root=Path(libloader.__path__[0]).absolute().parent,
            sys_path=tuple(sys.path),
            prefix=sys.prefix,
            glibc=_running_glibc(),
            macos=binary.version_of(python_platform.mac_ver()[0]),
        )


def _running_glibc() -> tuple[int, int]:
    """Return the version of this process's glibc; (0, 0) where the C library is another one."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (AttributeError, ValueError, OSError):  # Windows, musl, macOS
        return (0, 0)
    return binary.version_of(version) if name == "glibc" else (0, 0)


def names_in(folder: str) -> list[str] | None:
    try:
        return os.listdir(folder)
    except OSError:
        return None


def below(folder: str, host: Host) -> Iterator[str]:
    """Yield `folder` and where a release, package or build below it keeps its libraries."""
    for subfolder in SUBFOLDERS:
        yield os.path.normpath(os.path.join(folder, subfolder))
    for parent in (folder, os.path.join(folder, "lib"), os.path.join(folder, "bins")):
        names = names_in(parent) or []
        for name in platforms.folders_for(host.platform, names):
            yield os.path.join(parent, name)
            yield os.path.join(parent, name, "bins", name)
    for name in sorted(names_in(folder) or [], reverse=True):
        if re.fullmatch(r"llama-(b\d+|v?\d[\w.]*)", name):  # the top folder of a release
            yield os.path.join(folder, name)
            yield os.path.join(folder, name, "build", "bin")


def beside(host: Host) -> Iterator[str]:
    yield from below(str(host.root if host.root.is_dir() else host.root.parent), host)


def embedded(host: Host) -> Iterator[str]:
    """The single file's own library, unpacked if need be; LibraryRefused if that cannot be."""
    lib_cache = host.lib_cache or host.environ.get("IGLLAMA_LIB_CACHE", "")
    return unpack.embedded_folders(host.root, host.platform, lib_cache, host.environ)


def fetched(host: Host) -> Iterator[str]:
    parent = str(host.root / "libloader" / "lib")
    for name in platforms.folders_for(host.platform, names_in(parent) or [str(host.platform)]):
        yield os.path.join(parent, name)


def llama_cpp(host: Host) -> Iterator[str]:
    """The binding's package is not imported: that would load its library."""
    yield from _listed(host, "LLAMA_CPP_LIB_PATH")
    for entry in host.sys_path:
        if os.path.isabs(entry):
            yield os.path.join(entry, "llama_cpp", "lib")
            yield os.path.join(entry, "llama_cpp")


def conda(host: Host) -> Iterator[str]:
    prefixes = [host.environ.get("CONDA_PREFIX", "")]
    if os.path.isdir(os.path.join(host.prefix, "conda-meta")):
        prefixes.append(host.prefix)
    for prefix in filter(os.path.isabs, prefixes):
        subfolders = ("Library/bin", "Library/lib") if host.platform.system == "win" else ("lib",)
        yield from (os.path.join(prefix, *subfolder.split("/")) for subfolder in subfolders)


def homebrew(host: Host) -> Iterator[str]:
    usual = {"mac": ("opt/homebrew", "usr/local"), "linux": ("home/linuxbrew/.linuxbrew",)}
    prefixes = [str(host.system_root / p) for p in usual.get(host.platform.system, ())]
    for prefix in filter(os.path.isabs, [host.environ.get("HOMEBREW_PREFIX", ""), *prefixes]):
        yield os.path.join(prefix, "lib")
        yield os.path.join(prefix, "opt", "llama.cpp", "lib")


def tools(host: Host) -> Iterator[str]:
    """An unpacked release on the PATH: its libraries lie beside its tools, or in ../lib."""
    ending = ".exe" if host.platform.system == "win" else ""
    for folder in _listed(host, "PATH"):
        tool = os.path.join(folder, "llama-server" + ending)
        if os.path.isfile(tool):
            real = os.path.dirname(os.path.realpath(tool))
            yield real
            yield os.path.join(os.path.dirname(real), "lib")


def system(host: Host) -> Iterator[str]:
    """The folders of the dynamic loader. ctypes.util.find_library is not used: it runs ldconfig,
    a compiler and a linker, and knows only names without a release in them."""
    for variable in LOADER_VARIABLES.get(host.platform.system, ("LD_LIBRARY_PATH",)):
        yield from _listed(host, variable)
    if host.platform.system == "win":
        return
    yield from _loader_configuration(host)
    triplet = TRIPLETS.get(host.platform.machine, "")
    names = ["usr/local/lib", "usr/local/lib64", "usr/lib64", "usr/lib", "lib64", "lib"]
    names += [f"{name}/{triplet}" for name in ("usr/local/lib", "usr/lib", "lib") if triplet]
    for name in names:
        yield str(host.system_root / name)
        yield str(host.system_root / name / "llama.cpp")


def _loader_configuration(host: Host) -> Iterator[str]:
    """Yield the folders that /etc/ld.so.conf and the files beside it name."""
    conf = host.system_root / "etc" / "ld.so.conf"
    for path in (conf, *sorted((conf.parent / "ld.so.conf.d").glob("*.conf"))):
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                lines = file.read(MAX_CONF_BYTES).splitlines()
        except OSError:
            continue
        for line in lines:
            if line.startswith("/"):
                yield str(host.system_root / line.partition("#")[0].strip().lstrip("/"))


def _listed(host: Host, variable: str) -> Iterator[str]:
    """Yield the folders of a path variable; a relative one would be the current directory's."""
    separator = ";" if host.platform.system == "win" else ":"
    yield from filter(os.path.isabs, host.environ.get(variable, "").split(separator))


PLACES: tuple[tuple[str, Callable[[Host], Iterator[str]]], ...] = (
    ("beside the program", beside),
    ("inside the single file", embedded),
    ("fetched by scripts/fetch_libllama.py", fetched),
    ("the llama_cpp package", llama_cpp),
    ("conda", conda),
    ("Homebrew", homebrew),
    ("beside llama-server on the PATH", tools),
    ("the system's library path", system),
)
