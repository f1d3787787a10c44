"""Reply heads, event framing, error bodies and route tables, without a socket."""

from __future__ import annotations

import json
import re

import pytest

from libloader.web import events
from libloader.web.problems import HttpProblem, default_describe, reply_of, to_json
from libloader.web.response import clean_value, encode_head
from libloader.web.routes import Routes


@pytest.mark.parametrize(
    "hostile", ["a\r\nSet-Cookie: x", "a\nb", "a\rb", "a\0b", "a\x1b[2Jb", "é€\u202e\ud800"]
)
def test_no_text_can_break_a_header_line(hostile):
    """A20"""
    head = encode_head(200, 1, [("X-Thing", hostile)])
    lines = head.split(b"\r\n")
    assert lines[-2:] == [b"", b""] and lines[-3].startswith(b"X-Thing: ")
    assert all(0x20 <= byte < 0x7F for line in lines for byte in line)


def test_a_header_value_is_cut():
    """A20"""
    assert len(clean_value("é" * 100_000)) == 4096


def test_a_head_names_neither_version_nor_language():
    assert b"Server: igllama\r\n" in encode_head(200, 1, [])
    assert b"Python" not in encode_head(500, 1, [])


def test_an_unknown_status_still_has_a_well_formed_line():
    assert encode_head(299, 0, []).startswith(b"HTTP/1.0 299 Unknown\r\n")


def test_an_event_is_one_data_line_and_a_blank_line():
    assert events.sse(b'{"a":1}') == b'data: {"a":1}\n\n'
    assert events.sse(b"{}", event="message_start") == b"event: message_start\ndata: {}\n\n"
    assert events.DONE == b"data: [DONE]\n\n"


def test_text_with_line_ends_stays_one_event():
    assert events.sse(b"a\nb\r\nc\rd") == b"data: a\ndata: b\ndata: c\ndata: d\n\n"


def test_a_comment_is_no_event():
    lines = events.comment().split(b"\n")
    assert lines[0].startswith(b":") and lines[1:] == [b"", b""]


def test_ndjson_is_one_line_and_a_chunk_carries_its_size():
    assert events.ndjson(b"{}") == b"{}\n"
    assert events.chunk(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"


def test_an_error_body_has_the_four_fields_of_openai():
    reply = reply_of(HttpProblem(413, "too large", param="messages"))
    assert reply.status == 413
    assert reply.body == {
        "error": {
            "message": "too large",
            "type": "invalid_request_error",
            "param": "messages",
            "code": "request_too_large",
        }
    }


def test_an_unexpected_error_tells_the_client_nothing():
    reply = default_describe(KeyError("secret"))
    assert reply.status == 500
    assert "secret" not in json.dumps(reply.body)


def test_json_is_compact_utf_8_and_survives_lone_surrogates():
    assert to_json({"a": ["é", 1]}) == '{"a":["é",1]}'.encode()
    assert to_json({"a": "\ud800"}) == b'{"a":"?"}'
    with pytest.raises(ValueError):
        to_json({"a": float("nan")})


ROUTES = Routes(
    {
        ("GET", "/health"): "health",
        ("GET", "/models"): "list",
        ("POST", "/models"): "add",
        ("GET", "/models/{id}"): "model",
        ("POST", "/models/{id}/load"): "load",
    }
)


@pytest.mark.parametrize(
    ("method", "path", "found"),
    [
        ("GET", "/health", ("health", {})),
        ("HEAD", "/health", ("health", {})),
        ("POST", "/models", ("add", {})),
        ("GET", "/models/a", ("model", {"id": "a"})),
        ("GET", "/models/meta/llama 3", ("model", {"id": "meta/llama 3"})),
        ("POST", "/models/a/load", ("load", {"id": "a"})),
        ("GET", "/models/{id}", ("model", {"id": "{id}"})),
    ],
)
def test_a_path_finds_its_function_and_parameters(method, path, found):
    assert ROUTES.find(method, path) == found


@pytest.mark.parametrize(
    "path", ["/", "/healthz", "/health/", "/models/", "//health", "/Health", "*", "/models\n"]
)
def test_any_other_path_is_404(path):
    with pytest.raises(HttpProblem) as caught:
        ROUTES.find("GET", path)
    assert caught.value.status == 404


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/healthz", "unknown URL: /healthz (did you mean /health?)"),
        ("/model/a/load", "unknown URL: /model/a/load (did you mean /models/{id}/load?)"),
        ("/favicon.ico", "unknown URL: /favicon.ico"),
        ("/" + "x" * 5000, "unknown URL: /" + "x" * 199),
    ],
)
def test_a_404_names_the_path_that_was_meant(path, message):
    with pytest.raises(HttpProblem, match=f"^{re.escape(message)}$"):
        ROUTES.find("GET", path)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/health", "GET, HEAD, OPTIONS"),
        ("BREW", "/models", "GET, HEAD, OPTIONS, POST"),
        ("get", "/health", "GET, HEAD, OPTIONS"),
        ("DELETE", "/models/x/load", "OPTIONS, POST"),
    ],
)
def test_another_method_is_405_with_allow(method, path, allow):
    """A16"""
    with pytest.raises(HttpProblem) as caught:
        ROUTES.find(method, path)
    assert caught.value.status == 405
    assert caught.value.headers == (("Allow", allow),)
