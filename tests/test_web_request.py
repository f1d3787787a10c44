"""The request parser without I/O: what is taken, what is refused, and with which status."""

from __future__ import annotations

import pytest

from libloader.web.problems import HttpProblem
from libloader.web.request import Head, HeadReader
from libloader.web.settings import WebSettings

SETTINGS = WebSettings()


def read(data: bytes, settings: WebSettings = SETTINGS) -> Head | None:
    return HeadReader(settings).take(bytearray(data))


def head_of(*lines: str, start: str = "GET / HTTP/1.1") -> Head:
    text = "\r\n".join([start, "Host: localhost", *lines, "", ""])
    head = read(text.encode("latin-1"))
    assert head is not None
    return head


def status_of(data: bytes) -> int:
    """The status with which `data` is refused; 200 = a head was taken, 0 = more is wanted."""
    try:
        head = read(data)
    except HttpProblem as problem:
        return problem.status
    return 200 if head is not None else 0


def get(target: bytes = b"/", *fields: bytes, version: bytes = b"HTTP/1.1") -> bytes:
    lines = [b"GET " + target + b" " + version, b"Host: localhost", *fields, b"", b""]
    return b"\r\n".join(lines)


def post(*fields: bytes) -> bytes:
    return b"\r\n".join([b"POST / HTTP/1.1", b"Host: localhost", *fields, b"", b""])


def test_a_head_is_taken_apart():
    head = head_of("X-Thing:  a b \t", "x-thing: c", start="GET /a%20b?x=1&y= HTTP/1.1")
    assert (head.method, head.path, head.minor, head.host) == ("GET", "/a b", 1, "localhost")
    assert head.query == {"x": "1", "y": ""}
    assert head.headers.get("X-THING") == "a b"
    assert head.headers.get_all("x-thing") == ["a b", "c"]
    assert (head.length, head.keep_alive, head.wants_continue) == (0, True, False)


def test_a_head_may_arrive_byte_by_byte_and_leaves_what_follows_in_the_buffer():
    reader, buffer = HeadReader(SETTINGS), bytearray()
    data = post(b"Content-Length: 3")
    for index in range(len(data) - 1):
        buffer += data[index : index + 1]
        assert reader.take(buffer) is None
    buffer += data[-1:] + b"abc" + get()
    head = reader.take(buffer)
    assert head is not None and head.length == 3
    assert buffer == b"abc" + get()


def test_one_stray_line_end_between_requests_is_ignored_and_a_second_is_refused():
    assert status_of(b"\r\n" + get()) == 200
    assert status_of(b"\r\n\r\n" + get()) == 400
    assert status_of(b"\n" + get()) == 400


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (b"0", 200),
        (b"5", 200),
        (b" 5\t", 200),  # blanks around a value are not part of it
        (b"000000000005", 200),
        (b"+5", 400),
        (b"-1", 400),
        (b"1_0", 400),
        (b"0x10", 400),
        (b"5,5", 400),
        (b"5 5", 400),
        (b"", 400),
        (b"5.0", 400),
        ("٥".encode(), 400),  # ARABIC-INDIC DIGIT FIVE: int() would take it
        (b"\xb2", 400),  # superscript two in latin-1
        (b"9" * 13, 413),
        (b"9" * 20, 413),
        (b"9" * 5000, 413),
    ],
)
def test_content_length_is_ascii_digits_or_refused(value, status):
    """A03"""
    assert status_of(post(b"Content-Length: " + value)) == status


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ((b"Transfer-Encoding: chunked",), 200),
        ((b"transfer-encoding: CHUNKED",), 200),
        ((b"Content-Length: 5", b"Transfer-Encoding: chunked"), 400),
        ((b"Transfer-Encoding: chunked", b"Content-Length: 0"), 400),
        ((b"Content-Length: 0", b"Content-Length: 9"), 400),
        ((b"Content-Length: 9", b"content-length: 0"), 400),
        ((b"Content-Length: 9", b"Content-Length: 9"), 400),
        ((b"Transfer-Encoding: xchunked",), 501),
        ((b"Transfer-Encoding: gzip, chunked",), 501),
        ((b"Transfer-Encoding: chunked, chunked",), 501),
        ((b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), 501),
        ((b"Transfer-Encoding: identity",), 501),
        ((b"Transfer-Encoding:",), 501),
        ((b"Transfer-Encoding: \x0bchunked",), 400),
        ((b"Transfer-Encoding: chunked\x0b",), 400),
        ((b"Transfer-Encoding : chunked",), 400),
        ((b"Transfer-Encoding\t: chunked",), 400),
        ((b"X: y", b" Transfer-Encoding: chunked"), 400),
        ((), 411),
    ],
)
def test_a_body_has_one_unmistakable_framing_or_the_request_is_refused(fields, status):
    """A01 A02 A04"""
    assert status_of(post(*fields)) == status


def test_chunked_encoding_in_http_1_0_is_refused():
    """A04"""
    assert status_of(get(b"/", b"Transfer-Encoding: chunked", version=b"HTTP/1.0")) == 400


@pytest.mark.parametrize(
    "field",
    [
        b"Name : value",
        b"Name\t: value",
        b" Name: value",
        b"\tfolded",
        b"no colon",
        b": empty name",
        b"N\xe4me: value",
        b"Na me: value",
        b"Na(me: value",
        b"Name: a\rb",
        b"Name: a\x00b",
        b"Name: a\x7fb",
        b"Name: \x1b[31m",
        b"Na\rme: value",
        b"Name: value\r",
    ],
)
def test_a_malformed_header_line_is_refused(field):
    """A08"""
    assert status_of(get(b"/", field)) == 400


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\nHost: localhost\n\n",
        b"GET / HTTP/1.1\r\nHost: localhost\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\r\n\r\n",
        b"GET / HTTP/1.1\rHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: y\n\r\n",
    ],
)
def test_a_bare_cr_or_lf_ends_no_line(data):
    """A08"""
    assert status_of(data) == 400


def test_other_bytes_than_ascii_in_a_value_are_latin_1_text():
    head = head_of("X: caf\xe9")
    assert head.headers.get("x") == "caf\xe9"


def test_a_value_of_blanks_takes_no_time():
    """A pattern with two ways to match a blank needs 8,192 squared steps for this line."""
    assert status_of(get(b"/", b"X:" + b" " * 8000 + b"\x00")) == 400


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (get(b"/", *[b"X: y"] * 99), 200),
        (get(b"/", *[b"X: y"] * 100), 431),
        (get(b"/", b"X: " + b"y" * (8192 - 3)), 200),
        (get(b"/", b"X: " + b"y" * (8193 - 3)), 431),
        (get(b"/", *[b"X: " + b"y" * 8000] * 4), 200),
        (get(b"/", *[b"X: " + b"y" * 8180] * 4), 431),
        (get(b"/" + b"a" * 8193), 414),
        (b"GET /" + b"a" * 9000, 414),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 9000, 431),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 7000, 431),
    ],
)
def test_a_head_is_bounded_also_before_it_is_complete(data, status):
    """A09 A10"""
    assert status_of(data) == status


def test_a_line_of_just_the_limit_may_be_cut_before_its_line_feed():
    """A09"""
    line = b"X: " + b"y" * (8192 - 3)
    assert status_of(b"GET / HTTP/1.1\r\n" + line + b"\r") == 0


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"/a\x00b", 400),
        (b"/a b", 400),
        (b"/a#b", 400),
        (b"/a\x80b", 400),
        (b"/a\tb", 400),
        (b"a", 400),
        (b"*", 400),
        (b"localhost:80", 400),
        (b"http://localhost/a", 200),
        (b"HTTP://LOCALHOST?x", 200),
        (b"http://other/a", 400),
        (b"http://user@localhost/a", 400),
        (b"//x", 200),  # a path that no route has
        (b"/%00", 400),
        (b"/%0d%0a", 400),
        (b"/%7f", 400),
        (b"/%", 400),
        (b"/%4", 400),
        (b"/%zz", 400),
        (b"/%ff", 400),
        (b"/%c3%a9", 200),
        (b"/?a=%ff", 400),
        (b"/?" + b"a=1&" * 101, 400),
    ],
)
def test_a_target_is_a_path_of_visible_ascii_and_utf_8(target, status):
    """A10"""
    assert status_of(get(target)) == status


def test_an_absolute_target_names_path_and_query():
    """A10"""
    head = read(get(b"http://LocalHost/v1/models?x=1"))
    assert head is not None and (head.path, head.query) == ("/v1/models", {"x": "1"})


def test_the_asterisk_is_a_target_of_options_only():
    """A10"""
    head = head_of(start="OPTIONS * HTTP/1.1")
    assert head.path == "*"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ((b"Host: localhost",), 200),
        ((b"Host: localhost:8080",), 200),
        ((b"Host: a_b-c.example.",), 200),
        ((b"Host: [::1]:8080",), 200),
        ((b"Host: 127.0.0.1",), 200),
        ((), 400),
        ((b"Host: a", b"Host: b"), 400),
        ((b"Host: a", b"Host: a"), 400),
        ((b"Host:",), 400),
        ((b"Host: user@localhost",), 400),
        ((b"Host: localhost:99999",), 400),
        ((b"Host: localhost:",), 400),
        ((b"Host: localhost:+80",), 400),
        ((b"Host: a b",), 400),
        ((b"Host: a/b",), 400),
        ((b"Host: a, b",), 400),
        ((b"Host: [::1",), 400),
        ((b"Host: " + b"a" * 256,), 400),
    ],
)
def test_exactly_one_well_formed_host_is_needed(fields, status):
    """A11"""
    assert status_of(b"\r\n".join([b"GET / HTTP/1.1", *fields, b"", b""])) == status


def test_http_1_0_needs_no_host_but_not_two():
    """A11"""
    assert status_of(b"GET / HTTP/1.0\r\n\r\n") == 200
    assert status_of(b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n") == 400


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /\r\n\r\n", 400),
        (get(version=b"HTTP/1.9"), 505),
        (get(version=b"HTTP/0.9"), 505),
        (get(version=b"HTTP/2.0"), 505),
        (get(version=b"HTTP/1.1.1"), 400),
        (get(version=b"HTTP/11.1"), 400),
        (get(version=b"HTTP/1.1 "), 400),
        (get(version=b"http/1.1"), 400),
        (get(version=b"HTTP/+1.1"), 400),
        (get(version="HTTP/1.١".encode()), 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"\x16\x03\x01", 400),  # a TLS hello is refused at its first byte
        (b"\x00", 400),
        (b"  GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\n\r\n", 400),
        (b"G\xcbT / HTTP/1.1\r\n\r\n", 400),
        (b"M" * 33 + b" / HTTP/1.1\r\n\r\n", 400),
        (b"", 0),
        (b"\r", 0),
        (b"\r\n", 0),
    ],
)
def test_only_http_1_1_and_1_0_are_spoken(data, status):
    """A12"""
    assert status_of(data) == status


@pytest.mark.parametrize(
    ("version", "connection", "keep_alive"),
    [
        ("1.1", None, True),
        ("1.1", "close", False),
        ("1.1", "Close", False),
        ("1.1", "keep-alive", True),
        ("1.1", "close, TE", False),
        ("1.1", "TE,\tCLOSE", False),
        ("1.1", "closet", True),
        ("1.0", None, False),
        ("1.0", "Keep-Alive", True),
        ("1.0", "keep-alive, close", False),
    ],
)
def test_connection_is_a_list_of_tokens(version, connection, keep_alive):
    """A15"""
    lines = [f"Connection: {connection}"] if connection else []
    assert head_of(*lines, start=f"GET / HTTP/{version}").keep_alive is keep_alive


def test_an_expectation_is_100_continue_or_refused():
    """A13"""
    assert head_of("Expect: 100-Continue").wants_continue
    assert not head_of("Expect: 100-continue", start="GET / HTTP/1.0").wants_continue
    assert status_of(get(b"/", b"Expect: x")) == 417
    assert status_of(get(b"/", b"Expect: 100-continue, x")) == 417
