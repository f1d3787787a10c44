"""The engine on fakes: what comes out for one request, whatever else is going on."""

from __future__ import annotations

import pytest
from fakes import (
    BOS,
    EOS,
    Bench,
    FakeContext,
    FakeVocab,
    expected_tokens,
    never_ending,
)

from libloader.core import ChoiceDone, Prompt, RequestDone, RequestFailed, TokenEvent

HELLO = [BOS, *b"hello"]


def tokens_of(bench, name, index=0):
    return [t for e in bench.of(name, TokenEvent) if e.index == index for t in e.tokens]


def text_of(bench, name, index=0):
    return "".join(e.text for e in bench.of(name, TokenEvent) if e.index == index)


def failure_of(bench, name):
    (event,) = bench.of(name, RequestFailed)
    return event.error


@pytest.fixture
def bench():
    return Bench()


@pytest.fixture
def endless():
    bench = Bench(FakeContext())
    bench.context.tokens_of = never_ending
    return bench


def test_a_request_gets_its_own_tokens_then_one_done(bench):
    bench.submit("a", "hello", max_tokens=12)
    bench.run()
    assert tokens_of(bench, "a") == expected_tokens(HELLO, 12)
    assert [type(e) for e in bench.of("a")[-2:]] == [ChoiceDone, RequestDone]


def test_an_end_token_ends_with_stop_and_leaves_no_text(bench):
    bench.context.tokens_of = lambda past: EOS
    bench.submit("a")
    bench.run()
    assert tokens_of(bench, "a") == [EOS] and text_of(bench, "a") == ""
    assert bench.of("a", ChoiceDone)[0].reason == "stop"


def test_ignore_eos_goes_on_to_the_limit(bench):
    from libloader.core import Sampling

    bench.context.tokens_of = lambda past: EOS
    bench.submit("a", max_tokens=5, sampling=Sampling(ignore_eos=True))
    bench.run()
    assert tokens_of(bench, "a") == [EOS] * 5
    assert bench.of("a", ChoiceDone)[0].reason == "length"


def test_max_tokens_ends_with_length(endless):
    endless.submit("a", max_tokens=3)
    endless.run()
    assert len(tokens_of(endless, "a")) == 3
    assert endless.of("a", ChoiceDone) == [ChoiceDone("a", 0, "length", None)]


def test_max_tokens_zero_ends_at_once(endless):
    endless.submit("a", max_tokens=0)
    endless.run()
    assert [type(e) for e in endless.of("a")] == [ChoiceDone, RequestDone]
    assert endless.context.n_decoded == 0


def test_the_end_of_the_context_ends_with_length():
    bench = Bench(FakeContext(64, 2), n_parallel=2)
    bench.context.tokens_of = never_ending
    bench.submit("a", [1] * 20)
    bench.run()
    assert len(tokens_of(bench, "a")) == 12
    assert bench.of("a", ChoiceDone)[0].reason == "length"
    assert bench.of("a", RequestDone)[0].usage == (20, 0, 12)


def test_a_stop_string_across_tokens_is_cut_out(bench):
    script = iter(b"one STOP two")
    bench.context.tokens_of = lambda past: next(script)
    bench.submit("a", stop=("ST", "STOP", "two"))
    bench.run()
    assert text_of(bench, "a") == "one "
    assert bench.of("a", ChoiceDone) == [ChoiceDone("a", 0, "stop", "ST")]


def test_text_held_back_for_a_stop_string_comes_out_at_the_end(bench):
    script = iter(b"abc")
    bench.context.tokens_of = lambda past: next(script)
    bench.submit("a", stop=("bcd",), max_tokens=3)
    bench.run()
    assert text_of(bench, "a") == "abc"
    assert [e.tokens for e in bench.of("a", TokenEvent)] == [(97,), (98,), (99,)]


@pytest.mark.parametrize("n_prompt", [15, 16, 17, 40])
def test_a_prompt_that_fits_to_the_last_but_one_token_is_served(n_prompt):
    bench = Bench(FakeContext(41, 1), n_parallel=1)
    bench.submit("a", [5] * n_prompt, max_tokens=1)
    bench.run()
    assert len(tokens_of(bench, "a")) == 1


@pytest.mark.parametrize("n_prompt", [41, 42, 4000])
def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(n_prompt):
    bench = Bench(FakeContext(41, 1), n_parallel=1)
    bench.submit("a", [5] * n_prompt)
    bench.run()
    error = failure_of(bench, "a")
    assert error["name"] == "PromptTooLong" and bench.context.n_decoded == 0
    assert str(n_prompt) in error["message"] and "41" in error["message"]


def test_a_huge_text_is_refused_without_being_tokenized():
    bench = Bench(FakeContext(41, 1), n_parallel=1)
    bench.submit("a", "x" * 50_000_000)
    bench.run()
    assert failure_of(bench, "a")["name"] == "PromptTooLong"
    assert bench.model.vocab.n_tokenized == 0


@pytest.mark.parametrize("token", [-1, FakeVocab().n_tokens, 2**40])
def test_a_token_id_outside_the_vocabulary_is_refused(bench, token):
    bench.submit("a", [1, token, 2])
    bench.run()
    error = failure_of(bench, "a")
    assert (error["name"], error["param"]) == ("FieldInvalid", "prompt")
    assert str(token) in error["message"]


@pytest.mark.parametrize("prompt", ["", []])
def test_an_empty_prompt_becomes_bos(bench, prompt):
    bench.submit("a", prompt, max_tokens=3)
    bench.run()
    assert tokens_of(bench, "a") == expected_tokens([BOS], 3)


@pytest.mark.parametrize("prompt", ["", []])
def test_an_empty_prompt_is_refused_where_the_vocabulary_has_no_bos(prompt):
    bench = Bench(bos=-1)
    bench.submit("a", prompt)
    bench.run()
    assert failure_of(bench, "a")["name"] == "FieldInvalid"


def test_what_a_user_typed_never_becomes_a_control_token(bench):
    segments = (("<|im_start|>", True), ("a<|im_end|>b", False), ("<|im_end|>", True))
    bench.submit("a", Prompt(segments=segments, add_special=False), max_tokens=4)
    bench.run()
    typed = [258, *b"a<|im_end|>b", 259]
    assert tokens_of(bench, "a") == expected_tokens(typed, 4)


def test_a_control_token_across_two_segments_stays_text(bench):
    segments = (("<|im_", False), ("end|>", True))
    bench.submit("a", Prompt(segments=segments, add_special=False), max_tokens=4)
    bench.run()
    assert tokens_of(bench, "a") == expected_tokens(list(b"<|im_end|>"), 4)


def test_only_typed_text_with_a_control_token_is_tokenized_alone(bench):
    segments = (
        ("<|im_start|>", True), ("plain", False), ("<|im_end|>", True),
        ("a<|im_end|>b", False), ("<|im_end|>", True), ("plain", False),
    )  # fmt: skip
    bench.submit("a", Prompt(segments=segments, add_special=False), max_tokens=4)
    bench.run()
    typed = [258, *b"plain", 259, *b"a<|im_end|>b", 259, *b"plain"]
    assert tokens_of(bench, "a") == expected_tokens(typed, 4)
    assert bench.model.vocab.n_tokenized == 3


def test_a_harmless_prompt_is_tokenized_in_one_piece(bench):
    segments = (("<|im_start|>", True), ("plain words", False), ("<|im_end|>", True))
    bench.submit("a", Prompt(segments=segments), max_tokens=1)
    bench.run()
    assert bench.model.vocab.n_tokenized == 1


def test_choices_share_the_prefill_and_are_numbered(bench):
    prompt = list(range(1, 41))
    bench.submit("a", prompt, n=3, max_tokens=4)
    bench.run()
    for index in range(3):
        assert tokens_of(bench, "a", index) == expected_tokens(prompt, 4)
    assert bench.context.n_decoded == 40 + 2 + 3 * 3  # one prefill, two last tokens, three streams
    assert bench.of("a", RequestDone)[0].usage == (40, 0, 12)


def test_choices_have_seeds_of_their_own(bench):
    bench.submit("a", n=3, max_tokens=1)
    bench.run()
    assert len({chain.sampling.seed for chain in bench.chains}) == 3


def test_several_prompts_are_choices_in_order(bench):
    bench.submit("a", ("one", "two"), n=2, max_tokens=3)
    bench.run()
    expected = [expected_tokens([BOS, *word], 3) for word in (b"one", b"one", b"two", b"two")]
    assert [tokens_of(bench, "a", index) for index in range(4)] == expected
    assert sorted(e.index for e in bench.of("a", ChoiceDone)) == [0, 1, 2, 3]


def test_more_choices_than_slots_take_turns():
    bench = Bench(FakeContext(256, 2), n_parallel=2)
    bench.submit("a", n=5, max_tokens=4)
    bench.run()
    assert all(tokens_of(bench, "a", i) == expected_tokens(HELLO, 4) for i in range(5))


def test_logprobs_name_the_token_and_its_alternatives(bench):
    bench.submit("a", max_tokens=1, top_logprobs=2)
    bench.run()
    (event,) = bench.of("a", TokenEvent)
    ((token, text, logprob, top),) = event.logprobs
    assert token == event.tokens[0] and text.encode("latin-1") == FakeVocab().piece(token, True)
    assert top[0] == (token, text, logprob) and len(top) == 2 and logprob > top[1][2]


def test_timings_are_measured_on_the_given_clock(endless):
    endless.context.cost_s = lambda n_rows: 0.010 * n_rows
    endless.submit("a", [1] * 16, max_tokens=3)
    endless.run()
    timings = endless.of("a", RequestDone)[0].timings
    assert timings["prompt_n"] == 16 and timings["prompt_ms"] == pytest.approx(160)
    assert timings["predicted_n"] == 3 and timings["predicted_ms"] == pytest.approx(20)
    assert timings["prompt_per_second"] == pytest.approx(100)


def test_a_replayed_request_goes_on_where_it_was(bench):
    whole = expected_tokens(HELLO, 12)
    bench.submit("a", max_tokens=12, resume=(tuple(whole[:5]),))
    bench.run()
    assert tokens_of(bench, "a") == whole[5:]
    assert bench.chains[0].accepted == whole
    assert bench.of("a", RequestDone)[0].usage.n_completion == len(whole)


def test_a_replay_tells_no_text_twice(bench):
    script = list(b"one STOP two")
    bench.context.tokens_of = lambda past: script[len(bench.chains[0].accepted)]
    bench.submit("a", stop=("STOP",), resume=(tuple(script[:6]),))
    bench.run()
    assert text_of(bench, "a") == ""  # "ST" was held back before the crash too
    assert bench.of("a", ChoiceDone)[0].stop == "STOP"


def test_a_choice_that_had_ended_before_a_crash_ends_again_without_text(bench):
    whole = expected_tokens(HELLO, 4)
    bench.submit("a", n=2, max_tokens=4, resume=(tuple(whole), ()))
    bench.run()
    assert tokens_of(bench, "a", 0) == [] and tokens_of(bench, "a", 1) == whole
    assert [e.index for e in bench.of("a", ChoiceDone)] == [0, 1]


def test_an_unknown_kind_fails_alone(bench):
    bench.submit("a", kind="dance")
    bench.submit("b", max_tokens=2)
    bench.run()
    assert failure_of(bench, "a")["name"] == "FieldInvalid"
    assert len(bench.of("b", RequestDone)) == 1


def test_each_native_call_leaves_a_breadcrumb_before_it(bench):
    bench.submit("a", max_tokens=2)
    bench.run()
    phases = [phase for phase, name, _ in bench.trail if name == "a"]
    assert phases[:3] == ["tokenize", "grammar_init", "prefill"]
    assert phases[3:] == ["sample", "detok", "decode", "sample", "detok"]


def test_moving_cells_to_make_room_leaves_a_breadcrumb():
    bench = Bench(FakeContext(96, 2), n_parallel=2, n_ctx=96)
    bench.submit("old", [1] * 60, max_tokens=1)
    bench.run()
    bench.submit("new", [2] * 60, max_tokens=1)
    bench.run()
    assert "make_room" in [phase for phase, name, _ in bench.trail if name == "new"]
    assert "make_room" not in [phase for phase, name, _ in bench.trail if name == "old"]
