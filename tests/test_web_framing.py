"""Framing over real sockets: what is answered, in which order, and when the connection closes."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress

import pytest
from web_client import (
    Client,
    count_responses,
    in_threads,
    parse_response_head,
    request_bytes,
    wait_until,
    web_server,
)

from libloader.errors import ClientGone
from libloader.web.wire import Wire

SMUGGLED = b"GET /SMUGGLED HTTP/1.1\r\nHost: localhost\r\n\r\n"
HOST = b"Host: localhost\r\n"


@pytest.fixture(scope="module")
def web():
    """One server for the cases that leave nothing behind; deadlines are short, limits are real."""
    with web_server(head_s=0.5, idle_s=1.0, body_s=0.5, api_keys=()) as fixture:
        yield fixture


@pytest.fixture(scope="module")
def keyed():
    with web_server(api_keys=("sk-1", "sk-2"), head_s=0.5, body_s=0.5) as fixture:
        yield fixture


def only_answer(web, data: bytes) -> int:
    """Send `data`, read to the end; return the status of the only answer, the last one."""
    with web.connect() as client:
        client.send(data)
        answer = client.read_to_end()
    assert count_responses(answer) == 1, answer
    head, _, body = answer.partition(b"\r\n\r\n")
    response = parse_response_head(head + b"\r\n\r\n")
    response.body = body
    assert len(body) == int(response.header("content-length") or "")
    assert response.header("connection") == "close"
    assert response.header("access-control-allow-origin") == "*"
    assert response.header("x-request-id")
    if response.status >= 400:
        assert response.error["message"]
    return response.status


def post(*fields: bytes, body: bytes = b"", version: bytes = b"HTTP/1.1") -> bytes:
    return b"\r\n".join([b"POST /echo " + version, b"Host: localhost", *fields, b"", b""]) + body


@pytest.mark.parametrize(
    ("data", "status"),
    [
        # A01 both framings, either order
        (post(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"), 400),
        (post(b"Transfer-Encoding: chunked", b"Content-Length: 60", body=b"0\r\n\r\n"), 400),
        # A02 two lengths
        (post(b"Content-Length: 0", b"Content-Length: 45"), 400),
        (post(b"Content-Length: 45", b"Content-Length: 0"), 400),
        (post(b"Content-Length: 45", b"Content-Length: 45"), 400),
        # A03 lengths that int() would take
        (post(b"Content-Length: +0"), 400),
        (post(b"Content-Length: 99999999999999999999"), 413),
        # A04 codings
        (post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"), 501),
        (post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"), 501),
        (post(b"Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n"), 501),
        (post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n"), 400),
        (post(b"Transfer-Encoding: chunked", body=b"0\r\n\r\n", version=b"HTTP/1.0"), 400),
        # A06 chunks
        (post(b"Transfer-Encoding: chunked", body=b"FFFFFFFFFFFFFFFFF\r\n"), 400),
        (post(b"Transfer-Encoding: chunked", body=b"5;" + b"x" * (1 << 20)), 400),
        (post(b"Transfer-Encoding: chunked", body=b"5\r\nabcdeX0\r\n\r\n"), 400),
        # A08 header syntax
        (b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\nHost: localhost\n\n", 400),
        # A09 header limits
        (b"GET / HTTP/1.1\r\n" + HOST + b"X: y\r\n" * 101 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"y" * 8193 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"y" * (1 << 20), 431),
        (b"GET / HTTP/1.1\r\n" + HOST + (b"X: " + b"y" * 1000 + b"\r\n") * 33 + b"\r\n", 431),
        # A10 targets
        (b"GET /" + b"a" * 8192 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
        (b"GET /a\x80 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        # A11 Host
        (b"GET /health HTTP/1.1\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        # A12 versions
        (b"GET /health\r\n\r\n", 400),
        (b"GET /health HTTP/1.9\r\n" + HOST + b"\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        # a length is missing, and C12: compressed bodies
        (post(body=b""), 411),
        (post(b"Content-Length: 4", b"Content-Encoding: gzip", body=b"\x1f\x8b__"), 415),
        *(
            (post(b"Content-Length: 2", b"Content-Encoding: " + coding, body=b"{}"), 415)
            for coding in (
                b"x-gzip",
                b"GZIP",
                b"deflate",
                b"br",
                b"zstd",
                b"compress",
                b"aes128gcm",
                b"identity, gzip",
                b"gzip,gzip",
                b"none",
                b"*",
            )
        ),
    ],
)
def test_a_doubtful_request_is_refused_once_and_what_follows_is_never_read(web, data, status):
    """A01 A02 A03 A04 A06 A08 A09 A10 A11 A12 C12"""
    assert only_answer(web, data + SMUGGLED) == status
    assert web.figure("status_299") == 0


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/nowhere", {}, 404),
        ("POST", "/health", {}, 405),
        ("OPTIONS", "/echo", {}, 204),
    ],
)
def test_a_body_that_nobody_reads_is_never_taken_for_a_request(web, method, path, headers, status):
    """A07"""
    with web.connect() as client:
        client.send(request_bytes(method, path, SMUGGLED, headers))
        answer = client.read_to_end()
    assert count_responses(answer) == 1
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert web.figure("status_299") == 0


def test_a_get_may_have_a_body_which_is_read_as_such(web):
    """A07"""
    with web.connect() as client:
        assert client.request("GET", "/echo", SMUGGLED).json()["n"] == len(SMUGGLED)
        assert client.request("GET", "/health").status == 200


def test_a_wrong_key_costs_no_body(keyed):
    """A07 G04: refused although not one byte of the 16 MB has come."""
    with keyed.connect() as client:
        client.send(post(b"Content-Length: 16000000", b"X-Api-Key: wrong"))
        response = client.response()
        assert (response.status, response.error["type"]) == (401, "authentication_error")
        assert response.header("www-authenticate") == "Bearer"


def test_chunked_and_announced_bodies_are_the_same_to_a_handler(web):
    """A05"""
    body = b"x" * 300
    chunked = b"".join(b"1;e=1\r\nx\r\n" for _ in range(300)) + b"0\r\nTrailer: y\r\n\r\n"
    with web.connect() as client:
        plain = client.request("POST", "/echo", body)
        client.send(post(b"Transfer-Encoding: chunked", body=chunked))
        assert client.response().json() == plain.json() == {"method": "POST", "n": 300, "key": ""}
        assert client.request("GET", "/health").status == 200


def test_continue_is_sent_when_the_body_will_be_read_and_not_before(keyed):
    """A13"""
    expect = (b"Expect: 100-continue", b"X-Api-Key: sk-1")
    with keyed.connect() as client:
        client.send(post(b"Content-Length: 3", *expect))
        assert client.response().status == 100
        client.send(b"abc")
        assert client.response().json()["n"] == 3


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ((b"Content-Length: 3", b"Expect: 100-continue", b"X-Api-Key: wrong"), 401),
        ((b"Content-Length: 17000000", b"Expect: 100-continue", b"X-Api-Key: sk-1"), 413),
        ((b"Content-Length: 3", b"Expect: x", b"X-Api-Key: sk-1"), 417),
    ],
)
def test_a_refusal_comes_instead_of_continue(keyed, fields, status):
    """A13"""
    assert only_answer(keyed, post(*fields)) == status


def test_a_client_that_did_not_wait_for_continue_gets_none(keyed):
    """A13"""
    data = post(b"Content-Length: 3", b"Expect: 100-continue", b"X-Api-Key: sk-2", body=b"abc")
    with keyed.connect() as client:
        client.send(data)
        assert client.response().json() == {"method": "POST", "n": 3, "key": "key2"}


def test_pipelined_requests_are_answered_in_order(web):
    """A14"""
    gets = b"".join(request_bytes("GET", f"/show?n={n}") for n in range(50))
    posts = b"".join(request_bytes("POST", "/echo", b"x" * n) for n in range(5))
    with web.connect() as client:
        client.send(gets + posts)
        shown = [client.response().json()["query"]["n"] for _ in range(50)]
        sizes = [client.response().json()["n"] for _ in range(5)]
    assert shown == [str(n) for n in range(50)]
    assert sizes == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("version", "connection", "stays", "announced"),
    [
        ("1.1", "", True, None),
        ("1.1", "keep-alive", True, None),
        ("1.1", "close, TE", False, "close"),
        ("1.1", "Close", False, "close"),
        ("1.0", "", False, "close"),
        ("1.0", "Keep-Alive", True, "keep-alive"),
    ],
)
def test_the_connection_header_is_honoured_and_answered(web, version, connection, stays, announced):
    """A15"""
    line = f"Connection: {connection}\r\n" if connection else ""
    with web.connect() as client:
        client.send(f"GET /health HTTP/{version}\r\nHost: localhost\r\n{line}\r\n".encode())
        response = client.response()
        assert (response.minor, response.header("connection")) == (int(version[-1]), announced)
        assert client.is_closed() is not stays


def test_head_is_get_without_a_body(web):
    """A16"""
    with web.connect() as client:
        head = client.request("HEAD", "/health")
        got = client.request("GET", "/health")
    assert head.status == 200 and head.body == b""
    assert head.header("content-length") == got.header("content-length") == str(len(got.body))


def test_options_is_204_on_every_path_with_what_a_browser_asks_for(keyed):
    """A16 G06: a preflight carries no key."""
    for path in ("/echo", "/nowhere", "*"):
        response = keyed.ask("OPTIONS", path, Origin="http://page.example")
        assert response.status == 204 and response.body == b""
        assert response.header("access-control-allow-origin") == "*"
        assert response.header("access-control-allow-methods") == "GET, POST, OPTIONS"
        allowed = response.header("access-control-allow-headers") or ""
        for name in ("Content-Type", "Authorization", "X-Api-Key", "Prefer"):
            assert name in allowed
        assert response.header("access-control-max-age")
        assert response.header("content-length") is None


@pytest.mark.parametrize("method", ["PUT", "BREW", "post", "DELETE"])
def test_another_method_is_405_with_allow(web, method):
    """A16"""
    body = b"" if method == "PUT" else None
    response = web.ask(method, "/echo", body)
    assert response.status == 405
    assert response.header("allow") == "GET, HEAD, OPTIONS, POST"
    assert response.error["code"] == "method_not_allowed"


def test_a_half_closed_client_still_gets_an_answer_that_is_ready(web):
    """A17"""
    with web.connect() as client:
        client.send(request_bytes("POST", "/echo", b"abc"))
        client.sock.shutdown(1)
        assert client.response().json()["n"] == 3
        assert client.read_to_end() == b""


def test_a_half_closed_client_does_not_keep_a_long_answer_alive():
    """A17: documented in wire.py; the end of a client's input means that it has gone."""
    gone = threading.Event()

    def slow(exchange):
        exchange.on_gone(gone.set)
        assert gone.wait(5)

    with web_server({("POST", "/slow"): slow}) as web, web.connect() as client:
        client.send(request_bytes("POST", "/slow", b"abc"))
        client.sock.shutdown(1)
        assert client.read_to_end() == b""
        assert gone.is_set()


def test_a_413_arrives_although_the_client_is_still_sending():
    """A18: a reset must not overtake the answer; 30 clients of 20 MB, all read it."""

    def upload(_: int) -> int:
        with web.connect() as client:
            client.send(post(b"Content-Length: 20000000"))
            sender = threading.Thread(target=send_quietly, args=(client, b"x" * 20_000_000))
            sender.start()
            try:
                return client.response().status
            finally:
                client.read_to_end()
                sender.join()

    with web_server(linger_s=5.0) as web:
        statuses = [status for _ in range(10) for status in in_threads(3, upload)]
    assert statuses == [413] * 30


def send_quietly(client: Client, data: bytes) -> None:
    with suppress(OSError):  # the server may stop reading: that is its right
        client.send(data)


def test_client_text_in_an_error_breaks_no_line(web):
    """A20"""
    for path in ("/models%0d%0aX:y", "/%e2%82%ac%20", "/" + "%c3%a9" * 500):
        response = web.ask("GET", path)
        assert response.status in (400, 404)
        assert response.error["message"]


def test_hostile_text_in_a_handlers_header_is_made_harmless():
    """A20"""

    def reply(exchange):
        value = "a\r\nSet-Cookie: b=\u20ac\ud800"
        exchange.reply_json({"model": "\ud800\r\n"}, headers=(("X-Igllama-Ignored", value),))

    with web_server({("GET", "/hostile"): reply}) as web:
        response = web.ask("GET", "/hostile")
    assert response.header("set-cookie") is None
    assert response.header("x-igllama-ignored") == "a  Set-Cookie: b=\\u20ac\\ud800"
    assert response.json() == {"model": "?\r\n"}


def test_parameters_and_query_reach_the_handler_decoded(web):
    shown = web.ask("GET", "/models/meta%2Fllama%203?a=b%20c&d").json()
    assert shown["params"] == {"id": "meta/llama 3"}
    assert shown["query"] == {"a": "b c", "d": ""}


def test_only_health_is_public(keyed):
    """G06"""
    assert keyed.ask("GET", "/health").status == 200
    for path in ("/echo", "/show", "/models/x"):
        assert keyed.ask("GET", path).status == 401
    assert keyed.ask("GET", "/echo", Authorization="bearer sk-2").json()["key"] == "key2"


def test_keys_can_be_replaced_while_serving():
    with web_server(api_keys=("old",)) as web:
        assert web.ask("GET", "/echo", X_Api_Key="old").status == 200
        web.server.set_api_keys(["new"])
        assert web.ask("GET", "/echo", X_Api_Key="old").status == 401
        assert web.ask("GET", "/echo", X_Api_Key="new").status == 200


def test_where_origins_are_listed_nothing_foreign_reaches_a_handler():
    """G01 G02 G03"""
    calls = []
    with web_server(
        {("POST", "/count"): lambda exchange: (calls.append(1), exchange.reply_json({}))},
        cors_origins=("https://app.example",),
    ) as web:
        mine, json_type = "https://app.example", "application/json"
        cases = [
            ({"Host": "evil.example"}, 403),
            ({"Origin": "http://evil.example", "Content_Type": json_type}, 403),
            ({"Origin": mine, "Content_Type": "text/plain"}, 415),
            ({"Origin": mine, "Content_Type": json_type}, 200),
            ({"Content_Type": "application/x-www-form-urlencoded"}, 200),
        ]
        for headers, status in cases:
            response = web.ask("POST", "/count", b"{}", **headers)
            assert response.status == status
            allowed = mine if headers.get("Origin") == mine else None
            assert response.header("access-control-allow-origin") == allowed
        assert len(calls) == 2
        assert web.ask("OPTIONS", "/count", Origin="http://evil.example").status == 403


def test_an_unexpected_error_is_a_plain_500_and_one_log_line(caplog):
    def broken(exchange):
        raise KeyError("secret")

    with web_server({("GET", "/broken"): broken}) as web, web.connect() as client:
        response = client.request("GET", "/broken")
        assert response.status == 500
        assert b"secret" not in response.body and b"Traceback" not in response.body
        assert client.request("GET", "/health").status == 200
    records = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [record.getMessage() for record in records] == [
        f"unexpected error in {response.header('x-request-id')}"
    ]


def test_an_error_in_describing_an_error_still_ends_in_a_reply(caplog):
    def describe(error):
        raise RuntimeError("no")

    with web_server(describe_error=describe) as web:
        assert web.ask("GET", "/nowhere").status == 500


def test_a_client_that_left_before_its_refusal_is_no_error(monkeypatch, caplog):
    def gone(wire, data):
        raise ClientGone

    monkeypatch.setattr(Wire, "send_all", gone)
    with web_server() as web:
        for data in (b"nonsense\r\n\r\n", request_bytes("GET", "/nowhere")):
            with web.connect() as client:
                client.send(data)
                assert client.read_to_end() == b""
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_no_line_of_the_log_holds_a_key_a_query_or_a_raw_control_character(caplog):
    """G07 G11"""
    caplog.set_level(logging.DEBUG)
    with web_server(api_keys=("sk-secret",)) as web:
        web.ask("GET", "/echo?prompt=private", X_Api_Key="sk-secret")
        web.ask("GET", "/echo?api_key=sk-secret", Authorization="Bearer sk-secret2")
        web.ask("GET", "/%c2%9b31m%e2%80%ae")
    lines = [record.getMessage() for record in caplog.records]
    assert len([line for line in lines if " GET /" in line]) == 3
    assert not [line for line in lines if "secret" in line or "private" in line]
    assert all(line.isascii() and line.isprintable() for line in lines)


def test_a_handler_that_forgets_to_answer_is_a_500(caplog):
    with web_server({("GET", "/nothing"): lambda exchange: None}) as web:
        assert web.ask("GET", "/nothing").status == 500


def test_the_body_budget_is_shared_refused_and_given_back():
    """C10"""
    inside, may_end = threading.Semaphore(0), threading.Event()

    def hold(exchange):
        inside.release()
        may_end.wait(5)
        exchange.reply_json({})

    with web_server({("POST", "/hold"): hold}, body_budget_bytes=100_000) as web:
        holder = threading.Thread(target=web.ask, args=("POST", "/hold", b"x" * 80_000))
        holder.start()
        inside.acquire()
        refused = web.ask("POST", "/echo", b"x" * 30_000)
        assert (refused.status, refused.error["type"]) == (503, "overloaded_error")
        assert refused.header("retry-after")
        assert web.ask("POST", "/echo", b"x" * 10_000).status == 200
        may_end.set()
        holder.join()
        wait_until(lambda: web.ask("POST", "/echo", b"x" * 30_000).status == 200)


@pytest.mark.parametrize("n_bytes", [0, 1, 16 << 20])
def test_a_body_of_up_to_16_mib_is_read(web, n_bytes):
    """C09"""
    assert web.ask("POST", "/echo", b"x" * n_bytes).json()["n"] == n_bytes


def test_one_byte_more_is_refused_before_it_is_read(web):
    """C09"""
    start = time.monotonic()
    assert only_answer(web, post(b"Content-Length: %d" % ((16 << 20) + 1))) == 413
    assert time.monotonic() - start < 2
