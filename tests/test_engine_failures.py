"""The engine on fakes when native code says no: one request suffers, or none."""

from __future__ import annotations

import pytest
from fakes import BOS, Bench, FakeChain, FakeContext, expected_tokens, never_ending

from libloader.core import RequestDone, RequestFailed, Sampling, TokenEvent
from libloader.errors import GrammarInvalid, NanLogits

PROMPTS = {name: [BOS, *name.encode() * 10] for name in ("ant", "bee", "cat", "dog")}


def endless(context=None, **settings):
    bench = Bench(context or FakeContext(), **settings)
    bench.context.tokens_of = never_ending
    return bench


def submit_all(bench, max_tokens=8):
    for name, prompt in PROMPTS.items():
        bench.submit(name, prompt, max_tokens=max_tokens)


def tokens_of(bench, name):
    return [t for e in bench.of(name, TokenEvent) for t in e.tokens]


def failures(bench):
    return {e.request_id: e.error["name"] for e in bench.events if isinstance(e, RequestFailed)}


def assert_untouched(bench, *names, max_tokens=8):
    for name in names:
        assert tokens_of(bench, name) == expected_tokens(PROMPTS[name], max_tokens, never_ending)


def has_token(batch, token):
    return any(row[0] == token for row in batch.rows)


@pytest.mark.parametrize("code", [2, -1, -2])
def test_a_refused_batch_costs_only_the_request_at_fault(code):
    bench = endless()
    bench.context.fault = lambda batch: code if has_token(batch, ord("c")) else None
    submit_all(bench)
    bench.run()
    assert failures(bench) == {"cat": "DecodeFailed"}
    assert_untouched(bench, "ant", "bee", "dog")


def test_a_decode_that_fails_once_costs_nobody_anything():
    bench = endless()
    codes = [-3]

    def fails_once(batch):
        n_sequences = len({seq_id for _, _, seq_id, _ in batch.rows})
        return codes.pop() if codes and n_sequences == 4 else None

    bench.context.fault = fails_once
    submit_all(bench)
    bench.run()
    assert failures(bench) == {} and not codes
    assert_untouched(bench, *PROMPTS)
    assert bench.engine.counters.n_refused_batches == 1


def test_what_an_aborted_batch_left_in_the_cache_is_taken_away():
    bench = endless()
    context = bench.context

    def aborts_halfway(batch):
        if len(context.batches) != 3 or len(batch.rows) < 2:
            return None
        context._decode_row(*batch.rows[0][:3])
        return 2

    context.fault = aborts_halfway
    submit_all(bench)
    bench.run()
    assert failures(bench) == {}
    assert_untouched(bench, *PROMPTS)


def test_without_room_cached_prefixes_go_first():
    bench = endless()
    submit_all(bench, max_tokens=1)
    bench.run()
    refusals = [1]
    bench.context.fault = lambda batch: refusals.pop() if refusals else None
    bench.submit("again", PROMPTS["ant"], max_tokens=8)
    bench.run()
    assert tokens_of(bench, "again") == expected_tokens(PROMPTS["ant"], 8, never_ending)
    assert failures(bench) == {}


def test_without_room_the_youngest_waits_and_all_finish():
    bench = endless(FakeContext(1024, 4))
    context, room = bench.context, 60
    context.fault = lambda batch: 1 if context.n_used + len(batch.rows) > room else None
    submit_all(bench, max_tokens=12)
    bench.run()
    assert failures(bench) == {} and bench.engine.counters.n_preempted > 0
    assert_untouched(bench, *PROMPTS, max_tokens=12)


def test_alone_without_room_a_sequence_ends_with_length():
    bench = endless()
    context = bench.context
    context.fault = lambda batch: 1 if context.n_used + len(batch.rows) > 40 else None
    bench.submit("ant", PROMPTS["ant"])
    bench.run()
    (event,) = bench.of("ant", RequestDone)
    assert event.usage.n_completion == 40 - len(PROMPTS["ant"]) + 1


def test_nan_logits_end_one_request():
    class NanForCats(FakeChain):
        def sample(self, context, row):
            if self.sampling.seed == 3 and len(self.accepted) == 2:
                raise NanLogits("the model produced no numbers")
            return super().sample(context, row)

    bench = endless(open_chain=NanForCats)
    for number, (name, prompt) in enumerate(PROMPTS.items(), 1):
        bench.submit(name, prompt, max_tokens=8, sampling=Sampling(seed=number))
    bench.run()
    assert failures(bench) == {"cat": "NanLogits"}
    assert_untouched(bench, "ant", "bee", "dog")


def test_logprobs_of_no_numbers_end_one_request():
    bench = endless()

    def nan(row, token, n_top):
        raise NanLogits("the model produced no finite numbers")

    bench.context.logprobs = nan
    submit_all(bench)
    bench.submit("eel", top_logprobs=1)
    bench.run()
    assert failures(bench) == {"eel": "NanLogits"}
    assert_untouched(bench, *PROMPTS)


def test_a_grammar_that_libllama_refuses_ends_one_request():
    def open_chain(sampling):
        if sampling.grammar:
            raise GrammarInvalid("no", param="grammar")
        return FakeChain(sampling)

    bench = endless(open_chain=open_chain)
    submit_all(bench)
    bench.submit("eel", sampling=Sampling(grammar="root ::="))
    bench.run()
    assert failures(bench) == {"eel": "GrammarInvalid"}
    assert_untouched(bench, *PROMPTS)


def test_one_choice_that_fails_takes_its_request_along():
    class SecondChoiceFails(FakeChain):
        def sample(self, context, row):
            if self.sampling.seed == 1:
                raise NanLogits("no")
            return super().sample(context, row)

    bench = endless(open_chain=SecondChoiceFails)
    bench.submit("a", n=3, max_tokens=5)
    bench.run()
    assert failures(bench) == {"a": "NanLogits"} and bench.of("a", RequestDone) == []
    assert all(chain.closed for chain in bench.chains)


def test_close_ends_everything_and_frees_every_chain():
    bench = endless()
    submit_all(bench)
    bench.step(2)
    bench.engine.close()
    assert bench.engine.idle and all(chain.closed for chain in bench.chains)


def test_a_cancel_ends_the_chunk_of_prompt_that_is_being_computed():
    bench = Bench(FakeContext(1024, 4, n_ubatch=64))
    bench.submit("other", [7] * 5, max_tokens=30)
    bench.step(5)
    bench.submit("long", [1] * 200, max_tokens=1)
    bench.step(2)

    def cancel():
        bench.context.during = lambda: None
        bench.engine.interrupt("long")
        bench.engine.cancel("long")

    bench.context.during = cancel
    n_batches = len(bench.context.batches)
    assert bench.step() == [] and len(bench.context.batches) == n_batches  # it came to nothing
    bench.run()
    assert not bench.of("long", RequestDone, RequestFailed)
    assert tokens_of(bench, "other") == expected_tokens([7] * 5, 30)
    assert bench.engine.counters.n_refused_batches == 0  # nothing was wrong with it


def test_an_interrupt_for_somebody_else_disturbs_nobody():
    bench = Bench(FakeContext(1024, 4, n_ubatch=64))
    bench.submit("a", [1] * 200, max_tokens=1)
    bench.context.during = lambda: bench.engine.interrupt("b")
    bench.run()
    assert bench.engine.counters.n_refused_batches == 0


def test_a_step_of_streams_is_short_and_runs_to_its_end():
    bench = Bench(FakeContext(1024, 4, n_ubatch=64))
    bench.submit("a", [1] * 5, max_tokens=30)
    bench.step(2)
    bench.context.during = lambda: bench.engine.interrupt("a")
    bench.run()
    assert bench.engine.counters.n_refused_batches == 0
