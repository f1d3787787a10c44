"""Where each sequence has its own KV stream: which rows share a decode."""

from __future__ import annotations

import itertools
import random

import pytest
from fakes import Bench, FakeContext, expected_tokens, never_ending

from libloader.core import RequestDone, TokenEvent
from libloader.engine.passes import Rows, _cost, split

PASS = 1000  # cells


def streams(*pasts):
    return [Rows(seq_id, 1, n_past) for seq_id, n_past in enumerate(pasts)]


def test_streams_with_pasts_alike_are_decoded_together():
    assert split(streams(30, 200, 90, 10), PASS) == [(0, 4)]


def test_one_long_past_is_decoded_apart_from_many_short_ones():
    assert split(streams(30, 20, 3000, 10), PASS) == [(0, 2), (2, 3), (3, 4)]
    assert split(streams(3000, 30, 20, 10), PASS) == [(0, 1), (1, 4)]


def test_where_weights_are_dear_one_pass_is_best():
    assert split(streams(30, 20, 3000, 10), 100_000) == [(0, 4)]


def test_a_gap_among_the_ids_is_a_pass_of_its_own_in_any_case():
    assert split([Rows(0, 1, 30), Rows(2, 1, 30), Rows(3, 1, 30)], PASS) == [(0, 3)]
    assert split([Rows(0, 1, 500), Rows(2, 1, 30), Rows(3, 1, 30)], PASS) == [(0, 1), (1, 3)]


def test_prompts_with_as_many_rows_share_a_pass_and_others_do_not():
    assert split([Rows(i, 60, 0) for i in range(8)], 100_000) == [(0, 8)]
    assert split([Rows(0, 60, 0), Rows(1, 8, 7000)], PASS) == [(0, 1), (1, 2)]


def test_nothing_is_cut_into_nothing():
    assert split([], PASS) == []


@pytest.mark.parametrize("seed", range(60))
def test_no_other_cut_is_cheaper(seed):
    rng = random.Random(seed)
    ids = sorted(rng.sample(range(10), rng.randint(1, 7)))
    rows = [Rows(i, rng.choice((1, 1, 1, 8, 60)), rng.choice((10, 500, 4000))) for i in ids]
    pass_cells = rng.choice((10, 1000, 20_000))

    def cost(cuts):
        return sum(_cost(rows[start:end], pass_cells) for start, end in cuts)

    chosen = split(rows, pass_cells)
    assert [each[1] for each in chosen[:-1]] == [each[0] for each in chosen[1:]]
    for n in range(len(rows)):
        for at in itertools.combinations(range(1, len(rows)), n):
            ends = [0, *at, len(rows)]
            assert cost(chosen) <= cost(list(zip(ends, ends[1:])))


# ---- the engine ----


def bench_with(pass_cells, **settings):
    context = FakeContext(8 * 2048, 8, unified=False, n_batch=512, n_ubatch=512)
    context.pass_cells = pass_cells
    bench = Bench(context, n_parallel=8, **settings)
    context.tokens_of = never_ending
    return bench


def said(bench, name):
    return [t for e in bench.of(name, TokenEvent) for t in e.tokens]


def test_prompts_and_streams_are_never_in_one_batch_and_take_turns():
    bench = bench_with(1 << 30)
    bench.context.cost_s = lambda n_rows: 0.01 + 0.001 * n_rows
    for number in range(3):
        bench.submit(f"s{number}", [number + 1] * 10, max_tokens=60)
    bench.step(8)
    bench.submit("long", [9] * 300, max_tokens=1)
    n_before = len(bench.context.batches)
    bench.run()
    lines = [{row[2] for row in batch} for batch in bench.context.batches[n_before:]]
    (mine,) = {seq_id for line in lines for seq_id in line} - lines[0]
    assert lines.count({mine}) > 3 and all(line == {mine} or mine not in line for line in lines)
    for number in range(3):
        assert said(bench, f"s{number}") == expected_tokens([number + 1] * 10, 60, never_ending)
    assert len(bench.of("long", RequestDone)) == 1


def test_a_long_past_is_decoded_apart_and_everybody_gets_a_token_in_each_round():
    bench = bench_with(500)
    bench.submit("long", [9] * 1500, max_tokens=40)
    for number in range(3):
        bench.submit(f"s{number}", [number + 1] * 10, max_tokens=40)
    bench.step(140)
    middle = [len(batch) for batch in bench.context.batches[-10:-6]]
    assert middle in ([1, 3, 1, 3], [3, 1, 3, 1])
    bench.run()
    assert said(bench, "long") == expected_tokens([9] * 1500, 40, never_ending)
    for number in range(3):
        assert said(bench, f"s{number}") == expected_tokens([number + 1] * 10, 40, never_ending)


def test_who_leaves_in_the_middle_of_a_round_is_decoded_no_more():
    bench = bench_with(500)
    bench.submit("long", [9] * 1500, max_tokens=100)
    for number in range(3):
        bench.submit(f"s{number}", [number + 1] * 10, max_tokens=100)
    bench.step(20)
    for name in ("s1", "long"):
        bench.engine.cancel(name)
        bench.step(3)
        assert all(len(batch) < 4 for batch in bench.context.batches[-3:])
    assert [len(batch) for batch in bench.context.batches[-2:]] == [2, 2]
    bench.run()
    for number in (0, 2):
        assert said(bench, f"s{number}") == expected_tokens([number + 1] * 10, 100, never_ending)
