"""Which web pages may talk to this server: CORS, and the Host check behind it.

With "*" (the default) every page may, as the documentation promises, and any Host is served. With a
list, a page of another origin and a request under a foreign host name (DNS rebinding) are refused
before anything is queued, and JSON from a page must be declared as JSON: a form post, which a
browser sends without asking first, never gets in. Access-Control-Allow-Credentials is never sent.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from libloader.web.problems import Fields, HttpProblem
from libloader.web.request import Head

_COMMON: Fields = (
    ("Access-Control-Allow-Methods", "GET, POST, OPTIONS"),
    # The wildcard does not cover Authorization (Fetch standard, "CORS-preflight fetch").
    ("Access-Control-Allow-Headers", "Content-Type, Authorization, X-Api-Key, Prefer, *"),
    ("Access-Control-Expose-Headers", "X-Request-Id, Retry-After, *"),
)
PREFLIGHT: Fields = (("Access-Control-Max-Age", "86400"),)


class Origins:
    """The rule for one server. `bound_hosts` are the names that its listeners were given."""

    def __init__(
        self,
        cors_origins: Iterable[str],
        allowed_hosts: Iterable[str] = (),
        bound_hosts: Iterable[str] = (),
    ) -> None:
        self._origins = {_plain_origin(origin) for origin in cors_origins}
        self._any = "*" in self._origins
        named = {_plain_host(host) for host in allowed_hosts}
        self._check_hosts = bool(named) or not self._any
        self._hosts = named | {_plain_host(host) for host in bound_hosts} | {"localhost"}

    def fields(self, origin: str, host: str) -> Fields:
        """Return the CORS header fields of any answer to a request with these two headers."""
        if self._any:
            return (("Access-Control-Allow-Origin", "*"), *_COMMON)
        vary = ("Vary", "Origin")
        if origin and self._is_allowed(origin, host):
            return (("Access-Control-Allow-Origin", origin), vary, *_COMMON)
        return (vary,)

    def check(self, head: Head) -> None:
        """Raise 403 for a foreign Host or Origin, 415 for a page's body that is not JSON."""
        if self._check_hosts and not self._is_ours(head.host):
            raise HttpProblem(
                403, "this server does not go by that Host name", code="host_forbidden"
            )
        origin = head.headers.get("origin")
        if self._any or not origin:
            return
        if len(head.headers.get_all("origin")) > 1 or not self._is_allowed(origin, head.host):
            raise HttpProblem(403, "pages of this origin may not ask here", code="origin_forbidden")
        self._check_content_type(head)

    def _check_content_type(self, head: Head) -> None:
        content_type = head.headers.get("content-type").partition(";")[0].strip().lower()
        if head.length != 0 and content_type != "application/json":
            raise HttpProblem(415, "a web page must send its JSON as application/json")

    def _is_allowed(self, origin: str, host: str) -> bool:
        plain = _plain_origin(origin)
        own = {f"http://{host.lower()}", f"https://{host.lower()}"} if host else set()
        return plain in self._origins or (plain in own and self._is_ours(host))

    def _is_ours(self, host: str) -> bool:
        """An IP literal cannot be rebound; no Host at all comes from no browser."""
        plain = _plain_host(host)
        return not plain or plain in self._hosts or _is_ip(plain)


def _plain_origin(origin: str) -> str:
    return origin.strip().rstrip("/").lower()


def _plain_host(host: str) -> str:
    """Return a host in lower case without port, brackets and the root's dot."""
    name = host.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    name, _, _ = name.partition(":") if name.count(":") == 1 else (name, "", "")
    return name[:-1] if name.endswith(".") else name


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def bound_names(hosts: Iterable[str]) -> tuple[str, ...]:
    """Return those of the listeners' hosts that are names; a wildcard address is none."""
    return tuple(host for host in hosts if host and not _is_ip(_plain_host(host)))
