"""Strict JSON: each refusal says what to fix, and costs time in proportion to the body."""

import pytest

from libloader.errors import BodyInvalid
from libloader.protocol.strict_json import MAX_DEPTH, parse_object


def refusal(body: bytes) -> BodyInvalid:
    with pytest.raises(BodyInvalid) as caught:
        parse_object(body)
    return caught.value


def test_a_plain_object_is_returned_as_it_is():
    assert parse_object(b'{"a":[1,2.5,"\\u00e9",null,true]}') == {"a": [1, 2.5, "é", None, True]}


@pytest.mark.parametrize(
    "body",
    [b"null", b"[]", b'"x"', b"1", b"true"],
    ids=["null", "array", "str", "int", "bool"],
)
def test_anything_but_an_object_is_refused(body):
    """C07"""
    assert "must be a JSON object" in refusal(body).message


@pytest.mark.parametrize("body", [b"", b"  \n", b"{} x", b"{}{}", b"{'a':1}", b'{"a":1,}'])
def test_empty_trailing_or_lax_bodies_are_refused(body):
    """C07"""
    assert refusal(body).message


@pytest.mark.parametrize(
    "body", [b"[" * 129, b"[" * 5000, b"[" * 100_000, b'{"a":' * 1_000_000], ids=range(4)
)
def test_deep_nesting_is_refused_before_the_recursive_parser_sees_it(body):
    """C01"""
    assert f"deeper than {MAX_DEPTH}" in refusal(body).message


def test_brackets_inside_strings_do_not_count_as_nesting():
    """C01"""
    assert parse_object(b'{"a":"' + b"[" * 1000 + b'"}') == {"a": "[" * 1000}


def test_the_deepest_allowed_nesting_is_parsed():
    """C01"""
    body = b'{"a":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}"
    assert "a" in parse_object(body)


def test_many_shallow_brackets_are_not_nesting():
    """C01"""
    assert len(parse_object(b'{"a":[' + b",".join([b"[1]"] * 1000) + b"]}")["a"]) == 1000


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999"])
def test_non_finite_numbers_are_refused_and_named(number):
    """C02"""
    assert refusal(b'{"a":{"b":[1,' + number + b"]}}").param == "a.b[1]"


def test_integers_with_very_many_digits_are_refused():
    """C03"""
    error = refusal(b'{"max_tokens":' + b"1" * 4301 + b"}")
    assert error.param == "max_tokens"
    assert "4301 digits" in error.message


def test_a_key_given_twice_is_refused_and_named():
    """C04"""
    assert refusal(b'{"max_tokens":1,"max_tokens":2}').param == "max_tokens"


def test_a_byte_order_mark_is_let_through():
    """C05"""
    assert parse_object(b'\xef\xbb\xbf{"a":1}') == {"a": 1}


@pytest.mark.parametrize(
    "body",
    [
        '{"a":"é"}'.encode("utf-16"),
        '{"a":1}'.encode("utf-32"),
        b'{"a":"\xe9"}',
        b'{"a":"\xc0\xaf"}',
        b'{"a":"\xe2\x82"}',
    ],
    ids=["utf-16", "utf-32", "latin-1", "overlong", "truncated"],
)
def test_encodings_other_than_utf8_are_refused(body):
    """C05"""
    assert refusal(body).message


@pytest.mark.parametrize("text", [rb"\ud800", rb"\udc00\ud800", rb"x\uDFFFx"])
def test_half_surrogate_pairs_are_refused(text):
    """C06"""
    assert refusal(b'{"a":["' + text + b'"]}').param == "a[0]"


def test_half_a_surrogate_pair_in_a_key_is_refused():
    """C06"""
    assert "surrogate" in refusal(rb'{"\ud800":1}').message


@pytest.mark.parametrize(
    ("text", "value"), [(rb"\ud83d\ude00", "\U0001f600"), (rb"\u0000", "\0")], ids=["pair", "nul"]
)
def test_surrogate_pairs_and_escaped_nul_are_kept(text, value):
    """C06"""
    assert parse_object(b'{"a":"' + text + b'"}') == {"a": value}


def test_raw_control_characters_are_refused():
    """C06"""
    assert refusal(b'{"a":"\x01"}').message
