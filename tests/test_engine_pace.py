"""How much prompt runs beside streams: learned from what batches took."""

from __future__ import annotations

import random

import pytest

from libloader.engine.pace import FIRST, SIZES, STALL, TOGETHER, Pace, deal


def taught(step_s, row_s, sizes=(512,)):
    """A pace that has seen a step of four streams, and chunks of some sizes beside them."""
    pace = Pace()
    for _ in range(40):
        pace.begin_round()
        pace.note(4, 0, 0, step_s)
        for size in sizes:
            pace.note(4, size, 0, step_s + size * row_s(size))
    return pace


def test_a_step_of_streams_is_all_batches_of_a_round():
    pace = taught(0.010, lambda size: 0.0005)
    for _ in range(100):
        pace.begin_round()
        pace.note(2, 0, 0, 0.006)
        pace.note(2, 0, 0, 0.014)
    assert pace.chunk(4, 512) == 48  # 24 ms beside rounds of 20 ms


def test_a_round_with_guesses_says_nothing_of_one_without():
    pace = taught(0.010, lambda size: 0.0005)
    for _ in range(100):
        pace.begin_round()
        pace.note(2, 0, 0, 0.1)
        pace.note(2, 0, 5, 0.1)
    assert pace.chunk(4, 512) == 24


def test_without_streams_a_chunk_is_a_whole_ubatch():
    assert taught(0.01, lambda size: 0.0005).chunk(0, 512) == 512


def test_without_streams_a_slow_machine_gets_chunks_of_half_a_second():
    assert taught(0.1, lambda size: 0.015).chunk(0, 512) == 32


def test_while_nothing_is_known_a_chunk_is_the_smallest():
    assert Pace().chunk(4, 512) == Pace().chunk(0, 512) == FIRST
    assert Pace().brief(4, 512) == 0


def test_one_bad_moment_of_the_machine_is_not_believed():
    pace = taught(0.010, lambda size: 0.00009, sizes=(16, 32, 64, 128))
    pace.note(4, 128, 0, 5.0)
    assert pace.chunk(4, 512) == 128


def test_a_bad_time_of_the_machine_does_not_stay():
    pace = taught(0.010, lambda size: 0.00009, sizes=(16, 32, 64, 128))
    for _ in range(3):
        pace.note(4, 128, 0, 5.0)
    assert pace.chunk(4, 512) < 128
    for _ in range(3000):
        if pace.chunk(4, 512) == 128:
            break
        pace.note(4, pace.chunk(4, 512), 0, 0.010 + pace.chunk(4, 512) * 0.00009)
    assert pace.chunk(4, 512) == 128


def test_the_first_batch_of_all_is_slow_and_teaches_nothing():
    pace = Pace()
    pace.note(0, FIRST, 0, 1.75)  # the weights come from the disk
    taken = []
    for _ in range(8):
        pace.begin_round()
        pace.note(4, 0, 0, 0.030)
        taken.append(pace.chunk(4, 512))
        pace.note(4, taken[-1], 0, 0.030 + taken[-1] * 0.003)
    assert taken[-1] == pace.chunk(4, 512) == 12  # 36 ms beside steps of 30


def test_beside_streams_a_chunk_is_what_they_hardly_feel():
    pace = taught(0.010, lambda size: 0.0005)
    assert pace.chunk(4, 512) == 24  # 12 ms beside steps of 10 ms; 32 would be 16 ms


@pytest.mark.parametrize("n_streams, rows", [(1, 96), (2, 48), (3, 32), (4, 24), (8, 24)])
def test_few_streams_may_be_held_up_longer_than_many(n_streams, rows):
    pace = taught(0.010, lambda size: 0.0005)
    assert pace.chunk(n_streams, 512) == rows
    assert rows * 0.0005 <= max(STALL, TOGETHER / n_streams) * 0.010


def test_a_brief_prompt_may_take_half_a_second():
    assert taught(0.010, lambda size: 0.0025).brief(4, 512) == 192


def test_on_a_fast_machine_a_chunk_stays_large():
    assert taught(0.010, lambda size: 0.00001).chunk(4, 512) == 508


def test_a_size_that_turns_out_slow_gives_way_to_a_larger_one():
    def tiles(size):
        return 0.0005 if size >= 64 else 0.009

    pace = taught(0.007, tiles)
    tried = []
    for _ in range(40):
        size = pace.chunk(4, 512)
        tried.append(size)
        pace.note(4, size, 0, 0.007 + size * tiles(size))
    assert set(tried[-10:]) == {64}


def test_where_all_is_slow_a_chunk_is_hardly_slower_than_the_smallest():
    assert taught(0.001, lambda size: 0.01).chunk(4, 512) == 2 * SIZES[0]


def test_a_step_may_take_somewhat_longer_before_no_size_is_left():
    assert taught(0.010, lambda size: 0.009).chunk(4, 512) == SIZES[0]  # 18 ms: 1.8 steps


def test_a_small_ubatch_is_filled():
    assert taught(0.010, lambda size: 0.0005).chunk(4, 12) == 8
    assert taught(0.010, lambda size: 0.0005).chunk(9, 12) == 3
    assert taught(0.010, lambda size: 0.0005).chunk(9, 10) == 1


def test_more_streams_than_rows_still_leave_one_row():
    assert Pace().chunk(16, 16) == 1


# ---- a long prompt: rows cost more and more ----


def steps_while_read(pace, rng, n_tokens):
    """Return the time of each step of four streams, in steps without the prompt of `n_tokens`."""
    n_past, steps = 0, []
    while n_past < n_tokens:
        step_s = 0.010 + n_past * 1e-6
        streams_s = step_s * rng.lognormvariate(0, 0.1)
        pace.begin_round()
        pace.note(4, 0, 0, streams_s)
        n = min(pace.chunk(4, 512, n_past), n_tokens - n_past)
        chunk_s = (0.001 + n * (0.00035 + n_past * 4.3e-7)) * rng.lognormvariate(0, 0.1)
        pace.note(0, n, 0, chunk_s, n_past)
        n_past += n
        steps.append((streams_s + chunk_s) / step_s)
    return steps


@pytest.mark.parametrize("seed", range(10))
def test_while_8000_tokens_are_read_99_of_100_steps_are_three_times_as_long_at_most(seed):
    pace, rng = taught(0.010, lambda size: 0.00036), random.Random(seed)
    for _ in range(2):  # the second prompt begins where a row is cheap again
        steps = sorted(steps_while_read(pace, rng, 8000))
        assert steps[int(len(steps) * 0.99)] <= 3
        assert steps[len(steps) // 2] >= 1.7  # and the prompt gets what there is


# ---- several prompts ----


def test_a_brief_prompt_is_read_at_once_beside_a_long_one_that_crawls():
    assert deal([8000, 60], [False, True], n_rows=8, n_brief=96) == [8, 60]


def test_alone_a_long_prompt_leaves_room_for_a_brief_one():
    assert deal([8000, 60], [False, True], n_rows=192, n_brief=96) == [132, 60]


def test_brief_prompts_never_take_all_from_a_long_one():
    assert deal([8000] + [60] * 9, [False] + [True] * 9, n_rows=192, n_brief=96)[0] == 96
    assert deal([8000] + [60] * 9, [False] + [True] * 9, n_rows=8, n_brief=96)[0] == 8


def test_the_oldest_long_prompt_has_half_and_the_shortest_goes_on():
    assert deal([8000, 4000, 500], [False] * 3, n_rows=64, n_brief=0) == [32, 0, 32]


def test_what_others_do_not_need_is_the_oldest_ones():
    assert deal([8000, 10], [False, False], n_rows=64, n_brief=0) == [54, 10]


def test_a_prompt_alone_gets_everything():
    assert deal([8000], [False], n_rows=192, n_brief=96) == [192]
    assert deal([60], [True], n_rows=8, n_brief=96) == [60]


def test_a_brief_prompt_is_not_begun_with_a_scrap_that_another_left():
    assert deal([29, 29, 29], [True] * 3, n_rows=8, n_brief=32) == [29, 0, 0]
    assert deal([8000, 29, 29], [False, True, True], n_rows=8, n_brief=64) == [8, 29, 27]


def test_the_first_brief_prompt_gets_what_a_long_one_leaves_however_little():
    assert deal([8000, 90], [False, True], n_rows=64, n_brief=40) == [32, 32]


@pytest.mark.parametrize("seed", range(200))
def test_rows_are_dealt_within_all_limits_and_never_left_over(seed):
    rng = random.Random(seed)
    pending = [rng.randint(2, rng.choice((20, 3000))) for _ in range(rng.randint(1, 8))]
    briefs = [rng.random() < 0.5 for _ in pending]
    n_rows, n_brief = rng.randint(1, 512), rng.choice((0, rng.randint(1, 512)))
    dealt = deal(pending, briefs, n_rows, n_brief)
    n_all = max(n_rows, n_brief) if any(briefs) else n_rows
    n_long = sum(n for n, is_brief in zip(dealt, briefs) if not is_brief)
    assert all(0 <= n <= most for n, most in zip(dealt, pending))
    assert n_long <= n_rows and sum(dealt) <= n_all
    unread = [
        each - n for each, n, is_brief in zip(pending, dealt, briefs) if is_brief and each > n
    ]
    n_left_over = min(n_rows, sum(pending)) - sum(dealt)
    assert n_left_over <= 0 or 2 * n_left_over < min(unread)
    if False in briefs:
        assert dealt[briefs.index(False)] > 0
