"""Bytes to the head of a request, strictly. No I/O: feed a buffer, take a Head or a refusal.

Laws (RFC 9110 and 9112, with every leniency refused, because two servers that read one message
differently are how requests are smuggled):
- Lines end in CRLF; a bare CR, a bare LF, a NUL, a folded line, a space before the colon are 400.
- The body's framing is Content-Length (digits only, once) or `Transfer-Encoding: chunked`
  (HTTP/1.1 only), never both. int() sees only what a pattern of ASCII digits has allowed.
- A head is bounded while it arrives, not once it is complete.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote_to_bytes

from libloader.web.problems import HttpProblem, bad_request
from libloader.web.settings import WebSettings

_TOKEN_CHARS = rb"!#$%&'*+\-.^_`|~0-9A-Za-z"
_METHOD = re.compile(rb"[%b]{1,32}" % _TOKEN_CHARS)
# One class for the value, stripped afterwards: a pattern for the blanks around it would backtrack.
_FIELD = re.compile(rb"([%b]+):([\t\x20-\x7e\x80-\xff]*)" % _TOKEN_CHARS)
_TARGET = re.compile(rb"[\x21\x22\x24-\x7e]+")  # visible ASCII without '#'
_VERSION = re.compile(rb"HTTP/([0-9])\.([0-9])")
_ABSOLUTE = re.compile(r"https?://([^/?]+)([/?].*)?", re.IGNORECASE)
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._\-]{1,255})(?::([0-9]{1,5}))?")
_LENGTH = re.compile(r"[0-9]{1,12}")
_MAX_QUERY_FIELDS = 100
_METHODS_WITH_BODY = ("POST", "PUT", "PATCH")


class Headers:
    """Header fields in order; names without case. Values are latin-1 text without edge blanks."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Sequence[tuple[str, str]] = ()) -> None:
        self._fields = tuple((name.lower(), value) for name, value in fields)

    def get(self, name: str, default: str = "") -> str:
        """Return the first value, or `default`."""
        wanted = name.lower()
        return next((value for key, value in self._fields if key == wanted), default)

    def get_all(self, name: str) -> list[str]:
        wanted = name.lower()
        return [value for key, value in self._fields if key == wanted]

    def tokens(self, name: str) -> list[str]:
        """Return the members of a comma-separated list over all its fields, in lower case."""
        parts = ",".join(self.get_all(name)).split(",")
        return [part.strip().lower() for part in parts if part.strip()]

    def __contains__(self, name: str) -> bool:
        return name.lower() in (key for key, _ in self._fields)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._fields)


class Head(NamedTuple):
    """A request without its body."""

    method: str
    path: str  # percent-decoded UTF-8, without the query
    query: dict[str, str]
    minor: int  # of HTTP/1.x: 0 or 1
    headers: Headers
    host: str  # as sent, with its port; "" from an HTTP/1.0 client without one
    length: int | None  # of the body; None = chunked
    keep_alive: bool
    wants_continue: bool


class HeadReader:
    """Takes heads from a buffer into which bytes arrive in any pieces."""

    def __init__(self, settings: WebSettings) -> None:
        self._settings = settings
        self._seen = 0  # [0, _seen) of the buffer are whole lines of the head, all within limits
        self._may_skip = True  # RFC 9112 2.2: one stray CRLF after a body is ignored

    def take(self, buffer: bytearray) -> Head | None:
        """Remove a complete head from `buffer` and return it; None = more bytes are needed."""
        if self._may_skip and self._seen == 0 and buffer.startswith(b"\r\n"):
            del buffer[:2]
            self._may_skip = False
        self._refuse_other_protocols(buffer)
        while True:
            end = buffer.find(b"\n", self._seen)
            self._check_line((len(buffer) if end < 0 else end) - 1)
            if end < 0:
                return None
            if buffer[end - 1 : end] != b"\r":
                raise bad_request("a line of the head does not end in CR LF")
            is_last, self._seen = end == self._seen + 1, end + 1
            if is_last:
                return self._take_lines(buffer)

    def _refuse_other_protocols(self, buffer: bytearray) -> None:
        """Refuse at the first byte what can never become a request, such as a TLS hello."""
        if self._seen == 0 and buffer and not _METHOD.match(buffer) and buffer != b"\r":
            raise bad_request("this is not an HTTP request")

    def _check_line(self, end: int) -> None:
        """Check a line that ends, or has come so far, at `end`; its CR does not count."""
        limits = self._settings
        if end - self._seen > limits.line_bytes:
            if self._seen == 0:
                raise HttpProblem(414, f"the request line is longer than {limits.line_bytes} bytes")
            raise HttpProblem(431, f"a header line is longer than {limits.line_bytes} bytes")
        if end > limits.head_bytes:
            raise HttpProblem(431, f"the headers are longer than {limits.head_bytes} bytes")

    def _take_lines(self, buffer: bytearray) -> Head:
        lines = bytes(buffer[: self._seen - 4]).split(b"\r\n")
        del buffer[: self._seen]
        self._seen, self._may_skip = 0, True
        if len(lines) - 1 > self._settings.n_fields:
            raise HttpProblem(431, f"there are more than {self._settings.n_fields} header lines")
        return parse_head(lines)


def parse_head(lines: Sequence[bytes]) -> Head:
    """Parse the request line and the header lines, given without their CRLF."""
    method, target, minor = _request_line(lines[0])
    headers = Headers([parse_field(line) for line in lines[1:]])
    host = _host(headers, minor)
    path, query = _target(method, target, host)
    length = _framing(method, headers, minor)
    return Head(
        method, path, query, minor, headers, host, length,
        keep_alive=_keep_alive(headers, minor),
        wants_continue=_wants_continue(headers, minor),
    )  # fmt: skip


def parse_field(line: bytes) -> tuple[str, str]:
    """Parse one header or trailer line."""
    match = _FIELD.fullmatch(line)
    if match is None:
        raise bad_request("a header line is not `Name: value`")
    return match[1].decode("ascii"), match[2].strip(b" \t").decode("latin-1")


def _request_line(line: bytes) -> tuple[str, str, int]:
    words = line.split(b" ")
    if len(words) != 3:
        raise bad_request("the request line is not `METHOD target HTTP/1.1`")
    method, target, version = words
    if not _METHOD.fullmatch(method) or not _TARGET.fullmatch(target):
        raise bad_request("the request line contains a character that is not allowed there")
    return method.decode("ascii"), target.decode("ascii"), _minor_version(version)


def _minor_version(version: bytes) -> int:
    match = _VERSION.fullmatch(version)
    if match is None:
        raise bad_request("the request line does not end in HTTP/1.1 or HTTP/1.0")
    if match[1] != b"1" or match[2] not in (b"0", b"1"):
        raise HttpProblem(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
    return int(match[2])


def _host(headers: Headers, minor: int) -> str:
    hosts = headers.get_all("host")
    if not hosts and minor == 0:
        return ""
    if len(hosts) != 1:
        raise bad_request("exactly one Host header is needed")
    match = _HOST.fullmatch(hosts[0])
    if match is None or int(match[2] or 0) > 65535:
        raise bad_request("the Host header is not `name` or `name:port`")
    return hosts[0]


def _target(method: str, target: str, host: str) -> tuple[str, dict[str, str]]:
    """Split a target into path and query; an absolute one must name the host that Host names."""
    if target == "*" and method == "OPTIONS":
        return "*", {}
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is not None:
        if absolute[1].lower() != host.lower():
            raise bad_request("the request line and the Host header name different hosts")
        target = absolute[2] or "/"
        target = target if target.startswith("/") else "/" + target
    if not target.startswith("/"):
        raise bad_request("the request target does not begin with /")
    path, _, query = target.partition("?")
    return _decoded(path), _query(query)


def _decoded(path: str) -> str:
    if _BAD_PERCENT.search(path):
        raise bad_request("the path contains a % that is not followed by two hexadecimal digits")
    try:
        text = unquote_to_bytes(path).decode("utf-8")
    except UnicodeDecodeError:
        raise bad_request("the path is not percent-encoded UTF-8") from None
    if any(character < " " or character == "\x7f" for character in text):
        raise bad_request("the path contains a control character")
    return text


def _query(query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(
            query, keep_blank_values=True, errors="strict", max_num_fields=_MAX_QUERY_FIELDS
        )
    except ValueError:  # UnicodeDecodeError is one
        raise bad_request("the query is not percent-encoded UTF-8 of at most 100 fields") from None
    return dict(pairs)


def _framing(method: str, headers: Headers, minor: int) -> int | None:
    """Return the body's length, None for chunked."""
    lengths, codings = headers.get_all("content-length"), headers.get_all("transfer-encoding")
    if codings:
        _check_chunked(codings, bool(lengths), minor)
        return None
    if not lengths:
        if method in _METHODS_WITH_BODY:
            raise HttpProblem(411, f"{method} needs a Content-Length or chunked encoding")
        return 0
    if len(lengths) > 1:
        raise bad_request("there are two Content-Length headers")
    if _LENGTH.fullmatch(lengths[0]):
        return int(lengths[0])
    if re.fullmatch(r"[0-9]+", lengths[0]):
        raise HttpProblem(413, "the announced body is larger than any limit")
    raise bad_request("Content-Length is not a number")


def _check_chunked(codings: list[str], has_length: bool, minor: int) -> None:
    if has_length:
        raise bad_request("a request has either Content-Length or Transfer-Encoding")
    if minor == 0:
        raise bad_request("HTTP/1.0 has no Transfer-Encoding")
    if len(codings) != 1 or codings[0].lower() != "chunked":
        raise HttpProblem(501, "the only Transfer-Encoding understood is `chunked`")


def _keep_alive(headers: Headers, minor: int) -> bool:
    tokens = headers.tokens("connection")
    return "close" not in tokens and (minor == 1 or "keep-alive" in tokens)


def _wants_continue(headers: Headers, minor: int) -> bool:
    expectations = headers.tokens("expect")
    if any(expectation != "100-continue" for expectation in expectations):
        raise HttpProblem(417, "the only expectation understood is `100-continue`")
    return bool(expectations) and minor == 1
