"""Sampling many rows: the same outcomes in one thread and in several."""

from __future__ import annotations

import threading

import pytest

from libloader.engine.sampling import WORTH_THREADS, Due, Sampling
from libloader.errors import NanLogits


class Chain:
    """Its token is its row plus 100; notes the thread it ran in."""

    def __init__(self, fails=False):
        self.fails = fails
        self.thread = None

    def sample(self, context, row):
        self.thread = threading.get_ident()
        if self.fails:
            raise NanLogits(f"row {row}")
        return row + 100


def due(n, fails=()):
    return [Due(f"r{row}", Chain(row in fails), row) for row in range(n)]


@pytest.fixture
def sampling():
    marks = []
    samplings = []

    def make(n_vocab, n_threads):
        samplings.append(Sampling(None, n_vocab, n_threads, marks.append))
        samplings[-1].marks = marks
        return samplings[-1]

    yield make
    for each in samplings:
        each.close()


@pytest.mark.parametrize("n_threads", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("n_rows", [1, 2, 3, 7, 16])
def test_outcomes_come_in_the_order_of_the_rows(sampling, n_threads, n_rows):
    outcomes = sampling(WORTH_THREADS, n_threads).sample(due(n_rows))
    assert outcomes == [[row + 100] for row in range(n_rows)]


def test_a_row_that_fails_is_an_outcome_of_its_own(sampling):
    outcomes = sampling(WORTH_THREADS, 2).sample(due(4, fails={2}))
    assert [type(outcome) for outcome in outcomes] == [list, list, NanLogits, list]


@pytest.mark.parametrize(
    ("draft", "tokens"),
    [((), [100]), ((100, 101), [100, 101, 102]), ((100, 7), [100, 101]), ((7, 101), [100])],
)
def test_guessed_rows_are_sampled_until_a_guess_is_wrong(sampling, draft, tokens):
    assert sampling(10, 1).sample([Due("a", Chain(), 0, draft)]) == [tokens]


def test_a_small_vocabulary_is_sampled_in_one_thread_with_one_request_in_hand(sampling):
    small = sampling(1000, 4)
    rows = due(8)
    small.sample(rows)
    assert {item.chain.thread for item in rows} == {threading.get_ident()}
    assert small.marks == [f"r{row}" for row in range(8)]


def test_in_several_threads_all_requests_are_in_hand(sampling):
    large = sampling(WORTH_THREADS, 2)
    large.sample(due(3))
    assert large.marks == ["r0 r1 r2"]
