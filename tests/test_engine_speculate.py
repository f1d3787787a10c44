"""Prompt lookup: what is guessed, and that guessing changes nothing but the speed."""

from __future__ import annotations

import random

import pytest
from fakes import Bench, FakeContext, expected_tokens

from libloader.core import RequestDone, TokenEvent
from libloader.engine.speculate import LONGEST, LONGEST_PAUSE, Lookup

LINE = list(range(100, 120))


def test_what_followed_the_same_tokens_before_is_guessed():
    assert Lookup([*LINE, 7, 8, *LINE[:4]]).guess(3) == LINE[4:7]


def test_the_latest_occurrence_counts():
    past = [1, 2, 3, 4, 50, 1, 2, 3, 4, 60, 1, 2, 3, 4]
    assert Lookup(past).guess(1) == [60]


def test_nothing_is_guessed_where_nothing_repeats():
    assert Lookup(list(range(300))).guess(8) == []
    assert Lookup([1]).guess(8) == [] and Lookup([]).guess(8) == []


def test_bytes_that_match_across_tokens_are_no_match():
    low, high = 0x01010101, 0x02010101
    past = [0x01010100, high, low, low, low, 9, low, low, low]
    assert Lookup(past).guess(1) == [9]
    assert Lookup([256, 256, 256, 256, 7, 1, 1, 1]).guess(2) == []


def test_no_more_is_guessed_than_asked_for():
    assert Lookup([*LINE, *LINE[:4]]).guess(0) == []
    assert len(Lookup([*LINE, *LINE[:4]]).guess(1)) == 1


def test_guesses_grow_while_they_are_right_and_shrink_when_wrong():
    lookup = Lookup([*LINE, *LINE[:4]])
    first = len(lookup.guess(100, price=0.3))
    for _ in range(3):
        lookup.learn(8, 8)
    grown = len(lookup.guess(100, price=0.3))
    for _ in range(3):
        lookup.learn(8, 1)
    assert LONGEST == grown > first > len(lookup.guess(100, price=0.3)) > 0


def test_nothing_is_guessed_that_costs_more_than_it_may_bring():
    lookup = Lookup([*LINE, *LINE[:4]])
    assert lookup.guess(8, price=1.0) == []
    assert len(lookup.guess(8, price=0.75)) == 1


def test_after_misses_guessing_pauses_longer_and_longer():
    lookup = Lookup([])
    guessed = []
    for number in range(600):
        lookup.push(5)
        guess = lookup.guess(8)
        if guess:
            guessed.append(number)
            lookup.learn(len(guess), 0)
    pauses = [b - a for a, b in zip(guessed, guessed[1:])]
    assert pauses[:6] == [1, 2, 4, 8, 16, 32] and set(pauses[6:]) == {LONGEST_PAUSE}


def test_after_a_hit_guessing_goes_on_at_once():
    lookup = Lookup([*LINE, *LINE[:4]])
    lookup.learn(2, 0)
    lookup.push(LINE[4])
    lookup.learn(2, 1)
    assert lookup.guess(2) == LINE[5:7]


@pytest.mark.parametrize("seed", range(30))
def test_a_guess_is_always_what_followed_the_same_tokens(seed):
    chance = random.Random(seed)
    past = [chance.randrange(4) for _ in range(chance.randrange(1, 200))]
    guess = Lookup(past).guess(2)
    follows = {
        tuple(past[i + 3 : i + 3 + len(guess)])
        for i in range(len(past) - 3)
        if past[i : i + 3] == past[-3:]
    }
    assert not guess or tuple(guess) in follows


class Repeating(FakeContext):
    """Its next token depends on the position alone: LINE, over and over."""

    def decode(self, batch):
        code = super().decode(batch)
        if code == 0:
            for row, (_, position, _, wants_logits) in enumerate(batch.rows):
                if wants_logits:
                    self.rows[row] = position
        return code


def repeating(**settings):
    bench = Bench(Repeating(2048, 4), **settings)
    bench.context.tokens_of = lambda position: LINE[(position + 1) % len(LINE)]
    return bench


def said(bench, name):
    return [t for e in bench.of(name, TokenEvent) for t in e.tokens]


def test_repetitive_text_takes_far_fewer_batches_and_is_the_same():
    answers, batches = [], []
    for lookup in (False, True):
        bench = repeating(lookup=lookup)
        bench.submit("a", [1, 2, 3], max_tokens=200)
        bench.run()
        answers.append(said(bench, "a"))
        batches.append(len(bench.context.batches))
    assert answers[0] == answers[1] and len(answers[1]) == 200
    assert batches[1] < batches[0] / 4


def test_timings_tell_what_was_drafted_and_accepted():
    bench = repeating(lookup=True)
    bench.submit("a", [1, 2, 3], max_tokens=200)
    bench.run()
    timings = bench.of("a", RequestDone)[0].timings
    assert timings["draft_n"] >= timings["draft_n_accepted"] > 100


@pytest.mark.parametrize("unified", [True, False])
def test_wrong_guesses_leave_no_trace(unified):
    bench = Bench(FakeContext(2048, 4, unified=unified), lookup=True)
    prompt = [1, 2, 3, 4] * 20
    for name in "abc":
        bench.submit(name, [*prompt, ord(name)], max_tokens=60)
    bench.run()
    for name in "abc":
        assert said(bench, name) == expected_tokens([*prompt, ord(name)], 60)


def test_a_guess_never_goes_beyond_the_context_or_max_tokens():
    bench = repeating(lookup=True, n_ctx=64)
    bench.submit("a", [1, 2, 3])
    bench.submit("b", [1, 2, 3], max_tokens=50)
    bench.run()
    assert len(said(bench, "a")) == 61 and len(said(bench, "b")) == 50


def test_stop_strings_inside_a_right_guess_still_stop():
    bench = repeating(lookup=True)
    text = bytes(LINE).decode()
    bench.submit("a", [1, 2, 3], stop=(text[-1] + text[0] + text[1],), max_tokens=500)
    bench.run()
    plain = repeating()
    plain.submit("a", [1, 2, 3], stop=(text[-1] + text[0] + text[1],), max_tokens=500)
    plain.run()
    assert said(bench, "a") == said(plain, "a")


def test_a_refused_batch_is_tried_again_without_guesses():
    bench = repeating(lookup=True)
    bench.context.fault = lambda batch: -1 if len(batch.rows) > 4 else None
    bench.submit("a", [1, 2, 3], max_tokens=100)
    bench.run()
    assert len(said(bench, "a")) == 100


def test_a_memory_that_cannot_be_cut_is_found_out_and_left_in_peace():
    bench = Bench(FakeContext(2048, 4, can_cut=False), lookup=True)
    prompt = [1, 2, 3, 4] * 20
    bench.submit("a", prompt, max_tokens=60)
    bench.run()
    assert said(bench, "a") == expected_tokens(prompt, 60)
    assert bench.context.n_decoded < 3 * (80 + 60)
