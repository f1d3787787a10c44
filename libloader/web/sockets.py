"""Listening sockets: from addresses as a person writes them, or inherited from systemd.

127.0.0.1:8080    [::1]:8080    [::]:8080 (IPv6, and IPv4 unless an IPv4 address is given too)
localhost:8080 (no look-up)    name:8080 (the only name look-up: the operator asked for it)
unix:/path.sock
"""

from __future__ import annotations

import os
import socket
import stat
import sys
from collections.abc import MutableMapping, Sequence
from contextlib import suppress
from typing import NamedTuple, Union

try:
    import resource
except ImportError:  # Windows, whose sockets are no files
    resource = None  # type: ignore[assignment]

from libloader.errors import StartError, UsageError
from libloader.web.settings import WebSettings

_OTHER_FILES = 64  # pipes, listeners, logs, the selector
_FIRST_INHERITED_FD = 3  # sd_listen_fds(3)
_LOCAL = {"localhost": "127.0.0.1", "": "0.0.0.0", "*": "0.0.0.0"}

AnyAddress = Union[str, socket.socket]


class Address(NamedTuple):
    """`host` is a path if `port` is -1."""

    host: str
    port: int

    @property
    def is_unix(self) -> bool:
        return self.port < 0


def parse_address(text: str) -> Address:
    if text.startswith("unix:"):
        return Address(text[len("unix:") :], -1)
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"{text}: an address is HOST:PORT, [IPV6]:PORT or unix:/path.sock")
    return Address(_LOCAL.get(host, host), int(port))


def allow_connections(wanted: int) -> int:
    """Raise this process's limit of open files for `wanted` connections; return how many fit."""
    if resource is None:
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with suppress(OSError, ValueError):  # macOS has a limit of its own below the hard one
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    return wanted if soft == resource.RLIM_INFINITY else max(16, min(wanted, soft - _OTHER_FILES))


class Listening(NamedTuple):
    sock: socket.socket
    is_ours: bool  # bound here; False = given to us, and left as it is for whoever comes after


def listen(texts: Sequence[AnyAddress], settings: WebSettings) -> list[Listening]:
    """Bind and listen on every address, or on none: StartError names the one that failed."""
    addresses = [parse_address(text) for text in texts if isinstance(text, str)]
    has_ipv4 = any(":" not in address.host for address in addresses if not address.is_unix)
    found: list[Listening] = []
    try:
        for text in texts:
            sock = _listen_one(text, settings, v6_only=has_ipv4)
            found.append(Listening(sock, isinstance(text, str)))
    except BaseException:
        for listening in found:
            close(listening)
        raise
    return found


def inherited_sockets(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """Take over the sockets of systemd's socket activation; empty without it.

    The variables are removed, so that the engine child does not think they are meant for it.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    fds = range(_FIRST_INHERITED_FD, _FIRST_INHERITED_FD + int(count))
    sockets = [socket.socket(fileno=fd) for fd in fds]
    for sock in sockets:
        sock.set_inheritable(False)
    return sockets


def url_of(sock: socket.socket, tls: bool) -> str:
    """Return the URL under which a listening socket is reached, as bound."""
    name = sock.getsockname()
    if not isinstance(name, tuple):
        return f"unix:{name}"
    host, port = str(name[0]), name[1]
    host = f"[{host}]" if ":" in host else host
    return f"{'https' if tls else 'http'}://{host}:{port}"


def wake(listening: Listening) -> None:
    """Make a thread that waits for connections look up, where the system allows it."""
    if listening.is_ours:  # systemd's socket would stop listening for our successor as well
        with suppress(OSError):
            listening.sock.shutdown(socket.SHUT_RDWR)


def close(listening: Listening) -> None:
    """Close the socket, and remove its file if it is a Unix socket of ours."""
    if listening.is_ours and _is_unix(listening.sock):
        with suppress(OSError):
            os.unlink(listening.sock.getsockname())
    listening.sock.close()


def _listen_one(text: AnyAddress, settings: WebSettings, v6_only: bool) -> socket.socket:
    try:
        sock = text if isinstance(text, socket.socket) else _bound(parse_address(text), v6_only)
        sock.listen(settings.n_listen_backlog)
    except OSError as error:
        raise StartError(f"cannot listen on {text}: {error.strerror or error}") from None
    sock.setblocking(False)
    return sock


def _bound(address: Address, v6_only: bool) -> socket.socket:
    if address.is_unix:
        return _bound_unix(address.host)
    family, sockaddr = _resolve(address)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        _set_reuse(sock)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(v6_only))
        sock.bind(sockaddr)
    except BaseException:
        sock.close()
        raise
    return sock


def _resolve(address: Address) -> tuple[int, tuple[object, ...]]:
    """Return family and socket address; a literal is never looked up."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):
            socket.inet_pton(family, address.host)
            return family, (address.host, address.port)
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    return found[0][0], found[0][4]


def _set_reuse(sock: socket.socket) -> None:
    """Allow a restart at once; on Windows SO_REUSEADDR would let others steal the port instead."""
    if sys.platform == "win32":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
    else:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)


def _bound_unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        sock.bind(path)
        os.chmod(path, 0o660)
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_stale(path: str) -> None:
    """Remove a socket file that nobody listens on; anything else stays and fails the bind."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)


def _is_unix(sock: socket.socket) -> bool:
    return hasattr(socket, "AF_UNIX") and sock.family == socket.AF_UNIX
