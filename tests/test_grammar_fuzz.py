"""Random schemas and grammars: each is refused with a reason or works, nothing else."""

from __future__ import annotations

import copy
import json
import os
import random

import pytest
import schema_cases

from libloader.errors import GrammarInvalid
from libloader.grammar import gbnf, json_schema, validate
from libloader.grammar.vocabulary import KEYWORDS, Document

N_ROUNDS = int(os.environ.get("IGLLAMA_FUZZ_ROUNDS", "4"))  # of about 60 schemas each
CASES = schema_cases.load()
VALUES = [None, True, False, 0, 1, -1, 2.5, 1e300, "", "a", "^a+$", "(", "#", "#/$defs/a", "date",
          [], ["a"], [1, "a"], {}, {"a": {}}, {"a": ["b"]}, {"type": "integer"}, "object", "string",
          [{"type": "string"}, {"type": "object"}], [True, False], 10**20]  # fmt: skip


def schemas_in(value):
    found = []
    todo = [value]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            found.append(node)
        todo += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return found


def mutated(rng, schema):
    """Change a few keywords anywhere, or put in a part of another schema."""
    schema = copy.deepcopy(schema)
    for _ in range(rng.randint(1, 3)):
        places = schemas_in(schema)
        if not places:
            return schema
        place = rng.choice(places)
        kind = rng.randrange(4)
        if kind == 0 and place:
            del place[rng.choice(list(place))]
        elif kind == 1:
            other = rng.choice(schemas_in(rng.choice(CASES).schema) or [{}])
            place[rng.choice(["allOf", "anyOf", "oneOf"])] = [copy.deepcopy(other), {}]
        elif kind == 2:
            other = rng.choice(schemas_in(rng.choice(CASES).schema) or [{}])
            place.update(copy.deepcopy(other))
        else:
            place[rng.choice(list(KEYWORDS))] = copy.deepcopy(rng.choice(VALUES))
    return schema


@pytest.mark.parametrize("seed", range(N_ROUNDS))
def test_a_random_schema_is_refused_or_what_it_writes_is_valid(seed):
    rng = random.Random(seed)
    n_served = 0
    for _ in range(60):
        schema = mutated(rng, rng.choice(CASES).schema)
        try:
            made = json_schema.to_grammar(schema)
        except GrammarInvalid as error:
            assert error.message and error.param == "response_format"
            continue
        n_served += 1
        gbnf.check(made.text, max_bytes=json_schema.MAX_GRAMMAR_BYTES)
        writer = schema_cases.Writer(made.text, seed, size=100)
        document = Document(schema)
        for _ in range(4):
            text = writer.document()
            value = json.loads(text)
            problems = validate.problems(schema, value, document=document)
            assert made.needs_check or problems == [], (schema, text)
    assert n_served > 5
