"""Every schema of tests/data/schemas: its grammar allows what is valid, and nothing else."""

from __future__ import annotations

import json
import random

import pytest
import schema_cases

from libloader.grammar import gbnf, json_schema, validate
from libloader.grammar.vocabulary import Document

CASES = schema_cases.load()
by_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
N_RANDOM = 25


def compact(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def accepts(grammar, value):
    """Whether the grammar takes this value in the two usual ways to write it."""
    texts = {compact(value), json.dumps(value, ensure_ascii=False)}
    return {gbnf.matches_compiled(grammar, text) for text in texts} == {True}


def test_there_are_over_two_hundred_schemas():
    assert len(CASES) > 200
    assert len({case.name for case in CASES}) == len(CASES)


@by_case
def test_the_validator_tells_valid_from_invalid(case):
    assert [v for v in case.valid if validate.problems(case.schema, v)] == []
    assert [v for v in case.invalid if not validate.problems(case.schema, v)] == []


@by_case
def test_the_grammar_accepts_what_is_valid(case):
    grammar = gbnf.compile_text(json_schema.to_grammar(case.schema).text, max_bytes=1 << 20)
    assert [value for value in case.valid if not accepts(grammar, value)] == []


@by_case
def test_the_grammar_rejects_what_is_invalid_or_says_that_it_cannot(case):
    made = json_schema.to_grammar(case.schema)
    grammar = gbnf.compile_text(made.text, max_bytes=1 << 20)
    assert made.needs_check == case.check
    taken = [v for v in case.invalid if gbnf.matches_compiled(grammar, compact(v))]
    assert case.check or taken == []


@by_case
def test_whatever_the_grammar_writes_is_valid(case):
    made = json_schema.to_grammar(case.schema)
    writer = schema_cases.Writer(made.text, seed=1)
    document = Document(case.schema)
    for _ in range(N_RANDOM):
        text = writer.document()
        problems = validate.text_problems(case.schema, text, document=document)
        if made.needs_check:
            problems = [p for p in problems if p.keyword == ""]  # not even JSON
        assert [str(p) for p in problems] == [], text


@by_case
def test_a_changed_document_is_rejected_by_grammar_or_validator_alike(case):
    """One character is dropped, doubled or replaced: what the grammar still takes is valid."""
    made = json_schema.to_grammar(case.schema)
    if made.needs_check:
        pytest.skip("the grammar alone does not hold this schema")
    grammar = gbnf.compile_text(made.text, max_bytes=1 << 20)
    writer = schema_cases.Writer(made.text, seed=2, size=60)
    rng, document = random.Random(3), Document(case.schema)
    for _ in range(8):
        text = writer.document()
        at = rng.randrange(len(text))
        for changed in (
            text[:at] + text[at + 1 :],
            text[:at] + text[at] + text[at:],
            text[:at] + rng.choice('{}[]",:0a-.') + text[at + 1 :],
        ):
            if gbnf.matches_compiled(grammar, changed):
                assert validate.text_problems(case.schema, changed, document=document) == []


@by_case
def test_strict_refuses_exactly_what_needs_a_check_or_is_unknown(case):
    made = json_schema.to_grammar(case.schema)
    if not made.warnings:
        assert json_schema.to_grammar(case.schema, strict=True) == made
        return
    with pytest.raises(gbnf.GrammarInvalid, match="#"):
        json_schema.to_grammar(case.schema, strict=True)
