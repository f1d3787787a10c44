"""Sampler chains on a real libllama: what each does, and what may never reach C."""

from __future__ import annotations

import codecs
import math
import threading
from dataclasses import replace

import gguf_files as files
import pytest
from llama_rows import SETTINGS, decode, generate

from libloader.core import EngineSettings, Sampling
from libloader.errors import (
    DecodeFailed,
    EngineUnavailable,
    FieldInvalid,
    FieldUnsupported,
    GrammarInvalid,
    NanLogits,
)
from libloader.llama.context import Context
from libloader.llama.model import Model
from libloader.llama.sampler import SAMPLERS, SamplerChain

pytestmark = pytest.mark.native

PLAIN = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def context(tiny_model):
    with Context(tiny_model, SETTINGS) as context:
        yield context


def text_of(context, tokens) -> str:
    return b"".join(map(context.model.vocab.piece, tokens)).decode()


# Choosing


def test_temperature_zero_takes_the_highest_logit(context):
    tokens = generate(context, GREEDY, 10)
    context.seq_rm(0, -1, -1)
    decode(context, [1, 2, 3, *tokens[:5]])
    logits = context.logits_row(7)
    assert tokens[5] == max(range(len(logits)), key=logits.__getitem__)


def test_the_same_seed_gives_the_same_tokens_and_another_gives_others(context):
    runs = [generate(context, replace(PLAIN, seed=seed), 20) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_the_seed_that_means_random_to_libllama_is_a_seed_like_any_other(context):
    runs = [generate(context, replace(PLAIN, seed=2**32 - 1), 20) for _ in range(2)]
    assert runs[0] == runs[1]


def test_a_tiny_temperature_is_nearly_greedy(context):
    assert generate(context, replace(PLAIN, temperature=1e-3), 20) == generate(context, GREEDY, 20)


def test_a_high_temperature_spreads_over_the_vocabulary(context):
    assert len(set(generate(context, replace(PLAIN, temperature=100.0, seed=3), 60))) > 30


@pytest.mark.parametrize(
    "only", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"mirostat": 2, "mirostat_tau": 1e-6}]
)
def test_the_tightest_truncation_leaves_the_greedy_token(context, only):
    assert generate(context, replace(PLAIN, **only), 15) == generate(context, GREEDY, 15)


@pytest.mark.parametrize(
    "changes",
    [
        {"typical_p": 0.5},
        {"top_n_sigma": 1.0},
        {"xtc_probability": 1.0, "xtc_threshold": 0.01},
        {"dynatemp_range": 0.5},
        {"dry_multiplier": 0.8, "dry_penalty_last_n": -1},
        {"dry_multiplier": 0.8, "dry_sequence_breakers": ()},
        {"repeat_penalty": 1.3, "repeat_last_n": -1},
        {"frequency_penalty": 0.5, "presence_penalty": 0.5},
        {"mirostat": 1},
        {"mirostat": 2},
        {"min_keep": 5, "top_p": 0.1},
        {"top_k": 2**31 - 1},
        {"repeat_penalty": 1.3, "repeat_last_n": 2**31 - 1},
    ],
)
def test_every_sampler_gives_tokens_or_names_the_field_that_this_build_lacks(context, changes):
    try:
        tokens = generate(context, replace(PLAIN, **changes), 12)
    except FieldUnsupported as refused:
        assert refused.param in changes
        assert not all(context.model.lib.has(row.capability) for row in SAMPLERS if row.capability)
    else:
        assert all(0 <= token < files.N_VOCAB for token in tokens)


def test_xtc_takes_the_likeliest_tokens_away(context):
    if not context.model.lib.has("xtc"):
        pytest.skip("this build has no XTC sampler")
    xtc = replace(PLAIN, temperature=1e-3, xtc_probability=1.0, xtc_threshold=0.005)
    assert generate(context, xtc, 5) != generate(context, GREEDY, 5)


# Biases and repetition


def test_a_bias_of_minus_infinity_forbids_a_token(context):
    favourite = generate(context, GREEDY, 1)[0]
    forbidden = replace(GREEDY, logit_bias=((favourite, -math.inf),))
    assert favourite not in generate(context, forbidden, 10)


def test_a_large_bias_forces_a_token(context):
    assert generate(context, replace(PLAIN, logit_bias=((42, 1000.0),)), 5) == [42] * 5


def test_ignore_eos_wins_over_a_bias_for_the_end(context):
    eos = context.model.vocab.eos
    biased = replace(PLAIN, logit_bias=((eos, 1000.0),))
    assert generate(context, biased, 5) == [eos]
    assert eos not in generate(context, replace(biased, ignore_eos=True), 5)


@pytest.mark.parametrize(
    "bias", [(-1, 1.0), (files.N_VOCAB, 1.0), (2**40, 1.0), (1, math.nan), (1, math.inf)]
)
def test_a_bias_that_c_could_not_take_is_refused(context, bias):
    with pytest.raises(FieldInvalid, match="logit_bias") as refused:
        SamplerChain(context.model, replace(PLAIN, logit_bias=(bias,)), 128)
    assert refused.value.param == "logit_bias"


def test_a_huge_frequency_penalty_lets_no_token_come_twice(context):
    tokens = generate(context, replace(GREEDY, frequency_penalty=1e6), 30)
    assert len(set(tokens)) == len(tokens) == 30


def test_penalties_see_the_end_of_the_prompt(context):
    favourite = generate(context, GREEDY, 1, prompt=(1, 2, 3))[0]
    prompt = (favourite, 1, 2, 3)
    penalised = replace(GREEDY, presence_penalty=1e6, repeat_last_n=4)
    assert generate(context, penalised, 1, prompt=prompt)[0] not in prompt


def test_a_reset_chain_starts_anew(context):
    context.seq_rm(0, -1, -1)
    decode(context, [1, 2, 3])
    with SamplerChain(context.model, replace(GREEDY, frequency_penalty=1e6), 128) as chain:
        first = [chain.sample(context, 2) for _ in range(3)]
        chain.reset()
        assert [chain.sample(context, 2) for _ in range(3)] == first


# Grammar

HELLO = 'root ::= "hello" " world"'
NUMBERS = 'root ::= "[" [0-9]+ ("," [0-9]+)* "]"'


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("changes", [{}, {"top_k": 1}, {"mirostat": 2}, {"repeat_penalty": 1.5}])
def test_a_grammar_is_kept_whatever_the_chain_prefers(context, seed, changes):
    tokens = generate(context, replace(PLAIN, grammar=HELLO, seed=seed, **changes), 20)
    assert text_of(context, tokens) == "hello world"
    assert context.model.vocab.is_eog(tokens[-1])


def test_a_grammar_with_choices_leaves_the_choice_to_the_model(context):
    texts = {
        text_of(context, generate(context, replace(PLAIN, grammar=NUMBERS, seed=seed), 12))
        for seed in range(6)
    }
    assert len(texts) > 3
    assert all(set(text) <= set("[],0123456789") and text[0] == "[" for text in texts)


def test_greedy_by_grammar_is_the_best_allowed_token(context):
    context.seq_rm(0, -1, -1)
    decode(context, [1, 2, 3])
    logits = context.logits_row(2)
    with SamplerChain(context.model, replace(GREEDY, grammar="root ::= [a-z]"), 128) as chain:
        token = chain.sample(context, 2)
    letters = [t for c in "abcdefghijklmnopqrstuvwxyz" for t in
               context.model.vocab.tokenize(c, False, False)]  # fmt: skip
    assert token == max(letters, key=logits.__getitem__)


def test_a_refused_choice_leaves_no_trace_in_the_penalties(context):
    """The chain accepts what it picks; a pick that the grammar refuses must be taken back."""
    context.seq_rm(0, -1, -1)
    decode(context, [1, 2, 3])
    logits = context.logits_row(2)
    best = max(range(len(logits)), key=logits.__getitem__)
    letter = context.model.vocab.tokenize("a", False, False)[0]
    sampling = replace(GREEDY, presence_penalty=1e6, grammar='root ::= "a" [^b]+')
    with SamplerChain(context.model, sampling, 128) as chain:
        assert chain.sample(context, 2) == letter
        allowed = chain.sample(context, 2)
    without = replace(sampling, grammar="", logit_bias=((letter, -math.inf),))
    with SamplerChain(context.model, without, 128) as chain:
        assert (allowed == best) == (chain.sample(context, 2) == best)


def test_the_end_of_a_grammar_wins_over_ignore_eos(context):
    tokens = generate(context, replace(PLAIN, grammar=HELLO, ignore_eos=True), 20)
    assert text_of(context, tokens) == "hello world"


@pytest.mark.parametrize("text", ['root ::= "a', "root ::= missing", 'noroot ::= "a"', "a\0b"])
def test_a_grammar_that_does_not_parse_is_refused_in_every_build(context, text):
    with pytest.raises(GrammarInvalid):
        SamplerChain(context.model, replace(PLAIN, grammar=text), 128)


def test_accepting_a_token_that_the_grammar_forbids_is_refused_not_fatal(context):
    hello, _ = context.model.vocab.tokenize("hello world", False, False)
    with SamplerChain(context.model, replace(PLAIN, grammar=HELLO), 128) as chain:
        with pytest.raises(GrammarInvalid):
            chain.accept(context.model.vocab.tokenize("x", False, False)[0])
        chain.accept(hello)


def test_a_grammar_that_no_token_fits_is_an_error_of_the_request(context):
    context.seq_rm(0, -1, -1)
    decode(context, [1, 2, 3])
    only_nul = replace(PLAIN, grammar=r"root ::= [\x00] [\x00]")
    with SamplerChain(context.model, only_nul, 128) as chain, pytest.raises(GrammarInvalid):
        chain.sample(context, 2)


# Hazards


@pytest.mark.parametrize("row", [-1, 0, 1, 3, 500])
def test_sampling_a_row_without_logits_is_refused(context, row):
    context.seq_rm(0, -1, -1)
    decode(context, [1, 2, 3])
    with SamplerChain(context.model, PLAIN, 128) as chain, pytest.raises(DecodeFailed):
        chain.sample(context, row)


@pytest.mark.parametrize("token", [-1, files.N_VOCAB, 2**40])
def test_accepting_a_token_out_of_the_vocabulary_is_refused(context, token):
    with SamplerChain(context.model, PLAIN, 128) as chain, pytest.raises(FieldInvalid):
        chain.accept(token)


def test_a_model_without_numbers_is_an_error_not_a_crash(native_library, tmp_path):
    path = files.write(tmp_path / "nan.gguf", files.tiny_llama(norm=math.nan))
    with Model.load(native_library, path, EngineSettings()) as model:
        context = Context(model, SETTINGS)
        decode(context, [1, 2, 3])
        for sampling in (GREEDY, PLAIN, replace(PLAIN, grammar=HELLO)):
            with pytest.raises(NanLogits):
                SamplerChain(model, sampling, 128).sample(context, 2)


def test_a_closed_chain_refuses_to_work_and_a_model_closes_its_chains(native_library, tmp_path):
    path = files.write(tmp_path / "tiny.gguf", files.tiny_llama())
    model = Model.load(native_library, path, EngineSettings())
    chain = SamplerChain(model, replace(PLAIN, grammar=HELLO), 128)
    model.close()
    assert chain.closed
    chain.close()
    with pytest.raises(EngineUnavailable):
        chain.reset()


def test_chains_of_different_sequences_sample_in_different_threads(context):
    context.clear()
    for seq_id in range(4):
        decode(context, [seq_id + 1, 2, 3], seq_id=seq_id)
    samplings = [replace(PLAIN, seed=seed) for seed in range(4)]
    wanted = [_draw(context, sampling) for sampling in samplings]
    found = [None] * 4

    def draw(index: int) -> None:
        found[index] = _draw(context, samplings[index])

    threads = [threading.Thread(target=draw, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == wanted


def _draw(context, sampling) -> list[int]:
    """Sample the last decoded row again and again."""
    with SamplerChain(context.model, sampling, 128) as chain:
        return [chain.sample(context, 2) for _ in range(50)]


# The table


def used(sampling: Sampling) -> list[str]:
    rows = [row for row in SAMPLERS if row.used_when(sampling) and not row.hazard]
    return [row.constructor[len("llama_sampler_init_") :] for row in rows]


def test_the_default_chain_is_llama_servers():
    assert used(Sampling()) == ["top_k", "top_p", "min_p", "temp_ext", "dist"]


def test_a_chain_with_everything_keeps_llama_servers_order():
    everything = Sampling(
        logit_bias=((1, 1.0),), repeat_penalty=1.1, dry_multiplier=0.5, top_n_sigma=1.0,
        typical_p=0.9, xtc_probability=0.5,
    )  # fmt: skip
    assert used(everything) == [
        "logit_bias", "penalties", "dry", "top_n_sigma", "top_k", "typical", "top_p", "min_p",
        "xtc", "temp_ext", "dist",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "last"),
    [
        ({"temperature": 0}, "greedy"),
        ({"temperature": -1}, "greedy"),
        ({"temperature": 0, "mirostat": 2}, "greedy"),
        ({"mirostat": 1}, "mirostat"),
        ({"mirostat": 2}, "mirostat_v2"),
    ],
)
def test_exactly_one_sampler_picks_and_it_is_the_last(changes, last):
    names = used(replace(Sampling(), **changes))
    picking = {"greedy", "dist", "mirostat", "mirostat_v2"}
    assert names[-1] == last
    assert sum(name in picking for name in names) == 1


def test_mirostat_and_greedy_go_without_truncation():
    assert used(Sampling(mirostat=2)) == ["temp_ext", "mirostat_v2"]
    assert used(Sampling(temperature=0)) == ["greedy"]


# What libllama's grammar would let pass, although the text that is shown then breaks it.


def test_a_grammar_never_sees_half_a_character_completed_by_something_else(context):
    """libllama takes any byte for the tail of a character; the text would end in the middle."""
    any_text = replace(PLAIN, temperature=3.0, top_k=0, top_p=1.0, min_p=0.0)
    for seed in range(12):
        sampling = replace(any_text, seed=seed, grammar='root ::= "\\"" [^"]* "\\""')
        raw = b"".join(map(context.model.vocab.piece, generate(context, sampling, 40)))
        codecs.utf_8_decode(raw, "strict", False)


def test_a_control_token_is_no_text_for_a_grammar_unless_it_is_shown(context):
    vocab = context.model.vocab
    hidden = [t for t in vocab.control_tokens if not vocab.is_eog(t)]
    assert hidden
    sampling = replace(GREEDY, grammar="root ::= .+")
    with SamplerChain(context.model, sampling, 128) as chain, pytest.raises(GrammarInvalid):
        chain.accept(hidden[0])
    with SamplerChain(context.model, replace(sampling, shows_special=True), 128) as chain:
        chain.accept(hidden[0])
