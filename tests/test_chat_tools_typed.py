"""Bare text in a call becomes the value that the function's schema means."""

from __future__ import annotations

import pytest

from libloader.chat.tools.typed import Typed

STRING, INTEGER, NULL = {"type": "string"}, {"type": "integer"}, {"type": "null"}


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        (STRING, "5", "5"),
        (STRING, "true", "true"),
        (INTEGER, "5", 5),
        (INTEGER, "five", "five"),
        ({"type": "number"}, "5", 5),
        ({"type": "boolean"}, "true", True),
        ({"type": "boolean"}, "True", True),
        ({"type": "array"}, "['a', 1]", ["a", 1]),
        ({"type": "array"}, "", []),
        ({"type": "object"}, "", {}),
        ({"type": "object"}, "{'a': None}", {"a": None}),
        ({"enum": ["1", "2"]}, "1", "1"),
        ({"enum": [1, 2]}, "1", 1),
        ({"const": "null"}, "null", "null"),
        ({"type": ["string", "null"]}, "null", None),
        ({"anyOf": [STRING, NULL]}, "5", "5"),
        ({"anyOf": [STRING, NULL]}, "None", None),
        ({"anyOf": [INTEGER, STRING]}, "5", 5),
        ({"anyOf": [INTEGER, STRING]}, "5.5", "5.5"),
        ({}, "5", 5),
        ({}, "True", "True"),
        ({}, "a b", "a b"),
        (True, "5", 5),
        (None, '{"a": 1}', {"a": 1}),
    ],
)
def test_text_is_what_its_schema_allows(schema, text, value):
    found = Typed(schema).value(text)
    assert (found, type(found)) == (value, type(value))


def test_references_are_followed_and_circles_end():
    root = {
        "properties": {"a": {"$ref": "#/$defs/text"}, "b": {"$ref": "#/$defs/loop"}},
        "$defs": {"text": STRING, "loop": {"$ref": "#/$defs/loop"}},
    }
    assert Typed(root).property("a").value("5") == "5"
    assert Typed(root).property("b").value("5") == 5
    assert Typed(root).property("c").value("5") == 5


def test_inner_values_have_their_own_schemas():
    schema = Typed({"properties": {"list": {"items": {"properties": {"id": STRING}}}}})
    assert schema.property("list").items().property("id").value("7") == "7"
    assert schema.property("list").items().property("n").value("7") == 7


@pytest.mark.parametrize("text", ["__import__('os')", "1 + 1", "[" * 5000, "9" * 5000])
def test_nothing_is_evaluated_and_nothing_raises(text):
    assert Typed({"type": "boolean"}).value(text) == text
