"""What guessing may cost: learned from what batches took, and never more than the purse holds."""

from __future__ import annotations

import random

import pytest

from libloader.engine.wager import SIZES, Bid, Wager

STEP_S = 0.020


def on_a_cpu(rows):
    """As measured with 0.6B parameters on one core: 1.6 for 2 rows, 2.6 for 4, 6.9 for 16."""
    return STEP_S * (rows * 0.42 + 0.58)


def on_a_gpu(rows):
    return STEP_S * (1 + rows * 0.002)


class Stream:
    """One stream whose guesses are each right with `chance`, and a wager that believes `said`."""

    def __init__(self, chance, said=None, cost=on_a_cpu, seed=1):
        self.chance, self.said, self.cost = chance, chance if said is None else said, cost
        self.random = random.Random(seed)
        self.wager = Wager()
        self.spent_s = 0.0
        self.seconds, self.n_tokens, self.sizes = 0.0, 0, []

    def step(self):
        (length,) = self.wager.lengths([Bid(self.said, 100)], 1)
        n_right = 0
        while n_right < length and self.random.random() < self.chance:
            n_right += 1
        seconds = self.cost(1 + length)
        self.wager.note(1, length, 1 + n_right, seconds, self.spent_s)
        self.seconds += seconds
        self.n_tokens += 1 + n_right
        self.sizes.append(1 + length)

    def wager_sizes(self, n_steps):
        for _ in range(n_steps):
            self.step()
        return self.sizes

    def gain(self, n_tokens=2000):
        """Return the speed with guesses / without."""
        while self.n_tokens < n_tokens:
            self.step()
        return self.n_tokens * self.cost(1) / self.seconds


def experienced(n_streams, cost):
    """A wager that has seen plain batches and one with guesses."""
    wager = Wager()
    for n_guessed in (0, 0, 0, 3):
        wager.note(n_streams, n_guessed, n_streams, cost(n_streams + n_guessed))
    return wager


def test_nothing_is_guessed_before_a_step_was_measured():
    assert Wager().lengths([Bid(1.0, 9)], 1) == [0]


@pytest.mark.parametrize("cost", [on_a_cpu, on_a_gpu])
def test_text_that_repeats_for_sure_is_guessed_far_ahead(cost):
    stream = Stream(0.99, cost=cost)
    assert stream.gain() > (1.8 if cost is on_a_cpu else 10)
    assert max(stream.sizes) >= 16


def test_where_rows_are_dear_only_sure_guesses_are_made():
    assert Stream(0.3).wager_sizes(200).count(1) == 199  # all but a trial
    assert Stream(0.3, cost=on_a_gpu).wager_sizes(200).count(1) == 1


@pytest.mark.parametrize("chance", [0.0, 0.2, 0.5, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("cost", [on_a_cpu, on_a_gpu])
def test_guessing_never_slows_a_stream_by_more_than_three_parts_in_a_hundred(chance, cost):
    assert Stream(chance, cost=cost).gain() > 0.97


@pytest.mark.parametrize("said", [0.9, 0.99, 1.0])
@pytest.mark.parametrize("chance", [0.0, 0.3])
def test_not_even_if_its_chances_are_misjudged(said, chance):
    assert Stream(chance, said).gain() > 0.97


def test_a_cost_that_changed_is_measured_again():
    stream = Stream(0.99, cost=lambda rows: on_a_cpu(rows) if rows < 8 else 10 * on_a_cpu(rows))
    stream.gain(1000)
    assert max(stream.sizes[-100:]) < 8
    stream.cost = on_a_cpu
    stream.gain(10_000)
    assert max(stream.sizes[-100:]) >= 16


def test_the_likeliest_guesses_of_several_streams_come_first():
    wager = experienced(3, on_a_gpu)
    lengths = wager.lengths([Bid(0.9, 50), Bid(0.0, 50), Bid(0.5, 50)], 3)
    assert lengths[0] > lengths[2] > lengths[1] == 0
    assert 3 + sum(lengths) in SIZES


def test_no_more_is_wanted_than_can_be_had():
    wager = Wager()
    wager.note(1, 0, 1, on_a_gpu(1))
    assert wager.lengths([Bid(1.0, 2)], 1) == [2]
    assert wager.lengths([Bid(1.0, 0)], 1) == [0] and wager.lengths([], 1) == []


def test_a_slow_guesser_must_be_worth_its_time():
    wager = experienced(1, on_a_gpu)
    bid = [Bid(0.9, 20)]
    assert wager.lengths(bid, 1, depth_s=STEP_S / 10)[0] > 0
    assert wager.lengths(bid, 1, depth_s=STEP_S) == [0]


def test_time_that_cannot_be_measured_is_no_obstacle():
    wager = Wager()
    wager.note(1, 0, 1, 0.0)
    assert wager.lengths([Bid(0.9, 9)], 1)[0] > 0


def test_the_time_that_guessing_takes_is_paid_from_the_purse():
    free, slow = Stream(0.9), Stream(0.9)
    slow.spent_s = 3 * STEP_S
    assert slow.wager_sizes(300).count(1) > free.wager_sizes(300).count(1)
