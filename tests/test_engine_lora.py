"""LoRA adapters on fakes: who shares a batch, who shares a prefix, whose turn it is."""

from __future__ import annotations

import pytest
from fakes import Bench, FakeContext, expected_tokens, never_ending

from libloader.core import EmbeddingEvent, RequestDone, RequestFailed, TokenEvent
from libloader.engine.prefix_file import Folder
from libloader.engine.prefix_store import PrefixStore

PROMPT = list(range(1, 61))
FILES = (("a.gguf", 1.0), ("b.gguf", 0.5), ("c.gguf", 2.0))
FIRST, SECOND = ((0, 1.0),), ((1, 1.0),)
DIGESTS = tuple(letter * 32 for letter in (b"a", b"b", b"c"))


def bench_with(n_parallel=4, store=None, **settings):
    settings = {"lora": FILES, "lora_init_without_apply": True, **settings}
    bench = Bench(FakeContext(1024, n_parallel), n_parallel=n_parallel, store=store, **settings)
    bench.context.tokens_of = never_ending
    return bench


def tokens_of(bench, name):
    return [token for event in bench.of(name, TokenEvent) for token in event.tokens]


def check(bench, name, adapters, prompt=PROMPT, n=8):
    assert tokens_of(bench, name) == expected_tokens(prompt, n, never_ending, adapters)


def say(bench, name, lora, prompt=PROMPT):
    """Run one request alone, check its text, and return how many of its tokens were known."""
    bench.submit(name, prompt, max_tokens=8, lora=lora)
    bench.run()
    check(bench, name, lora or (), prompt)
    return bench.of(name, RequestDone)[0].usage.n_cached


def test_requests_with_different_adapters_each_get_their_own_text_at_the_same_time():
    bench = bench_with()
    asked = {"base": None, "first": FIRST, "half": ((0, 0.5),), "both": (*FIRST, *SECOND)}
    for name, lora in asked.items():
        bench.submit(name, PROMPT, max_tokens=8, lora=lora)
    bench.run()
    for name, lora in asked.items():
        check(bench, name, lora or ())
    assert set(bench.context.batch_adapters) == {lora or () for lora in asked.values()}


def test_requests_with_the_same_adapters_share_batches_and_prefill():
    bench = bench_with()
    for number in range(4):
        bench.submit(f"r{number}", [*PROMPT, 100 + number], max_tokens=8, lora=FIRST)
    bench.run()
    assert bench.context.n_decoded < 1.5 * len(PROMPT) + 4 * 8
    assert max(len(batch) for batch in bench.context.batches if len(batch) <= 4) == 4


@pytest.mark.parametrize("other", [None, SECOND, ((0, 0.5),), (*FIRST, *SECOND)])
def test_a_prefix_in_the_kv_cache_is_never_shared_across_adapters(other):
    bench = bench_with()
    assert say(bench, "one", FIRST) == 0
    assert say(bench, "other", other) == 0
    assert say(bench, "same", FIRST) == len(PROMPT) - 1


def test_a_prefix_that_is_being_computed_is_not_waited_for_across_adapters():
    bench = bench_with()
    bench.submit("one", PROMPT, max_tokens=8, lora=FIRST)
    bench.step()
    bench.submit("other", PROMPT, max_tokens=8)
    bench.run()
    check(bench, "other", ())
    assert bench.of("other", RequestDone)[0].usage.n_cached == 0


def test_scale_zero_is_the_model_itself():
    bench = bench_with()
    assert say(bench, "base", None) == 0
    bench.submit("zero", PROMPT, max_tokens=8, lora=((0, 0.0), (2, 0.0)))
    bench.run()
    check(bench, "zero", ())
    assert bench.of("zero", RequestDone)[0].usage.n_cached == len(PROMPT) - 1


def test_the_order_in_which_adapters_are_named_does_not_matter():
    bench = bench_with()
    bench.submit("one", PROMPT, max_tokens=8, lora=(*FIRST, *SECOND))
    bench.run()
    bench.submit("two", PROMPT, max_tokens=8, lora=(*SECOND, *FIRST))
    bench.run()
    assert bench.of("two", RequestDone)[0].usage.n_cached == len(PROMPT) - 1


def test_a_request_that_names_no_adapters_gets_those_of_the_command_line():
    bench = bench_with(lora_init_without_apply=False)
    bench.submit("plain", PROMPT, max_tokens=8)
    bench.submit("none", PROMPT, max_tokens=8, lora=())
    bench.run()
    check(bench, "plain", ((0, 1.0), (1, 0.5), (2, 2.0)))
    check(bench, "none", ())


def test_an_adapter_that_is_not_there_is_refused_and_the_list_of_them_named():
    bench = bench_with()
    bench.submit("a", PROMPT, max_tokens=8, lora=((3, 1.0),))
    bench.submit("fine", PROMPT, max_tokens=8, lora=FIRST)
    bench.run()
    (failed,) = bench.of("a", RequestFailed)
    assert (failed.error["name"], failed.error["param"]) == ("FieldInvalid", "lora")
    assert "adapter 3" in failed.error["message"] and "/lora-adapters" in failed.error["message"]
    check(bench, "fine", FIRST)


def test_each_adapter_set_gets_a_step_in_turn():
    bench = bench_with()
    asked = {"base": None, "first": FIRST, "second": SECOND}
    for number, (name, lora) in enumerate(asked.items()):
        bench.submit(name, [number + 1] * 4, max_tokens=40, lora=lora)
    bench.step(6)
    for _ in range(10):
        before = {name: len(tokens_of(bench, name)) for name in asked}
        bench.step(3)
        assert all(len(tokens_of(bench, name)) == n + 1 for name, n in before.items())


def test_nobody_starves_behind_ever_new_adapter_sets():
    bench = bench_with()
    bench.submit("patient", [1, 2], max_tokens=30)
    bench.step(2)
    for number in range(60):
        scale = 0.001 * (number + 1)
        bench.submit(f"r{number}", [3, 4], max_tokens=1, lora=((0, scale),))
    bench.step(30 * 4 + 4)
    check(bench, "patient", (), [1, 2], 30)


def test_a_saved_state_in_ram_serves_only_its_own_adapters():
    bench = bench_with(1, PrefixStore(1 << 20))
    assert say(bench, "one", FIRST) == 0
    assert say(bench, "push", SECOND, [200] * 60) == 0
    assert say(bench, "base", None) == 0
    assert say(bench, "again", FIRST) == len(PROMPT) - 1
    assert bench.engine.figures()["n_hits_ram"] == len(PROMPT) - 1


def disk(tmp_path, digests=DIGESTS):
    return PrefixStore(0, Folder(str(tmp_path), b"b" * 32, digests), 1 << 20)


def test_a_saved_state_on_disk_is_known_by_what_the_adapter_is_not_by_its_number(tmp_path):
    bench = bench_with(1, disk(tmp_path))
    both = ((0, 1.0), (2, 0.5))
    assert say(bench, "one", both) == 0
    bench.engine.close()
    renumbered = bench_with(1, disk(tmp_path, DIGESTS[::-1]))
    assert say(renumbered, "same number", both) == 0
    # The fake model goes by numbers, so the text is another here; what counts is the hit.
    renumbered.submit("same adapter", PROMPT, max_tokens=8, lora=((0, 0.5), (2, 1.0)))
    renumbered.run()
    assert renumbered.of("same adapter", RequestDone)[0].usage.n_cached == len(PROMPT) - 1
    renumbered.engine.close()


def test_a_saved_state_of_an_adapter_that_is_not_loaded_is_ignored(tmp_path):
    bench = bench_with(1, disk(tmp_path))
    assert say(bench, "one", FIRST) == 0
    bench.engine.close()
    assert Folder(str(tmp_path), b"b" * 32, DIGESTS[1:]).index() == []
    assert len(Folder(str(tmp_path), b"b" * 32, DIGESTS).index()) == 1


def test_embeddings_run_with_the_adapters_of_the_command_line():
    bench = bench_with(lora_init_without_apply=False)
    bench.submit("a", ([1], [2]), kind="embed")
    bench.submit("b", ([1], [2]), kind="embed", lora=())
    bench.run()
    assert bench.embedding_context.batch_adapters == [((0, 1.0), (1, 0.5), (2, 2.0)), ()]
    assert len(bench.of("b", EmbeddingEvent)) == 2
