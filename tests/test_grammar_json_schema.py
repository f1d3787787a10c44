"""JSON Schema to GBNF: hostile schemas, wrong ones, warnings, and the shape of the rules."""

from __future__ import annotations

import json
import socket
import time

import pytest
from effort import assert_takes_less

from libloader.errors import GrammarInvalid
from libloader.grammar import gbnf, json_schema, validate

FAST_S = 2.0  # the largest of these schemas takes a fifth of it


@pytest.fixture(autouse=True)
def _in_a_moment_and_without_a_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a schema opened a socket")

    monkeypatch.setattr(socket, "socket", refuse)
    start = time.process_time()
    yield
    assert_takes_less(FAST_S, start)


def refused(schema, match, **options):
    with pytest.raises(GrammarInvalid, match=match) as caught:
        json_schema.to_grammar(schema, **options)
    assert caught.value.param == "response_format"


def accepts(schema, text):
    return gbnf.matches(json_schema.to_grammar(schema).text, text)


# Hostile schemas (catalogue E05 and E06 of the reliability notes).


def nested(depth):
    schema = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def test_a_schema_of_64_levels_is_served():
    """E05"""
    document = '{"a":' * 64 + "1" + "}" * 64
    assert accepts(nested(64), document)
    assert validate.text_problems(nested(64), document) == []


@pytest.mark.parametrize("depth", [65, 200, 2_000, 20_000, 100_000])
def test_a_deeper_schema_is_refused(depth):
    """E05"""
    refused(nested(depth), "nested over")


@pytest.mark.parametrize("keyword", ["items", "not", "additionalProperties", "if", "contains"])
def test_depth_is_bounded_under_every_keyword(keyword):
    schema = {}
    for _ in range(5_000):
        schema = {keyword: schema}
    refused(schema, "nested over")


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"allOf": [{"$ref": "#"}], "type": "object", "properties": {"a": {"type": "integer"}}},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"anyOf": [{"$ref": "#"}, {"type": "object"}]},
    ],
)
def test_a_reference_to_itself_says_nothing_and_ends(schema):
    """E05: cycles"""
    assert accepts(schema, "{}") and validate.problems(schema, {}) in ([], [
        validate.Problem("", "", "nested too deep to be checked")])  # fmt: skip


def test_a_value_that_would_have_to_contain_itself_is_refused():
    refused({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "no JSON")
    refused({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "no JSON value")


@pytest.mark.parametrize(
    "reference",
    ["http://example.com/schema.json", "https://[::1", "file:///etc/passwd", "other.json#/a",
     "#/nowhere", "#nowhere", "//host/x", "http://169.254.169.254/latest"],
)  # fmt: skip
def test_a_reference_that_leads_out_is_refused_and_never_fetched(reference):
    """E05: no network, ever"""
    refused({"items": {"$ref": reference}}, "schema at #/items: .* nothing is fetched")


def test_ten_thousand_options_are_answered_quickly():
    """E05: anyOf and enum"""
    refused({"anyOf": [{"const": i} for i in range(10_001)]}, "over 10000 schemas")
    refused({"anyOf": [{"type": "integer", "minimum": i} for i in range(9_000)]}, "rules")
    refused({"enum": [f"a rather long word {i}" for i in range(10_000)]}, "bytes")
    assert '| "9999"' in json_schema.to_grammar({"enum": list(range(10_000))}).text


def test_choices_that_multiply_are_refused():
    pair = {"anyOf": [{"minLength": 1}, {"maxLength": 9}]}
    schema = {"allOf": [json.loads(json.dumps(pair)) for _ in range(20)], "type": "string"}
    refused(schema, "rules|ways|chain")


def test_a_chain_of_references_is_bounded():
    chain = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}", "minimum": 0} for i in range(500)}
    refused({"$defs": {**chain, "d500": {}}, "$ref": "#/$defs/d0"}, "over 64 times")


@pytest.mark.parametrize(
    ("pattern", "match"),
    [
        ("((((", "without its"),
        ("a" * (1 << 20), "over 4096 characters"),
        ("(" * 3_000, "nested over"),
        ("(?<year>", "without its"),
        ("a{1000000000}", "repetition of over"),
        ("((a{1000}){1000}){1000}", "too large"),
        ("(a)\\1", "back-reference"),
        ("[z-a]", "wrong range"),
        ("a**", "nothing before it"),
        ("\\p{Klingon}", "unknown category"),
        ("\\q", "unknown escape"),
        ("a)", "without its"),
        ("\\u{110000}", "wrong digits"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_refused(pattern, match):
    """E06"""
    refused({"type": "string", "pattern": pattern}, match)
    refused({"type": "object", "patternProperties": {pattern: {}}}, match)


@pytest.mark.parametrize("pattern", ["^(a+)+$", "^(a|a)*$", "^(a|aa)+$", "^([a-z]+)*$", "^(a*)*$"])
def test_a_pattern_that_explodes_elsewhere_is_linear_here(pattern):
    """E06: no backtracking, here or in libllama"""
    schema = {"type": "string", "pattern": pattern}
    document = "a" * 5_000
    assert validate.problems(schema, document) == []
    assert validate.problems(schema, document + "!") != []
    assert accepts(schema, json.dumps("a" * 300))
    assert not accepts(schema, json.dumps("a" * 300 + "!"))


def test_lengths_beyond_reach_are_refused_or_checked_afterwards():
    """E06: minLength 1e9"""
    refused({"type": "string", "minLength": 10**9}, "minLength is over 100000")
    refused({"type": "array", "minItems": 10**9}, "minItems is over")
    refused({"type": "object", "minProperties": 10**9}, "minProperties is over")
    grammar = json_schema.to_grammar({"type": "string", "maxLength": 10**9})
    assert grammar.needs_check and "maxLength at #" in grammar.warnings[0]


# Wrong schemas: the path is named.


@pytest.mark.parametrize(
    ("schema", "path", "match"),
    [
        (None, "#", "must be an object, true or false"),
        ([], "#", "must be an object, true or false"),
        ("string", "#", "must be an object, true or false"),
        ({"type": "strin"}, "#", "type must be one or more of"),
        ({"type": []}, "#", "type must be"),
        ({"properties": {"a": {"type": 1}}}, "#/properties/a", "type must be"),
        ({"properties": {"a/b": {"items": 5}}}, "#/properties/a~1b", "items must be a schema"),
        ({"properties": []}, "#", "properties must be an object of schemas"),
        ({"properties": {"a": 1}}, "#", "properties must be an object of schemas"),
        ({"required": "a"}, "#", "required must be a list of strings"),
        ({"enum": "a"}, "#", "enum must be a list"),
        ({"anyOf": []}, "#", "anyOf must be a list of one or more"),
        ({"anyOf": [{}, {"minimum": "1"}]}, "#/anyOf/1", "minimum must be a number"),
        ({"minLength": -1}, "#", "minLength must be a whole number from 0"),
        ({"maxItems": 1.5}, "#", "maxItems must be a whole number"),
        ({"multipleOf": 0}, "#", "multipleOf must be a number over 0"),
        ({"minimum": True}, "#", "minimum must be a number"),
        ({"pattern": 1}, "#", "pattern must be a string"),
        ({"$ref": 1}, "#", r"\$ref must be a string"),
        ({"$defs": {"x": {"uniqueItems": 1}}}, "#/$defs/x", "uniqueItems must be true or false"),
        ({"minimum": float("nan")}, "#", "minimum must be a number"),
    ],
)
def test_a_malformed_schema_is_refused_with_its_path(schema, path, match):
    refused(schema, match)
    with pytest.raises(GrammarInvalid) as caught:
        json_schema.to_grammar(schema)
    assert caught.value.message.startswith(f"schema at {path}: ")


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"enum": []},
        {"type": "string", "const": 1},
        {"allOf": [{"type": "string"}, {"type": "integer"}]},
        {"type": "integer", "minimum": 5, "maximum": 4},
        {"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 2},
        {"type": "number", "exclusiveMinimum": 1, "maximum": 1},
        {"type": "string", "minLength": 3, "maxLength": 2},
        {"type": "string", "pattern": "^abc$", "maxLength": 2},
        {"type": "array", "minItems": 2, "maxItems": 1},
        {"type": "object", "required": ["a"], "properties": {"a": False}},
        {"type": "object", "required": ["a"], "additionalProperties": False},
        {"type": "object", "required": ["a", "b"], "maxProperties": 1},
        {"type": "boolean", "not": {"enum": [True, False]}},
        {"not": {}},
    ],
)
def test_a_schema_that_nothing_fits_is_refused(schema):
    refused(schema, "no JSON value fits the schema")


# Keywords that the grammar cannot hold.

INEXPRESSIBLE = [
    ({"type": "array", "uniqueItems": True}, "uniqueItems", "#"),
    ({"properties": {"a": {"type": "array", "items": {"type": "integer"}, "contains": {"const": 1},
                           "maxContains": 2}}}, "contains", "#/properties/a"),
    ({"type": "string", "pattern": "^(?!x)"}, "pattern", "#"),
    ({"type": "integer", "multipleOf": 97}, "multipleOf", "#"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf", "#"),
    ({"type": "string", "not": {"maxLength": 3}}, "not", "#"),
    ({"type": "object", "minProperties": 5}, "minProperties", "#"),
    ({"type": "string", "format": "regex"}, "format", "#"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "keyword", "path"), INEXPRESSIBLE)
def test_what_the_grammar_cannot_hold_is_named_and_checked(schema, keyword, path):
    grammar = json_schema.to_grammar(schema)
    assert grammar.needs_check
    assert [w for w in grammar.warnings if w.startswith(f"{keyword} at {path} ")]


@pytest.mark.parametrize(("schema", "keyword", "path"), INEXPRESSIBLE)
def test_strict_refuses_what_the_grammar_cannot_hold(schema, keyword, path):
    refused(schema, f"schema at {path}: {keyword} cannot be enforced", strict=True)


@pytest.mark.parametrize(
    ("schema", "match"),
    [
        ({"type": "string", "format": "colour"}, "format 'colour' at # is not known"),
        ({"typo": 1}, "'typo' at # is no known keyword"),
        ({"items": {"contentEncoding": "x"}}, "contentEncoding at #/items is not asserted"),
    ],
)
def test_what_is_ignored_is_named_too(schema, match):
    grammar = json_schema.to_grammar(schema)
    assert match in " ".join(grammar.warnings) and not grammar.needs_check
    refused(schema, "schema at #", strict=True)


def test_annotations_and_vendor_extensions_are_no_warning():
    schema = {"type": "integer", "title": "t", "x-order": 1, "default": 3, "discriminator": {}}
    assert json_schema.to_grammar(schema, strict=True).warnings == ()


def test_keywords_of_an_unused_definition_are_no_warning():
    schema = {"$defs": {"u": {"type": "array", "uniqueItems": True}}, "type": "integer"}
    assert json_schema.to_grammar(schema, strict=True).warnings == ()


# The grammar itself.


def test_members_come_in_declared_order():
    schema = {"type": "object", "properties": {"b": {"type": "null"}, "a": {"type": "null"}}}
    assert accepts(schema, '{"b":null,"a":null}') and not accepts(schema, '{"a":null,"b":null}')


def test_a_model_may_indent_but_not_pad_for_ever():
    schema = {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]}
    assert accepts(schema, '{\n  "a": null\n}') and accepts(schema, '{ "a" : null }')
    assert not accepts(schema, '{\n\n"a": null}') and not accepts(schema, '{  "a": null}')
    assert not accepts(schema, '{"a": null} ') and not accepts(schema, ' {"a": null}')


def test_strings_take_every_escape_but_half_a_surrogate_pair():
    schema = {"type": "string"}
    for text in ('"\\u0041\\n\\/\\ud83d\\ude00"', '"é😀"', '"\\uD7FF\\uE000"'):
        assert accepts(schema, text) and json.loads(text)
    for text in ('"\\ud83d"', '"\\ude00"', '"\\ud83dx"', '"\\ud83d\\u0041"', '"\n"', '"\\x41"'):
        assert not accepts(schema, text)


def test_free_values_are_bounded_in_depth_so_that_they_end():
    grammar = json_schema.json_object().text
    assert gbnf.matches(grammar, '{"a":' * 16 + "1" + "}" * 16)
    assert not gbnf.matches(grammar, '{"a":' * 17 + "1" + "}" * 17)
    assert not gbnf.matches(grammar, "[]") and not gbnf.matches(grammar, '"x"')


def test_embedded_schemas_keep_out_of_each_others_way():
    node = {"type": "object", "properties": {"next": {"$ref": "#"}}, "additionalProperties": False}
    grammar = json_schema.embed({"args-1": node, "args-2": {"type": "array", "items": node}})
    text = 'root ::= "<" args-1 ">" | "[" args-2 "]"\n' + grammar.text
    gbnf.check(text)
    assert gbnf.matches(text, '<{"next":{}}>') and gbnf.matches(text, '[[{"next":[]}]]')
    assert not gbnf.matches(text, "<[]>") and not gbnf.matches(text, '[[{"next":{}}]]')


def test_two_grammars_put_together_share_only_rules_that_are_equal():
    first = {"type": "string", "maxLength": 300, "pattern": "^[a-z0-9_é]+$"}
    second = {"type": "array", "items": {"type": "string", "pattern": "^[A-Zß-ÿ;:]{80,99}$"}}
    texts = [json_schema.embed({name: {"type": "object", "properties": {"p": schema, "q": schema}}})
             for name, schema in (("args-1", first), ("args-2", second))]  # fmt: skip
    lines = dict.fromkeys(line for text in texts for line in text.text.splitlines())
    text = "\n".join(["root ::= args-1 | args-2", *lines])
    assert gbnf.matches(text, '{"p":"az"}') and gbnf.matches(text, f'{{"q":["{"A" * 90}"]}}')


def test_members_of_one_type_share_its_rule():
    schema = {"type": "object", "properties": {f"p{i}": {"type": "string", "format": "uri"}
                                               for i in range(50)}}  # fmt: skip
    text = json_schema.to_grammar({**schema, "required": [f"p{i}" for i in range(50)]}).text
    assert len([line for line in text.splitlines() if "://" in line or "file:" in line]) <= 1


def test_the_same_schema_gives_the_same_grammar():
    schema = {"type": "object", "properties": {f"p{i}": {"anyOf": [{"type": "string"}, {
        "type": "array", "items": {"enum": [1, 2]}}]} for i in range(9)}}  # fmt: skip
    assert json_schema.to_grammar(schema) == json_schema.to_grammar(json.loads(json.dumps(schema)))


def test_a_schema_seen_before_costs_nothing_and_the_memory_of_them_is_bounded():
    def grammar(n):
        return json_schema.to_grammar({"type": "object", "properties": {f"p{n}": {}}})

    first = grammar(0)
    assert grammar(0) is first
    for n in range(1, gbnf.N_KNOWN + 1):
        grammar(n)
    assert grammar(0) is not first and grammar(0) == first


def test_strict_and_param_are_not_forgotten_with_a_schema_seen_before():
    schema = {"type": "array", "uniqueItems": True}
    assert json_schema.to_grammar(schema).needs_check
    refused(schema, "uniqueItems", strict=True)
    with pytest.raises(GrammarInvalid) as caught:
        json_schema.to_grammar(schema, strict=True, param="tools")
    assert caught.value.param == "tools"


@pytest.mark.parametrize("n_required", [200, 100, 0])
def test_two_hundred_members_are_served(n_required):
    members = {f"member_{i}": {"type": ["string", "null"], "format": "uri"} for i in range(200)}
    schema = {"type": "object", "properties": members, "required": list(members)[:n_required]}
    assert accepts(schema, json.dumps(dict.fromkeys(members)))


def test_two_thousand_values_are_served():
    text = json_schema.to_grammar({"enum": [f"value number {i}" for i in range(2_000)]}).text
    assert gbnf.matches(text, '"value number 1999"')
    assert not gbnf.matches(text, '"value number 2000"')


def test_one_schema_object_in_many_places_is_read_in_each_of_them():
    shared = {"type": "string"}
    schema = {"type": "object", "properties": {"a": shared, "b": shared}, "required": ["a", "b"]}
    assert accepts(schema, '{"a":"x","b":"y"}')
