"""Prompt lookup: what is guessed, and that guessing changes nothing but the speed."""

from __future__ import annotations

import random

import pytest
from fakes import Bench, FakeChain, FakeContext, expected_tokens

from libloader.core import RequestDone, Sampling, TokenEvent
from libloader.engine.speculate import LONGEST_PAUSE, Lookup
from libloader.engine.wager import N_GUESSED

LINE = list(range(100, 120))


def continued(lookup, tokens):
    for token in tokens:
        lookup.push(token)
    return lookup


def test_what_followed_the_same_tokens_before_is_guessed():
    assert Lookup([*LINE, 7, 8, *LINE[:4]]).guess(3) == LINE[4:7]


def test_the_latest_occurrence_counts():
    past = [1, 2, 3, 4, 50, 1, 2, 3, 4, 60, 1, 2, 3, 4]
    assert Lookup(past).guess(1) == [60]


def test_nothing_is_guessed_where_nothing_repeats():
    for tokens in (list(range(300)), [1], []):
        lookup = Lookup(tokens)
        assert lookup.guess(8) == [] and lookup.chance == 0.0


def test_bytes_that_match_across_tokens_are_no_match():
    low, high = 0x01010101, 0x02010101
    past = [0x01010100, high, low, low, low, 9, low, low, low]
    assert Lookup(past).guess(1) == [9]
    assert Lookup([256, 256, 256, 256, 7, 1, 1, 1]).guess(1) == []


def test_a_loop_is_thought_to_go_on():
    assert Lookup([*LINE, *LINE[:4]]).guess(50) == (LINE * 4)[4:54]
    assert Lookup([9, 5, 5, 5, 5]).guess(3) == [5, 5, 5]


def test_the_chance_is_known_before_anything_is_guessed():
    lookup = continued(Lookup(LINE), [*LINE, *LINE[:5]])
    first = lookup.chance
    chances = [continued(lookup, [token]).chance for token in LINE[5:]]
    assert 0 < first < chances[0] and chances == sorted(chances) and chances[-1] > 0.9


def test_a_token_that_was_not_expected_lowers_the_chance_of_what_is_found_next():
    lookup = continued(Lookup(LINE), LINE)
    high = lookup.chance
    assert continued(lookup, [7]).chance == 0.0
    continued(lookup, LINE[:10])
    assert 0.0 < lookup.chance < high and lookup.guess(2) == LINE[10:12]


def test_what_is_never_found_is_looked_for_ever_more_rarely(monkeypatch):
    searches = []
    lookup = Lookup([])
    monkeypatch.setattr(Lookup, "_find", lambda self: searches.append(1) or -1)
    continued(lookup, range(900))
    assert 900 / (LONGEST_PAUSE + 1) <= len(searches) < 900 / LONGEST_PAUSE


def test_a_lookup_counts_what_was_guessed_and_what_was_right():
    lookup = Lookup([])
    lookup.learn(8, 5)
    lookup.learn(2, 0)
    assert (lookup.n_drafted, lookup.n_accepted) == (10, 5)


@pytest.mark.parametrize("seed", range(30))
def test_a_guess_is_always_what_followed_the_same_tokens(seed):
    chance = random.Random(seed)
    past = [chance.randrange(4) for _ in range(chance.randrange(1, 200))]
    guess = continued(Lookup(past[:100]), past[100:]).guess(1)
    follows = {past[i + 3] for i in range(len(past) - 3) if past[i : i + 3] == past[-3:]}
    assert set(guess) <= follows


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
    assert batches[1] - N_GUESSED < batches[0] / 4


def test_timings_tell_what_was_drafted_and_accepted():
    bench = repeating(lookup=True)
    bench.submit("a", [1, 2, 3], max_tokens=200)
    bench.run()
    timings = bench.of("a", RequestDone)[0].timings
    assert timings["draft_n"] >= timings["draft_n_accepted"] > 100


class Drawing(FakeChain):
    """Draws each token from what the past allows: three or four, repeating often."""

    def __init__(self, sampling):
        super().__init__(sampling)
        self.chance = random.Random(sampling.seed)

    def sample(self, context, row):
        first = super().sample(context, row)
        self.accepted[-1] = LINE[(first + self.chance.choice((*[0] * 16, 1, 3))) % len(LINE)]
        return self.accepted[-1]


@pytest.mark.parametrize("seed", range(10))
def test_drawn_tokens_are_the_same_for_the_same_seed_with_and_without_guesses(seed):
    answers, drafted = [], 0
    for lookup in (False, True):
        bench = repeating(lookup=lookup, open_chain=Drawing)
        for name in "abc":
            bench.submit(name, [1, 2, 3], max_tokens=150, sampling=Sampling(seed=seed))
        bench.run()
        answers.append([said(bench, name) for name in "abc"])
        drafted = sum(bench.of(name, RequestDone)[0].timings.get("draft_n", 0) for name in "abc")
    assert answers[0] == answers[1] and drafted > 0


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
