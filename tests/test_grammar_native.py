"""Grammars in libllama: what the pocket model writes under a schema parses and validates.

One seed per schema by default; IGLLAMA_SCHEMA_SEEDS=20 IGLLAMA_SCHEMA_TOKENS=256 is the full proof
(minutes), whose count pytest prints with -s.
"""

from __future__ import annotations

import collections
import json
import os
import random
from pathlib import Path

import grammar_builds
import pytest
import schema_cases

from libloader.core import (
    ChoiceDone,
    EngineSettings,
    Prompt,
    Request,
    RequestFailed,
    Sampling,
    TokenEvent,
)
from libloader.engine.build import build_engine
from libloader.errors import GrammarInvalid
from libloader.grammar import gbnf, json_schema, validate
from libloader.llama.model import Model

pytestmark = pytest.mark.native

POCKET = Path(__file__).resolve().parent / "models" / "pocket.gguf"
N_SEEDS = int(os.environ.get("IGLLAMA_SCHEMA_SEEDS", "1"))
MAX_TOKENS = int(os.environ.get("IGLLAMA_SCHEMA_TOKENS", "96"))
TEMPERATURE = 1.5
QUESTION = "<|im_start|>user\nAnswer in JSON.<|im_end|>\n<|im_start|>assistant\n"
CASES = schema_cases.load()


@pytest.fixture(scope="module")
def engine(native_library):
    if not POCKET.exists():
        pytest.skip("there is no pocket model")
    lib = os.environ.get("IGLLAMA_LIB", "")
    n_parallel = max(4, min(N_SEEDS, 20))
    settings = EngineSettings(
        model=str(POCKET), lib=lib, n_ctx=n_parallel * (MAX_TOKENS + 160),
        n_parallel=n_parallel, n_threads=1, cache_ram_mib=0,
    )  # fmt: skip
    built = build_engine(settings)
    yield built
    built.close()


@pytest.fixture(scope="module")
def tally():
    """Count what became of the answers: valid, or cut by the token limit."""
    reasons = collections.Counter()
    yield reasons
    print(f"\n{len(CASES)} schemas x {N_SEEDS} seeds, {MAX_TOKENS} tokens: {dict(reasons)}")


def generate(engine, grammar, seeds, max_tokens=MAX_TOKENS, stop=(), **sampling):
    """Return (text, reason) per seed."""
    fields = {"temperature": TEMPERATURE, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **sampling}
    for seed in seeds:
        engine.submit(
            Request(
                f"seed {seed}", "generate", (Prompt(((QUESTION, True),)),),
                sampling=Sampling(seed=seed, grammar=grammar, **fields), max_tokens=max_tokens,
                stop=stop,
            )
        )  # fmt: skip
    texts, reasons = {f"seed {seed}": "" for seed in seeds}, {}
    while not engine.idle:
        for event in engine.step():
            assert not isinstance(event, RequestFailed), event.error
            if isinstance(event, TokenEvent):
                texts[event.request_id] += event.text
            elif isinstance(event, ChoiceDone):
                reasons[event.request_id] = event.reason
    return [(texts[name], reasons[name]) for name in texts]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_what_the_model_writes_under_a_schema_is_valid(engine, tally, case):
    grammar = json_schema.to_grammar(case.schema)
    compiled = gbnf.compile_text(grammar.text, max_bytes=1 << 20)
    for text, reason in generate(engine, grammar.text, range(N_SEEDS)):
        matcher = gbnf.Matcher(compiled)
        tally["valid" if reason == "stop" else f"cut: {case.name}"] += 1
        if reason == "length":  # the limit may fall inside a character
            text = text.rstrip("\ufffd")
        assert matcher.feed(text) == len(text), text
        assert matcher.is_complete or reason == "length", text
        if reason == "stop":
            problems = validate.text_problems(case.schema, text)
            if grammar.needs_check:
                problems = [problem for problem in problems if not problem.keyword]
            assert problems == [], text


@pytest.mark.parametrize("seed", range(3))
def test_json_object_mode_writes_an_object(engine, seed):
    grammar = json_schema.json_object().text
    ((text, reason),) = generate(engine, grammar, [seed])
    matcher = gbnf.matcher(grammar)
    whole = text.rstrip("\ufffd") if reason == "length" else text
    assert text.startswith("{") and matcher.feed(whole) == len(whole)
    assert reason == "length" or isinstance(json.loads(text), dict)


def test_choices_are_answered_with_one_of_them(engine):
    choices = ["yes", "no", "perhaps, perhaps not"]
    grammar = gbnf.choices_grammar(choices)
    for text, reason in generate(engine, grammar, range(6)):
        assert (text in choices, reason) == (True, "stop")


def test_a_token_limit_in_the_middle_of_an_object_says_length(engine):
    """E08: what is there is the beginning of something valid"""
    grammar = json_schema.to_grammar({"type": "array", "items": {"const": "abc"}, "minItems": 50})
    ((text, reason),) = generate(engine, grammar.text, [0], max_tokens=7)
    assert reason == "length" and text.startswith("[")
    assert gbnf.matcher(grammar.text).feed(text) == len(text)


@pytest.mark.parametrize("sampling", [{"top_k": 1}, {"temperature": 0.0}, {"top_p": 0.01}])
def test_a_grammar_holds_whatever_the_other_samplers_leave(engine, sampling):
    """E07: top_k 1 and its like leave only tokens that the grammar forbids"""
    grammar = gbnf.choices_grammar(["\u9f98\u9f98", "qqqqzzzz"])
    ((text, _),) = generate(engine, grammar, [1], **sampling)
    assert text in ("\u9f98\u9f98", "qqqqzzzz")


def test_a_grammar_of_text_that_no_token_says_whole_is_written_byte_by_byte(engine):
    """E07: no token of the vocabulary is one of these characters."""
    text = "\u9f98\U0001f9ff\u0b83"
    assert generate(engine, gbnf.choices_grammar([text]), [1, 2]) == [(text, "stop")] * 2


def test_a_stop_string_in_the_middle_of_an_object_ends_it_there(engine):
    """E08"""
    grammar = json_schema.to_grammar({"type": "array", "items": {"const": "abc"}, "minItems": 50})
    ((text, reason),) = generate(engine, grammar.text, [0], max_tokens=90, stop=("bc",))
    assert reason == "stop" and text.endswith('"a') and "bc" not in text
    assert gbnf.matcher(grammar.text).feed(text) == len(text)


def test_an_end_that_the_model_prefers_waits_for_the_grammar(engine):
    """E08: even a bias towards the end of the text ends nothing before it is whole."""
    biases = tuple((token, 100.0) for token in range(1010, 1018))  # the control tokens
    grammar = gbnf.choices_grammar(["not before this is whole"])
    ((text, reason),) = generate(engine, grammar, [0], logit_bias=biases)
    assert (text, reason) == ("not before this is whole", "stop")


@pytest.mark.parametrize("grammar", ["root ::= (", "root ::= missing", "", 'top ::= "a"', "\0"])
def test_a_grammar_that_libllama_cannot_read_never_leaves_the_answer_free(grammar):
    """E09: the oldest builds would log the error and constrain nothing; they never see the text."""
    with pytest.raises(GrammarInvalid):
        gbnf.check(grammar)


def test_libllama_reads_every_grammar_that_the_checker_lets_pass(engine):
    """The largest shapes within the limits; each is made and asked for one token."""
    chain = [f"r{i} ::= r{i + 1}" for i in range(249)]
    for text in (
        "root ::= " + "(" * 64 + "[a]" + ")" * 64,
        "\n".join(["root ::= r0", *chain, "r249 ::= [a]"]),
        "\n".join(["root ::= r0"] + [f"r{i} ::= r{i + 1} | r{i + 1}" for i in range(14)]
                  + ["r14 ::= [a]"]),
        'root ::= "a"{2000}',
        "root ::= " + " ".join(["[a-z]*"] * 8) + ' "."',
        'root ::= ("a"?){0,10} "b"',
    ):  # fmt: skip
        gbnf.check(text)
        ((written, _),) = generate(engine, text, [0], max_tokens=4)
        assert gbnf.matcher(text).feed(written) == len(written)


def test_the_build_reads_our_grammars_as_we_do(native_library):
    """A few; tests/grammar_builds.py tries all of them with any build."""
    with Model.load(native_library, str(POCKET), EngineSettings()) as model:
        pieces = grammar_builds.pieces_of(model.vocab)
        for name, text in grammar_builds.grammars(step=16).items():
            assert (name, grammar_builds.disagreements(model, pieces, text, 1)) == (name, "")


PIECES = ['"a"', '"ab"', "[a-z]", "[^a]", ".", "( ", " )", "*", "+", "?", "{2,3}", "{0,40}", " | ",
          " b", " c", '"\\""', '"é"', '""']  # fmt: skip


def random_grammar(rng):
    def body():
        return "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 12)))

    return f"root ::= {body()}\nb ::= {body()}\nc ::= [0-9] {body()}\n"


@pytest.mark.parametrize("seed", range(int(os.environ.get("IGLLAMA_FUZZ_ROUNDS", "4"))))
def test_libllama_survives_every_random_grammar_that_the_checker_lets_pass(engine, seed):
    """E10: 25 grammars a round; IGLLAMA_FUZZ_ROUNDS=200 are five thousand"""
    rng, n_served = random.Random(seed), 0
    while n_served < 25:
        text = random_grammar(rng)
        try:
            gbnf.check(text)
        except GrammarInvalid:
            continue
        n_served += 1
        request = Request(
            "random", "generate", (Prompt(((QUESTION, True),)),),
            sampling=Sampling(seed=seed, grammar=text, temperature=TEMPERATURE), max_tokens=12,
        )  # fmt: skip
        engine.submit(request)
        written = ""
        while not engine.idle:
            for event in engine.step():
                written += event.text if isinstance(event, TokenEvent) else ""
                if isinstance(event, RequestFailed):
                    assert event.error["name"] == "GrammarInvalid", event.error
        written = written.rstrip("\ufffd")
        assert gbnf.matcher(text).feed(written) == len(written), text
