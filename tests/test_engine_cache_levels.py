"""The engine on fakes with saved states: a prefix comes back from RAM and from disk."""

from __future__ import annotations

import shutil

import pytest
from fakes import Bench, FakeContext, Watched, expected_tokens, never_ending
from supervise_fakes import wait_for

from libloader.core import RequestDone, TokenEvent
from libloader.engine import prefix_cache
from libloader.engine.prefix_file import Folder
from libloader.engine.prefix_store import PrefixStore

CHATS = {f"chat{number}": [number + 1] * 60 for number in range(6)}


def bench_with(store, *, unified=True, can_cut=True):
    context = FakeContext(512, 2, unified=unified, can_cut=can_cut)
    bench = Bench(context, n_parallel=2, store=store)
    context.tokens_of = never_ending
    return bench


def say(bench, name, prompt):
    bench.submit(name, prompt, max_tokens=4)
    bench.run()
    (event,) = bench.of(name, RequestDone)
    tokens = [t for e in bench.of(name, TokenEvent) for t in e.tokens]
    assert tokens == expected_tokens(prompt, 4, never_ending)
    return event.usage.n_cached


def disk_store(tmp_path, ram_bytes=0):
    return PrefixStore(ram_bytes, Folder(str(tmp_path), b"b" * 32), 1 << 20)


@pytest.mark.parametrize("unified", [True, False])
def test_a_chat_whose_slot_was_reused_comes_back_from_ram(unified):
    bench = bench_with(PrefixStore(1 << 20), unified=unified)
    for name, prompt in CHATS.items():
        assert say(bench, name, prompt) == 0
    for name, prompt in CHATS.items():
        assert say(bench, f"{name} again", [*prompt, 99]) == 60
    assert bench.engine.figures()["n_hits_ram"] == 6 * 60


def test_a_look_up_compares_few_of_many_saved_states_that_begin_alike(monkeypatch):
    bench = bench_with(PrefixStore(1 << 24))
    common = list(range(1, 61))
    for number in range(100):
        say(bench, f"r{number}", [*common, *[100 + number] * 20])
    looked = []
    known = prefix_cache._known
    monkeypatch.setattr(
        prefix_cache, "_known", lambda *each: looked.append(each[0]) or known(*each)
    )
    assert say(bench, "another", [*common, 250]) == 60
    assert 0 < len(looked) <= prefix_cache.MAX_SAVED_ALIKE + 2  # and two slots


def test_saving_a_slot_looks_at_few_of_many_saved_states_that_begin_alike():
    store = PrefixStore(1 << 24)
    bench = bench_with(store)
    common = list(range(1, 61))
    for number in range(100):
        say(bench, f"r{number}", [*common, *[100 + number] * 20])
    for saved in store:
        saved.tokens = Watched(saved.tokens)
    Watched.n_looks = 0
    for number in range(100, 110):
        say(bench, f"r{number}", [*common, *[100 + number] * 20])
    assert len(list(store)) > 100 and Watched.n_looks < 10 * 2 * prefix_cache.MAX_SAVED_ALIKE


def test_a_saved_state_that_a_longer_one_begins_with_goes():
    store = PrefixStore(1 << 24)
    bench = bench_with(store)
    for name, prompt in CHATS.items():
        say(bench, name, prompt)
    (short,) = [saved for saved in store if saved.tokens[:60] == CHATS["chat0"]]
    assert say(bench, "longer", [*short.tokens, *[99] * 60]) == len(short.tokens)
    for name, prompt in list(CHATS.items())[1:]:
        say(bench, f"{name} again", [*prompt, 77])
    (long,) = [saved for saved in store if saved.tokens[:60] == CHATS["chat0"]]
    assert len(long.tokens) > len(short.tokens) + 60
    bench.engine.check_integrity()


def finished_chats(store, *, unified=True):
    context = FakeContext(4096, 4, unified=unified)
    bench = Bench(context, n_parallel=4, store=store)
    context.tokens_of = never_ending
    for number in range(3):
        say(bench, f"chat{number}", [number + 1] * 300)
    bench.submit("stream", [9] * 20, max_tokens=4)
    bench.step(2)
    return bench, context


def test_finished_chats_leave_a_unified_cache_to_those_who_run():
    bench, context = finished_chats(PrefixStore(1 << 24))
    assert context.n_used < prefix_cache.MAX_IDLE_CELLS + 30
    bench.run()
    for number in range(3):
        assert say(bench, f"again{number}", [*[number + 1] * 300, 99]) == 300


@pytest.mark.parametrize(("store", "unified"), [(PrefixStore(0), True), (PrefixStore(999), True),
                                                (PrefixStore(1 << 24), False)])  # fmt: skip
def test_they_stay_where_they_would_be_lost_or_are_in_nobodys_way(store, unified):
    bench, context = finished_chats(store, unified=unified)
    assert context.n_used > 600
    bench.run()
    assert say(bench, "again", [*[3] * 300, 99]) == 300


def test_without_a_store_it_is_computed_again():
    bench = bench_with(PrefixStore(0))
    for name, prompt in CHATS.items():
        say(bench, name, prompt)
    assert say(bench, "again", [*CHATS["chat0"], 99]) == 0


def test_all_chats_come_back_from_disk_after_a_restart(tmp_path):
    bench = bench_with(disk_store(tmp_path, ram_bytes=1000))
    for name, prompt in CHATS.items():
        say(bench, name, prompt)
    bench.engine.close()
    bench = bench_with(disk_store(tmp_path))
    for name, prompt in CHATS.items():
        assert say(bench, f"{name} again", [*prompt, 99]) == 60
    bench.engine.close()
    assert bench.engine.figures()["n_hits_disk"] == 6 * 60


def test_a_stream_runs_on_while_another_waits_for_the_disk(tmp_path):
    bench = bench_with(disk_store(tmp_path))
    for name, prompt in CHATS.items():
        say(bench, name, prompt)
    bench.submit("stream", max_tokens=30)
    bench.step(2)
    bench.submit("back", [*CHATS["chat0"], 99], max_tokens=1)
    for _ in range(5):
        assert [e for e in bench.step() if e.request_id == "stream"]
    bench.run()
    assert bench.of("back", RequestDone)[0].usage.n_cached == 60
    bench.engine.close()


def test_a_damaged_file_is_computed_again_and_never_loaded(tmp_path):
    bench = bench_with(disk_store(tmp_path))
    for name, prompt in CHATS.items():
        say(bench, name, prompt)
    bench.engine.close()
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    bench = bench_with(disk_store(tmp_path))
    assert say(bench, "again", [*CHATS["chat0"], 99]) == 0
    bench.engine.close()


def test_after_the_folder_has_vanished_no_dry_run_promises_anything_of_it(tmp_path):
    bench = bench_with(disk_store(tmp_path / "cache"))
    for name, prompt in list(CHATS.items())[:4]:
        say(bench, name, prompt)
    shutil.rmtree(tmp_path / "cache")
    for name, prompt in list(CHATS.items())[4:]:
        say(bench, name, prompt)
    cache = bench.engine._scheduler.cache
    wait_for(lambda: cache.known([*CHATS["chat0"], 99], ()) == ("kv", 0))
    assert cache.known([*CHATS["chat5"], 99], ())[0] == "kv"
    assert say(bench, "again", [*CHATS["chat1"], 99]) == 0
    bench.engine.close()


def test_a_cancel_while_the_disk_is_read_leaves_nothing_behind(tmp_path):
    bench = bench_with(disk_store(tmp_path))
    for name, prompt in CHATS.items():
        say(bench, name, prompt)
    bench.submit("back", [*CHATS["chat0"], 99])
    bench.engine.cancel("back")
    bench.run()
    assert say(bench, "again", [*CHATS["chat0"], 99]) == 60
    bench.engine.close()


def test_many_who_want_the_same_saved_prefix_load_it_once():
    store = PrefixStore(1 << 20)
    bench = bench_with(store)
    for name, prompt in CHATS.items():
        say(bench, name, prompt)
    for name in "ab":
        bench.submit(name, [*CHATS["chat0"], 50, 51], max_tokens=2)
    bench.run()
    assert bench.engine.figures()["n_hits_ram"] == 60
    assert bench.of("b", RequestDone)[0].usage.n_cached >= 60


def test_a_memory_that_cannot_be_cut_takes_only_whole_saved_states():
    bench = bench_with(PrefixStore(1 << 20), can_cut=False)
    for name, prompt in CHATS.items():
        say(bench, name, prompt)
    held = [*CHATS["chat0"], *expected_tokens(CHATS["chat0"], 3, never_ending)]
    assert say(bench, "part", [*held[:50], 77]) == 0
    assert say(bench, "whole", [*held, 77]) == len(held)


def test_a_state_that_libllama_refuses_is_computed_again():
    bench = bench_with(PrefixStore(1 << 20))
    for name, prompt in CHATS.items():
        say(bench, name, prompt)
    bench.context.state_seq_set = lambda seq_id, data: False
    assert say(bench, "again", [*CHATS["chat0"], 99]) == 0
