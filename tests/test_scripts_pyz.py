"""build_pyz.py: one file, the same bytes each time, that runs with nothing beside it."""

from __future__ import annotations

import ast
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import fake_binaries as fake
import pytest
from serving import serving

from libloader import errors
from libloader.abi import find, manifest, unpack
from libloader.abi.platforms import Platform
from scripts import build_pyz

ROOT = Path(__file__).resolve().parent.parent
FILES = {"libllama.so.0": fake.elf(needs=["libggml.so"]), "libggml.so": fake.elf()}


@pytest.fixture
def library(tmp_path):
    """A folder as a person may have it: named after a platform, without a manifest."""
    folder = tmp_path / "linux-arm64"
    folder.mkdir()
    (folder / "libllama.so.0").write_bytes(fake.elf("arm64", needs=["libggml.so"]))
    (folder / "libggml.so").write_bytes(fake.elf("arm64"))
    (folder / "libllama.so").symlink_to("libllama.so.0")
    (folder / "llama-server").write_bytes(b"a tool")
    return folder


def built(path, *libraries):
    build_pyz.build(path, libraries)
    return path


def test_the_same_tree_gives_the_same_bytes(tmp_path, library):
    first = built(tmp_path / "a", library)
    for path in library.iterdir():
        if not path.is_symlink():
            os.utime(path, (1, 1))
    assert built(tmp_path / "else" / "b", library).read_bytes() == first.read_bytes()


def test_names_are_sorted_and_times_fixed(tmp_path):
    with zipfile.ZipFile(built(tmp_path / "igllama")) as archive:
        infos = archive.infolist()
    names = [info.filename for info in infos]
    assert names[0] == "__main__.py"
    assert names[1:] == sorted(names[1:])
    assert {info.date_time for info in infos} == {(1980, 1, 1, 0, 0, 0)}
    assert {info.external_attr >> 16 for info in infos} == {stat.S_IFREG | 0o644}


def test_all_of_libloader_is_inside_and_nothing_else(tmp_path):
    with zipfile.ZipFile(built(tmp_path / "igllama")) as archive:
        names = set(archive.namelist())
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "libloader").rglob("*.py")}
    assert modules | {"__main__.py", "igllama.py", "LICENSE"} <= names
    assert {name.split("/")[0] for name in names} == {
        "__main__.py", "igllama.py", "LICENSE", "libloader",
    }  # fmt: skip
    assert not [n for n in names if "__pycache__" in n or n.startswith("libloader/lib/")]


def test_the_file_is_executable_and_names_its_interpreter(tmp_path):
    path = built(tmp_path / "any name.at-all")
    assert path.read_bytes().startswith(b"#!/usr/bin/env python3\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_old_pythons_can_read_far_enough_to_say_what_they_lack():
    ast.parse(build_pyz.MAIN, feature_version=(3, 4))
    assert build_pyz.MAIN.index("version_info") < build_pyz.MAIN.index("import igllama")


def test_a_build_that_fails_leaves_the_old_file(tmp_path):
    (tmp_path / "igllama").write_bytes(b"old")
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.LibraryRefused):
        build_pyz.build(tmp_path / "igllama", [tmp_path / "empty"])
    assert (tmp_path / "igllama").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["empty", "igllama"]


# The library inside


def test_a_library_inside_is_what_was_in_the_folder(tmp_path, library):
    path = built(tmp_path / "igllama", library)
    platform = Platform("linux", "arm64")
    (found,) = unpack.embedded_folders(path, platform, str(tmp_path / "cache"), {})
    names = ["libggml.so", "libllama.so", "libllama.so.0"]
    assert sorted(os.listdir(found)) == [manifest.NAME, *names]
    assert all((Path(found) / n).read_bytes() == (library / n).read_bytes() for n in names)
    assert os.readlink(Path(found) / "libllama.so") == "libllama.so.0"


def test_libraries_of_several_platforms_travel_in_one_file(tmp_path, library):
    mac = tmp_path / "mac-arm64-metal"
    mac.mkdir()
    (mac / "libllama.dylib").write_bytes(fake.macho())
    path = built(tmp_path / "igllama", library, mac)
    for platform, name in ((Platform("linux", "arm64"), "libllama.so"),
                           (Platform("mac", "arm64"), "libllama.dylib")):  # fmt: skip
        (found,) = unpack.embedded_folders(path, platform, str(tmp_path / "cache"), {})
        assert (Path(found) / name).exists()


def test_a_fetched_library_that_was_changed_does_not_get_in(tmp_path, library):
    entries = {"libggml.so": manifest.Entry("0" * 64, (library / "libggml.so").stat().st_size)}
    manifest.write_manifest(library, manifest.Manifest("linux-arm64", "npm", entries))
    with pytest.raises(errors.LibraryRefused, match="another SHA-256: it was changed; fetch it"):
        build_pyz.build(tmp_path / "igllama", [library])


def test_a_library_for_another_machine_than_its_folder_says_does_not_get_in(tmp_path, library):
    library.rename(tmp_path / "linux-x64")
    with pytest.raises(errors.LibraryRefused, match="it is for arm64"):
        build_pyz.build(tmp_path / "igllama", [tmp_path / "linux-x64"])


def test_without_a_fetched_library_the_message_says_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(build_pyz, "ROOT", tmp_path)
    assert build_pyz.main(["-o", str(tmp_path / "igllama"), "--with-lib"]) == 1
    said = capsys.readouterr().err
    assert "run scripts/fetch_libllama.py" in said
    assert "--with-lib DIR" in said


# Running it


def small_tree(tmp_path, source):
    """A checkout whose igllama.py is `source`."""
    (tmp_path / "tree" / "libloader").mkdir(parents=True)
    (tmp_path / "tree" / "igllama.py").write_text(source)
    (tmp_path / "tree" / "LICENSE").write_text("MIT")
    return tmp_path / "tree"


def run(path, *arguments, cwd):
    """Run the single file as on a strange machine: no site-packages, no HOME, nothing beside it."""
    command = [sys.executable, "-I", "-S", "-W", "error", str(path), *arguments]
    environ = {"PATH": os.environ["PATH"]}
    return subprocess.run(
        command, cwd=cwd, env=environ, capture_output=True, encoding="utf-8", timeout=60
    )


def test_the_exit_code_is_what_main_returns(tmp_path, monkeypatch):
    monkeypatch.setattr(build_pyz, "ROOT", small_tree(tmp_path, "def main():\n    return 7\n"))
    path = built(tmp_path / "igllama")
    assert run(path, cwd=tmp_path).returncode == 7


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The real single file, in a folder of its own under a name without an ending."""
    return built(tmp_path_factory.mktemp("alone") / "igllama-here")


def test_it_runs_from_an_empty_directory_without_site_packages_and_home(alone, tmp_path):
    ended = run(alone, "--help", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "--lib-cache" in ended.stdout
    assert os.listdir(tmp_path) == []
    assert os.listdir(alone.parent) == [alone.name]


def test_a_wrong_flag_is_one_line_and_exit_code_2(alone, tmp_path):
    ended = run(alone, "api", "--no-such-flag", cwd=tmp_path)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.native
def test_with_the_library_inside_it_answers_from_an_empty_directory_without_home(tmp_path):
    fit = next(candidate for candidate in find.candidates() if not candidate.refusal)
    path = built(tmp_path / "dropped" / "llm", Path(fit.path).parent)
    (tmp_path / "empty").mkdir()
    bare = ["env", "-u", "HOME", "-u", "IGLLAMA_LIB", sys.executable, "-I", "-S", str(path)]
    cache = tmp_path / "cache"
    with serving("--lib-cache", cache, program=bare, cwd=tmp_path / "empty") as served:
        assert f"  {cache}{os.sep}" in served.block
        assert served.chat("Hello!", max_tokens=8)["choices"][0]["message"]["role"] == "assistant"
        assert served.stop() == 0
    assert os.listdir(tmp_path / "empty") == []
    assert os.listdir(path.parent) == ["llm"]
