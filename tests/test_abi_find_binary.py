"""The header reader: what ELF, Mach-O and PE files say of themselves, and hostile ones."""

from __future__ import annotations

import random

import fake_binaries as fake
import pytest

from libloader import errors
from libloader.abi import binary


@pytest.mark.parametrize("machine", sorted(fake.ELF_NUMBERS))
def test_an_elf_file_names_its_machine_its_needs_and_the_newest_glibc(machine):
    data = fake.elf(
        machine,
        needs=["libggml.so.0", "libc.so.6"],
        glibc=["GLIBC_2.17", "GLIBC_2.34", "GLIBC_2.4", "GLIBCXX_3.4.30", "GLIBC_PRIVATE"],
        runpath="$ORIGIN:/opt/ggml/lib:",
    )
    assert binary.parse(data) == binary.Binary(
        kind="ELF",
        machine=machine,
        needs=("libggml.so.0", "libc.so.6"),
        folders=("$ORIGIN", "/opt/ggml/lib"),
        glibc=(2, 34),
    )


def test_a_macho_file_names_its_needs_without_folders_and_the_macos_it_wants():
    data = fake.macho(
        "arm64", needs=["@rpath/libggml.dylib", "/opt/homebrew/opt/ggml/lib/libggml-base.0.dylib"],
        macos=(14, 2),
    )  # fmt: skip
    facts = binary.parse(data)
    assert facts.needs == ("libggml.dylib", "libggml-base.0.dylib")
    assert facts.folders == ("@loader_path", "/opt/homebrew/opt/ggml/lib")
    assert (facts.kind, facts.machine, facts.macos) == ("Mach-O", "arm64", (14, 2))


def test_of_a_universal_file_the_slice_for_this_machine_counts():
    data = fake.fat(("x64", fake.macho("x64", ["a.dylib"])), ("arm64", fake.macho("arm64")))
    assert binary.parse(data, "arm64").machine == "arm64"
    assert binary.parse(data, "x64").needs == ("a.dylib",)
    assert binary.parse(data, "riscv64").machine == "x64"


@pytest.mark.parametrize("machine", sorted(fake.PE_NUMBERS))
def test_a_dll_names_its_machine_and_its_imports(machine):
    facts = binary.parse(fake.pe(machine, needs=["ggml.dll", "KERNEL32.dll"]))
    assert facts == binary.Binary("PE", machine, ("ggml.dll", "KERNEL32.dll"))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs", "not a shared library: it begins with b'version http'"),
        (fake.elf(kind=2), "an ELF file, but not a shared library"),
        (fake.macho(kind=2), "a Mach-O file, but not a shared library"),
        (fake.pe(flags=2), "a Windows program, not a DLL"),
        (b"MZ".ljust(256, b"\0"), "a DOS program"),
        (fake.elf()[:30], "damaged or cut short"),
        (fake.elf(glibc=["GLIBC_2.2"])[:-9], "the file is cut short: "),
        (fake.pe(needs=["ggml.dll"])[:-3], "the file is cut short: "),
        (fake.macho()[:40], "damaged or cut short"),
        (fake.fat(("arm64", fake.macho()))[:4200], "the file is cut short: 4200 bytes"),
        (fake.fat(), "a fat file without slices"),
    ],
)
def test_what_is_no_whole_shared_library_is_refused_in_words(tmp_path, data, words):
    path = tmp_path / "libllama.so"
    path.write_bytes(data)
    with pytest.raises(errors.LibraryRefused) as refused:
        binary.read(str(path))
    assert words in str(refused.value)


def test_a_folder_and_a_dangling_link_are_refused_in_words(tmp_path):
    (tmp_path / "link.so").symlink_to("nowhere.so")
    for path in (tmp_path, tmp_path / "link.so"):
        with pytest.raises(errors.LibraryRefused, match="it cannot be read: "):
            binary.read(str(path))


@pytest.mark.parametrize(
    "data",
    [
        fake.elf("x64", ["libggml.so"], ["GLIBC_2.34"], "$ORIGIN"),
        fake.elf("x86", ["libggml.so"], ["GLIBC_2.34"]),
        fake.macho("arm64", ["libggml.dylib"]),
        fake.fat(("arm64", fake.macho("arm64"))),
        fake.pe("x64", ["ggml.dll"]),
    ],
)
def test_no_changed_byte_makes_the_reader_fail_otherwise_than_in_words(data):
    generator = random.Random(1)
    for _ in range(400):
        broken = bytearray(data)
        for _ in range(generator.randint(1, 6)):
            broken[generator.randrange(len(broken))] = generator.choice((0, 1, 127, 128, 255))
        try:
            facts = binary.parse(bytes(broken[: generator.randint(16, len(broken))]), "x64")
        except errors.LibraryRefused as exc:
            assert str(exc)
        else:
            assert facts.kind in ("ELF", "Mach-O", "PE")
