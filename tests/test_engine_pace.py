"""How much prompt runs beside streams: learned from what batches took."""

from __future__ import annotations

from libloader.engine.pace import Pace


def taught(step_s, row_s, sizes=(512,)):
    """A pace that has seen a step of four streams, and chunks of some sizes beside them."""
    pace = Pace()
    for _ in range(40):
        pace.note([1] * 4, 0, step_s)
        for size in sizes:
            pace.note([1] * 4 + [size], 0, step_s + size * row_s(size))
    return pace


def test_without_streams_a_chunk_is_a_whole_ubatch():
    assert taught(0.01, lambda size: 0.0005).chunk(0, 512) == 512


def test_without_streams_a_slow_machine_gets_chunks_of_half_a_second():
    assert taught(0.1, lambda size: 0.015).chunk(0, 512) == 32


def test_while_nothing_is_known_a_chunk_is_the_smallest():
    assert Pace().chunk(4, 512) == Pace().chunk(0, 512) == 16


def test_one_bad_moment_of_the_machine_does_not_stay():
    pace = taught(0.010, lambda size: 0.0001, sizes=(16, 32, 64, 128))
    assert pace.chunk(4, 512) == 128
    pace.note([1] * 4 + [128], 0, 5.0)
    assert pace.chunk(4, 512) == 64
    for _ in range(2000):
        if pace.chunk(4, 512) == 128:
            break
        pace.note([1] * 4 + [64], 0, 0.010 + 64 * 0.0001)
    assert pace.chunk(4, 512) == 128


def test_beside_streams_a_chunk_is_what_they_hardly_feel():
    pace = taught(0.010, lambda size: 0.0005)
    assert pace.chunk(4, 512) == 16  # 8 ms beside steps of 10 ms; 32 would be 16 ms


def test_on_a_fast_machine_a_chunk_stays_large():
    assert taught(0.010, lambda size: 0.00001).chunk(4, 512) == 256


def test_a_size_that_turns_out_slow_gives_way_to_a_larger_one():
    def tiles(size):
        return 0.0005 if size >= 64 else 0.008

    pace = taught(0.007, tiles)
    tried = []
    for _ in range(20):
        size = pace.chunk(4, 512)
        tried.append(size)
        pace.note([1] * 4 + [size], 0, 0.007 + size * tiles(size))
    assert set(tried[3:]) == {64}


def test_where_all_is_slow_the_smallest_chunk_is_taken():
    assert taught(0.001, lambda size: 0.01).chunk(4, 512) == 16


def test_a_small_ubatch_is_filled():
    assert taught(0.010, lambda size: 0.0005).chunk(4, 12) == 8


def test_more_streams_than_rows_still_leave_one_row():
    assert Pace().chunk(16, 16) == 1
