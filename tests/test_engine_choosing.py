"""Choosing one of a few labels: the numbers, the draw, and one prefill, on fakes."""

import math
import random

import pytest
from fakes import Bench, FakeContext, after, fake_logprob, past_of

from libloader.core import (
    ChoiceDone,
    DryRunEvent,
    RequestDone,
    RequestFailed,
    Sampling,
    TokenEvent,
)
from libloader.engine.choosing import LONGEST, LOWEST, draw
from libloader.errors import FieldInvalid, PromptTooLong, QueueFull
from libloader.errors import from_wire as error_from_wire

GREEDY = Sampling(temperature=0.0)
LONG = "a prompt that is longer than what is worth waiting for " * 2
PROMPT = (65, 66, 67)


def ask(bench, *labels, prompt=PROMPT, name="r", **fields):
    """Submit, run to the end, return the events."""
    fields.setdefault("sampling", GREEDY)
    bench.submit(name, list(prompt), kind="choose", labels=labels, **fields)
    bench.run()
    return bench.of(name)


def done(events):
    return next(event for event in events if isinstance(event, ChoiceDone))


def chance(past, text):
    """The model's own log probability of a text behind `past`, and the past after it."""
    total = 0.0
    for token in text.encode():
        total, past = total + fake_logprob(past, token), after(past, token)
    return total, past


def test_a_label_counts_the_product_of_its_tokens_chances():
    labels = ("yes", "no", "maybe")
    found = done(ask(Bench(), *labels)).label_logprobs
    assert found == pytest.approx([chance(past_of(PROMPT), label)[0] for label in labels])


def test_a_label_that_another_begins_with_ends_where_the_text_does_not_go_on_to_that_one():
    own, past = chance(past_of(PROMPT), "no")
    onwards = fake_logprob(past, ord(" "))
    found = done(ask(Bench(), "no", "no way", "yes")).label_logprobs
    assert found[0] == pytest.approx(own + math.log1p(-math.exp(onwards)))
    assert found[1] == pytest.approx(own + chance(past, " way")[0])


def test_a_label_that_begins_with_another_takes_from_that_one_alone():
    alone = [math.exp(each) for each in done(ask(Bench(), "no", "yes")).label_logprobs]
    more = [math.exp(each) for each in done(ask(Bench(), "no", "yes", "nobody")).label_logprobs]
    assert more[1] == pytest.approx(alone[1])
    assert more[0] < alone[0]


def by_hand(label, labels):
    """The definition, without a trie: the label's chance, less that the text goes on to others."""
    own, past = chance(past_of(PROMPT), label)
    onwards = {other[len(label)] for other in labels if other[: len(label)] == label != other}
    left = 1.0 - sum(math.exp(fake_logprob(past, ord(letter))) for letter in onwards)
    return own + math.log(left)


@pytest.mark.parametrize("seed", range(60))
def test_random_labels_on_random_engines_have_the_chances_that_are_defined(seed):
    rng = random.Random(seed)
    drawn = ("".join(rng.choices("ab", k=rng.randint(1, 9))) for _ in range(rng.randint(1, 24)))
    labels = tuple(dict.fromkeys(drawn))
    n_parallel = rng.randint(1, 4)
    context = FakeContext(
        rng.choice([64, 1024]), n_parallel, unified=rng.random() < 0.7, can_cut=rng.random() < 0.7
    )
    bench = Bench(context, n_parallel=n_parallel, n_ctx=16)
    bench.submit("beside", "hello", max_tokens=rng.randint(1, 8))
    found = done(ask(bench, *labels)).label_logprobs
    assert found == pytest.approx([by_hand(label, labels) for label in labels])
    assert math.fsum(map(math.exp, found)) <= 1.0
    assert bench.of("beside", RequestDone)


def test_without_a_temperature_the_likeliest_is_chosen():
    labels = [f"label {number}" for number in range(12)]
    events = ask(Bench(), *labels)
    found = done(events).label_logprobs
    text = next(event.text for event in events if isinstance(event, TokenEvent))
    assert text == labels[found.index(max(found))]


def test_a_temperature_draws_by_seed_from_the_scaled_chances():
    logprobs = [math.log(0.5), math.log(0.25), math.log(0.125)]

    def share(label, temperature):
        drawn = [draw(logprobs, Sampling(temperature=temperature, seed=s), 0) for s in range(4000)]
        return drawn.count(label) / len(drawn)

    assert share(0, 1.0) == pytest.approx(4 / 7, abs=0.03)
    assert share(2, 1.0) == pytest.approx(1 / 7, abs=0.03)
    assert share(0, 0.5) == pytest.approx(16 / 21, abs=0.03)  # the chances squared
    assert draw(logprobs, Sampling(seed=7), 3) == draw(logprobs, Sampling(seed=10), 0)


def test_a_label_without_any_chance_is_never_drawn():
    logprobs = [LOWEST, math.log(0.5)]
    assert {draw(logprobs, Sampling(temperature=2.0, seed=s), 0) for s in range(300)} == {1}


def test_labels_of_one_token_cost_nothing_but_the_prompt():
    bench = Bench()
    ask(bench, "a", "b", "c", "d", prompt=range(40))
    assert bench.context.n_decoded == 40


def test_the_prompt_is_computed_once_for_all_labels():
    labels = ["".join(chr(97 + (7 * n + i) % 26) for i in range(4)) for n in range(10)]
    bench = Bench()
    events = ask(bench, *labels, prompt=range(60))
    n_walks = len({label[:3] for label in labels})
    # each walk: the prompt's last token again, and its label but for the last token
    assert bench.engine.figures()["n_batches"] <= 60 / 16 + 2 + n_walks
    assert bench.context.n_decoded <= 60 + n_walks * (1 + 3)
    assert next(e for e in events if isinstance(e, RequestDone)).usage.n_cached == 0


@pytest.mark.parametrize("n_parallel", [1, 2, 4])
@pytest.mark.parametrize("unified", [True, False])
def test_the_numbers_do_not_depend_on_slots_and_memory(n_parallel, unified):
    labels = ["one", "two", "three", "thread", "threads", "four", "o"]
    expected = done(ask(Bench(), *labels)).label_logprobs
    context = FakeContext(n_seq_max=n_parallel, unified=unified)
    found = done(ask(Bench(context, n_parallel=n_parallel), *labels)).label_logprobs
    assert found == pytest.approx(expected)


def test_a_memory_that_cannot_be_cut_gives_the_same_numbers():
    labels = ["one", "two", "three"]
    expected = done(ask(Bench(), *labels)).label_logprobs
    for _ in range(2):
        found = done(ask(Bench(FakeContext(can_cut=False)), *labels)).label_logprobs
        assert found == pytest.approx(expected)


def test_the_tokens_of_all_labels_are_decoded_in_one_batch():
    bench = Bench()
    ask(bench, "abcdefgh", "ijklmnop", prompt=range(40))
    # Seven tokens of each label; in front of the second's, the prompt's last once more.
    assert [len(batch) for batch in bench.context.batches] == [16, 16, 8, 7 + 8]
    assert "draft_n" not in bench.of("r", RequestDone)[0].timings


def test_a_long_label_is_read_in_pieces_and_holds_up_nobody_for_long():
    bench = Bench(FakeContext(n_ubatch=64))
    bench.submit("other", "hello", max_tokens=40)
    bench.step(3)
    ask(bench, "x" * 90 + "y", "x" * 90 + "z", prompt=range(8))
    assert max(len(batch) for batch in bench.context.batches) <= 1 + 1 + LONGEST


def test_others_go_on_beside_it():
    bench = Bench()
    bench.submit("other", "hello", max_tokens=20)
    bench.step(3)
    ask(bench, "one", "two", "three", "four", "five", prompt=range(50))
    assert bench.of("other", RequestDone)
    assert bench.of("r", RequestDone)


def test_each_choice_is_drawn_by_itself_and_usage_counts_its_tokens():
    events = ask(Bench(), "aa", "bb", "cc", n=20, sampling=Sampling(temperature=1.0, seed=5))
    texts = [event.text for event in events if isinstance(event, TokenEvent)]
    assert len(texts) == 20
    assert len(set(texts)) > 1
    assert [e.index for e in events if isinstance(e, ChoiceDone)] == list(range(20))
    usage = events[-1].usage
    assert (usage.n_prompt, usage.n_completion) == (len(PROMPT), 40)


def test_logprobs_are_those_of_the_chosen_labels_tokens():
    bench = Bench()
    events = ask(bench, "no", "yes", top_logprobs=2)
    told = next(event for event in events if isinstance(event, TokenEvent))
    assert [entry[0] for entry in told.logprobs] == list(told.text.encode())
    label = ("no", "yes").index(told.text)
    total = sum(entry[2] for entry in told.logprobs)
    assert total == pytest.approx(done(events).label_logprobs[label])
    assert all(len(entry[3]) == 2 for entry in told.logprobs)


def test_a_second_request_with_the_same_prompt_finds_it_in_the_cache():
    bench = Bench()
    ask(bench, "one", "two", prompt=range(60), name="first")
    n_first = bench.context.n_decoded
    events = ask(bench, "one", "two", prompt=range(60), name="second")
    assert events[-1].usage.n_cached == 59
    assert bench.context.n_decoded - n_first <= 2 * (1 + 2)


def test_two_labels_that_are_the_same_tokens_are_refused():
    failed = ask(Bench(), "a", "b", "a")[-1]
    assert isinstance(failed, RequestFailed)
    error = error_from_wire(failed.error)
    assert isinstance(error, FieldInvalid)
    assert error.param == "choices[2]"


def test_a_label_that_does_not_fit_behind_the_prompt_is_refused():
    bench = Bench(FakeContext(64), n_parallel=1)
    failed = ask(bench, "x" * 40, "y", prompt=range(30))[-1]
    assert isinstance(error_from_wire(failed.error), PromptTooLong)


def test_a_space_that_the_vocabulary_puts_before_a_text_is_another_way_to_the_same_label():
    bench = Bench()
    plain = bench.model.vocab.tokenize

    def tokenize(text, add_special, parse_special):
        return plain(" " + text, add_special, parse_special)

    bench.model.vocab.tokenize = tokenize
    found = done(ask(bench, "no", "yes")).label_logprobs
    past = past_of(PROMPT)
    for label, logprob in zip(("no", "yes"), found):
        both = (chance(past, label)[0], chance(past, " " + label)[0])
        assert math.exp(logprob) == pytest.approx(sum(map(math.exp, both)))


def test_a_choose_request_that_runs_out_of_time_fails_and_leaves_nothing():
    bench = Bench(n_parallel=1)
    bench.submit("r", list(range(40)), kind="choose", labels=("one", "two"), deadline_s=5.0)
    bench.step(2)
    bench.clock.pass_s(6.0)
    bench.run()
    failed = bench.of("r")[-1]
    assert isinstance(error_from_wire(failed.error), QueueFull)
    assert bench.engine.idle


def test_a_cancelled_choose_request_leaves_nothing():
    bench = Bench()
    bench.submit("r", list(range(40)), kind="choose", labels=("one", "two", "three"))
    bench.step(2)
    assert bench.engine.n_running > 0
    bench.engine.cancel("r")
    bench.step()
    assert bench.of("r", ChoiceDone, RequestDone, RequestFailed) == []
    assert bench.engine.n_running == 0


def test_a_full_cache_sends_walks_back_and_they_come_to_the_same_end():
    labels = [f"{letter}{letter * 6}" for letter in "abcdefgh"]
    expected = done(ask(Bench(), *labels, prompt=range(20))).label_logprobs
    bench = Bench(FakeContext(40), n_ctx=40)
    bench.submit("other", list(range(8)), max_tokens=8)
    assert done(ask(bench, *labels, prompt=range(20))).label_logprobs == pytest.approx(expected)


def test_what_a_client_has_already_is_not_told_again():
    bench = Bench()
    events = ask(bench, "no", "yes", n=2, resume=(tuple(b"no"), ()))
    assert [event.index for event in events if isinstance(event, TokenEvent)] == [1]
    assert [event.index for event in events if isinstance(event, ChoiceDone)] == [0, 1]


# ---- dry runs ----


def state_of(bench):
    engine = bench.engine
    return bench.context.n_decoded, engine.n_cells_used, engine.figures()["n_hits_kv"]


def test_a_dry_run_tells_size_and_cache_and_changes_nothing():
    bench = Bench()
    bench.submit("first", LONG, max_tokens=1)
    bench.run()
    before = state_of(bench)
    bench.submit("dry", LONG + "more", kind="dry_run")
    bench.run()
    event, end = bench.of("dry")
    assert isinstance(event, DryRunEvent)
    assert isinstance(end, RequestDone)
    assert event.n_prompt == len((LONG + "more").encode()) + 1
    assert event.cached == (("kv", len(LONG.encode()) + 1),)
    assert event.n_ctx == bench.engine.n_ctx_slot
    assert state_of(bench) == before


def test_a_dry_run_of_what_does_not_fit_is_an_answer_and_not_an_error():
    bench = Bench(FakeContext(64), n_parallel=1)
    bench.submit("dry", list(range(100)), kind="dry_run")
    bench.run()
    assert bench.of("dry", DryRunEvent)[0].n_prompt == 100


@pytest.mark.parametrize(
    ("settings", "max_tokens", "expected"),
    [
        ({}, -1, 90),
        ({}, 7, 7),
        ({}, 1000, 90),
        ({"context_shift": True}, 1000, 1000),
        ({"context_shift": True}, -1, 100),
    ],
)
def test_a_dry_run_tells_how_long_the_answer_may_get(settings, max_tokens, expected):
    bench = Bench(n_ctx=100, **settings)
    bench.submit("dry", list(range(10)), kind="dry_run", max_tokens=max_tokens)
    bench.submit("long", list(range(100)), kind="dry_run", max_tokens=max_tokens)
    bench.run()
    assert [bench.of(name, DryRunEvent)[0].n_max for name in ("dry", "long")] == [expected, 0]


def test_a_dry_run_promises_what_the_request_then_gets():
    bench = Bench()
    bench.submit("first", LONG, max_tokens=1)
    bench.run()
    bench.submit("dry", LONG, kind="dry_run")
    bench.submit("real", LONG, max_tokens=1)
    bench.run()
    ((_, promised),) = bench.of("dry", DryRunEvent)[0].cached
    assert bench.of("real", RequestDone)[0].usage.n_cached == promised


def test_a_dry_run_needs_no_free_slot_and_no_place_in_the_line():
    bench = Bench(n_parallel=1, n_queue=1)
    for name in ("a", "b"):
        bench.submit(name, "hello", max_tokens=200)
    bench.submit("dry", "hello", kind="dry_run")
    bench.step()
    assert bench.of("dry", RequestDone)
