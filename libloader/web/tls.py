"""TLS from the standard library's ssl: the one module that touches it, as some Pythons lack it."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from libloader.errors import StartError
from libloader.web.settings import WebSettings

if TYPE_CHECKING:
    import ssl
else:
    try:
        import ssl
    except ImportError:  # Python was built without OpenSSL: plain HTTP works all the same
        ssl = None

# What a non-blocking call raises when it would have to wait.
WOULD_BLOCK: tuple[type[BaseException], ...] = (BlockingIOError, InterruptedError)
if ssl is not None:
    WOULD_BLOCK += (ssl.SSLWantReadError, ssl.SSLWantWriteError)


def server_context(settings: WebSettings) -> ssl.SSLContext | None:
    """Return the context for `settings`, None without a certificate. StartError if unusable."""
    if not settings.ssl_cert_file:
        return None
    if ssl is None:
        raise StartError("TLS is not possible: this Python was built without the ssl module")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A renegotiation would make a send wait for input, which the watched phase cannot do.
    context.options |= ssl.OP_NO_RENEGOTIATION
    try:
        context.load_cert_chain(settings.ssl_cert_file, settings.ssl_key_file or None)
    except OSError as error:  # SSLError is one
        raise StartError(f"cannot use the TLS certificate or key: {error}") from None
    return context


def shake_hands(sock: socket.socket, context: ssl.SSLContext, timeout_s: float) -> socket.socket:
    """Return the TLS socket over `sock`. OSError if the client cannot, or not in time."""
    sock.settimeout(timeout_s)
    secure = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
    try:
        secure.do_handshake()
    except BaseException:
        secure.close()
        raise
    return secure


def pending(sock: socket.socket) -> int:
    """Return how many bytes a TLS socket has ready that its file descriptor does not show."""
    return sock.pending() if ssl is not None and isinstance(sock, ssl.SSLSocket) else 0


def plain_socket(sock: socket.socket) -> socket.socket:
    """Say goodbye on a TLS socket, without waiting, and return the plain one beneath it."""
    if ssl is None or not isinstance(sock, ssl.SSLSocket):
        return sock
    sock.setblocking(False)
    with suppress(OSError, ValueError):
        sock.unwrap()  # sends close_notify; the client's own is not waited for
    return socket.socket(fileno=sock.detach())
