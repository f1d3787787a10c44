"""The library inside the single file: unpacked once, into a private folder, proved by hash."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import fake_binaries as fake
import pytest

from libloader import errors
from libloader.abi import find, manifest, unpack
from libloader.abi.places import Host
from libloader.abi.platforms import Platform

LINUX = Platform("linux", "x64")
FILES = {"libllama.so.0": fake.elf(needs=["libggml.so"]), "libggml.so": fake.elf()}
ROOT = Path(__file__).resolve().parent.parent


def single_file(path, files=None, listed=None, platform="linux-x64"):
    """Write a zip with `files` inside and a manifest of `listed` (default: the same)."""
    files = FILES if files is None else files
    listed = files if listed is None else listed
    entries = {
        name: manifest.Entry(manifest.hash_of(io.BytesIO(data)), len(data))
        for name, data in listed.items()
    }
    entries["libllama.so"] = manifest.Entry(link="libllama.so.0")
    text = manifest.dump(manifest.Manifest(platform, "test", entries))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"embedded/{platform}/{manifest.NAME}", text)
        for name, data in files.items():
            archive.writestr(f"embedded/{platform}/{name}", data)
    return path


def unpacked(archive, cache, environ=None):
    (folder,) = unpack.embedded_folders(archive, LINUX, str(cache), environ or {})
    return Path(folder)


@pytest.fixture
def archive(tmp_path):
    return single_file(tmp_path / "igllama")


def test_the_library_is_unpacked_to_a_folder_that_only_its_owner_may_enter(archive, tmp_path):
    folder = unpacked(archive, tmp_path / "cache")
    assert folder.parent == tmp_path / "cache"
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert os.readlink(folder / "libllama.so") == "libllama.so.0"
    for each in (folder, folder.parent):
        assert stat.S_IMODE(each.stat().st_mode) == 0o700


def test_a_second_start_uses_what_the_first_unpacked(archive, tmp_path):
    folder = unpacked(archive, tmp_path / "cache")
    before = folder.stat()
    assert unpacked(archive, tmp_path / "cache") == folder
    assert (folder.stat().st_ino, folder.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_find_takes_the_library_inside_the_single_file(archive, tmp_path):
    host = Host(LINUX, {}, root=archive, system_root=tmp_path / "none", glibc=(2, 31))
    (found,) = find.candidates(lib_cache=str(tmp_path / "cache"), host=host)
    assert (found.origin, found.refusal) == ("inside the single file", "")
    assert found.path.endswith("libllama.so")


def test_a_library_for_another_platform_inside_is_left_inside(tmp_path):
    archive = single_file(tmp_path / "igllama", platform="mac-arm64-metal")
    assert list(unpack.embedded_folders(archive, LINUX, str(tmp_path / "cache"), {})) == []
    assert not (tmp_path / "cache").exists()


def test_a_checkout_has_nothing_inside(tmp_path):
    assert list(unpack.embedded_folders(tmp_path, LINUX, str(tmp_path / "cache"), {})) == []


def change_a_byte(folder):
    data = bytearray((folder / "libggml.so").read_bytes())
    data[-1] ^= 1
    (folder / "libggml.so").write_bytes(data)


def remove_a_file(folder):
    (folder / "libggml.so").unlink()


def add_a_backend(folder):
    (folder / "libggml-evil.so").write_bytes(fake.elf())


def replace_by_a_link(folder):
    (folder / "libggml.so").rename(folder.parent / "kept")
    (folder / "libggml.so").symlink_to(folder.parent / "kept")


def turn_the_link(folder):
    (folder / "libllama.so").unlink()
    (folder / "libllama.so").symlink_to("libggml.so")


def let_others_write(folder):
    folder.chmod(0o777)


@pytest.mark.parametrize(
    "spoil",
    [change_a_byte, remove_a_file, add_a_backend, replace_by_a_link, turn_the_link,
     let_others_write],
)  # fmt: skip
def test_what_was_changed_since_is_unpacked_anew(archive, tmp_path, spoil):
    folder = unpacked(archive, tmp_path / "cache")
    spoil(folder)
    assert unpacked(archive, tmp_path / "cache") == folder
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert sorted(os.listdir(folder)) == sorted([*FILES, "libllama.so", manifest.NAME])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_single_file_that_was_damaged_itself_is_refused(tmp_path):
    damaged = {**FILES, "libggml.so": fake.elf(glibc=["GLIBC_2.4"])}
    archive = single_file(tmp_path / "igllama", files=damaged, listed=FILES)
    with pytest.raises(errors.LibraryRefused, match="libggml.so inside has another SHA-256"):
        unpacked(archive, tmp_path / "cache")
    assert os.listdir(tmp_path / "cache") == []


@pytest.mark.parametrize("name", ["../evil.so", "/evil.so", "a/b.so", ".hidden", "a\nb"])
def test_a_manifest_cannot_name_files_elsewhere(tmp_path, name):
    archive = single_file(tmp_path / "igllama", files={name: b"x"})
    with pytest.raises(errors.LibraryRefused, match="is not a plain file name"):
        unpacked(archive, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "files": 3}'])
def test_a_manifest_that_is_none_is_refused(text):
    with pytest.raises(errors.LibraryRefused, match=r"MANIFEST.json is not readable"):
        manifest.parse(text)


def test_a_manifest_survives_its_own_text():
    entries = {"a.so": manifest.Entry("0" * 64, 7), "b.so": manifest.Entry(link="a.so")}
    content = manifest.Manifest("linux-x64", "npm", entries)
    assert manifest.parse(manifest.dump(content)) == content


# The private folder


def test_a_cache_that_others_may_write_to_is_not_used(archive, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o770)
    with pytest.raises(errors.LibraryRefused, match=r"others may write to it \(mode 770\)"):
        unpacked(archive, cache)


def test_a_cache_below_a_folder_that_anybody_may_change_is_not_used(archive, tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    with pytest.raises(errors.LibraryRefused, match="anybody may rename it"):
        unpacked(archive, tmp_path / "shared" / "cache")


def test_a_cache_that_is_a_link_is_not_used(archive, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "cache").symlink_to("real")
    with pytest.raises(errors.LibraryRefused, match="links are not followed"):
        unpacked(archive, tmp_path / "cache")


def test_a_cache_of_another_user_is_not_used(archive, tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(errors.LibraryRefused, match=r"belongs to user \d+, this process runs as"):
        unpacked(archive, tmp_path / "cache")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"XDG_CACHE_HOME": "xdg", "HOME": "home"}, "xdg/igllama"),
        ({"XDG_CACHE_HOME": "", "HOME": "home"}, "home/.cache/igllama"),
        ({}, "temporary/igllama-{user}"),
    ],
)
def test_without_a_flag_the_usual_cache_is_used_and_without_a_home_the_temporary_folder(
    tmp_path, monkeypatch, variables, expected
):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    environ = {name: value and str(tmp_path / value) for name, value in variables.items()}
    expected = tmp_path / expected.format(user=os.geteuid())
    assert unpack.cache_folder("", environ) == expected
    assert expected.is_dir()


def test_an_unusable_home_is_passed_over(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "file").write_text("not a folder")
    folder = unpack.cache_folder("", {"HOME": str(tmp_path / "file")})
    assert folder.parent == tmp_path / "temporary"


def test_when_no_cache_can_be_made_every_reason_is_given(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    with pytest.raises(errors.LibraryRefused) as refused:
        unpack.cache_folder("", {"HOME": str(tmp_path / "file")})
    assert str(refused.value).count("cannot be made") == 2
    assert "--lib-cache" in str(refused.value)


# Two at once, and killed ones


def test_processes_that_unpack_at_once_all_get_a_whole_library(archive, tmp_path):
    code = (
        "import sys; from pathlib import Path; from libloader.abi import unpack\n"
        "from libloader.abi.platforms import Platform\n"
        "sys.stdin.readline()\n"
        "for folder in unpack.embedded_folders(Path(sys.argv[1]), Platform('linux', 'x64'),\n"
        "                                      sys.argv[2], {}):\n"
        "    print(sorted(p.name for p in Path(folder).iterdir()))\n"
    )
    command = [sys.executable, "-c", code, str(archive), str(tmp_path / "cache")]
    pipe = subprocess.PIPE
    started = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=ROOT, encoding="utf-8")
        for _ in range(4)
    ]
    answers = [process.communicate("go\n", timeout=60)[0] for process in started]
    assert answers == [f"{sorted([*FILES, 'libllama.so', manifest.NAME])}\n"] * 4
    assert len(os.listdir(tmp_path / "cache")) == 1


def test_of_two_that_write_at_once_the_second_keeps_what_the_first_published(tmp_path):
    final, entered = tmp_path / "final", threading.Barrier(2, timeout=30)
    inodes = []

    def write(name):
        with manifest.staged(final, keep=lambda existing: True) as folder:
            (folder / name).write_text(name)
            entered.wait()
        inodes.append(final.stat().st_ino)

    threads = [threading.Thread(target=write, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(set(inodes)) == 1
    assert os.listdir(tmp_path) == ["final"]
    assert len(os.listdir(final)) == 1


def test_a_failed_write_changes_nothing(tmp_path):
    final = tmp_path / "final"
    final.mkdir()
    (final / "old").write_text("old")
    with pytest.raises(KeyboardInterrupt), manifest.staged(final) as folder:
        (folder / "new").write_text("half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["final"]
    assert os.listdir(final) == ["old"]


def test_an_old_folder_is_replaced_as_a_whole(tmp_path):
    final = tmp_path / "final"
    final.mkdir()
    (final / "old").write_text("old")
    with manifest.staged(final) as folder:
        (folder / "new").write_text("new")
    assert os.listdir(tmp_path) == ["final"]
    assert os.listdir(final) == ["new"]


def test_what_killed_processes_left_is_removed_when_it_is_old(tmp_path):
    recent, old = tmp_path / ".final.aaaa.part", tmp_path / ".final.bbbb.part"
    for left in (recent, old):
        left.mkdir()
    long_ago = time.time() - 2 * manifest.ABANDONED_S
    os.utime(old, (long_ago, long_ago))
    with manifest.staged(tmp_path / "final"):
        pass
    assert sorted(os.listdir(tmp_path)) == [".final.aaaa.part", "final"]
