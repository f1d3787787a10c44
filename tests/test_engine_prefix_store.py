"""Saved states: what is kept in RAM and on disk, and that nothing doubtful is ever loaded."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import threading
import time

import pytest
from fakes import Watched

from libloader.engine import prefix_file, prefix_store
from libloader.engine.prefix_file import Folder
from libloader.engine.prefix_store import PrefixStore

BINDING, OTHER = b"b" * 32, b"o" * 32
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


def test_damaged_files_are_one_warning_that_names_some_of_them(folder, written, tmp_path, caplog):
    whole = written.read_bytes()
    for number, left in enumerate((whole[:-1], whole[:60], whole[:20], b"", b"my notes" * 100)):
        (tmp_path / f"{number}.kv").write_bytes(left)
    assert len(folder.index()) == 1
    (record,) = caplog.records
    assert record.levelname == "WARNING" and ": 5 files (" in record.message
    assert record.message.count(".kv': ") == 3 and record.message.endswith("; ...)")


@pytest.mark.parametrize(
    ("left", "words"),
    [(-1, "cut short or damaged"), (20, "cut short or damaged"), (0, "no saved prefix")],
)
def test_the_warning_says_what_is_wrong_with_a_file(folder, written, caplog, left, words):
    written.write_bytes(written.read_bytes()[:left])
    assert folder.index() == [] and f"1 files ('{written.name}': {words})" in caplog.text


def test_files_of_others_are_one_warning_with_their_number_and_size(shared, caplog):
    assert Folder(str(shared), BINDING).index() == []
    (record,) = caplog.records
    assert (
        record.levelname == "WARNING" and "6 saved prefixes (0.0 MiB) of another" in record.message
    )


def test_of_a_good_folder_nothing_is_said(folder, written, tmp_path, caplog):
    (tmp_path / "notes.txt").write_text("mine")
    assert len(folder.index()) == 1 and not caplog.records


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


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="symbolic links need rights elsewhere")
def test_a_link_to_nowhere_leaves_the_rest_of_the_folder_in_use(folder, written, tmp_path, caplog):
    (tmp_path / "a").symlink_to("/nowhere/at/all")
    assert [entry.name for entry in folder.index()] == [written.name]
    folder.write(folder.name_for([9]), [9], (), STATE)
    assert len(folder.index()) == 2 and not caplog.records


def test_a_file_that_vanishes_while_the_folder_is_read_is_passed_over(
    folder, written, tmp_path, monkeypatch
):
    class Vanished:
        name, path = "b.kv", str(tmp_path / "b.kv")

        def stat(self, follow_symlinks=True):
            raise FileNotFoundError(2, "No such file or directory", self.path)

    with os.scandir(tmp_path) as entries:
        seen = [Vanished(), *entries]
    monkeypatch.setattr(prefix_file.os, "scandir", lambda path: contextlib.nullcontext(seen))
    assert [entry.name for entry in folder.index()] == [written.name]


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


def test_what_another_server_with_our_process_id_left_unfinished_is_in_nobodys_way(
    folder, tmp_path, caplog
):
    name = folder.name_for(TOKENS)
    left = tmp_path / f"{name}.{os.getpid()}.tmp"
    left.write_bytes(b"half")
    folder.write(name, TOKENS, (), STATE)
    assert folder.read(name, TOKENS) == STATE and left.read_bytes() == b"half"
    assert not caplog.records


def test_a_name_that_is_taken_costs_one_state_and_not_the_saving(
    folder, tmp_path, monkeypatch, caplog
):
    taken = tmp_path / f"a.kv.{b'12345678'.hex()}.tmp"
    taken.touch()
    with monkeypatch.context() as patch:
        patch.setattr(prefix_file.os, "urandom", lambda n: b"12345678")
        folder.write("a.kv", TOKENS, (), STATE)
    folder.write("b.kv", TOKENS, (), STATE)
    assert sorted(os.listdir(tmp_path)) == [taken.name, "b.kv"]
    assert not caplog.records


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


def test_a_state_larger_than_all_there_is_pushes_nobody_out(folder, shared):
    store = PrefixStore(150, folder, 8 * 192)
    for number in range(2):
        store.put([number], b"x" * 100)
    assert store.put([2], b"x" * 9 * 192) is None
    assert sorted(saved.level for saved in store) == ["disk", "ram"]
    store.close()
    assert len(os.listdir(shared)) == 6 + 2


def test_a_state_too_large_for_ram_goes_to_disk_past_those_in_ram(folder):
    store = PrefixStore(150, folder, 10_000)
    small, large = store.put([1], b"x" * 100), store.put([2], b"x" * 200)
    assert (small.level, large.level) == ("ram", "disk")
    store.close()


def test_keeping_a_state_looks_at_no_other():
    store = PrefixStore(100_000)
    for number in range(50):
        store.put(Watched([0, number]), b"x")
    Watched.n_looks = 0
    store.put([0, 99], b"x")
    assert Watched.n_looks == 0


def test_what_leaves_ram_goes_to_disk_and_comes_back(folder):
    store = PrefixStore(100, folder, 10_000)
    first = store.put([1], b"x" * 100)
    store.put([2], b"y" * 100)
    assert first.level == "disk"
    assert store.fetch(first).result() == b"x" * 100
    store.close()


def fill(folder, numbers, n_most=10_000):
    """Keep a state of 100 bytes for each number on disk: files of 192 bytes."""
    store = PrefixStore(0, folder, n_most)
    for number in numbers:
        saved = store.put([number], b"x" * 100)
        assert saved is not None
        store.fetch(saved).result()  # waits for the disk
    store.close()


def names(tmp_path, binding, numbers):
    return {Folder(str(tmp_path), binding).name_for([number]) for number in numbers}


def test_disk_holds_no_more_than_its_budget(folder, tmp_path):
    fill(folder, range(5), n_most=2 * 192)
    assert set(os.listdir(tmp_path)) == names(tmp_path, BINDING, [3, 4])
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 2 * 192


@pytest.fixture
def shared(tmp_path):
    """A folder with six files of another model, the oldest first."""
    fill(Folder(str(tmp_path), OTHER), range(6))
    for number in range(6):
        (name,) = names(tmp_path, OTHER, [number])
        os.utime(tmp_path / name, (1000 + number, 1000 + number))
    return tmp_path


@pytest.mark.parametrize(
    ("n_most", "n_others", "ours"),
    [(9, 6, range(3)), (8, 5, range(3)), (6, 3, range(3)), (3, 0, range(3)), (2, 0, [1, 2])],
)
def test_files_of_another_model_count_and_go_first_and_oldest_first(
    folder, shared, n_most, n_others, ours
):
    fill(folder, range(3), n_most=n_most * 192)
    others = names(shared, OTHER, range(6 - n_others, 6))
    assert set(os.listdir(shared)) == others | names(shared, BINDING, ours)


def test_files_of_another_version_or_adapter_and_damaged_ones_count_too(shared):
    for at, path in zip((7, 44, 45, 53), sorted(shared.iterdir())):
        data = bytearray(path.read_bytes())
        data[at] ^= 4
        path.write_bytes(data)
    folder = Folder(str(shared), BINDING, [b"a" * 32])
    folder.write(folder.name_for([9], ((0, 1.0),)), [9], ((0, 1.0),), b"x" * 60)
    fill(Folder(str(shared), BINDING), [0], n_most=192)
    assert set(os.listdir(shared)) == names(shared, BINDING, [0])


def test_a_damaged_file_that_is_written_anew_counts_once(folder, tmp_path):
    fill(folder, range(2))
    (name,) = names(tmp_path, BINDING, [0])
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    fill(Folder(str(tmp_path), BINDING), [0, 2], n_most=3 * 192)
    assert set(os.listdir(tmp_path)) == names(tmp_path, BINDING, range(3))


def test_nothing_is_removed_that_is_not_of_our_format(folder, shared):
    for path in shared.iterdir():
        path.write_bytes(b"my notes " * 100)
    (shared / "notes.txt").write_bytes(prefix_file.MAGIC * 100)
    fill(folder, range(3), n_most=192)
    assert len(os.listdir(shared)) == 6 + 1 + 1


def test_what_became_something_else_after_the_start_is_not_removed(folder, shared):
    store = PrefixStore(0, folder, 6 * 192)
    for path in shared.iterdir():
        path.write_bytes(b"my notes")
    store.put([0], b"x" * 100)
    store.close()
    assert len(os.listdir(shared)) == 7


def test_files_that_another_server_removes_are_in_nobodys_way(folder, shared, caplog):
    store = PrefixStore(0, folder, 6 * 192)
    for path in shared.iterdir():
        path.unlink()
    for number in range(7):
        store.put([number], b"x" * 100)
    store.close()
    assert set(os.listdir(shared)) == names(shared, BINDING, range(1, 7))
    assert len(caplog.records) == 1  # what lay there at the start


def test_what_the_disk_could_not_write_is_dropped(folder, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    store, dropped = PrefixStore(0, folder, 10_000), []
    store.on_drop = dropped.append
    there = store.put([1], b"x" * 100)
    store.fetch(there).result()
    monkeypatch.setattr(prefix_file.os, "fsync", full)
    lost = store.put([2], b"x" * 100)
    store.fetch(lost).result()
    store.settle()
    assert dropped == [lost] and list(store) == [there]
    assert store.put([3], b"x" * 100) is None and not store.takes and not store.outlives_us
    assert store.fetch(there).result() == b"x" * 100
    store.close()


def test_nothing_is_promised_of_a_folder_that_has_vanished(tmp_path, caplog):
    store = PrefixStore(150, Folder(str(tmp_path / "cache"), BINDING), 10_000)
    for number in range(3):
        saved = store.put([number], b"x" * 100)
    store.fetch(next(iter(store))).result()
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    (tmp_path / "cache").rmdir()
    store.put([3], b"x" * 100)
    store.fetch(saved).result()
    store.settle()
    assert [each.tokens for each in store] == [[3]]
    assert store.put([4], b"x" * 100) and [each.tokens for each in store] == [[4]]
    store.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]


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


class SlowFolder(Folder):
    def write(self, *what):
        time.sleep(0.02)
        return super().write(*what)


def test_at_the_end_nothing_is_lost_to_a_disk_that_is_behind(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(prefix_store, "MAX_PENDING_BYTES", 2 * len(STATE))
    monkeypatch.setattr(prefix_store, "TELL_S", 0.0)
    store = PrefixStore(len(STATE), SlowFolder(str(tmp_path), BINDING), 1 << 20)
    store.begin_to_close()
    for number in range(12):
        assert store.put([number, *TOKENS], STATE) is not None
    store.close()
    assert len(Folder(str(tmp_path), BINDING).index()) == 12
    assert caplog.text.count("prefixes are still being saved") == 1


def test_until_then_the_engine_does_not_wait_for_it(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(prefix_store, "MAX_PENDING_BYTES", 2 * len(STATE))
    may_write, write = threading.Event(), folder.write
    monkeypatch.setattr(folder, "write", lambda *what: may_write.wait(20) and write(*what))
    store = PrefixStore(len(STATE), folder, 1 << 20)
    for number in range(12):
        store.put([number, *TOKENS], STATE)
    may_write.set()
    store.close()
    assert 0 < len(Folder(str(tmp_path), BINDING).index()) < 12
