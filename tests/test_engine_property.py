"""The engine on fakes under seeded random load: arrivals, lengths, cancels, refusals, deadlines.

What must hold for every seed: each request gets exactly its own tokens and one last event; the
mirror of the KV cache is true after every step; no cell leaks; everybody gets a turn.
"""

from __future__ import annotations

import random

import pytest
from fakes import (
    EOS,
    IM_START,
    Bench,
    FakeChain,
    FakeCompany,
    FakeContext,
    could_say,
    expected_tokens,
)

from libloader.core import ChoiceDone, RequestDone, RequestFailed, Sampling, TokenEvent
from libloader.engine.prefix_store import PrefixStore
from libloader.errors import NanLogits

POISON = IM_START  # the model never says it; a prompt with this token makes llama_decode fail
NAN_SEED = 77


class SometimesNan(FakeChain):
    def sample(self, context, row):
        if self.sampling.seed == NAN_SEED and len(self.accepted) == 3:
            raise NanLogits("the model produced no numbers")
        return super().sample(context, row)


class Load:
    """One random run: what was asked, and what may be expected of it."""

    def __init__(self, seed: int) -> None:
        self.chance = chance = random.Random(seed)
        n_seq_max = chance.choice([1, 2, 4, 8])
        context = FakeContext(
            chance.choice([128, 512, 1024]) * (1 if chance.random() < 0.5 else n_seq_max),
            n_seq_max,
            unified=chance.random() < 0.7,
            n_batch=64,
            n_ubatch=chance.choice([8, 16, 64]),
            can_cut=chance.random() < 0.9,
            n_swa=chance.choice([0, 0, 10, 40]),
        )
        context.pass_cells = chance.choice([5, 50, 1 << 30])
        n_ctx = min(128, context.n_ctx_seq)
        self.shifts = context.can_cut and chance.random() < 0.4
        self.bench = Bench(
            context,
            n_parallel=n_seq_max,
            n_ctx=n_ctx,
            n_queue=1000,
            lookup=chance.random() < 0.5,
            lora=(("a.gguf", 1.0), ("b.gguf", 1.0)),
            lora_init_without_apply=True,
            context_shift=self.shifts,
            open_chain=SometimesNan,
            store=PrefixStore(chance.choice([0, 3000, 1 << 20])),
        )
        context.fault = self.fault
        context.cost_s = lambda n_rows: 0.001 * n_rows
        self.fault_rate = chance.choice([0.0, 0.0, 0.05])
        self.n_ctx = n_ctx
        self.asked: dict[str, dict] = {}
        self.cancelled: set[str] = set()
        self.adapters = chance.choice([[None], [None, ((0, 1.0),), ((0, 0.5), (1, 2.0))]])
        self.prefixes = [self.tokens(chance.randrange(60)) for _ in range(3)]

    def tokens(self, n):
        return [self.chance.randrange(1, 200) for _ in range(n)]

    def fault(self, batch):
        if any(row[0] == POISON for row in batch.rows):
            return -3
        if self.chance.random() < self.fault_rate:
            return self.chance.choice([1, 1, -2]) if self.is_shared(batch) else 1
        return None

    def is_shared(self, batch):
        return len({seq_id for _, _, seq_id, _ in batch.rows}) > 1

    def arrive(self, name):
        chance = self.chance
        prompt = self.chance.choice(self.prefixes) + self.tokens(chance.randrange(1, 30))
        if chance.random() < 0.05:
            prompt = [*prompt, POISON, 1]
        fields = {
            "max_tokens": chance.choice([1, 2, 10, 40, -1, 300 if self.shifts else 80]),
            "n_keep": chance.choice([0, 0, 5, -1]),
            "n": chance.choice([1, 1, 1, 2, 3]),
            "fair_key": chance.choice(["", "x", "y"]),
            "sampling": Sampling(seed=NAN_SEED if chance.random() < 0.05 else 0),
            "cache_prompt": chance.random() < 0.9,
            "streamed": chance.random() < 0.5,
            "lora": chance.choice(self.adapters),
        }
        self.asked[name] = {"prompt": prompt, **fields}
        self.bench.submit(name, prompt, **fields)

    def run(self):
        chance = self.chance
        n_requests = chance.randrange(5, 40)
        for _ in range(6000):
            while len(self.asked) < n_requests and chance.random() < 0.3:
                self.arrive(f"r{len(self.asked)}")
            if self.asked and chance.random() < 0.03:
                name = chance.choice(list(self.asked))
                self.cancelled.add(name)
                self.bench.engine.cancel(name)
            self.bench.step()
            if len(self.asked) == n_requests and self.bench.engine.idle:
                return
        raise AssertionError("somebody starves")

    def check_request(self, name):
        bench, asked = self.bench, self.asked[name]
        ends = bench.of(name, RequestDone, RequestFailed)
        assert len(ends) <= 1 and (ends or name in self.cancelled), name
        for index in range(asked["n"]):
            got = [t for e in bench.of(name, TokenEvent) if e.index == index for t in e.tokens]
            is_done = any(e.index == index for e in bench.of(name, ChoiceDone))
            check = self.check_shifting if self.shifts else self.check_choice
            check(asked, got, is_done)
        self.check_end(asked, ends)

    def check_choice(self, asked, got, is_done):
        limit = self.n_ctx - len(asked["prompt"])
        if asked["max_tokens"] >= 0:
            limit = min(limit, asked["max_tokens"])
        expected = expected_tokens(asked["prompt"], limit, adapters=asked["lora"] or ())
        assert got == expected[: len(got)], "somebody else's tokens"
        full = self.bench.context.n_ctx  # alone and refused: it fills all that there is
        assert not is_done or got == expected or self.fault_rate or limit >= full

    def check_shifting(self, asked, got, is_done):
        how = {"n_keep": asked["n_keep"], "adapters": asked["lora"] or ()}
        assert could_say(asked["prompt"], got, self.n_ctx, **how)
        limit = asked["max_tokens"] if asked["max_tokens"] >= 0 else self.n_ctx
        is_whole = len(got) == limit or EOS in got
        full = self.bench.context.n_ctx
        assert not is_done or is_whole or self.fault_rate or self.n_ctx >= full

    def check_end(self, asked, ends):
        if not ends or isinstance(ends[0], RequestDone):
            return
        error = ends[0].error["name"]
        allowed = {"PromptTooLong": len(asked["prompt"]) >= self.n_ctx}
        allowed["DecodeFailed"] = POISON in asked["prompt"]
        allowed["NanLogits"] = asked["sampling"].seed == NAN_SEED or asked["n"] > 1
        assert allowed.get(error), f"{error} for another's sake"


@pytest.mark.parametrize("seed", range(100))
def test_every_request_gets_exactly_its_own_tokens_and_one_end(seed):
    load = Load(seed)
    load.run()
    for name in load.asked:
        load.check_request(name)


@pytest.mark.parametrize("seed", range(200, 300))
def test_a_cruising_engine_gives_every_request_the_same(seed):
    load = Load(seed)
    load.bench.company = FakeCompany(load.bench, lambda now_s: load.chance.random() < 0.8)
    load.run()
    for name in load.asked:
        load.check_request(name)
    load.bench.engine.close()


@pytest.mark.parametrize("seed", range(100, 120))
def test_no_cell_and_no_chain_leaks(seed):
    load = Load(seed)
    load.run()
    assert all(chain.closed for chain in load.bench.chains)
    load.bench.engine._scheduler.cache.forget_idle()
    assert load.bench.context.n_used == 0
