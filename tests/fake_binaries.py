"""Smallest ELF, Mach-O and PE files that a header reader takes for shared libraries.

No code is in them: whoever loads one by mistake gets an error from the loader, not a crash.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

ELF_NUMBERS = {"x64": 62, "arm64": 183, "armv7l": 40, "x86": 3, "s390x": 22, "riscv64": 243}
MACH_NUMBERS = {"x64": 0x01000007, "arm64": 0x0100000C}
PE_NUMBERS = {"x64": 0x8664, "arm64": 0xAA64, "x86": 0x14C}


class Strings:
    """A string table: `add` returns where a string begins."""

    def __init__(self) -> None:
        self.data = b"\0"

    def add(self, text: str) -> int:
        at = len(self.data)
        self.data += text.encode() + b"\0"
        return at


def elf(
    machine: str = "x64",
    needs: Sequence[str] = (),
    glibc: Sequence[str] = (),
    runpath: str = "",
    kind: int = 3,
) -> bytes:
    """An ELF file: header, two segments, a dynamic section, its strings, its version needs."""
    wide = machine in ("x64", "arm64", "s390x", "riscv64")
    order = ">" if machine == "s390x" else "<"
    strings, tags = Strings(), []
    tags += [(1, strings.add(name)) for name in needs]
    if runpath:
        tags.append((29, strings.add(runpath)))
    versions = _version_needs(order, strings, glibc)
    head, entry = (64, 16) if wide else (52, 8)
    dynamic_at = head + 2 * (56 if wide else 32)
    strings_at = dynamic_at + (len(tags) + 4) * entry
    tags += [(5, strings_at), (0x6FFFFFFE, strings_at + len(strings.data)), (0x6FFFFFFF, 1)]
    if not glibc:
        tags = tags[:-2]
    pair = order + ("QQ" if wide else "II")
    dynamic = b"".join(struct.pack(pair, *tag) for tag in [*tags, (0, 0)])
    end = strings_at + len(strings.data) + len(versions)
    segments = [(1, 0, end), (2, dynamic_at, len(dynamic))]
    body = _elf_header(order, wide, kind, ELF_NUMBERS[machine], segments) + dynamic
    return body.ljust(strings_at, b"\0") + strings.data + versions


def _version_needs(order: str, strings: Strings, glibc: Sequence[str]) -> bytes:
    need = struct.pack(order + "HHIII", 1, len(glibc), strings.add("libc.so.6"), 16, 0)
    for version in glibc:
        need += struct.pack(order + "IHHII", 0, 0, 2, strings.add(version), 16)
    return need


def _elf_header(
    order: str, wide: bool, kind: int, machine: int, segments: Sequence[tuple[int, int, int]]
) -> bytes:
    ident = b"\x7fELF" + bytes([2 if wide else 1, 2 if order == ">" else 1, 1]) + bytes(9)
    word, size, entry = ("Q", 64, 56) if wide else ("I", 52, 32)
    header = ident + struct.pack(
        f"{order}HHI{word}{word}{word}IHHHHHH",
        kind, machine, 1, 0, size, 0, 0, size, entry, len(segments), 0, 0, 0,
    )  # fmt: skip
    for type_, at, length in segments:
        if wide:
            header += struct.pack(order + "IIQQQQQQ", type_, 4, at, at, 0, length, length, 8)
        else:
            header += struct.pack(order + "IIIIIIII", type_, at, at, 0, length, length, 4, 4)
    return header


def macho(
    machine: str = "arm64",
    needs: Sequence[str] = (),
    rpaths: Sequence[str] = ("@loader_path",),
    macos: tuple[int, int] = (13, 0),
    kind: int = 6,
) -> bytes:
    commands = [_string_command(0xC, 24, name) for name in needs]
    commands += [_string_command(0x8000001C, 12, path) for path in rpaths]
    commands.append(struct.pack("<IIIIII", 0x32, 24, 1, macos[0] << 16 | macos[1] << 8, 0, 0))
    segment = struct.pack("<II16sQQQQIIII", 0x19, 72, b"__TEXT", 0, 4096, 0, 32, 5, 5, 0, 0)
    body = b"".join([*commands, segment])
    header = struct.pack(
        "<IIIIIIII", 0xFEEDFACF, MACH_NUMBERS[machine], 0, kind, len(commands) + 1, len(body), 0, 0
    )
    return header + body


def _string_command(command: int, header_bytes: int, text: str) -> bytes:
    raw = text.encode() + b"\0"
    raw += bytes(-(header_bytes + len(raw)) % 8)
    fill = bytes(header_bytes - 12)
    return struct.pack("<III", command, header_bytes + len(raw), header_bytes) + fill + raw


def fat(*slices: tuple[str, bytes]) -> bytes:
    """A universal Mach-O file of (machine, content)."""
    at = 4096
    table, body = struct.pack(">II", 0xCAFEBABE, len(slices)), b""
    for machine, content in slices:
        table += struct.pack(">IIIII", MACH_NUMBERS[machine], 0, at + len(body), len(content), 12)
        body += content
    return table.ljust(at, b"\0") + body


def pe(machine: str = "x64", needs: Sequence[str] = (), flags: int = 0x2000) -> bytes:
    """A DLL with one section, which holds the import table."""
    wide = machine != "x86"
    optional_bytes = 240 if wide else 224
    section_at, address = 0x400, 0x1000
    imports, names = b"", b""
    names_at = address + (len(needs) + 1) * 20
    for name in needs:
        imports += struct.pack("<IIIII", 0, 0, 0, names_at + len(names), 0)
        names += name.encode() + b"\0"
    section = imports + bytes(20) + names
    coff = struct.pack("<HHIIIHH", PE_NUMBERS[machine], 1, 0, 0, 0, optional_bytes, flags)
    optional = struct.pack("<H", 0x20B if wide else 0x10B).ljust(112 if wide else 96, b"\0")
    optional += struct.pack("<IIII", 0, 0, address if needs else 0, len(section))
    row = struct.pack("<8sIIII16s", b".idata", len(section), address, len(section), section_at, b"")
    head = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x80)
    head = head.ljust(0x80, b"\0") + b"PE\0\0" + coff + optional.ljust(optional_bytes, b"\0") + row
    return head.ljust(section_at, b"\0") + section
