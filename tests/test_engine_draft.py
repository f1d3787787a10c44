"""A smaller model that guesses: its memory follows, and it changes nothing but the speed."""

from __future__ import annotations

import random

import pytest
from fakes import (
    PIECES,
    Bench,
    FakeBatch,
    FakeChain,
    FakeClock,
    FakeContext,
    default_next_token,
    expected_tokens,
)

from libloader.core import RequestDone, RequestFailed, Sampling, TokenEvent
from libloader.engine.draft import FIRST_CHANCE, DraftModel
from libloader.engine.wager import N_GUESSED

N_VOCAB = len(PIECES)
PROMPT = [*b"the same prompt"]


def small_model(context=None, n_vocab=N_VOCAB):
    """A draft model that, unless told otherwise, says what the large one does."""
    context = context or FakeContext(2048, 4)
    model = DraftModel(
        context, FakeBatch(context.n_batch), FakeChain(Sampling()), n_vocab=n_vocab,
        clock=FakeClock(),
    )  # fmt: skip
    model.context = context
    return model


def bench_of(small, **settings):
    return Bench(FakeContext(2048, 4), guesses=small, **settings)


def said(bench, name):
    return [t for e in bench.of(name, TokenEvent) for t in e.tokens]


def timings(bench, name):
    return bench.of(name, RequestDone)[0].timings


def talkative(past):
    return 97 + past % 26


def right_most_of_the_time(past):
    return default_next_token(past) if past % 5 else 97


MODELS = {
    "right": default_next_token,
    "wrong": lambda past: 97 + past % 7,
    "mixed": right_most_of_the_time,
}


@pytest.mark.parametrize("name", MODELS)
def test_greedy_text_is_the_same_whatever_the_small_model_thinks(name):
    small = small_model()
    small.context.tokens_of = MODELS[name]
    bench = bench_of(small)
    prompts = {f"r{number}": [*PROMPT, number] for number in range(6)}
    for request, prompt in prompts.items():
        bench.submit(request, prompt, max_tokens=60)
    bench.run()
    for request, prompt in prompts.items():
        assert said(bench, request) == expected_tokens(prompt, 60)


def test_a_model_that_is_right_saves_batches_and_is_told_of():
    small = small_model()
    small.context.tokens_of = talkative
    bench = bench_of(small)
    bench.context.tokens_of = talkative
    bench.submit("a", PROMPT, max_tokens=200)
    bench.run()
    assert said(bench, "a") == expected_tokens(PROMPT, 200, talkative)
    assert len(bench.context.batches) - N_GUESSED < 200 / 5
    told = timings(bench, "a")
    assert told["draft_n"] == told["draft_n_accepted"] > 150


def test_several_sequences_draft_in_the_same_batches():
    small = small_model()
    small.context.tokens_of = talkative
    bench = bench_of(small)
    bench.context.tokens_of = talkative
    for name in "abc":
        bench.submit(name, [*PROMPT, ord(name)], max_tokens=80)
    bench.run()
    assert any(len({seq_id for _, _, seq_id, _ in rows}) == 3 for rows in small.context.batches)
    for name in "abc":
        assert said(bench, name) == expected_tokens([*PROMPT, ord(name)], 80, talkative)


@pytest.mark.parametrize("seed", range(8))
def test_arrivals_ends_and_cancels_at_random_change_no_text(seed):
    chance = random.Random(seed)
    small = small_model()
    small.context.tokens_of = right_most_of_the_time
    bench = bench_of(small)
    prompts = {}
    for number in range(12):
        name = f"r{number}"
        prompts[name] = [*PROMPT[: chance.randrange(1, 15)], chance.randrange(256)]
        bench.submit(name, prompts[name], max_tokens=chance.randrange(1, 40))
        bench.step(chance.randrange(6))
        if chance.random() < 0.2:
            bench.engine.cancel(name)
            del prompts[name]
    bench.run()
    for name, prompt in prompts.items():
        tokens = said(bench, name)
        assert tokens == expected_tokens(prompt, len(tokens)) and tokens


def test_drawn_tokens_are_the_same_for_the_same_seed():
    class Drawing(FakeChain):
        def __init__(self, sampling):
            super().__init__(sampling)
            self.chance = random.Random(sampling.seed)

        def sample(self, context, row):
            token = super().sample(context, row)
            return token if self.chance.random() < 0.8 else 97

    answers = []
    for small in (None, small_model()):
        bench = Bench(FakeContext(2048, 4), guesses=small, open_chain=Drawing)
        for seed in range(4):
            bench.submit(f"{seed}", PROMPT, max_tokens=60, sampling=Sampling(seed=seed))
        bench.run()
        answers.append([said(bench, f"{seed}") for seed in range(4)])
    assert answers[0] == answers[1] and small.context.batches


def test_a_prompt_that_the_small_model_has_read_is_not_read_again():
    small = small_model()
    bench = bench_of(small)
    long = [*b"a prompt that is long enough to matter here"]
    for name in "ab":
        bench.submit(name, long, max_tokens=10)
        bench.run()
    rows = [row for batch in small.context.batches for row in batch]
    assert sum(1 for _, position, _, _ in rows if position < len(long) - 1) < 1.2 * len(long)


def test_tokens_that_the_small_model_does_not_have_are_not_drafted_nor_shown_to_it():
    small = small_model(n_vocab=256)
    bench = bench_of(small)
    bench.submit("a", PROMPT, max_tokens=40)
    bench.submit("b", [*PROMPT, 262], max_tokens=40)
    bench.run()
    assert said(bench, "a") == expected_tokens(PROMPT, 40)
    assert said(bench, "b") == expected_tokens([*PROMPT, 262], 40)
    assert all(token < 256 for batch in small.context.batches for token, *_ in batch)


@pytest.mark.parametrize("code", [1, 2, -1])
def test_a_small_model_that_fails_fails_alone(code):
    small = small_model()
    small.context.fault = lambda batch: code if len(small.context.batches) % 3 == 2 else None
    bench = bench_of(small)
    bench.submit("a", PROMPT, max_tokens=60)
    bench.run()
    assert said(bench, "a") == expected_tokens(PROMPT, 60)
    assert not bench.of("a", RequestFailed)


def test_a_small_model_whose_memory_cannot_be_cut_reads_anew():
    small = small_model(FakeContext(2048, 4, can_cut=False))
    small.context.tokens_of = MODELS["wrong"]
    bench = bench_of(small)
    bench.submit("a", PROMPT, max_tokens=30)
    bench.run()
    assert said(bench, "a") == expected_tokens(PROMPT, 30)


def test_a_sequence_too_long_for_the_small_model_goes_on_without_it():
    small = small_model(FakeContext(64, 4))
    bench = bench_of(small)
    bench.context.tokens_of = small.context.tokens_of = talkative
    bench.submit("a", PROMPT, max_tokens=200)
    bench.run()
    assert said(bench, "a") == expected_tokens(PROMPT, 200, talkative)


def test_no_draft_is_shorter_or_longer_than_wanted():
    small = small_model()
    bench = bench_of(small, draft_min=3, draft_max=5)
    bench.context.tokens_of = small.context.tokens_of = talkative
    bench.submit("a", PROMPT, max_tokens=100)
    bench.run()
    n_rows = {len(batch) for batch in bench.context.batches if batch[0][1] >= len(PROMPT)}
    assert n_rows <= {1, 4, 5, 6} and max(n_rows) > 3


def test_a_model_that_guesses_badly_is_asked_ever_more_rarely():
    guesser = small_model().open(PROMPT)
    asked = []
    for number in range(2000):
        guesser.push(97)
        if guesser.chance >= FIRST_CHANCE:
            asked.append(number)
            guesser.learn(8, 0)
            guesser.learn(8, 0)
    gaps = [b - a for a, b in zip(asked, asked[1:])]
    assert gaps == sorted(gaps) and gaps[-1] > 10 * gaps[0]


def test_seats_are_given_back_and_shared_by_more_sequences_than_there_are():
    small = small_model(FakeContext(2048, 2))
    guessers = [small.open([*PROMPT, number]) for number in range(5)]
    for guesser in guessers:
        assert small.guess([(guesser, 2)]) != [[]]
    assert sum(guesser.seat is not None for guesser in guessers) == 2
    for guesser in guessers:
        guesser.close()
    assert all(guesser.seat is None for guesser in guessers)
