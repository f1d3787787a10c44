"""fetch_libllama.py on archives made here and on a false npm: no network, no real library."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import fake_binaries as fake
import pytest

from libloader.abi import manifest, platforms
from scripts import fetch_libllama, library_archive

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = fake.elf(needs=["libggml.so"])
GGML = fake.elf()
RELEASE = {"libllama.so": LIBRARY, "libggml.so": GGML, "llama-server": b"a tool"}
LIBRARIES = {"libllama.so": LIBRARY, "libggml.so": GGML}


@pytest.fixture(autouse=True)
def on_linux_x64(monkeypatch):
    monkeypatch.setattr(platforms, "here", lambda: platforms.Platform("linux", "x64"))
    monkeypatch.setenv("IGLLAMA_LIB", "/nowhere/libllama.so")  # nothing installed is found


def tar_gz(path, files, links=()):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return path


def a_zip(path, files, links=()):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        for name, target in links:
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, target)
    return path


def below(folder, files):
    return {f"{folder}/{name}": data for name, data in files.items()}


def fetch(tmp_path, *arguments):
    return fetch_libllama.main(["--into", str(tmp_path / "lib"), "--npm", "", *arguments])


def held(folder):
    """Return the content of `folder` but its manifest, which must be right."""
    known = manifest.load(folder)
    assert manifest.verify(folder, known) == ""
    assert set(known.files) == set(os.listdir(folder)) - {manifest.NAME}
    return {name: (folder / name).read_bytes() for name in known.files}


# Archives


@pytest.mark.parametrize(
    ("make", "name", "inside"),
    [
        (tar_gz, "llama-b9842-bin-ubuntu-x64.tar.gz", "llama-b9842"),
        (a_zip, "llama-b5000-bin-ubuntu-x64.zip", "build/bin"),
        (tar_gz, "node-llama-cpp-linux-x64-3.22.1.tgz", "package/bins/linux-x64"),
        (a_zip, "llama_cpp_python-0.3.2-py3-none-linux_x86_64.whl", "llama_cpp/lib"),
    ],
)
def test_the_libraries_of_every_kind_of_archive_are_taken(tmp_path, make, name, inside):
    archive = make(tmp_path / name, {**below(inside, RELEASE), "README.md": b"words"})
    assert fetch(tmp_path, "--from", str(archive)) == 0
    assert held(tmp_path / "lib" / "linux-x64") == LIBRARIES
    assert manifest.load(tmp_path / "lib" / "linux-x64").source.startswith(f"file {name} sha256 ")


def test_a_flat_windows_release_is_taken_on_linux(tmp_path):
    files = {"llama.dll": fake.pe(needs=["ggml.dll"]), "ggml.dll": fake.pe(), "llama-cli.exe": b""}
    archive = a_zip(tmp_path / "llama-b9842-bin-win-cpu-x64.zip", files)
    assert fetch(tmp_path, "--platform", "win-x64", "--from", str(archive)) == 0
    assert set(held(tmp_path / "lib" / "win-x64")) == {"llama.dll", "ggml.dll"}


@pytest.mark.parametrize("make", [tar_gz, a_zip])
def test_links_between_libraries_stay_links_and_are_checked(tmp_path, make):
    files = {"x/libllama.so.0.0.9842": LIBRARY, "x/libggml.so": GGML}
    links = [("x/libllama.so", "libllama.so.0"), ("x/libllama.so.0", "./libllama.so.0.0.9842")]
    archive = make(tmp_path / "release", files, links)
    assert fetch(tmp_path, "--from", str(archive)) == 0
    folder = tmp_path / "lib" / "linux-x64"
    assert os.readlink(folder / "libllama.so.0") == "libllama.so.0.0.9842"
    assert held(folder)["libllama.so"] == LIBRARY


def test_the_license_of_the_libraries_travels_with_them(tmp_path):
    files = {**below("package/bins/linux-x64", RELEASE), "package/LICENSE": b"MIT"}
    assert fetch(tmp_path, "--from", str(tar_gz(tmp_path / "a.tgz", files))) == 0
    assert held(tmp_path / "lib" / "linux-x64")["LICENSE"] == b"MIT"


def test_libraries_of_the_tools_and_of_other_bindings_are_left_out(tmp_path):
    more = {"libllama-common.so": GGML, "libmtmd.so": GGML, "llama-addon.node": b"", "a.json": b""}
    archive = tar_gz(tmp_path / "a.tgz", {**RELEASE, **more})
    assert fetch(tmp_path, "--from", str(archive)) == 0
    assert held(tmp_path / "lib" / "linux-x64") == LIBRARIES


def test_an_installation_is_copied_from_its_folder(tmp_path):
    bin_folder = tmp_path / "llama-b9842" / "bin"
    bin_folder.mkdir(parents=True)
    (tmp_path / "real.so").write_bytes(LIBRARY)
    (bin_folder / "libllama.so").symlink_to(tmp_path / "real.so")
    (bin_folder / "libggml.so").write_bytes(GGML)
    assert fetch(tmp_path, "--from", str(tmp_path / "llama-b9842")) == 0
    assert held(tmp_path / "lib" / "linux-x64") == LIBRARIES
    assert not (tmp_path / "lib" / "linux-x64" / "libllama.so").is_symlink()


@pytest.mark.parametrize(
    ("make", "files", "links", "words"),
    [
        (tar_gz, below("../x", LIBRARIES), (), "leads out of it: '../x/libllama.so'"),
        (tar_gz, below("/x", LIBRARIES), (), "leads out of it: '/x/libllama.so'"),
        (a_zip, below("a\\..\\..", LIBRARIES), (), "leads out of it"),
        (a_zip, below("C:", LIBRARIES), (), "leads out of it"),
        (tar_gz, LIBRARIES, [("libggml-cpu.so", "/etc/passwd")], "is a link to '/etc/passwd'"),
        (a_zip, LIBRARIES, [("libggml-cpu.so", "../../x.so")], "is a link to '../../x.so'"),
        (tar_gz, LIBRARIES, [("libggml-cpu.so", "gone.so")], "is a link to 'gone.so'"),
        (tar_gz, {"libllama.dylib": fake.macho()}, (), "a libllama for macOS: name the platform"),
        (tar_gz, {"llama.cpp/CMakeLists.txt": b""}, (), "these are sources"),
        (tar_gz, {"README": b""}, (), "no libllama.so inside"),
        (tar_gz, {"libllama.so": LIBRARY}, (), "libllama.so: it needs libggml.so, which is"),
        (tar_gz, {"libllama.so": fake.elf("arm64")}, (), "it is for arm64 (ELF)"),
    ],
)  # fmt: skip
def test_an_archive_that_is_hostile_or_no_use_leaves_nothing(
    tmp_path, capsys, make, files, links, words
):
    archive = make(tmp_path / "archive", files, links)
    assert fetch(tmp_path, "--from", str(archive)) == 1
    assert words in capsys.readouterr().err
    assert os.listdir(tmp_path / "lib") == []


@pytest.mark.parametrize("make", [tar_gz, a_zip])
def test_an_archive_that_was_cut_short_leaves_nothing(tmp_path, capsys, make):
    noise = hashlib.shake_128(b"noise").digest(300_000)
    archive = make(tmp_path / "archive", {"libggml.so": GGML + noise, "libllama.so": LIBRARY})
    archive.write_bytes(archive.read_bytes()[:200_000])
    assert fetch(tmp_path, "--from", str(archive)) == 1
    assert "is not a whole zip, tar.gz, tgz or wheel" in capsys.readouterr().err
    assert os.listdir(tmp_path / "lib") == []


@pytest.mark.parametrize("make", [tar_gz, a_zip])
@pytest.mark.parametrize(
    ("limit", "words"),
    [("MAX_UNPACKED_BYTES", "would unpack to more than"), ("MAX_MEMBERS", "more than 1 files")],
)
def test_an_archive_that_would_fill_the_disk_is_refused_before_it_is_unpacked(
    tmp_path, capsys, monkeypatch, make, limit, words
):
    archive = make(tmp_path / "archive", {"zeros": bytes(1 << 20), **LIBRARIES})
    monkeypatch.setattr(library_archive, limit, 1)
    assert fetch(tmp_path, "--from", str(archive)) == 1
    assert words in capsys.readouterr().err
    assert os.listdir(tmp_path / "lib") == []


def test_an_archive_must_have_the_sha256_that_was_asked_for(tmp_path, capsys):
    archive = tar_gz(tmp_path / "a.tgz", LIBRARIES)
    right = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert fetch(tmp_path, "--from", str(archive), "--sha256", "0" * 64) == 1
    assert f"has SHA-256 {right}, not 000" in capsys.readouterr().err
    assert fetch(tmp_path, "--from", str(archive), "--sha256", right.upper()) == 0


# Running again


def test_a_second_run_checks_every_file_and_fetches_nothing(tmp_path, capsys):
    fetch(tmp_path, "--from", str(tar_gz(tmp_path / "a.tgz", LIBRARIES)))
    assert fetch(tmp_path) == 0
    assert "linux-x64 is there and whole: file a.tgz" in capsys.readouterr().out


def test_a_changed_file_is_noticed_and_replaced(tmp_path, capsys):
    archive = tar_gz(tmp_path / "a.tgz", LIBRARIES)
    fetch(tmp_path, "--from", str(archive))
    (tmp_path / "lib/linux-x64/libggml.so").write_bytes(GGML[:-1] + b"x")
    assert fetch(tmp_path) == 1  # and there is no npm to bring a new one
    assert "libggml.so has another SHA-256: it was changed" in capsys.readouterr().out
    assert fetch(tmp_path, "--from", str(archive)) == 0
    assert held(tmp_path / "lib/linux-x64") == LIBRARIES


def test_a_folder_that_somebody_else_filled_is_replaced_only_by_force(tmp_path, capsys):
    (tmp_path / "lib/linux-x64").mkdir(parents=True)
    (tmp_path / "lib/linux-x64/mine.so").write_bytes(b"mine")
    archive = str(tar_gz(tmp_path / "a.tgz", LIBRARIES))
    assert fetch(tmp_path, "--from", archive) == 2
    assert "was not made by this script; --force replaces it" in capsys.readouterr().err
    assert fetch(tmp_path, "--from", archive, "--force") == 0
    assert held(tmp_path / "lib/linux-x64") == LIBRARIES


def test_if_missing_does_nothing_where_a_library_is_found(tmp_path, capsys, monkeypatch):
    (tmp_path / "libllama.so").write_bytes(fake.elf())
    monkeypatch.setenv("IGLLAMA_LIB", str(tmp_path / "libllama.so"))
    assert fetch(tmp_path, "--if-missing") == 0
    assert f"{tmp_path}/libllama.so (IGLLAMA_LIB)" in capsys.readouterr().out
    assert not (tmp_path / "lib").exists()


@pytest.mark.parametrize(
    "arguments",
    [["--platform", "../x"], ["--platform", "linux"], ["--version", "latest; rm"], ["--frm", "x"]],
)
def test_a_wrong_flag_or_value_is_exit_code_2(tmp_path, arguments):
    with pytest.raises(SystemExit) as ended:
        fetch(tmp_path, *arguments)
    assert ended.value.code == 2


def test_a_file_that_is_not_there_is_exit_code_2(tmp_path, capsys):
    assert fetch(tmp_path, "--from", str(tmp_path / "gone.tgz")) == 2
    assert "there is no " in capsys.readouterr().err


# npm


def npm(tmp_path, body):
    """Write a program that is called as npm is; `body` sees sys.argv and runs in npm's folder."""
    path = tmp_path / "npm"
    path.write_text(f"#!{sys.executable}\nimport os, shutil, sys, time\n{body}\n")
    path.chmod(0o755)
    return str(path)


def npm_that_brings(tmp_path, files):
    archive = tar_gz(tmp_path / "brought", below("package/bins/linux-x64", files))
    log = tmp_path / "npm.log"
    body = f"open({str(log)!r}, 'a').write(' '.join(sys.argv[1:3]) + '\\n')\n"
    return npm(tmp_path, body + f"shutil.copy({str(archive)!r}, 'package.tgz')"), log


def test_npm_brings_the_package_of_the_platform(tmp_path):
    program, log = npm_that_brings(tmp_path, RELEASE)
    assert fetch(tmp_path, "--npm", program) == 0
    assert held(tmp_path / "lib/linux-x64") == LIBRARIES
    assert log.read_text() == f"pack @node-llama-cpp/linux-x64@{fetch_libllama.DEFAULT_VERSION}\n"
    assert os.listdir(tmp_path / "lib") == ["linux-x64"]


def test_another_version_replaces_the_one_that_is_there(tmp_path, capsys):
    program, log = npm_that_brings(tmp_path, RELEASE)
    for arguments in ([], ["--version", "3.4.1"], ["--version", "3.4.1"], []):
        assert fetch(tmp_path, "--npm", program, *arguments) == 0
    assert len(log.read_text().splitlines()) == 2
    assert "linux-x64@3.4.1" in manifest.load(tmp_path / "lib/linux-x64").source
    assert "it is replaced" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("npm error code ENOTFOUND", "npm reaches no package registry: there is no network"),
        ("npm error code E404", "has no @node-llama-cpp/linux-x64@3.22.1: name another with --ver"),
        ("npm error notarget ETARGET", "npm view @node-llama-cpp/linux-x64 versions"),
        ("first\n\nwhat is wrong", "npm pack failed: first / what is wrong"),
    ],
)
def test_what_npm_says_is_put_into_words_with_another_way(tmp_path, capsys, said, words):
    program = npm(tmp_path, f"sys.exit({said!r})")
    assert fetch(tmp_path, "--npm", program) == 1
    err = capsys.readouterr().err
    assert words in err
    assert "--from FILE" in err
    assert os.listdir(tmp_path / "lib") == []


def test_without_npm_an_installed_library_is_named(tmp_path, capsys, monkeypatch):
    assert fetch(tmp_path) == 1
    assert "npm, which fetches libllama, is not installed" in capsys.readouterr().err
    (tmp_path / "libllama.so").write_bytes(fake.elf())
    monkeypatch.setenv("IGLLAMA_LIB", str(tmp_path / "libllama.so"))
    assert fetch(tmp_path) == 0
    assert "An installed libllama will be used: " in capsys.readouterr().out
    assert fetch(tmp_path, "--platform", "linux-arm64") == 1


def test_npm_has_only_certain_platforms(tmp_path, capsys):
    assert fetch(tmp_path, "--npm", "npm", "--platform", "linux-s390x") == 2
    assert "npm has no package for linux-s390x, only for linux-x64, " in capsys.readouterr().err


def test_a_fetch_that_is_killed_while_npm_runs_leaves_no_library(tmp_path):
    ready = tmp_path / "ready"
    program = npm(tmp_path, f"open('half.tgz', 'w')\nopen({str(ready)!r}, 'w')\ntime.sleep(60)")
    script = ROOT / "scripts" / "fetch_libllama.py"
    command = [sys.executable, str(script), "--into", str(tmp_path / "lib"), "--npm", program]
    command += ["--platform", "linux-x64"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 30
    while not ready.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)  # npm too: it is in the session made above
    assert process.wait(30) == -signal.SIGKILL
    assert os.listdir(tmp_path / "lib") == [".download"]
    good, _log = npm_that_brings(tmp_path, RELEASE)
    assert fetch(tmp_path, "--npm", good) == 0
    assert held(tmp_path / "lib/linux-x64") == LIBRARIES


def test_a_fetch_that_is_stopped_while_unpacking_goes_on_from_what_npm_brought(
    tmp_path, monkeypatch
):
    program, log = npm_that_brings(tmp_path, RELEASE)

    def interrupted(folder, members, on_bytes):
        (folder / "libllama.so").write_bytes(LIBRARY[:100])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "write", interrupted)
        assert fetch(tmp_path, "--npm", program) == 130
    assert os.listdir(tmp_path / "lib") == [".download"]
    assert fetch(tmp_path, "--npm", program) == 0
    assert len(log.read_text().splitlines()) == 1
    assert held(tmp_path / "lib/linux-x64") == LIBRARIES
    assert os.listdir(tmp_path / "lib") == ["linux-x64"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_progress_bar_moves_on_a_terminal_and_is_one_line_elsewhere(monkeypatch):
    for stream, n_draws in ((Terminal(), 4), (io.StringIO(), 1)):
        ticks = iter(range(100))
        monkeypatch.setattr(time, "monotonic", lambda ticks=ticks: float(next(ticks)))
        progress = fetch_libllama.Progress("unpacking", 4 << 20, stream)
        for _ in range(3):
            progress.add(1 << 20)
        progress.add(1 << 20) if n_draws == 1 else None
        progress.close()
        assert stream.getvalue().count("unpacking: [") == n_draws
        assert stream.getvalue().endswith(" s\n")
