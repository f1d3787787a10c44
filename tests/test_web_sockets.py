"""Addresses, sockets of systemd, Unix sockets, IPv6 and TLS."""

from __future__ import annotations

import os
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from web_client import Client, request_bytes, wait_until, web_server

from libloader.errors import StartError, UsageError
from libloader.web import events, sockets
from libloader.web.server import Server
from libloader.web.settings import WebSettings

CERT = Path(__file__).parent / "data" / "localhost.pem"  # its key is for tests only

needs_ipv6 = pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
needs_unix = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080),
        ("[::1]:8080", "::1", 8080),
        ("[::]:0", "::", 0),
        ("localhost:80", "127.0.0.1", 80),
        (":80", "0.0.0.0", 80),
        ("box.lan:80", "box.lan", 80),
        ("unix:/run/a:b.sock", "/run/a:b.sock", -1),
    ],
)
def test_an_address_is_read_as_a_person_writes_it(text, host, port):
    """B16"""
    assert sockets.parse_address(text) == (host, port)


@pytest.mark.parametrize(
    "text", ["localhost", "1.2.3.4:http", "1.2.3.4:65536", "[::1]:٨٠", "[::1]"]
)
def test_another_text_is_a_usage_error(text):
    with pytest.raises(UsageError):
        sockets.parse_address(text)


def test_nothing_is_looked_up(monkeypatch):
    """B17: neither at bind nor for a peer."""

    def look_up(*_: object) -> None:
        raise AssertionError("a name was looked up")

    for name in ("getaddrinfo", "getfqdn", "gethostbyaddr", "gethostbyname"):
        monkeypatch.setattr(socket, name, look_up)
    with web_server(addresses=("localhost:0",)) as web:
        assert web.ask("GET", "/health").status == 200


def test_the_url_says_what_was_bound():
    with web_server() as web:
        assert web.server.urls == [f"http://127.0.0.1:{web.port}"]
        assert web.port > 0


def test_a_taken_port_is_a_start_error_that_names_it():
    """B15"""
    with web_server() as web:
        address = f"127.0.0.1:{web.port}"
        with pytest.raises(StartError, match=f"cannot listen on {address}"):
            Server([address], {})


def test_a_port_can_be_bound_again_at_once():
    """B15"""
    with web_server() as web:
        port = web.port
        with web.connect() as client:
            assert client.request("GET", "/health").status == 200
    with web_server(addresses=(f"127.0.0.1:{port}",)) as web:
        assert web.ask("GET", "/health").status == 200


def test_one_address_that_fails_leaves_no_other_bound():
    with web_server() as taken:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with pytest.raises(StartError):
            Server([f"127.0.0.1:{port}", f"127.0.0.1:{taken.port}"], {})
        with web_server(addresses=(f"127.0.0.1:{port}",)) as web:
            assert web.ask("GET", "/health").status == 200


@needs_ipv6
def test_ipv6_is_served_and_its_host_is_known():
    """B16"""
    with web_server(addresses=("[::1]:0",), cors_origins=("https://app.example",)) as web:
        assert web.server.urls == [f"http://[::1]:{web.port}"]
        with Client(("::1", web.port)) as client:
            host = {"Host": f"[::1]:{web.port}"}
            assert client.request("GET", "/health", headers=host).status == 200


@needs_ipv6
def test_the_ipv6_wildcard_serves_ipv4_too():
    """B16"""
    with web_server(addresses=("[::]:0",)) as web:
        assert web.ask("GET", "/health").status == 200
        with Client(("::1", web.port)) as client:
            assert client.request("GET", "/health").status == 200


@needs_ipv6
def test_both_wildcards_may_be_given_together():
    """B16"""
    with web_server(addresses=("0.0.0.0:0",)) as web:
        port = web.port
    with web_server(addresses=(f"0.0.0.0:{port}", f"[::]:{port}")) as web:
        assert web.ask("GET", "/health").status == 200


@needs_unix
def test_a_unix_socket_is_served_kept_private_and_removed(tmp_path):
    """B16"""
    path = str(tmp_path / "igllama.sock")
    with web_server(addresses=(f"unix:{path}", "127.0.0.1:0")) as web:
        assert web.server.urls[0] == f"unix:{path}"
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
        with Client(path) as client:
            assert client.request("GET", "/health").status == 200
        assert web.ask("GET", "/health").status == 200
    assert not os.path.exists(path)


@needs_unix
def test_a_stale_socket_file_is_replaced_and_a_live_one_or_another_file_is_not(tmp_path):
    """B15"""
    stale, plain = str(tmp_path / "stale"), tmp_path / "plain"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(stale)
    plain.write_text("keep me")
    with web_server(addresses=(f"unix:{stale}",)):
        with pytest.raises(StartError):
            Server([f"unix:{stale}"], {})
        with Client(stale) as client:
            assert client.request("GET", "/health").status == 200
    with pytest.raises(StartError):
        Server([f"unix:{plain}"], {})
    assert plain.read_text() == "keep me"


def test_a_socket_that_is_bound_already_is_served():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        with web_server(addresses=(sock,)) as web:
            assert web.ask("GET", "/health").status == 200


def test_sockets_of_systemd_are_taken_only_when_meant_for_this_process(monkeypatch):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        passed = os.dup(sock.fileno())
    monkeypatch.setattr(sockets, "_FIRST_INHERITED_FD", passed)
    other = {"LISTEN_PID": "1", "LISTEN_FDS": "1"}
    assert sockets.inherited_sockets(other) == []
    assert sockets.inherited_sockets({}) == []
    ours = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "http"}
    found = sockets.inherited_sockets(ours)
    assert ours == {} and other == {}
    assert not os.get_inheritable(found[0].fileno())
    with web_server(addresses=tuple(found)) as web:
        assert web.port == port
        assert web.ask("GET", "/health").status == 200


def test_a_socket_of_systemd_listens_on_for_the_next_server():
    """Closing must not shut it down: systemd holds it, and hands it to the successor."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        for _ in range(2):
            with web_server(addresses=(held.dup(),)) as web:
                assert web.ask("GET", "/health").status == 200


def test_without_the_ssl_module_plain_http_works_and_tls_is_a_start_error(tmp_path):
    code = """
import sys
sys.modules["ssl"] = None
from libloader.errors import StartError
from libloader.web.server import Server
from libloader.web.settings import WebSettings
Server(["127.0.0.1:0"], {}).close()
try:
    Server(["127.0.0.1:0"], {}, WebSettings(ssl_cert_file="x.pem"))
except StartError as error:
    print(error)
"""
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert "without the ssl module" in done.stdout, done.stderr


def tls(sock: socket.socket) -> socket.socket:
    context = ssl.create_default_context(cafile=str(CERT))
    return context.wrap_socket(sock, server_hostname="localhost")


@pytest.fixture
def secure():
    gone = threading.Event()

    def stream(exchange):
        exchange.on_gone(gone.set)
        answer = exchange.open_stream()
        for number in range(int(exchange.query.get("n", "1"))):
            answer.offer(events.sse(b"%d " % number + b"x" * 100_000))
        if exchange.query.get("end"):
            answer.finish(events.DONE)
        answer.wait()

    routes = {("GET", "/stream"): stream}
    settings = {"ssl_cert_file": str(CERT), "handshake_s": 0.3, "head_s": 0.5}
    with web_server(routes, **settings) as web:
        web.gone = gone
        yield web


def test_tls_serves_requests_bodies_and_streams(secure):
    assert secure.server.urls[0].startswith("https://")
    with secure.connect(wrap=tls) as client:
        assert client.request("GET", "/health").status == 200
        assert client.request("POST", "/echo", b"x" * 300_000).json()["n"] == 300_000
        response = client.request("GET", "/stream?end=1")
        assert response.complete and response.body.endswith(events.DONE)
        client.send(request_bytes("GET", "/health") * 5)
        assert [client.response().status for _ in range(5)] == [200] * 5


def test_a_slow_tls_reader_gets_every_byte(secure):
    """The backlog is handed to a TLS socket again and again until it is taken."""
    with secure.connect(wrap=tls, receive_buffer=2048) as client:
        client.send(request_bytes("GET", "/stream?n=9&end=1"))
        wait_until(lambda: secure.figure("n_watched") == 1)
        time.sleep(0.1)
        response = client.response()
    assert response.complete
    numbers = [line.split()[1] for line in response.body.splitlines() if b" x" in line]
    assert numbers == [b"%d" % number for number in range(9)]


@pytest.mark.parametrize("polite", [True, False])
def test_a_tls_client_that_leaves_is_noticed(secure, polite):
    """B06"""
    client = secure.connect(wrap=tls)
    client.send(request_bytes("GET", "/stream"))
    client.read_until(b"\r\n\r\n")
    if polite:
        client.sock.setblocking(False)
        with pytest.raises((ssl.SSLWantReadError, ssl.SSLError)):
            client.sock.unwrap()
    client.close()
    assert secure.gone.wait(5)
    wait_until(lambda: secure.figure("n_connections") == 0)


def test_a_refusal_arrives_over_tls_too(secure):
    """A18"""
    with secure.connect(wrap=tls) as client:
        client.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 99000000\r\n\r\n")
        assert client.response().status == 413


def test_plain_http_on_the_tls_port_and_silence_end_without_harm(secure, caplog):
    """A12: the handshake happens in the connection's own thread, under a deadline."""
    with secure.connect() as plain, secure.connect() as silent:
        plain.send(request_bytes("GET", "/health"))
        start = time.monotonic()
        with secure.connect(wrap=tls) as client:
            assert client.request("GET", "/health").status == 200
        assert time.monotonic() - start < 0.3
        assert b"HTTP/" not in plain.read_to_end()
        assert silent.read_to_end() == b""
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_bad_certificate_is_a_start_error(tmp_path):
    broken = tmp_path / "broken.pem"
    broken.write_text("nothing")
    for path in (str(broken), str(tmp_path / "missing.pem")):
        with pytest.raises(StartError, match="TLS"):
            Server(["127.0.0.1:0"], {}, WebSettings(ssl_cert_file=path))


@pytest.mark.skipif(sys.platform == "win32", reason="SO_EXCLUSIVEADDRUSE is used there")
def test_an_accepted_connection_is_not_inherited_by_a_child():
    """H07, the web layer's part: children get no client's socket."""
    seen = []
    routes = {("GET", "/fd"): lambda exchange: exchange.reply_json({})}
    with web_server(routes) as web, web.connect() as client:
        assert client.request("GET", "/fd").status == 200
        for name in os.listdir("/proc/self/fd"):
            try:
                if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                    seen.append(os.get_inheritable(int(name)))
            except OSError:
                continue
    assert seen and not any(seen)
