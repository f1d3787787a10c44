"""Reads the headers of a shared library (ELF, Mach-O, PE) without loading it.

What a file is for, what it needs, and whether it is whole: facts for `find`, which puts them into
words. Loading runs a library's constructors, and mapping a file that was cut short ends in SIGBUS:
so nothing is ever loaded whose header was not read here first. Every offset of a file is untrusted.

References: System V ABI and LSB (symbol versions) for ELF, <mach-o/loader.h>, the PE/COFF format.
"""

from __future__ import annotations

import mmap
import posixpath
import struct
from collections.abc import Iterator
from typing import NamedTuple, Union

from libloader import errors

Bytes = Union[bytes, mmap.mmap]

MAX_COMMANDS = 4096  # segments, load commands, imports, needed versions: a real file has dozens
MAX_STRING_BYTES = 4096


class Binary(NamedTuple):
    """What one shared library says of itself. Versions are (major, minor), (0, 0) if none."""

    kind: str  # ELF, Mach-O, PE
    machine: str  # as platforms.Platform.machine; a word of its own if unknown
    needs: tuple[str, ...]  # file names of the libraries it asks for
    folders: tuple[str, ...] = ()  # where it wants them to be looked for: RUNPATH, LC_RPATH
    glibc: tuple[int, int] = (0, 0)
    macos: tuple[int, int] = (0, 0)


class _Segment(NamedTuple):
    """A part of the file that is mapped at an address."""

    offset: int
    address: int
    n_bytes: int


class _Fields:
    """Reads numbers and strings of one byte order; what lies outside the file is `damaged`."""

    def __init__(self, data: Bytes, order: str = "<", start: int = 0) -> None:
        self.data, self.order, self.start = data, order, start

    def read(self, fmt: str, offset: int) -> tuple[int, ...]:
        try:
            return struct.unpack_from(self.order + fmt, self.data, self.start + offset)
        except (struct.error, OverflowError):
            raise errors.LibraryRefused("its header is damaged or cut short") from None

    def string(self, offset: int) -> str:
        begin = self.start + offset
        if not 0 <= begin < len(self.data):
            raise errors.LibraryRefused("its header is damaged or cut short")
        raw = self.data[begin : begin + MAX_STRING_BYTES]
        return raw.partition(b"\0")[0].decode("utf-8", "replace")

    def require(self, end: int) -> None:
        """Refuse a file that ends before `end`: mapping it would be a bus error later."""
        if self.start + end > len(self.data):
            raise errors.LibraryRefused(
                f"the file is cut short: {len(self.data)} bytes, its header says "
                f"{self.start + end} or more"
            )


def read(path: str, machine: str = "") -> Binary:
    """Return the facts of the shared library at `path`; of a fat file, those for `machine`.

    Raises LibraryRefused with the reason in words, without the path.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return parse(data, machine)
    except ValueError:
        raise errors.LibraryRefused("the file is empty") from None
    except OSError as exc:
        raise errors.LibraryRefused(f"it cannot be read: {exc.strerror or exc}") from None


def parse(data: Bytes, machine: str = "") -> Binary:
    magic = bytes(data[:4])
    if magic == b"\x7fELF":
        return _parse_elf(data)
    if magic in (b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe"):
        return _parse_macho(_Fields(data))
    if magic in (b"\xca\xfe\xba\xbe", b"\xca\xfe\xba\xbf"):
        return _parse_fat(data, machine)
    if magic[:2] == b"MZ":
        return _parse_pe(data)
    raise errors.LibraryRefused(f"not a shared library: it begins with {bytes(data[:12])!r}")


# ELF ------------------------------------------------------------------------------------------

ELF_MACHINES = {
    3: "x86", 21: "ppc64le", 22: "s390x", 40: "armv7l", 62: "x64", 183: "arm64",
    243: "riscv64", 258: "loongarch64",
}  # fmt: skip
ET_DYN, PT_LOAD, PT_DYNAMIC = 3, 1, 2
DT_NEEDED, DT_STRTAB, DT_RPATH, DT_RUNPATH = 1, 5, 15, 29
DT_VERNEED, DT_VERNEEDNUM = 0x6FFFFFFE, 0x6FFFFFFF


def _parse_elf(data: Bytes) -> Binary:
    fields = _Fields(data, ">" if bytes(data[5:6]) == b"\x02" else "<")
    wide = bytes(data[4:5]) == b"\x02"
    kind, machine = fields.read("HH", 16)
    if kind != ET_DYN:
        raise errors.LibraryRefused("an ELF file, but not a shared library")
    loads, dynamic = _elf_segments(fields, wide)
    tags = _elf_dynamic(fields, wide, dynamic)
    strings = _file_offset(loads, tags[DT_STRTAB][0]) if DT_STRTAB in tags else 0
    runpath = tags.get(DT_RUNPATH) or tags.get(DT_RPATH) or []
    return Binary(
        kind="ELF",
        machine=ELF_MACHINES.get(machine, f"ELF machine {machine}"),
        needs=tuple(fields.string(strings + name) for name in tags.get(DT_NEEDED, [])),
        folders=tuple(p for at in runpath for p in fields.string(strings + at).split(":") if p),
        glibc=_needed_glibc(fields, loads, tags, strings),
    )


def _elf_segments(fields: _Fields, wide: bool) -> tuple[list[_Segment], _Segment]:
    """Return the loaded segments and the dynamic one; refuse a file that lacks a part of them."""
    (table,) = fields.read("Q" if wide else "I", 32 if wide else 28)
    size, count = fields.read("HH", 54 if wide else 42)
    loads, dynamic = [], _Segment(0, 0, 0)
    for index in range(min(count, MAX_COMMANDS)):
        at = table + index * size
        if wide:
            kind, _flags, offset, address, _, n_bytes = fields.read("IIQQQQ", at)
        else:
            kind, offset, address, _, n_bytes = fields.read("IIIII", at)
        if kind in (PT_LOAD, PT_DYNAMIC):
            fields.require(offset + n_bytes)
        if kind == PT_LOAD:
            loads.append(_Segment(offset, address, n_bytes))
        elif kind == PT_DYNAMIC:
            dynamic = _Segment(offset, address, n_bytes)
    return loads, dynamic


def _elf_dynamic(fields: _Fields, wide: bool, dynamic: _Segment) -> dict[int, list[int]]:
    entry, size = ("QQ", 16) if wide else ("II", 8)
    tags: dict[int, list[int]] = {}
    for index in range(min(dynamic.n_bytes // size, MAX_COMMANDS)):
        tag, value = fields.read(entry, dynamic.offset + index * size)
        if not tag:
            break
        tags.setdefault(tag, []).append(value)
    return tags


def _file_offset(segments: list[_Segment], address: int) -> int:
    for segment in segments:
        if segment.address <= address < segment.address + segment.n_bytes:
            return address - segment.address + segment.offset
    raise errors.LibraryRefused("its header is damaged: an address lies outside every segment")


def _needed_glibc(
    fields: _Fields, loads: list[_Segment], tags: dict[int, list[int]], strings: int
) -> tuple[int, int]:
    """Return the highest GLIBC_x.y that .gnu.version_r asks for."""
    newest = (0, 0)
    for name in _needed_versions(fields, loads, tags, strings):
        prefix, _, version = name.partition("_")
        if prefix == "GLIBC" and version[:1].isdigit():
            newest = max(newest, version_of(version))
    return newest


def _needed_versions(
    fields: _Fields, loads: list[_Segment], tags: dict[int, list[int]], strings: int
) -> Iterator[str]:
    if DT_VERNEED not in tags:
        return
    at = _file_offset(loads, tags[DT_VERNEED][0])
    for _ in range(min(tags.get(DT_VERNEEDNUM, [0])[0], MAX_COMMANDS)):
        _version, count, _file, first, following = fields.read("HHIII", at)
        version_at = at + first
        for _ in range(min(count, MAX_COMMANDS)):
            _hash, _flags, _other, name, step = fields.read("IHHII", version_at)
            yield fields.string(strings + name)
            version_at += step
        at += following


def version_of(text: str) -> tuple[int, int]:
    """Return (major, minor) of a dotted version; what is not a number counts as 0."""
    parts = [int(part) if part.isdigit() else 0 for part in text.split(".")[:2]]
    return (parts[0], parts[1] if len(parts) > 1 else 0)


# Mach-O ---------------------------------------------------------------------------------------

MACH_MACHINES = {7: "x86", 0x01000007: "x64", 12: "armv7l", 0x0100000C: "arm64"}
MH_DYLIB, MH_BUNDLE = 6, 8  # llama.cpp builds backends as bundles
LC_SEGMENT_64, LC_VERSION_MIN_MACOSX, LC_BUILD_VERSION = 0x19, 0x24, 0x32
LC_RPATH = 0x8000001C
LC_LOADS = (0xC, 0x80000018, 0x8000001F)  # LC_LOAD_DYLIB, _WEAK_, LC_REEXPORT_DYLIB
PLATFORM_MACOS = 1


def _parse_fat(data: Bytes, machine: str) -> Binary:
    """Choose the slice for `machine`, else the first."""
    table = _Fields(data, ">")
    wide = bytes(data[3:4]) == b"\xbf"
    entry, size = ("IIQQ", 32) if wide else ("IIII", 20)
    (count,) = table.read("I", 4)
    slices = [table.read(entry, 8 + size * i) for i in range(min(count, MAX_COMMANDS))]
    if not slices:
        raise errors.LibraryRefused("its header is damaged: a fat file without slices")
    wanted = [s for s in slices if MACH_MACHINES.get(s[0]) == machine] or slices[:1]
    _cpu, _subtype, offset, n_bytes = wanted[0]
    table.require(offset + n_bytes)
    return _parse_macho(_Fields(data, "<", start=offset))


def _parse_macho(fields: _Fields) -> Binary:
    magic, cpu, _subtype, kind, count, _n_bytes = fields.read("IIIIII", 0)
    if kind not in (MH_DYLIB, MH_BUNDLE):
        raise errors.LibraryRefused("a Mach-O file, but not a shared library")
    needs, folders, macos = [], [], (0, 0)
    at = 32 if magic == 0xFEEDFACF else 28
    for _ in range(min(count, MAX_COMMANDS)):
        command, size = fields.read("II", at)
        if command in LC_LOADS:
            needs.append(fields.string(at + fields.read("I", at + 8)[0]))
        elif command == LC_RPATH:
            folders.append(fields.string(at + fields.read("I", at + 8)[0]))
        elif command == LC_SEGMENT_64:
            offset, n_bytes = fields.read("QQ", at + 40)
            fields.require(offset + n_bytes)
        elif command == LC_VERSION_MIN_MACOSX:
            macos = _packed_version(*fields.read("I", at + 8))
        elif command == LC_BUILD_VERSION and fields.read("I", at + 8)[0] == PLATFORM_MACOS:
            macos = _packed_version(*fields.read("I", at + 12))
        at += size
    return Binary(
        kind="Mach-O",
        machine=MACH_MACHINES.get(cpu, f"Mach-O cpu {cpu}"),
        needs=tuple(posixpath.basename(name) for name in needs),
        # A library named by a full path (Homebrew does) is looked for in that path's folder.
        folders=(*folders, *(posixpath.dirname(name) for name in needs if name[:1] == "/")),
        macos=macos,
    )


def _packed_version(packed: int) -> tuple[int, int]:
    return (packed >> 16, packed >> 8 & 0xFF)


# PE -------------------------------------------------------------------------------------------

PE_MACHINES = {0x14C: "x86", 0x1C4: "armv7l", 0x8664: "x64", 0xAA64: "arm64"}
IMAGE_FILE_DLL, PE32_PLUS = 0x2000, 0x20B


def _parse_pe(data: Bytes) -> Binary:
    fields = _Fields(data)
    (coff,) = fields.read("I", 0x3C)
    if bytes(data[coff : coff + 4]) != b"PE\0\0":
        raise errors.LibraryRefused("a DOS program, not a Windows library")
    machine, n_sections = fields.read("HH", coff + 4)
    optional_bytes, flags = fields.read("HH", coff + 20)
    if not flags & IMAGE_FILE_DLL:
        raise errors.LibraryRefused("a Windows program, not a DLL")
    sections = _pe_sections(fields, coff + 24 + optional_bytes, n_sections)
    (magic,) = fields.read("H", coff + 24)
    (imports,) = fields.read("I", coff + 24 + (112 if magic == PE32_PLUS else 96) + 8)
    return Binary(
        kind="PE",
        machine=PE_MACHINES.get(machine, f"PE machine {machine:#x}"),
        needs=tuple(_pe_imports(fields, sections, imports)) if imports else (),
    )


def _pe_sections(fields: _Fields, table: int, count: int) -> list[_Segment]:
    sections = []
    for index in range(min(count, MAX_COMMANDS)):
        address, n_bytes, offset = fields.read("III", table + index * 40 + 12)
        fields.require(offset + n_bytes)
        sections.append(_Segment(offset, address, n_bytes))
    return sections


def _pe_imports(fields: _Fields, sections: list[_Segment], address: int) -> Iterator[str]:
    table = _file_offset(sections, address)
    for index in range(MAX_COMMANDS):
        (name,) = fields.read("I", table + index * 20 + 12)
        if not name:
            return
        yield fields.string(_file_offset(sections, name))
