"""The engine on fakes with saved states: a prefix comes back from RAM and from disk."""

from __future__ import annotations

import shutil

import pytest
from fakes import Bench, FakeContext, Watched, expected_tokens, never_ending
from supervise_fakes import wait_for

from libloader.core import DryRunEvent, RequestDone, TokenEvent
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
    cache = bench.engine._scheduler.cache
    known = cache._known
    monkeypatch.setattr(cache, "_known", lambda *each: looked.append(each[0]) or known(*each))
    assert say(bench, "another", [*common, 250]) == 60
    assert 0 < len(looked) <= prefix_cache.MAX_SAVED_ALIKE + 2  # and two slots


def answer(bench, name):
    return [t for e in bench.of(name, TokenEvent) for t in e.tokens]


def test_no_saved_state_comes_between_a_copy_and_its_source():
    """Separate streams: the copy is made by the next decode, of what its source holds by then."""
    bench = bench_with(PrefixStore(1 << 20), unified=False)
    mine, yours = [7] * 80, [8] * 60
    assert say(bench, "first", yours) == 0
    assert say(bench, "second", [9] * 60) == 0
    assert say(bench, "third", mine) == 0  # `yours` left its slot, for RAM
    bench.submit("B", [*mine[:70], 5], max_tokens=4)  # a copy: `third` may go on
    bench.submit("C", [*yours, 5], max_tokens=4)  # from RAM, into the slot that is copied from
    bench.run()
    assert answer(bench, "B") == expected_tokens([*mine[:70], 5], 4, never_ending)
    assert answer(bench, "C") == expected_tokens([*yours, 5], 4, never_ending)
    assert bench.context.copies == [] and bench.engine.figures()["n_hits_ram"] == 60


def test_who_waits_for_a_copy_that_nobody_decodes_computes_its_prompt():
    bench = bench_with(PrefixStore(1 << 20), unified=False)
    mine, yours = [7] * 80, [8] * 60
    for name, prompt in (("first", yours), ("second", [9] * 60), ("third", mine)):
        say(bench, name, prompt)
    bench.context.fault = lambda batch: -1 if len({row[2] for row in batch.rows}) else None
    bench.submit("B", [*mine[:70], 5], max_tokens=4)
    bench.submit("C", [*yours, 5], max_tokens=4)
    bench.step()
    bench.context.fault = lambda batch: None
    bench.run()
    assert answer(bench, "C") == expected_tokens([*yours, 5], 4, never_ending)


def swa_bench(store=None, *, unified=True, n_swa=20):
    context = FakeContext(1024, 2, unified=unified, n_swa=n_swa)
    bench = Bench(context, n_parallel=2, store=store)
    context.tokens_of = never_ending
    return bench


@pytest.mark.parametrize("unified", [True, False])
def test_behind_a_sliding_window_only_what_is_whole_is_reused(unified):
    bench = swa_bench(unified=unified)
    prompt = [7] * 60
    assert say(bench, "a", prompt) == 0
    assert say(bench, "goes on", [*prompt, *answer(bench, "a"), 1]) >= 63
    assert say(bench, "cut back", [*prompt[:50], 1, 2]) == 0
    assert bench.engine._scheduler.slots.can_cut  # this slot could not be cut, others can


@pytest.mark.parametrize("unified", [True, False])
def test_a_saved_state_without_the_keys_of_a_window_is_reused_whole_or_not_at_all(unified):
    bench = swa_bench(PrefixStore(1 << 20), unified=unified)
    assert say(bench, "old", [7] * 60) == 0
    for number in range(3):
        say(bench, f"other {number}", [number + 1] * 60)
    said = answer(bench, "old")
    assert say(bench, "cut", [*[7] * 50, 1]) == 0
    assert say(bench, "whole", [*[7] * 60, *said, 1]) >= 63


def test_a_sequence_within_its_window_is_cut_as_any_other():
    bench = swa_bench(n_swa=200)
    assert say(bench, "a", [7] * 60) == 0
    assert say(bench, "b", [*[7] * 50, 1]) == 50


def test_a_dry_run_knows_what_a_window_has_forgotten():
    bench = swa_bench()
    say(bench, "a", [7] * 60)
    bench.submit("dry", [*[7] * 50, 1], kind="dry_run")
    bench.run()
    (event,) = [e for e in bench.of("dry") if isinstance(e, DryRunEvent)]
    assert sum(n for _, n in event.cached) == 0


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


def test_a_longer_state_that_cannot_be_cut_replaces_none():
    store = PrefixStore(1 << 20)
    bench = bench_with(store, can_cut=False)
    prompt = [*range(60)]
    for n in (60, 100, 140):
        prompt = [*prompt, *range(len(prompt), n)]
        say(bench, f"of {n}", prompt)
    for n in (99, 59):  # each is found, though the longest begins with both
        assert say(bench, f"first {n}", [*prompt[:n], 250]) == n
    kept = [tuple(saved.tokens) for saved in store]
    assert {tuple(prompt[: n - 1]) for n in (60, 100, 140)} <= set(kept)
    assert len(kept) == len(set(kept))


def test_no_longer_state_stands_for_one_that_cannot_be_cut_out_of_it():
    store = PrefixStore(1 << 20)
    bench = bench_with(store, can_cut=False)
    cache, slots = bench.engine._scheduler.cache, bench.engine._scheduler.slots
    say(bench, "short", CHATS["chat0"])
    (slot,) = [each for each in slots.all if each.tokens]
    short = list(slot.tokens)
    cache._tree.insert([*short, 1], store.put([*short, 1], b"x"))
    assert not cache._is_elsewhere(slot)
    cache._save(slot)
    assert cache._is_elsewhere(slot)
    assert sorted(len(saved.tokens) for saved in store) == [59, len(short), len(short) + 1]


def test_nothing_is_asked_of_a_slot_whose_copy_is_still_to_be_made():
    bench = bench_with(PrefixStore(1 << 20), unified=False, can_cut=False)
    scheduler = bench.engine._scheduler
    bench.submit("a", [7] * 200, max_tokens=1)
    bench.step()
    (sequence,) = scheduler.running
    sequence.halts.add(len(sequence.slot.tokens))
    (idle,) = scheduler.slots.idle()
    scheduler.cache.move(sequence, idle)
    bench.context.state_seq_size = bench.context.state_seq_get = None
    scheduler.cache.keep(sequence)
    assert len(sequence.slot.tokens) not in sequence.halts


def gap_closed(store, n_steps=60, on_move=lambda bench: None):
    """A bench whose r1 has finished between two that run, so that one of them took its slot."""
    bench = Bench(FakeContext(1024, 4, unified=False), n_parallel=4, store=store)
    bench.context.tokens_of = never_ending
    for number in range(3):
        bench.submit(f"r{number}", [number + 1] * 60, max_tokens=3 if number == 1 else 90)
    cache = bench.engine._scheduler.cache
    for _ in range(n_steps):
        bench.step()
        if cache._moving is not None:
            on_move(bench)
    return bench


def test_who_has_to_go_for_a_running_sequence_gets_the_slot_that_it_leaves():
    bench = gap_closed(PrefixStore(0))
    slots = bench.engine._scheduler.slots.all
    assert slots[1].sequence is not None
    assert [len(slot.tokens) for slot in slots if slot.sequence is None and slot.tokens] == [62]
    assert bench.engine._scheduler.cache._moving is None
    assert say(bench, "again", [*[2] * 60, 99]) == 60
    bench.run()
    for number in (0, 2):
        tokens = [t for e in bench.of(f"r{number}", TokenEvent) for t in e.tokens]
        assert tokens == expected_tokens([number + 1] * 60, 90, never_ending)


def test_it_takes_nothing_of_the_store_unless_somebody_was_quicker():
    store = PrefixStore(1 << 20)
    assert gap_closed(store) and not list(store)

    def two_come(bench):
        for name in ("a", "b"):
            if not bench.of(name):
                bench.submit(name, [ord(name)] * 60, max_tokens=30)

    bench = gap_closed(store, on_move=two_come)
    assert [len(saved.tokens) for saved in store] == [62]
    assert say(bench, "again", [*[2] * 60, 99]) == 60


def test_it_is_saved_where_it_outlives_us_if_the_end_comes_before(tmp_path):
    bench = gap_closed(disk_store(tmp_path), on_move=lambda bench: bench.engine.close())
    assert [len(saved.tokens) for saved in disk_store(tmp_path)].count(62) == 1
    assert not bench.engine._live


def test_one_that_is_too_large_to_move_is_saved_as_always(monkeypatch):
    monkeypatch.setattr(prefix_cache, "MAX_MOVED_BYTES", 10)
    store = PrefixStore(1 << 20)
    gap_closed(store)
    assert [len(saved.tokens) for saved in store] == [62]


def test_a_state_that_finds_no_room_is_not_even_copied(monkeypatch):
    bench = bench_with(PrefixStore(10))
    monkeypatch.setattr(bench.context, "state_seq_get", None)
    monkeypatch.setattr(bench.context, "state_seq_size", lambda seq_id: 11)
    for name, prompt in CHATS.items():
        assert say(bench, name, prompt) == 0


def test_a_state_that_libllama_refuses_is_computed_again():
    bench = bench_with(PrefixStore(1 << 20))
    for name, prompt in CHATS.items():
        say(bench, name, prompt)
    bench.context.state_seq_set = lambda seq_id, data: False
    assert say(bench, "again", [*CHATS["chat0"], 99]) == 0
