"""The head of an answer, to bytes. No I/O.

Law: whatever text ends up in a header field, the head stays one head: control characters become
blanks, other non-ASCII characters are written as backslash escapes, and a value is cut at 4 KiB.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from email.utils import formatdate
from http.client import responses as _PHRASES

_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_MAX_VALUE_CHARS = 4096
SERVER = "igllama"  # without a version: what runs here is nobody's business

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def encode_head(status: int, minor: int, fields: Iterable[tuple[str, str]]) -> bytes:
    """Return a whole head, blank line included, for a client that speaks HTTP/1.`minor`."""
    lines = [f"HTTP/1.{minor} {status} {_PHRASES.get(status, 'Unknown')}"]
    lines += [f"Date: {_date(int(time.time()))}", f"Server: {SERVER}"]
    lines += [f"{name}: {clean_value(value)}" for name, value in fields if _checked(name)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def clean_value(value: str) -> str:
    """Return `value` as one line of ASCII."""
    safe = _CONTROLS.sub(" ", value[:_MAX_VALUE_CHARS]).encode("ascii", "backslashreplace")
    return safe[:_MAX_VALUE_CHARS].decode("ascii")


def _checked(name: str) -> bool:
    assert _NAME.fullmatch(name), f"not a header name: {name!r}"
    return True


_last_date = (0, "")


def _date(now_s: int) -> str:
    """Return the Date field's value, formatted once a second."""
    global _last_date
    if _last_date[0] != now_s:
        _last_date = (now_s, formatdate(now_s, usegmt=True))
    return _last_date[1]
