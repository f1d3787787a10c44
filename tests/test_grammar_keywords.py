"""Every keyword of JSON Schema, 2020-12 and draft 7: what becomes of it, none is silently dropped.

grammar   the grammar holds it: no other text can be written
check     the grammar does not: a warning names it, the finished text is checked, strict refuses
ignored   JSON Schema itself does not assert it: a warning names it, strict refuses
note      it says something to people, not about documents
"""

from __future__ import annotations

import json
import re

import pytest

from libloader.errors import GrammarInvalid
from libloader.grammar import gbnf, json_schema, validate
from libloader.grammar.vocabulary import ANNOTATIONS, KEYWORDS

# The vocabularies of 2020-12, https://json-schema.org/draft/2020-12/schema
DRAFT_2020 = re.findall(r"\S+", """
    $schema $id $ref $anchor $dynamicRef $dynamicAnchor $vocabulary $comment $defs
    prefixItems items contains additionalProperties properties patternProperties dependentSchemas
    propertyNames if then else allOf anyOf oneOf not unevaluatedItems unevaluatedProperties
    type const enum multipleOf maximum exclusiveMaximum minimum exclusiveMinimum maxLength minLength
    pattern maxItems minItems uniqueItems maxContains minContains maxProperties minProperties
    required dependentRequired
    format contentEncoding contentMediaType contentSchema
    title description default deprecated readOnly writeOnly examples""")  # fmt: skip
OLDER_AND_OPENAPI = re.findall(r"\S+", """
    definitions dependencies additionalItems $recursiveRef $recursiveAnchor id nullable
    discriminator xml externalDocs example strict""")  # fmt: skip

OBJECT, ARRAY, STRING, WHOLE = ({"type": t} for t in ("object", "array", "string", "integer"))
AB = {"a": WHOLE, "b": WHOLE}
OPEN = {**OBJECT, "properties": AB}  # "what is declared, in this order"
TREE = {**OBJECT, "properties": {"kids": {**ARRAY, "items": {"$ref": "#"}}}, "required": ["kids"]}

# (keyword, schema, documents that fit, documents that do not, what becomes of the keyword)
ROWS = [
    ("type", {"type": "integer"}, [1, -5], [1.5, "1", None], "grammar"),
    ("type", {"type": ["string", "null"]}, ["x", None], [1], "grammar"),
    ("enum", {"enum": [1, "1", None, True, [1], {"a": 1}]}, [1, "1", [1], {"a": 1}], [2, False, []],
     "grammar"),
    ("const", {"const": {"a": [1, "x", None]}}, [{"a": [1, "x", None]}], [{"a": []}], "grammar"),
    ("multipleOf", {**WHOLE, "multipleOf": 5}, [0, 35, -20], [7], "grammar"),
    ("multipleOf", {"type": "number", "multipleOf": 0.01}, [1.25, 3], [1.255], "grammar"),
    ("multipleOf", {**WHOLE, "multipleOf": 97}, [97, 0], [98], "check"),
    ("minimum", {**WHOLE, "minimum": -3}, [-3, 900], [-4], "grammar"),
    ("minimum", {**WHOLE, "minimum": -(2**62), "maximum": 2**62}, [2**62, 0], [2**62 + 1],
     "grammar"),
    ("minimum", {**WHOLE, "minimum": 10**30, "maximum": 10**30 + 5}, [10**30],
     [1, 10**30 + 6], "grammar"),
    ("maximum", {**WHOLE, "maximum": -(10**25)}, [-(10**25), -(10**26)], [1, -5], "grammar"),
    ("maximum", {"type": "number", "maximum": 2.5}, [2.5, -7.25], [2.51, 3], "grammar"),
    ("exclusiveMinimum", {"type": "number", "exclusiveMinimum": 0.5}, [0.51, 7], [0.5, 0],
     "grammar"),
    ("exclusiveMinimum", {**WHOLE, "minimum": 1, "exclusiveMinimum": True}, [2], [1], "grammar"),
    ("exclusiveMaximum", {**WHOLE, "exclusiveMaximum": 10}, [9, -10], [10, 11], "grammar"),
    ("minLength", {**STRING, "minLength": 2}, ["ab", "äö"], ["a", ""], "grammar"),
    ("maxLength", {**STRING, "maxLength": 3}, ["", "abc"], ["abcd"], "grammar"),
    ("maxLength", {**STRING, "maxLength": 10**6}, ["abc"], [], "check"),
    ("pattern", {**STRING, "pattern": "^[a-f]+$"}, ["abc"], ["xyz", ""], "grammar"),
    ("pattern", {**STRING, "pattern": "^(?!no)"}, ["yes"], ["no"], "check"),
    ("format", {**STRING, "format": "date"}, ["2026-02-28"], ["2026-13-01", "x"], "grammar"),
    ("format", {**STRING, "format": "regex"}, ["a+"], ["("], "check"),
    ("format", {**STRING, "format": "colour"}, ["red"], [], "ignored"),
    ("contentEncoding", {**STRING, "contentEncoding": "base64"}, ["x"], [], "ignored"),
    ("contentMediaType", {**STRING, "contentMediaType": "image/png"}, ["x"], [], "ignored"),
    ("contentSchema", {**STRING, "contentSchema": {}}, ["x"], [], "ignored"),
    ("items", {**ARRAY, "items": WHOLE}, [[], [1, 2]], [["x"]], "grammar"),
    ("items", {**ARRAY, "items": [WHOLE, STRING], "additionalItems": False}, [[1, "x"]],
     [["x"], [1, "x", 2]], "grammar"),
    ("items", {**ARRAY, "items": False}, [[]], [[1]], "grammar"),
    ("prefixItems", {**ARRAY, "prefixItems": [WHOLE, STRING], "items": False}, [[1, "x"]],
     [["x"], [1, "x", 2]], "grammar"),
    ("additionalItems", {**ARRAY, "items": [WHOLE], "additionalItems": STRING}, [[1, "x"]],
     [[1, 2]], "grammar"),
    ("unevaluatedItems", {**ARRAY, "prefixItems": [WHOLE], "unevaluatedItems": False}, [[1]],
     [[1, 2]], "grammar"),
    ("contains", {**ARRAY, "contains": WHOLE}, [[1]], [[], ["x"]], "grammar"),
    ("minContains", {**ARRAY, "items": WHOLE, "contains": {"minimum": 5}, "minContains": 2},
     [[7, 8]], [[1, 7]], "check"),
    ("maxContains", {**ARRAY, "items": WHOLE, "contains": {"minimum": 5}, "maxContains": 1},
     [[7]], [[7, 7]], "check"),
    ("minItems", {**ARRAY, "items": WHOLE, "minItems": 2}, [[1, 2]], [[1]], "grammar"),
    ("maxItems", {**ARRAY, "items": WHOLE, "maxItems": 2}, [[], [1, 2]], [[1, 2, 3]], "grammar"),
    ("uniqueItems", {**ARRAY, "items": WHOLE, "uniqueItems": True}, [[1, 2]], [[1, 1]], "check"),
    ("properties", OPEN, [{}, {"a": 1}, {"a": 1, "b": 2}], [{"a": "x"}], "grammar"),
    ("properties", {**OBJECT, "properties": {'é"\\\n😀': WHOLE}}, [{'é"\\\n😀': 1}],
     [{'é"\\\n😀': "x"}], "grammar"),
    ("required", {**OPEN, "required": ["b"]}, [{"b": 1}], [{}, {"a": 1}], "grammar"),
    ("additionalProperties", {**OPEN, "additionalProperties": False}, [{"a": 1}], [{"c": 1}],
     "grammar"),
    ("additionalProperties", {**OPEN, "additionalProperties": STRING}, [{"a": 1, "c": "x"}],
     [{"c": 1}], "grammar"),
    ("patternProperties", {**OBJECT, "patternProperties": {"^n_[a-z]+$": WHOLE},
                           "additionalProperties": False}, [{"n_x": 1}], [{"x": 1}, {"n_x": "y"}],
     "grammar"),
    ("patternProperties", {**OBJECT, "patternProperties": {"^a": WHOLE, "z$": {"minimum": 5}}},
     [{"az": 5}], [{"a": "x"}, {"az": 1}], "check"),
    ("propertyNames", {**OBJECT, "propertyNames": {"pattern": "^[a-z]{1,3}$"}}, [{"abc": 1}],
     [{"abcd": 1}, {"A": 1}], "grammar"),
    ("unevaluatedProperties", {"allOf": [OPEN], "unevaluatedProperties": False}, [{"a": 1}],
     [{"c": 1}], "grammar"),
    ("minProperties", {**OPEN, "minProperties": 2}, [{"a": 1, "b": 1}], [{"a": 1}], "grammar"),
    ("minProperties", {**OBJECT, "minProperties": 5}, [dict.fromkeys("abcde", 1)], [{}], "check"),
    ("maxProperties", {**OPEN, "maxProperties": 1}, [{}, {"b": 1}], [{"a": 1, "b": 1}], "grammar"),
    ("dependentRequired", {**OPEN, "dependentRequired": {"a": ["b"]}}, [{"b": 1}, {"a": 1, "b": 1}],
     [{"a": 1}], "grammar"),
    ("dependentSchemas", {**OPEN, "dependentSchemas": {"a": {"required": ["b"]}}},
     [{"b": 1}, {"a": 1, "b": 1}], [{"a": 1}], "grammar"),
    ("dependencies", {**OPEN, "dependencies": {"a": ["b"]}}, [{"b": 1}], [{"a": 1}], "grammar"),
    ("dependencies", {**OPEN, "dependencies": dict.fromkeys("abcde", ["b"])}, [{"b": 1}],
     [{"a": 1}], "check"),
    ("allOf", {"allOf": [{"type": "integer"}, {"minimum": 3}]}, [3], [2, "x"], "grammar"),
    ("anyOf", {"anyOf": [WHOLE, {"type": "null"}]}, [1, None], ["x"], "grammar"),
    ("oneOf", {"oneOf": [WHOLE, STRING]}, [1, "x"], [None], "grammar"),
    ("oneOf", {"oneOf": [{**WHOLE, "minimum": 1}, {**WHOLE, "maximum": 9}]}, [0, 10], [5], "check"),
    ("not", {"type": ["string", "null"], "not": {"type": "null"}}, ["x"], [None], "grammar"),
    ("not", {**WHOLE, "not": {"minimum": 5}}, [4], [5], "check"),
    ("if", {"type": "object", "properties": {"a": {"enum": [1, 2]}, "b": WHOLE}, "required": ["a"],
            "if": {"properties": {"a": {"const": 1}}}, "then": {"required": ["b"]}},
     [{"a": 2}, {"a": 1, "b": 0}], [{"a": 1}], "grammar"),
    ("then", {**WHOLE, "if": {"minimum": 5}, "then": {"maximum": 9}}, [1, 7], [10], "check"),
    ("else", {**OPEN, "if": {"required": ["a"]}, "else": {"required": ["b"]}},
     [{"a": 1}, {"b": 1}], [{}], "grammar"),
    ("$ref", {"$defs": {"n": WHOLE}, "$ref": "#/$defs/n", "minimum": 5}, [5], [4, "x"], "grammar"),
    ("$ref", TREE, [{"kids": [{"kids": []}]}], [{"kids": [1]}], "grammar"),
    ("$defs", {"$defs": {"n": WHOLE}, "items": {"$ref": "#/$defs/n"}, **ARRAY}, [[1]], [["x"]],
     "grammar"),
    ("definitions", {"definitions": {"n": WHOLE}, "$ref": "#/definitions/n"}, [1], ["x"],
     "grammar"),
    ("$anchor", {"$defs": {"n": {"$anchor": "whole", **WHOLE}}, "$ref": "#whole"}, [1], ["x"],
     "grammar"),
    ("$id", {"$id": "https://a.example/s", "$defs": {"n": {"$id": "n", **WHOLE}}, "$ref": "n"},
     [1], ["x"], "grammar"),
    ("id", {"id": "https://a.example/s", **WHOLE}, [1], ["x"], "grammar"),
    ("$dynamicRef", {"$defs": {"n": {"$dynamicAnchor": "n", **WHOLE}}, "$dynamicRef": "#n"}, [1],
     ["x"], "grammar"),
    ("$dynamicAnchor", {"$defs": {"n": {"$dynamicAnchor": "n", **WHOLE}}, "$ref": "#n"}, [1],
     ["x"], "grammar"),
    ("$recursiveRef", {**ARRAY, "items": {"$recursiveRef": "#"}}, [[[], [[]]]], [[1]], "grammar"),
    ("$recursiveAnchor", {"$recursiveAnchor": True, **ARRAY, "items": {"$recursiveRef": "#"}},
     [[[]]], [[1]], "grammar"),
    ("nullable", {**STRING, "nullable": True}, ["x", None], [1], "grammar"),
    *((name, {**WHOLE, name: value}, [1], ["x"], "note") for name, value in {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "$vocabulary": {},
        "$comment": "c", "title": "t", "description": "d", "default": 7, "deprecated": True,
        "readOnly": True, "writeOnly": True, "examples": [1], "example": 1, "discriminator": {},
        "xml": {}, "externalDocs": {}, "strict": True}.items()),
]  # fmt: skip
by_row = pytest.mark.parametrize(
    ("keyword", "schema", "fits", "misfits", "treatment"),
    ROWS,
    ids=[f"{n}-{row[0]}" for n, row in enumerate(ROWS)],
)


def accepts(made, value):
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return gbnf.matches_compiled(gbnf.compile_text(made.text, max_bytes=1 << 20), text)


def test_the_table_has_every_keyword_that_there_is():
    told = {row[0] for row in ROWS}
    assert told == {*DRAFT_2020, *OLDER_AND_OPENAPI} == {*KEYWORDS, *ANNOTATIONS}


@by_row
def test_a_keyword_is_held_by_the_grammar_or_by_the_check_after_it(
    keyword, schema, fits, misfits, treatment
):
    made = json_schema.to_grammar(schema)
    assert [v for v in fits if validate.problems(schema, v)] == []
    assert [v for v in misfits if not validate.problems(schema, v)] == []
    assert made.needs_check == (treatment == "check")
    if treatment != "check":
        assert [v for v in fits if not accepts(made, v)] == []
        assert [v for v in misfits if accepts(made, v)] == []


@by_row
def test_a_keyword_that_the_grammar_does_not_hold_is_named_and_strict_refuses_it(
    keyword, schema, fits, misfits, treatment
):
    warnings = json_schema.to_grammar(schema).warnings
    if treatment in ("grammar", "note"):
        assert json_schema.to_grammar(schema, strict=True).warnings == warnings == ()
        return
    assert warnings
    with pytest.raises(GrammarInvalid, match="schema at #.* as strict demands"):
        json_schema.to_grammar(schema, strict=True)


@pytest.mark.parametrize("keyword", sorted(KEYWORDS))
def test_a_keyword_of_a_wrong_kind_is_refused_by_name(keyword):
    wrong = next((v for v in (0.5, "", [], {}, None) if not KEYWORDS[keyword].is_right(v)), None)
    if wrong is None and KEYWORDS[keyword].is_right(None):
        pytest.skip("any value is right")
    with pytest.raises(GrammarInvalid) as caught:
        json_schema.to_grammar({keyword: wrong})
    assert caught.value.message.startswith(f"schema at #: {keyword} must be ")
