"""Finding a libllama: places and their order, names, refusals in words, the final error.

Every test plants folders below tmp_path and a Host of its own: macOS and Windows run here too.
"""

from __future__ import annotations

import dataclasses
import os

import fake_binaries as fake
import pytest

from libloader import errors
from libloader.abi import find, platforms
from libloader.abi.places import Host
from libloader.abi.platforms import Platform

LINUX, MAC, WINDOWS = Platform("linux", "x64"), Platform("mac", "arm64"), Platform("win", "x64")


@pytest.fixture
def host(tmp_path):
    """A Linux machine with glibc 2.31, an empty checkout and an empty file system."""
    (tmp_path / "checkout").mkdir()
    return Host(
        LINUX,
        environ={},
        root=tmp_path / "checkout",
        system_root=tmp_path / "system",
        glibc=(2, 31),
    )


def plant(folder, name="libllama.so", data=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(fake.elf() if data is None else data)
    return str(folder / name)


def paths(found):
    return [candidate.path for candidate in found]


def load_nothing(path):
    raise AssertionError(f"{path} was loaded")


# Places


def test_the_places_are_searched_in_their_order(host, tmp_path):
    root, system = host.root, host.system_root
    environ = {
        "CONDA_PREFIX": str(tmp_path / "conda"),
        "PATH": f"relative:{tmp_path}/release/bin",
        "LD_LIBRARY_PATH": f":{tmp_path}/loader",
    }
    site = tmp_path / "site-packages"
    plant(tmp_path / "release" / "bin", "llama-server")
    expected = [
        plant(root),
        plant(root / "libloader" / "lib" / "linux-x64-cuda", "libllama.v0.5.0.so"),
        plant(root / "libloader" / "lib" / "linux-x64"),
        plant(site / "llama_cpp" / "lib"),
        plant(tmp_path / "conda" / "lib"),
        plant(system / "home/linuxbrew/.linuxbrew/lib"),
        plant(tmp_path / "release" / "bin"),
        plant(tmp_path / "release" / "lib"),
        plant(tmp_path / "loader"),
        plant(system / "usr/local/lib"),
        plant(system / "usr/lib/x86_64-linux-gnu"),
    ]
    host = dataclasses.replace(host, environ=environ, sys_path=("", str(site)))
    assert paths(find.candidates(host=host)) == expected


def test_a_named_library_is_the_only_one_that_is_looked_at(host, tmp_path):
    plant(host.root)
    named = plant(tmp_path / "mine", "my-llama.so")
    assert paths(find.candidates(named, host=host)) == [named]
    by_variable = dataclasses.replace(host, environ={"IGLLAMA_LIB": named})
    assert find.candidates(host=by_variable)[0].origin == "IGLLAMA_LIB"
    assert find.candidates(str(host.root), host=by_variable)[0].origin == "--lib"


@pytest.mark.parametrize(
    "inside",
    ["", "lib", "build/bin", "llama-b9842", "llama-v0.5.0/build/bin", "linux-x64",
     "bins/linux-x64", "linux-x64-vulkan/bins/linux-x64-vulkan"],
)  # fmt: skip
def test_a_named_folder_may_be_a_release_a_package_or_a_build(host, tmp_path, inside):
    path = plant(tmp_path / "named" / inside)
    assert paths(find.candidates(str(tmp_path / "named"), host=host)) == [path]


def test_beside_the_single_file_means_the_folder_that_it_lies_in(host, tmp_path):
    path = plant(tmp_path / "dropped")
    (tmp_path / "dropped" / "igllama").write_bytes(b"not a zip in this test")
    host = dataclasses.replace(host, root=tmp_path / "dropped" / "igllama")
    assert paths(find.candidates(host=host)) == [path]


def test_the_folders_of_ld_so_conf_are_searched(host):
    conf = host.system_root / "etc" / "ld.so.conf.d"
    conf.mkdir(parents=True)
    (conf / "llama.conf").write_text("# mine\n/opt/llama/lib  # here\n")
    path = plant(host.system_root / "opt/llama/lib")
    assert paths(find.candidates(host=host)) == [path]


def test_relative_entries_of_path_variables_never_mean_the_current_directory(
    host, tmp_path, monkeypatch
):
    plant(tmp_path / "here")
    plant(tmp_path / "here" / "llama_cpp" / "lib")
    monkeypatch.chdir(tmp_path / "here")
    environ = {"LD_LIBRARY_PATH": ".::", "PATH": ":.", "CONDA_PREFIX": ".", "HOMEBREW_PREFIX": "."}
    host = dataclasses.replace(host, environ=environ, sys_path=("", "."))
    assert find.candidates(host=host) == []


def test_a_conda_environment_is_recognised_by_its_interpreter(host, tmp_path):
    (tmp_path / "env" / "conda-meta").mkdir(parents=True)
    path = plant(tmp_path / "env" / "lib")
    assert paths(find.candidates(host=dataclasses.replace(host, prefix=str(tmp_path / "env")))) == [
        path
    ]


def test_macos_finds_homebrew_and_the_names_of_npm(host, tmp_path):
    host = dataclasses.replace(host, platform=MAC, glibc=(0, 0), macos=(14, 1))
    fetched = host.root / "libloader" / "lib" / "mac-arm64-metal"
    expected = [
        plant(fetched, "libllama.metal.v0.4.0.dylib", fake.macho()),
        plant(host.system_root / "opt/homebrew/lib", "libllama.dylib", fake.macho()),
    ]
    plant(host.system_root / "opt/homebrew/lib", "libllama.so.0")
    found = find.candidates(host=host)
    assert paths(found) == expected
    assert [candidate.refusal for candidate in found] == ["", ""]


def test_windows_finds_dlls_in_conda_and_on_the_path(host, tmp_path):
    environ = {
        "CONDA_PREFIX": str(tmp_path / "conda"),
        "PATH": f"{tmp_path}/tools;{tmp_path}/release",
    }
    host = dataclasses.replace(host, platform=WINDOWS, environ=environ, glibc=(0, 0))
    plant(tmp_path / "release", "llama-server.exe")
    plant(tmp_path / "release", "ggml.dll", fake.pe())
    expected = [
        plant(host.root / "libloader/lib/win-x64", "llama.v0.4.0.dll", fake.pe()),
        plant(tmp_path / "conda/Library/bin", "LLAMA.DLL", fake.pe()),
        plant(tmp_path / "release", "llama.dll", fake.pe(needs=["ggml.dll"])),
        plant(tmp_path / "tools", "llama.dll", fake.pe(needs=["ggml.dll"])),
    ]
    found = find.candidates(host=host)
    assert paths(found) == expected
    assert [candidate.refusal for candidate in found[:3]] == ["", "", ""]
    assert "needs ggml.dll, which is neither beside it" in found[3].refusal


def test_the_running_machine_can_be_searched():
    host = Host.here()
    assert host.platform == platforms.here()
    assert (host.root / "igllama.py").is_file()
    find.candidates("", host=host)


# Names


def test_release_numbers_in_names_put_the_newest_first():
    names = ["libllama.so.0", "libllama.b3889.so", "libllama.b10068.so", "libllama.v0.4.0.so",
             "libllama.so.0.0.9842", "libllama.v0.5.0.so", "libllama.so"]  # fmt: skip
    assert platforms.llama_files(LINUX, sorted(names)) == [
        "libllama.so",
        "libllama.v0.5.0.so",
        "libllama.v0.4.0.so",
        "libllama.b10068.so",
        "libllama.b3889.so",
        "libllama.so.0",
        "libllama.so.0.0.9842",
    ]


@pytest.mark.parametrize(
    ("platform", "name"),
    [
        (LINUX, "libllama-common.so"), (LINUX, "libllama.so.0.bak"), (LINUX, "libllama.dylib"),
        (LINUX, "libllama.a"), (LINUX, "libllamafile.so"), (LINUX, "llama.dll"),
        (MAC, "libllama.so.0"), (MAC, "libllama-common.dylib"),
        (WINDOWS, "llama-common.dll"), (WINDOWS, "llama.lib"), (WINDOWS, "libllama.so"),
    ],
)  # fmt: skip
def test_names_of_other_files_are_not_taken_for_libllama(platform, name):
    assert platforms.llama_files(platform, [name]) == []


@pytest.mark.parametrize(
    ("said", "name"),
    [
        (("linux", "x86_64", 8), "linux-x64"), (("linux", "aarch64", 8), "linux-arm64"),
        (("linux", "aarch64", 4), "linux-armv7l"), (("linux", "x86_64", 4), "linux-x86"),
        (("linux", "riscv64", 8), "linux-riscv64"), (("darwin", "arm64", 8), "mac-arm64"),
        (("darwin", "x86_64", 8), "mac-x64"), (("win32", "AMD64", 8), "win-x64"),
        (("win32", "ARM64", 8), "win-arm64"), (("freebsd14", "amd64", 8), "freebsd-x64"),
    ],
)  # fmt: skip
def test_platforms_are_named_as_npm_names_them(said, name):
    assert str(platforms.identify(*said)) == name


def test_links_to_one_file_are_one_candidate(host):
    real = plant(host.root, "libllama.so.0.0.9842")
    os.symlink(real, host.root / "libllama.so.0")
    os.symlink("libllama.so.0", host.root / "libllama.so")
    assert paths(find.candidates(host=host)) == [str(host.root / "libllama.so")]


# Refusals


def only_refusal(host):
    (candidate,) = find.candidates(host=host)
    return candidate.refusal


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (fake.elf("arm64"), "it is for arm64 (ELF); this Python is linux-x64"),
        (fake.elf("x86"), "it is for x86 (ELF); this Python is linux-x64"),
        (fake.macho(), "it is a library for macOS (Mach-O); this Python is linux-x64"),
        (fake.pe(), "it is a library for Windows (PE); this Python is linux-x64"),
        (fake.elf(glibc=["GLIBC_2.38", "GLIBC_2.4"]), "it needs glibc 2.38, this system has 2.31"),
        (fake.elf(needs=["libc.musl-x86_64.so.1"]), "it is built for the C library musl, this "
         "system has glibc 2.31"),
        (fake.elf(needs=["libggml.so.0"]), "it needs libggml.so.0, which is neither beside it nor "
         "in the system's folders"),
        (b"", "the file is empty"),
        (b"<html>404 Not Found", "not a shared library: it begins with b'<html>404 No'"),
    ],
)  # fmt: skip
def test_a_library_that_cannot_work_here_is_refused_with_the_reason(host, data, words):
    plant(host.root, data=data)
    assert only_refusal(host) == words


def test_glibc_that_is_old_enough_is_no_reason(host):
    plant(host.root, data=fake.elf(glibc=["GLIBC_2.31", "GLIBC_2.4"]))
    assert only_refusal(host) == ""


def test_a_glibc_build_is_refused_on_a_system_without_glibc(host):
    plant(host.root, data=fake.elf(glibc=["GLIBC_2.17"]))
    host = dataclasses.replace(host, glibc=(0, 0))
    assert only_refusal(host) == "it needs glibc 2.17, this system has another C library (musl?)"


def test_a_macos_that_is_too_old_is_named_beside_the_one_needed(host):
    host = dataclasses.replace(host, platform=MAC, glibc=(0, 0), macos=(12, 6))
    plant(host.root, "libllama.dylib", fake.macho(macos=(14, 0)))
    assert only_refusal(host) == "it needs macOS 14.0, this system has 12.6"


def test_libggml_is_checked_as_far_as_it_needs_others(host):
    plant(host.root, data=fake.elf(needs=["libggml.so"]))
    plant(host.root, "libggml.so", fake.elf(needs=["libggml-base.so"]))
    assert only_refusal(host).startswith("it needs libggml-base.so, which is neither")
    plant(host.root, "libggml-base.so", fake.elf(glibc=["GLIBC_2.35"]))
    assert only_refusal(host) == (
        "libggml-base.so, which it needs: it needs glibc 2.35, this system has 2.31"
    )
    plant(host.root, "libggml-base.so", fake.elf(glibc=["GLIBC_2.29"]))
    assert only_refusal(host) == ""


def test_libggml_may_lie_where_the_library_itself_says(host, tmp_path):
    plant(host.root, data=fake.elf(needs=["libggml.so"], runpath=f"$ORIGIN/../ggml:{tmp_path}/no"))
    plant(tmp_path / "ggml", "libggml.so")
    assert only_refusal(host) == ""


def test_libggml_may_lie_in_the_systems_folders(host):
    plant(host.root, data=fake.elf(needs=["libggml.so"]))
    plant(host.system_root / "usr/lib/x86_64-linux-gnu", "libggml.so")
    assert only_refusal(host) == ""


def test_libggml_of_homebrew_may_be_named_by_its_full_path(host, tmp_path):
    host = dataclasses.replace(host, platform=MAC, glibc=(0, 0), macos=(14, 0))
    plant(tmp_path / "Cellar/ggml/lib", "libggml.0.dylib", fake.macho())
    needs = [f"{tmp_path}/Cellar/ggml/lib/libggml.0.dylib"]
    plant(host.root, "libllama.dylib", fake.macho(needs=needs))
    assert only_refusal(host) == ""


def test_a_backend_that_was_cut_short_is_refused_before_it_is_mapped(host):
    plant(host.root)
    plant(host.root, "libggml-cpu-haswell.so", fake.elf(glibc=["GLIBC_2.4"])[:-4])
    assert only_refusal(host).startswith("libggml-cpu-haswell.so beside it: the file is cut short")


def test_a_backend_for_a_newer_system_is_no_reason(host):
    plant(host.root)
    plant(host.root, "libggml-cuda.so", fake.elf(glibc=["GLIBC_2.99"]))
    assert only_refusal(host) == ""


# Loading in turn


def test_the_first_library_that_loads_wins(host):
    plant(host.root, "libllama.b2.so", fake.elf("arm64"))
    broken = plant(host.root, "libllama.b1.so")
    good = plant(host.system_root / "usr/lib")
    plant(host.system_root / "lib")
    tried = []

    def try_load(path):
        tried.append(path)
        if path == broken:
            raise OSError("undefined symbol: fmaf128")
        return "loaded " + path

    assert find.find_library("", try_load, host=host) == "loaded " + good
    assert tried == [broken, good]


def test_one_error_lists_every_place_every_candidate_and_what_to_do(host):
    plant(host.root, "libllama.b2.so", fake.elf("arm64"))
    plant(host.root, "libllama.b1.so")
    (host.system_root / "usr/lib").mkdir(parents=True)

    def try_load(path):
        raise errors.SymbolsMissing("it lacks llama_decode")

    with pytest.raises(errors.LibraryNotFound) as failed:
        find.find_library("", try_load, host=host)
    text = str(failed.value)
    assert "no usable libllama (libllama.so) for Linux x64, glibc 2.31" in text
    assert f"{host.root}/libllama.b2.so: it is for arm64 (ELF); this Python is linux-x64" in text
    assert f"{host.root}/libllama.b1.so: it lacks llama_decode" in text
    for place in ("inside the single file", "conda", "Homebrew", "llama_cpp", "on the PATH"):
        assert place in text
    assert f"there is no {host.root}/libloader/lib/linux-x64" in text
    assert f"no libllama in {host.system_root}/usr/lib" in text
    assert "scripts/fetch_libllama.py" in text
    assert "--lib FOLDER" in text


def test_a_named_file_that_is_not_there_is_said_so(host, tmp_path):
    with pytest.raises(errors.LibraryNotFound) as failed:
        find.find_library(str(tmp_path / "gone.so"), load_nothing, host=host)
    assert f"{tmp_path}/gone.so: there is no such file or folder" in str(failed.value)
    assert "leave --lib and IGLLAMA_LIB out" in str(failed.value)


def test_a_named_folder_without_a_library_is_said_so(host, tmp_path):
    with pytest.raises(errors.LibraryNotFound, match=f"--lib: no libllama in {host.root}"):
        find.find_library(str(host.root), load_nothing, host=host)


def test_a_named_folder_with_libraries_of_another_system_is_not_called_empty(host):
    plant(host.root, "libllama.metal.v0.4.0.dylib", fake.macho())
    (candidate,) = find.candidates(str(host.root), host=host)
    assert candidate.refusal == "it is a library for macOS (Mach-O); this Python is linux-x64"


def test_nothing_is_loaded_whose_header_is_wrong(host):
    plant(host.root, data=fake.elf("arm64"))
    with pytest.raises(errors.LibraryNotFound):
        find.find_library("", load_nothing, host=host)


def test_a_second_build_is_not_mixed_with_the_ggml_of_a_refused_first(host, tmp_path):
    first = plant(host.root, data=fake.elf(needs=["libggml.so"]))
    plant(host.root, "libggml.so")
    second = plant(host.system_root / "usr/lib", data=fake.elf(needs=["libggml.so"]))
    plant(host.system_root / "usr/lib", "libggml.so")
    other = plant(host.system_root / "lib", data=fake.elf(needs=["libggml.v0.5.0.so"]))
    plant(host.system_root / "lib", "libggml.v0.5.0.so")

    def try_load(path):
        if path == first:
            raise errors.LayoutMismatch("n_ctx differs")
        return path

    assert find.find_library("", try_load, host=host) == other
    os.remove(other)
    with pytest.raises(errors.LibraryNotFound) as failed:
        find.find_library("", try_load, host=host)
    assert f"{second}: not tried: {first} was refused but left its libggml.so loaded" in str(
        failed.value
    )
