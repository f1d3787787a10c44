"""Many connections, silent ones, slow ones, broken ones: the rest is served as if they were not."""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket
import threading
import time
from contextlib import ExitStack

import pytest
from web_client import in_threads, request_bytes, wait_until, web_server

from libloader.web import crew, server

HOST = b"Host: localhost\r\n"


def n_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def n_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[int(len(values) * share)]


class Held:
    """A route whose answers wait until `end` is set; `inside` counts the requests in it."""

    def __init__(self) -> None:
        self.end = threading.Event()
        self.inside = threading.Semaphore(0)

    def __call__(self, exchange) -> None:
        self.inside.release()
        assert self.end.wait(10)
        exchange.reply_json({})


def test_a_burst_of_connections_meets_no_error():
    """B01"""

    def ask(_: int) -> float:
        start = time.monotonic()
        assert web.ask("GET", "/health").status == 200
        return time.monotonic() - start

    with web_server() as web:
        times = in_threads(300, ask)
        assert web.figure("refused_connections") == 0
        assert web.figure("shed_connections") == 0
    assert percentile(times, 0.99) < 3, "a connection was lost and tried again by the kernel"


def test_silent_connections_are_closed_without_a_word():
    """B02"""
    with web_server(head_s=0.2) as web, ExitStack() as stack:
        clients = [stack.enter_context(web.connect()) for _ in range(30)]
        assert web.ask("GET", "/health").status == 200
        assert [client.read_to_end() for client in clients] == [b""] * 30
        wait_until(lambda: web.figure("n_connections") == 0)


def test_a_head_that_arrives_byte_by_byte_has_one_deadline():
    """B03: no byte extends it."""
    with web_server(head_s=0.3) as web, web.connect() as client:
        start = time.monotonic()
        for byte in b"GET / HTTP/1.1\r\nX-Slow: " + b"x" * 100:
            try:
                client.send(bytes([byte]))
            except OSError:
                break
            if time.monotonic() - start > 0.45:
                break
            time.sleep(0.01)
        assert client.response().status == 408
        assert client.is_closed()


@pytest.mark.parametrize("framing", [b"Content-Length: 100000", b"Transfer-Encoding: chunked"])
def test_a_body_that_stops_is_refused_in_time(framing):
    """B04"""
    with web_server(body_s=0.2) as web, web.connect() as client:
        client.send(b"POST /echo HTTP/1.1\r\n" + HOST + framing + b"\r\n\r\n1")
        response = client.response()
        assert (response.status, response.error["code"]) == (408, "request_timeout")
        assert client.is_closed()


def test_a_body_below_the_lowest_rate_is_refused_though_it_never_stops():
    """B04"""
    with web_server(body_s=0.2, rate_bytes_per_s=1000) as web, web.connect() as client:
        client.send(b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Length: 100000\r\n\r\n")
        start = time.monotonic()
        while time.monotonic() - start < 0.3:
            client.send(b"x")
            time.sleep(0.01)
        assert client.response().status == 408


def test_a_slow_but_honest_body_is_read():
    """B04"""
    with web_server(body_s=0.2, rate_bytes_per_s=1000) as web, web.connect() as client:
        client.send(b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Length: 1000\r\n\r\n")
        for _ in range(10):
            client.send(b"x" * 100)
            time.sleep(0.04)
        assert client.response().json()["n"] == 1000


def test_attackers_in_every_phase_do_not_slow_a_health_check_down():
    """B02 B03 B04: more attackers than places; each new client finds one."""
    starts = (
        b"",
        b"GET / HTTP/1.1\r\nX: ",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n",
    )
    with web_server(n_connections=30, shed_after_s=0.05) as web, ExitStack() as stack:
        for number in range(90):
            stack.enter_context(web.connect()).send(starts[number % 3])
        times = []
        for _ in range(20):
            start = time.monotonic()
            assert web.ask("GET", "/health").status == 200
            times.append(time.monotonic() - start)
        assert percentile(times, 0.9) < 0.25
        assert web.figure("shed_connections") >= 60


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"GET / HTTP/1.1\r\nX: ",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n1234",
        request_bytes("GET", "/health"),
    ],
    ids=["silent", "half a head", "half a body", "kept after an answer"],
)
def test_who_owes_us_a_request_has_no_thread(start):
    """B02 B03 B04"""
    with web_server() as web, ExitStack() as stack:
        web.ask("GET", "/health")
        wait_until(lambda: web.figure("n_connections") == 0)
        before = n_threads()
        clients = [stack.enter_context(web.connect()) for _ in range(40)]
        for client in clients:
            client.send(start)
        wait_until(lambda: web.figure("n_connections") == 40)
        wait_until(lambda: n_threads() <= before + 2)
        assert web.ask("GET", "/health").status == 200


def test_health_is_answered_when_every_thread_is_busy_and_others_are_told_after_a_while():
    """B09 H06"""
    held = Held()
    routes = {("GET", "/held"): held, ("GET", "/other"): lambda exchange: exchange.reply_json({})}
    with web_server(routes, n_threads=3, n_threads_reserved=1, shed_after_s=0.1) as web:
        with ExitStack() as stack:
            clients = [stack.enter_context(web.connect()) for _ in range(3)]
            for client in clients:
                client.send(request_bytes("GET", "/held"))
            wait_until(lambda: web.figure("n_working") == 3)
            assert web.ask("GET", "/health").status == 200
            refused = web.ask("GET", "/other")
            assert (refused.status, refused.error["type"]) == (503, "overloaded_error")
            assert web.ask("GET", "/health").status == 200
            held.end.set()
            assert [client.response().status for client in clients] == [200] * 3
        assert web.ask("GET", "/other").status == 200


def test_a_request_waits_for_a_thread_and_is_served_by_the_next_that_is_free():
    """B01 B09"""
    held = Held()
    routes = {("GET", "/held"): held, ("GET", "/other"): lambda exchange: exchange.reply_json({})}
    with ExitStack() as stack:
        web = stack.enter_context(web_server(routes, n_threads=1, shed_after_s=5.0))
        busy, waiting = (stack.enter_context(web.connect()) for _ in range(2))
        busy.send(request_bytes("GET", "/held"))
        wait_until(lambda: web.figure("n_working") == 1)
        waiting.send(request_bytes("GET", "/other"))
        time.sleep(0.1)
        held.end.set()
        assert busy.response().status == waiting.response().status == 200


def test_a_long_body_that_does_not_come_loses_its_thread_to_others():
    """B04: chunked, so that it is read by a thread."""
    head = b"POST /echo HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    routes = {("GET", "/other"): lambda exchange: exchange.reply_json({})}
    settings = {"n_threads": 2, "shed_after_s": 0.3, "body_s": 20.0, "ping_s": 0.2}
    with ExitStack() as stack:
        web = stack.enter_context(web_server(routes, **settings))
        slow = [stack.enter_context(web.connect()) for _ in range(2)]
        for client in slow:
            client.send(head + b"5\r\n12")
        time.sleep(0.4)
        assert web.ask("GET", "/other").status == 200
        assert web.figure("shed_connections") >= 1


def test_when_every_place_is_worked_for_the_newcomer_is_told_so_at_once():
    """B09"""
    held = Held()
    with web_server({("GET", "/held"): held}, n_connections=4, shed_after_s=0.1) as web:
        with ExitStack() as stack:
            clients = [stack.enter_context(web.connect()) for _ in range(4)]
            for client in clients:
                client.send(request_bytes("GET", "/held"))
            wait_until(lambda: web.figure("n_working") == 4)
            for _ in range(3):
                response = web.ask("GET", "/health")
                assert (response.status, response.header("retry-after")) == (503, "1")
                assert response.error["type"] == "overloaded_error"
                assert response.header("access-control-allow-origin") == "*"
            held.end.set()
            assert [client.response().status for client in clients] == [200] * 4
        wait_until(lambda: web.figure("n_connections") == 0)
        assert web.ask("GET", "/health").status == 200


def test_a_connection_between_two_requests_makes_room_and_a_working_one_does_not():
    """B09"""
    held = Held()
    with ExitStack() as stack:
        settings = {"n_connections": 2, "shed_after_s": 0.05}
        web = stack.enter_context(web_server({("GET", "/held"): held}, **settings))
        idle, working = (stack.enter_context(web.connect()) for _ in range(2))
        assert idle.request("GET", "/health").status == 200
        working.send(request_bytes("GET", "/held"))
        assert held.inside.acquire(timeout=5)
        assert web.ask("GET", "/health").status == 200
        assert idle.is_closed()
        held.end.set()
        assert working.response().status == 200


def test_one_address_can_be_kept_from_taking_every_place():
    with web_server(n_connections_per_ip=2) as web, web.connect() as one, web.connect() as two:
        assert one.request("GET", "/health").status == two.request("GET", "/health").status == 200
        assert web.ask("GET", "/health").status == 503


def test_a_kept_connection_serves_so_many_requests_and_announces_its_end():
    """B13"""
    with web_server(n_requests_per_connection=100) as web, web.connect() as client:
        announced = [client.request("GET", "/health").header("connection") for _ in range(100)]
        assert announced == [None] * 99 + ["close"]
        assert client.is_closed()


def test_a_connection_that_waits_too_long_between_requests_is_closed():
    with web_server(idle_s=0.1) as web, web.connect() as client:
        assert client.request("GET", "/health").status == 200
        assert client.read_to_end() == b""


def test_resets_at_any_moment_leave_nothing_behind(caplog):
    """B07"""
    caplog.set_level(logging.INFO)
    whole = request_bytes("POST", "/echo", b"x" * 1000)
    with web_server() as web:
        web.ask("GET", "/health")
        before, threads = n_fds(), n_threads()
        for number in range(300):
            client = web.connect()
            client.send(whole[: number * 7 % (len(whole) + 1)])
            client.reset()
        wait_until(lambda: web.figure("n_connections") == 0 and n_fds() <= before)
        wait_until(lambda: n_threads() <= threads)
        assert web.ask("GET", "/health").status == 200
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_when_descriptors_run_out_the_server_rests_and_recovers():
    """B11"""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with web_server(head_s=20.0) as web:
        assert web.ask("GET", "/health").status == 200
        clients = [socket.socket() for _ in range(60)]
        probe = os.dup(0)
        os.close(probe)
        resource.setrlimit(resource.RLIMIT_NOFILE, (probe + 10, hard))
        try:
            start, cpu = time.monotonic(), time.process_time()
            for client in clients:
                client.connect(("127.0.0.1", web.port))
            wait_until(lambda: web.figure("out_of_descriptors") >= 3)
            wall = time.monotonic() - start
            assert time.process_time() - cpu < max(0.1, wall), "the accept loop spins"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for client in clients:
                client.close()
        start = time.monotonic()
        assert web.ask("GET", "/health").status == 200
        assert time.monotonic() - start < 2


def test_when_no_thread_can_be_started_the_client_is_told_and_the_listener_lives(monkeypatch):
    """B12"""

    def start(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with web_server() as web:
        monkeypatch.setattr(crew, "start_new_thread", start)
        response = web.ask("GET", "/health")
        assert (response.status, response.header("connection")) == (503, "close")
        monkeypatch.undo()
        assert web.ask("GET", "/health").status == 200
        assert web.figure("n_connections") <= 1


def test_draining_finishes_answers_and_announces_the_end():
    held = Held()
    with ExitStack() as stack:
        web = stack.enter_context(web_server({("GET", "/held"): held}))
        idle, working = (stack.enter_context(web.connect()) for _ in range(2))
        assert idle.request("GET", "/health").status == 200
        working.send(request_bytes("GET", "/held"))
        assert held.inside.acquire(timeout=5)
        web.server.stop_accepting()
        with pytest.raises(OSError) as caught:
            web.connect()
        assert caught.value.errno == errno.ECONNREFUSED
        assert idle.request("GET", "/health").header("connection") == "close"
        held.end.set()
        response = working.response()
        assert (response.status, response.header("connection")) == (200, "close")
        assert web.server.close(5.0)


def test_closing_waits_for_answers_but_not_for_ever():
    held = Held()
    with web_server({("GET", "/held"): held}) as web, web.connect() as client:
        client.send(request_bytes("GET", "/held"))
        assert held.inside.acquire(timeout=5)
        start = time.monotonic()
        threading.Timer(0.4, held.end.set).start()
        assert not web.server.close(0.2)
        assert 0.2 <= time.monotonic() - start < 2
        assert client.read_to_end() == b""


def test_a_server_that_never_started_can_be_closed():
    server.Server(["127.0.0.1:0"], {}).close()
