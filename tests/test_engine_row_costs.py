"""What rows of prompts cost: learned by size, and by the past behind them."""

from __future__ import annotations

import pytest

from libloader.engine.row_costs import FAR, RowCosts

BASE_S, PAST_S = 0.001, 1e-6


def taught(*batches):
    """Costs of batches (size, past), of which each row takes BASE_S and PAST_S for each token."""
    costs = RowCosts()
    for size, n_past in batches:
        costs.note(size, BASE_S + PAST_S * n_past, n_past)
    return costs


def test_a_row_costs_more_behind_a_longer_past_in_every_size():
    costs = taught((32, 0), (32, 0), *((8, n_past) for n_past in range(0, 5000, 500)))
    assert costs.batch_s(8, 4500) == pytest.approx(8 * 0.0055, rel=0.02)
    assert costs.batch_s(32, 4500) == pytest.approx(32 * 0.0055, rel=0.02)


def test_and_less_where_the_next_prompt_begins():
    costs = taught(*((8, n_past) for n_past in range(0, 8000, 500)))
    assert 8 * BASE_S <= costs.batch_s(8, 0) < costs.batch_s(8, 7500) / 4


def test_pasts_of_about_one_length_say_nothing_of_others():
    costs = taught((8, 0), (8, 0), (8, FAR - 1))
    assert costs.batch_s(8, 100_000) == pytest.approx(8 * BASE_S, rel=0.02)


def test_a_row_never_costs_nothing():
    costs = RowCosts()
    costs.note(8, 0.001, 0)
    costs.note(8, 0.101, 1000)
    costs.note(8, 0.101, 1000)
    assert costs.batch_s(8, 0) > 0


def test_a_size_that_was_never_tried_costs_what_the_cheaper_neighbour_does():
    costs = RowCosts()
    for size, row_s in ((8, 0.002), (32, 0.001)):
        for _ in range(2):
            costs.note(size, row_s, 0)
    assert costs.batch_s(16, 0) == pytest.approx(16 * 0.001, rel=0.01)
    assert costs.batch_s(64, 0) == pytest.approx(64 * 0.001, rel=0.01)
    assert costs.batch_s(4, 0) == pytest.approx(4 * 0.002, rel=0.01)


def test_one_slow_batch_is_not_believed_where_a_smaller_size_does_better():
    costs = RowCosts()
    for _ in range(2):
        costs.note(8, 0.002, 0)
    costs.note(16, 0.1, 0)
    assert costs.batch_s(16, 0) == pytest.approx(16 * 0.002, rel=0.01)
    costs.note(16, 0.1, 0)
    assert costs.batch_s(16, 0) == pytest.approx(16 * 0.1, rel=0.01)
