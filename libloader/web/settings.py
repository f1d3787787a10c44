"""Every limit, deadline and access rule of the HTTP layer, with its default. Names carry units."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WebSettings:
    # The head of a request: its request line, header lines and their number.
    line_bytes: int = 8 * 1024
    head_bytes: int = 32 * 1024
    n_fields: int = 100

    # Bodies: one, all that are held at once, and how finely a chunked one may be cut.
    body_bytes: int = 16 * 1024 * 1024
    body_budget_bytes: int = 256 * 1024 * 1024
    n_chunks: int = 100_000

    # What one client may leave unread, and what it may send ahead while it waits for an answer.
    backlog_bytes: int = 1024 * 1024
    ahead_bytes: int = 64 * 1024

    # Connections.
    n_connections: int = 4096  # each costs a socket; fewer if the system allows fewer files
    n_threads: int = 512  # that work on requests; the other connections wait in the lobby
    n_threads_reserved: int = 16  # more, for the public paths
    n_connections_per_ip: int = 0  # 0 = no cap
    n_requests_per_connection: int = 1000
    n_listen_backlog: int = 1024
    shed_after_s: float = 0.25  # who owes a request may be shed after this, who waits refused

    # Deadlines. A body and an answer get `..._s` plus their length over `rate_bytes_per_s`.
    handshake_s: float = 10.0
    idle_s: float = 30.0  # from one request of a connection to the next one's first byte
    head_s: float = 10.0  # the whole head; on a new connection also its first byte
    body_s: float = 10.0
    send_s: float = 30.0  # without progress, the client is taken for gone
    rate_bytes_per_s: int = 64 * 1024
    linger_s: float = 2.0  # a closing connection still swallows input, so that the answer arrives
    linger_bytes: int = 64 * 1024 * 1024
    ping_s: float = 15.0  # silence in an event stream before a comment is sent

    # Who may ask. ("*",) = any origin and any Host, as the documentation promises.
    api_keys: tuple[str, ...] = ()
    public_paths: tuple[str, ...] = ("/health",)
    cors_origins: tuple[str, ...] = ("*",)
    allowed_hosts: tuple[str, ...] = ()

    ssl_cert_file: str = ""  # PEM; "" = no TLS
    ssl_key_file: str = ""  # "" = the key is in the certificate's file
