"""API keys: who may ask, checked in constant time before a body is read.

Keys are compared as SHA-256 digests, all of them every time: neither the length of a guess, nor
where it goes wrong, nor which key is close shows in the time. A key itself is never logged.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from libloader.web.problems import HttpProblem
from libloader.web.request import Headers


class ApiKeys:
    """A set of keys; without any, everybody may ask."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(_digest(key.encode("utf-8")) for key in keys if key)

    def check(self, headers: Headers) -> str:
        """Return the name of the key that `headers` carry ("key1", ...; "" if none is needed)."""
        if not self._digests:
            return ""
        name = ""
        for candidate in _candidates(headers):
            name = self._name_of(candidate) or name
        if not name:
            raise _refusal("the API key is missing or wrong")
        return name

    def _name_of(self, candidate: bytes) -> str:
        digest, found = _digest(candidate), 0
        for number, known in enumerate(self._digests, 1):
            found = number if hmac.compare_digest(digest, known) else found
        return f"key{found}" if found else ""


def _candidates(headers: Headers) -> list[bytes]:
    """Return the keys offered: `Authorization: Bearer KEY`, `X-Api-Key: KEY`, each at most once."""
    bearers, plain = headers.get_all("authorization"), headers.get_all("x-api-key")
    if len(bearers) > 1 or len(plain) > 1:
        raise _refusal("the API key is given twice")
    schemes = [value.partition(" ") for value in bearers]
    keys = [key.strip() for scheme, _, key in schemes if scheme.lower() == "bearer"]
    # Header values are latin-1 text of the bytes that were sent; keys are compared as those bytes.
    return [key.encode("latin-1") for key in keys + plain]


def _refusal(message: str) -> HttpProblem:
    return HttpProblem(401, message, headers=(("WWW-Authenticate", "Bearer"),))


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
