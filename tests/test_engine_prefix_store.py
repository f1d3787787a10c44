"""Saved states: what is kept in RAM and on disk, and that nothing doubtful is ever loaded."""

from __future__ import annotations

import os
import stat
import sys

import pytest

from libloader.engine import prefix_file
from libloader.engine.prefix_file import Folder
from libloader.engine.prefix_store import PrefixStore

BINDING = b"b" * 32
TOKENS = [1, 70000, 3]
STATE = b"state" * 100


@pytest.fixture
def folder(tmp_path):
    return Folder(str(tmp_path), BINDING)


@pytest.fixture
def written(folder, tmp_path):
    """A folder with one good file; returns its path."""
    name = folder.name_for(TOKENS)
    folder.write(name, TOKENS, (), STATE)
    return tmp_path / name


def test_what_was_written_is_found_and_read(folder, written):
    assert folder.index() == [(written.name, TOKENS, (), len(STATE))]
    assert folder.read(written.name, TOKENS) == STATE


def test_a_file_belongs_to_its_owner_alone(written):
    assert stat.S_IMODE(written.stat().st_mode) == 0o600 or sys.platform == "win32"


@pytest.mark.parametrize("keep", [0, 7, 8, 39, 51, 52, 60, -33, -32, -1])
def test_a_truncated_file_is_not_loaded(folder, written, keep):
    written.write_bytes(written.read_bytes()[:keep])
    assert folder.index() == [] and folder.read(written.name, TOKENS) is None


@pytest.mark.parametrize("at", [0, 9, 41, 45, 53, 70, 500, -1])
def test_one_flipped_bit_is_enough_not_to_load_a_file(folder, written, at):
    data = bytearray(written.read_bytes())
    data[at] ^= 4
    written.write_bytes(data)
    assert folder.read(written.name, TOKENS) is None


def test_a_file_that_grew_is_not_loaded(folder, written):
    written.write_bytes(written.read_bytes() + b"x")
    assert folder.index() == [] and folder.read(written.name, TOKENS) is None


def test_a_file_of_another_model_or_library_is_not_seen(tmp_path, written):
    assert Folder(str(tmp_path), b"c" * 32).index() == []


def test_a_file_is_not_read_as_the_state_of_other_tokens(folder, written):
    assert folder.read(written.name, [1, 2, 3]) is None


def test_strange_files_are_left_alone(folder, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "folder.kv").mkdir()
    (tmp_path / "empty.kv").touch()
    assert folder.index() == []
    assert (tmp_path / "notes.txt").exists() and (tmp_path / "empty.kv").exists()


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="no O_NOFOLLOW here")
def test_a_symbolic_link_is_not_followed(folder, written, tmp_path):
    real = tmp_path / "elsewhere"
    written.rename(real)
    written.symlink_to(real)
    assert folder.index() == [] and folder.read(written.name, TOKENS) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_does_not_block(folder, tmp_path):
    os.mkfifo(tmp_path / "pipe.kv")
    assert folder.index() == []


def test_an_abandoned_unfinished_file_is_removed_and_a_fresh_one_is_not(folder, tmp_path):
    old, fresh = tmp_path / "a.kv.1.tmp", tmp_path / "b.kv.2.tmp"
    old.touch()
    fresh.touch()
    os.utime(old, (0, 0))
    folder.index()
    assert not old.exists() and fresh.exists()


def test_a_failed_write_leaves_no_file_and_warns_once(folder, tmp_path, monkeypatch, caplog):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prefix_file.os, "fsync", full)
    for tokens in (TOKENS, [9]):
        folder.write(folder.name_for(tokens), tokens, (), STATE)
    assert os.listdir(tmp_path) == []
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_folder_that_cannot_be_made_ends_the_saving_with_one_warning(tmp_path, caplog):
    (tmp_path / "file").touch()
    folder = Folder(str(tmp_path / "file" / "folder"), BINDING)
    assert folder.index() == []
    folder.write("x.kv", TOKENS, (), STATE)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_ram_holds_no_more_than_its_budget_and_the_oldest_goes():
    store = PrefixStore(250)
    dropped = []
    store.on_drop = lambda saved: dropped.append(saved.tokens)
    first = store.put([1], b"x" * 100)
    store.put([2], b"x" * 100)
    store.touch(first)
    store.put([3], b"x" * 100)
    assert dropped == [[2]] and store.n_ram_bytes == 200


def test_a_state_larger_than_the_budget_is_not_kept():
    store = PrefixStore(50)
    assert store.put([1], b"x" * 100) is None and store.n_ram_bytes == 0


def test_a_longer_state_replaces_those_it_begins_with():
    store = PrefixStore(1000)
    store.put([1, 2], b"short")
    store.put([1, 3], b"other")
    store.put([1, 2, 3], b"long")
    assert [saved.tokens for saved in store] == [[1, 3], [1, 2, 3]]


def test_a_longer_state_that_cannot_be_cut_replaces_none():
    store = PrefixStore(1000)
    short = store.put([1, 2], STATE[:100], can_cut=False)
    long = store.put([1, 2, 3], STATE[:100], can_cut=False)
    assert list(store) == [short, long]


def test_what_leaves_ram_goes_to_disk_and_comes_back(folder):
    store = PrefixStore(100, folder, 10_000)
    first = store.put([1], b"x" * 100)
    store.put([2], b"y" * 100)
    assert first.level == "disk"
    assert store.fetch(first).result() == b"x" * 100
    store.close()


def test_disk_holds_no_more_than_its_budget(folder, tmp_path):
    store = PrefixStore(0, folder, 250)
    for number in range(5):
        saved = store.put([number], b"x" * 100)
        assert saved is not None
        store.fetch(saved).result()  # waits for the disk
    store.close()
    assert len(os.listdir(tmp_path)) == 2


def test_all_that_is_in_ram_is_found_after_a_restart(tmp_path):
    store = PrefixStore(10_000, Folder(str(tmp_path), BINDING), 10_000)
    states = {number: bytes([number]) * 100 for number in range(7)}
    for number, state in states.items():
        store.put([number], state)
    store.close()
    again = PrefixStore(10_000, Folder(str(tmp_path), BINDING), 10_000)
    found = {saved.tokens[0]: again.fetch(saved).result() for saved in again}
    again.close()
    assert found == states


def test_a_file_that_is_damaged_after_the_start_is_none_and_can_be_forgotten(folder, written):
    store = PrefixStore(1000, folder, 10_000)
    (saved,) = store
    written.write_bytes(b"rubbish")
    assert store.fetch(saved).result() is None
    store.forget(saved)
    store.close()
    assert list(store) == [] and not written.exists()
