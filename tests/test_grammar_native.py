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


def generate(engine, grammar, seeds, max_tokens=MAX_TOKENS, **sampling):
    """Return (text, reason) per seed."""
    fields = {"temperature": TEMPERATURE, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **sampling}
    for seed in seeds:
        engine.submit(
            Request(
                f"seed {seed}", "generate", (Prompt(((QUESTION, True),)),),
                sampling=Sampling(seed=seed, grammar=grammar, **fields), max_tokens=max_tokens,
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
    grammar = json_schema.to_grammar({"type": "array", "items": {"const": "abc"}, "minItems": 50})
    ((text, reason),) = generate(engine, grammar.text, [0], max_tokens=7)
    assert reason == "length" and text.startswith("[")
    assert gbnf.matcher(grammar.text).feed(text) == len(text)


@pytest.mark.parametrize("sampling", [{"top_k": 1}, {"temperature": 0.0}, {"top_p": 0.01}])
def test_a_grammar_holds_whatever_the_other_samplers_leave(engine, sampling):
    grammar = gbnf.choices_grammar(["\u9f98\u9f98", "qqqqzzzz"])
    ((text, _),) = generate(engine, grammar, [1], **sampling)
    assert text in ("\u9f98\u9f98", "qqqqzzzz")


def test_libllama_reads_every_grammar_that_the_checker_lets_pass(engine):
    """The largest shapes within the limits; each is made and asked for one token."""
    chain = [f"r{i} ::= r{i + 1}" for i in range(249)]
    for text in (
        "root ::= " + "(" * 64 + "[a]" + ")" * 64,
        "\n".join(["root ::= r0", *chain, "r249 ::= [a]"]),
        "\n".join(["root ::= r0"] + [f"r{i} ::= r{i + 1} | r{i + 1}" for i in range(14)]
                  + ["r14 ::= [a]"]),
        'root ::= "a"{2000}',
        "root ::= " + " ".join(["[a-z]*"] * 12) + ' "."',
        'root ::= ("a"?){0,10} "b"',
    ):  # fmt: skip
        gbnf.check(text)
        ((written, _),) = generate(engine, text, [0], max_tokens=4)
        assert gbnf.matcher(text).feed(written) == len(written)


PIECES = ['"a"', '"ab"', "[a-z]", "[^a]", ".", "( ", " )", "*", "+", "?", "{2,3}", "{0,40}", " | ",
          " b", " c", '"\\""', '"é"', '""']  # fmt: skip


def random_grammar(rng):
    def body():
        return "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 12)))

    return f"root ::= {body()}\nb ::= {body()}\nc ::= [0-9] {body()}\n"


@pytest.mark.parametrize("seed", range(int(os.environ.get("IGLLAMA_FUZZ_ROUNDS", "4"))))
def test_libllama_survives_every_random_grammar_that_the_checker_lets_pass(engine, seed):
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
