"""API keys, origins and hosts, without a socket."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from libloader.web.auth import ApiKeys
from libloader.web.origins import Origins, bound_names
from libloader.web.problems import HttpProblem
from libloader.web.request import Head, Headers

KEYS = ApiKeys(["sk-first", "sk-second", "schlüssel"])


def key_of(*fields: tuple[str, str]) -> str:
    """The name of the key found; the refusal's status and type as text otherwise."""
    try:
        return KEYS.check(Headers(fields))
    except HttpProblem as problem:
        assert problem.headers == (("WWW-Authenticate", "Bearer"),)
        return f"{problem.status} {problem.type}"


REFUSED = "401 authentication_error"


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ([("Authorization", "Bearer sk-first")], "key1"),
        ([("Authorization", "bearer  sk-second ")], "key2"),
        ([("X-Api-Key", "sk-second")], "key2"),
        ([("Authorization", "Bearer " + "schlüssel".encode().decode("latin-1"))], "key3"),
        ([("Authorization", "Bearer wrong"), ("X-Api-Key", "sk-first")], "key1"),
        ([], REFUSED),
        ([("Authorization", "Bearer")], REFUSED),
        ([("Authorization", "Bearer ")], REFUSED),
        ([("Authorization", "sk-first")], REFUSED),
        ([("Authorization", "Basic sk-first")], REFUSED),
        ([("Authorization", "Bearer sk-firs")], REFUSED),
        ([("Authorization", "Bearer sk-first2")], REFUSED),
        ([("Authorization", "Bearer SK-FIRST")], REFUSED),
        ([("Authorization", "Bearer sk-first")] * 2, REFUSED),
        ([("X-Api-Key", "sk-first"), ("X-Api-Key", "sk-second")], REFUSED),
        ([("X-Api-Key", "x" * 1_000_000)], REFUSED),
    ],
)
def test_a_key_is_found_or_the_request_refused(fields, name):
    """G04"""
    assert key_of(*fields) == name


def test_without_keys_everybody_may_ask_and_an_empty_key_is_none():
    assert ApiKeys([]).check(Headers()) == ""
    assert ApiKeys([""]).check(Headers()) == ""


def test_every_comparison_is_constant_time_and_none_is_left_out(monkeypatch):
    """G05: time is not measured here, its cause is: digests only, all of them, one function."""
    compared: list[tuple[bytes, bytes]] = []

    def watched(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return a == b

    monkeypatch.setattr(hmac, "compare_digest", watched)
    assert key_of(("X-Api-Key", "sk-first")) == "key1"
    digest = hashlib.sha256(b"sk-first").digest()
    assert [a for a, _ in compared] == [digest] * 3
    assert {b for _, b in compared} == {
        hashlib.sha256(key).digest() for key in (b"sk-first", b"sk-second", "schlüssel".encode())
    }


def head(host: str = "localhost", length: int | None = 0, **fields: str) -> Head:
    headers = Headers([(name.replace("_", "-"), value) for name, value in fields.items()])
    return Head("POST", "/", {}, 1, headers, host, length, True, False)


def status_of(origins: Origins, request: Head) -> int:
    try:
        origins.check(request)
    except HttpProblem as problem:
        return problem.status
    return 200


OPEN = Origins(["*"])
CLOSED = Origins(["https://app.example"], ["llm.example:8080"], ["box.lan"])


def test_by_default_every_origin_and_host_is_served():
    """issue 3, section 2"""
    request = head("evil.example", 5, Origin="http://evil.example", Content_Type="text/plain")
    assert status_of(OPEN, request) == 200
    assert ("Access-Control-Allow-Origin", "*") in OPEN.fields("http://evil.example", "x")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example", 403),
        ("localhost.", 200),
        ("LOCALHOST", 200),
        ("localhost:8080", 200),
        ("[::1]", 200),
        ("[::1]:8080", 200),
        ("127.0.0.1:99", 200),
        ("192.168.7.7", 200),
        ("llm.example", 200),
        ("LLM.example.:9", 200),
        ("box.lan", 200),
        ("", 200),  # HTTP/1.0 without Host: not a browser
    ],
)
def test_with_listed_origins_a_foreign_host_is_refused(host, status):
    """G01"""
    assert status_of(CLOSED, head(host)) == status


def test_allowed_hosts_are_checked_also_when_every_origin_may_ask():
    """G01"""
    origins = Origins(["*"], ["llm.example"])
    assert status_of(origins, head("llm.example")) == 200
    assert status_of(origins, head("evil.example")) == 403


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://app.example", 200),
        ("HTTPS://App.example", 200),
        ("http://localhost", 200),  # the server's own page
        ("http://evil.example", 403),
        ("https://app.example.evil", 403),
        ("https://app.example:444", 403),
        ("http://localhost:3000", 403),
        ("null", 403),
        ("file://", 403),
    ],
)
def test_with_listed_origins_another_origin_is_refused_and_gets_no_cors_field(origin, status):
    """G03"""
    assert status_of(CLOSED, head(Origin=origin)) == status
    names = dict(CLOSED.fields(origin, "localhost"))
    assert names["Vary"] == "Origin"
    assert names.get("Access-Control-Allow-Origin") == (origin if status == 200 else None)


def test_a_rebound_host_is_not_its_own_page():
    """G01 G03"""
    request = head("evil.example", Origin="http://evil.example")
    assert status_of(CLOSED, request) == 403
    assert "Access-Control-Allow-Origin" not in dict(
        CLOSED.fields("http://evil.example", "evil.example")
    )


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("application/JSON; charset=utf-8", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("", 415),
    ],
)
def test_a_page_must_declare_its_json_where_origins_are_listed(content_type, status):
    """G02"""
    fields = {"Content_Type": content_type} if content_type else {}
    assert status_of(CLOSED, head(length=5, Origin="https://app.example", **fields)) == status
    assert status_of(CLOSED, head(length=None, Origin="https://app.example", **fields)) == status
    assert status_of(CLOSED, head(length=5, **fields)) == 200  # curl has no Origin


def test_credentials_are_never_allowed():
    for origins in (OPEN, CLOSED):
        fields = origins.fields("https://app.example", "localhost")
        assert not [name for name, _ in fields if "credentials" in name.lower()]


def test_only_names_among_the_bound_hosts_are_hosts_of_ours():
    assert bound_names(["127.0.0.1", "::", "0.0.0.0", "box.lan", ""]) == ("box.lan",)
