"""Streamed answers: framing, clients that read slowly or leave, pings, and proper ends."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager

import pytest
from web_client import in_threads, request_bytes, wait_until, web_server

from libloader.web import events
from libloader.web.wire import Wire


class Feed:
    """A route whose stream the test feeds, as the pipe-reader thread does."""

    def __init__(self, content_type: str = events.SSE) -> None:
        self.content_type = content_type
        self.opened = threading.Event()
        self.gone = threading.Event()
        self.left = threading.Event()

    def __call__(self, exchange) -> None:
        exchange.on_gone(self.gone.set)
        self.stream = exchange.open_stream(self.content_type, (("X-Extra", "1"),))
        self.opened.set()
        self.stream.wait()
        self.left.set()

    def open(self, client, path="/feed", version="1.1"):
        client.send(f"GET {path} HTTP/{version}\r\nHost: localhost\r\n\r\n".encode())
        assert self.opened.wait(5)
        return self.stream


@pytest.fixture
def feed():
    return Feed()


def test_a_stream_arrives_event_by_event_and_the_connection_goes_on(feed):
    with web_server({("GET", "/feed"): feed}) as web, web.connect() as client:
        stream = feed.open(client)
        head = client.read_until(b"\r\n\r\n")
        for number in range(3):
            stream.offer(events.sse(b"%d" % number))
            assert client.read_until(b"\n\n\r\n").endswith(b"data: %d\n\n\r\n" % number)
        stream.finish(events.DONE)
        assert client.read_until(b"0\r\n\r\n") == b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
        assert client.request("GET", "/health").status == 200
    for line in (
        b"Content-Type: text/event-stream\r\n",
        b"Cache-Control: no-cache\r\n",
        b"X-Accel-Buffering: no\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Access-Control-Allow-Origin: *\r\n",
        b"X-Extra: 1\r\n",
        b"X-Request-Id: ",
    ):
        assert line in head
    assert b"Content-Length" not in head
    assert not feed.gone.is_set()


def test_many_streams_fed_by_one_thread_arrive_whole_and_in_order():
    feeds = [Feed() for _ in range(16)]
    routes = {("GET", f"/feed{n}"): feed for n, feed in enumerate(feeds)}

    def read(n: int) -> bytes:
        with web.connect() as client:
            client.send(request_bytes("GET", f"/feed{n}"))
            response = client.response()
            assert response.complete
            return response.body

    def feed_all() -> None:
        for feed in feeds:
            assert feed.opened.wait(5)
        for number in range(200):
            for feed in feeds:
                feed.stream.offer(events.sse(b"%d" % number))
        for feed in feeds:
            feed.stream.finish(events.DONE)

    with web_server(routes) as web:
        feeder = threading.Thread(target=feed_all)
        feeder.start()
        bodies = in_threads(16, read)
        feeder.join()
    expected = b"".join(events.sse(b"%d" % number) for number in range(200)) + events.DONE
    assert bodies == [expected] * 16


def test_http_1_0_gets_the_plain_bytes_and_the_end_of_the_connection(feed):
    with web_server({("GET", "/feed"): feed}) as web, web.connect() as client:
        stream = feed.open(client, version="1.0")
        stream.offer(events.sse(b"a"))
        stream.finish(events.DONE)
        response = client.response()
    assert (response.minor, response.header("connection")) == (0, "close")
    assert response.header("transfer-encoding") is None
    assert response.body == b"data: a\n\n" + events.DONE


def test_head_of_a_stream_has_no_body(feed):
    with web_server({("GET", "/feed"): feed}) as web, web.connect() as client:
        client.send(request_bytes("HEAD", "/feed"))
        assert feed.opened.wait(5)
        feed.stream.offer(events.sse(b"a"))
        feed.stream.finish(events.DONE)
        assert client.response(head_only=True).status == 200
        assert client.request("GET", "/health").status == 200


def test_an_aborted_stream_ends_without_its_end(feed):
    with web_server({("GET", "/feed"): feed}) as web, web.connect() as client:
        stream = feed.open(client)
        stream.offer(events.sse(b"a"))
        wait_until(lambda: client.sock.recv(4, 2) == b"HTTP")
        stream.abort()
        response = client.response()
        assert not response.complete
        assert not feed.gone.is_set()


def test_an_exception_after_the_head_breaks_the_stream_off(caplog):
    def broken(exchange):
        exchange.open_stream().offer(b"data: 1\n\n")
        raise RuntimeError("late")

    with web_server({("GET", "/feed"): broken}) as web, web.connect() as client:
        client.send(request_bytes("GET", "/feed"))
        assert not client.response().complete


def test_ndjson_is_streamed_without_pings():
    feed = Feed(events.NDJSON)
    with web_server({("GET", "/feed"): feed}, ping_s=0.05) as web, web.connect() as client:
        stream = feed.open(client)
        time.sleep(0.2)
        stream.finish(events.ndjson(b'{"done":true}'))
        assert client.response().body == b'{"done":true}\n'


def test_a_silent_event_stream_is_kept_alive_by_comments(feed):
    """B14"""
    with web_server({("GET", "/feed"): feed}, ping_s=0.05) as web, web.connect() as client:
        stream = feed.open(client)
        client.read_until(b"\r\n\r\n")
        for _ in range(3):
            assert client.read_until(b"\n\n\r\n").endswith(events.comment() + b"\r\n")
        stream.finish()
        client.read_until(b"0\r\n\r\n")
        assert client.request("GET", "/health").status == 200


def test_no_comment_comes_before_the_head_however_late_the_head_is(feed, monkeypatch):
    """A tick may fall between any two lines: here one falls behind each that begins a stream."""

    def watch_and_tick(wire):
        watch(wire)
        wire.tick(time.monotonic())

    watch = Wire.watch
    monkeypatch.setattr(Wire, "watch", watch_and_tick)
    with web_server({("GET", "/feed"): feed}, ping_s=0.001) as web, web.connect() as client:
        feed.open(client).finish(events.DONE)
        assert client.read_until(b"\r\n").startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_leaves_is_noticed_at_once(how, streamed):
    """B06: within half a second, also when nothing is being sent to it."""
    gone, inside = threading.Event(), threading.Event()

    def work(exchange):
        exchange.on_gone(gone.set)
        if streamed:
            exchange.open_stream().offer(events.sse(b"a"))
        inside.set()
        if not streamed:
            assert gone.wait(5)

    with web_server({("POST", "/work"): work}) as web:
        client = web.connect()
        client.send(request_bytes("POST", "/work", b"{}"))
        assert inside.wait(5)
        left = time.monotonic()
        client.close() if how == "close" else client.reset()
        assert gone.wait(5)
        assert time.monotonic() - left < 0.5
        wait_until(lambda: web.figure("n_connections") == 0)


def test_the_callback_is_called_once_and_not_after_the_answer():
    calls = []

    def work(exchange):
        exchange.on_gone(lambda: calls.append(1))
        exchange.reply_json({})

    with web_server({("GET", "/work"): work}) as web:
        for _ in range(20):
            assert web.ask("GET", "/work").status == 200
        wait_until(lambda: web.figure("n_connections") == 0)
    assert calls == []


def test_a_callback_for_a_client_that_left_before_is_called_too():
    gone, may_register = threading.Event(), threading.Event()

    def work(exchange):
        assert may_register.wait(5)
        exchange.on_gone(gone.set)
        assert gone.wait(5)

    with web_server({("POST", "/work"): work}) as web:
        with web.connect() as client:
            client.send(request_bytes("POST", "/work", b"{}"))
        may_register.set()
        assert gone.wait(5)


def test_requests_sent_ahead_wait_for_their_turn_while_an_answer_is_made(feed):
    with web_server({("GET", "/feed"): feed}) as web, web.connect() as client:
        client.send(request_bytes("GET", "/feed") + request_bytes("GET", "/health") * 20)
        assert feed.opened.wait(5)
        feed.stream.finish(events.DONE)
        assert client.response().body == events.DONE
        assert [client.response().status for _ in range(20)] == [200] * 20


def test_a_client_may_send_ahead_only_so_much(feed):
    with web_server({("GET", "/feed"): feed}, ahead_bytes=1000) as web, web.connect() as client:
        stream = feed.open(client)
        client.send(request_bytes("GET", "/health") * 2000)
        time.sleep(0.1)
        stream.finish(events.DONE)
        statuses = [client.response().status for _ in range(1000)]
        assert statuses == [200] * 1000


@contextmanager
def slow_reader(route, **settings):
    """Serve `route` at /feed to a client whose kernel takes almost nothing ahead of its reads."""
    routes = {("GET", "/feed"): route}
    with web_server(routes, **settings) as web, web.connect(receive_buffer=2048) as client:
        yield web, client


def fill_up(stream, limit_bytes: int = 64 << 20) -> int:
    """Offer until the client counts as gone; return how much that took."""
    n_bytes, payload = 0, events.sse(b"x" * 20_000)
    while not stream.gone and n_bytes < limit_bytes:
        stream.offer(payload)
        n_bytes += len(payload)
    return n_bytes


def test_a_client_that_reads_nothing_is_given_up_and_nobody_waits_for_it(feed):
    """B05"""
    with slow_reader(feed, backlog_bytes=300_000) as (web, client):
        stream = feed.open(client)
        start = time.monotonic()
        n_bytes = fill_up(stream)
        assert stream.gone and n_bytes < 16 << 20
        assert time.monotonic() - start < 2, "an offer waited for the client"
        assert feed.gone.wait(5) and feed.left.wait(5)


def test_a_backlog_that_does_not_move_is_given_up_in_time(feed):
    """B05"""
    with slow_reader(feed, send_s=0.2, backlog_bytes=64 << 20) as (web, client):
        stream = feed.open(client)
        for _ in range(400):
            stream.offer(events.sse(b"x" * 20_000))
        assert not stream.gone
        assert feed.gone.wait(5)
        wait_until(lambda: web.figure("n_connections") == 0)


def test_a_slow_reader_that_reads_gets_everything(feed):
    with slow_reader(feed, backlog_bytes=64 << 20) as (web, client):
        stream = feed.open(client)
        for number in range(300):
            stream.offer(events.sse(b"%d " % number + b"x" * 20_000))
        stream.finish(events.DONE)
        assert not feed.left.is_set(), "the backlog is empty: the test proves nothing"
        response = client.response()
        assert response.complete
        numbers = [line.split()[1] for line in response.body.splitlines() if b" x" in line]
        assert numbers == [b"%d" % number for number in range(300)]
        assert client.request("GET", "/health").status == 200


def test_the_end_of_an_answer_has_one_deadline_that_single_bytes_do_not_move(feed):
    """B05"""
    with slow_reader(feed, send_s=0.3, rate_bytes_per_s=100 << 20, backlog_bytes=64 << 20) as (
        web,
        client,
    ):
        stream = feed.open(client)
        for _ in range(400):
            stream.offer(events.sse(b"x" * 20_000))
        stream.finish(events.DONE)
        give_up = time.monotonic() + 5
        while not feed.left.is_set() and time.monotonic() < give_up:
            client.sock.recv(2000)
            time.sleep(0.01)
        assert stream.gone


def test_a_plain_answer_to_a_client_that_reads_nothing_is_given_up():
    """B05"""

    def big(exchange):
        exchange.reply_json({"text": "x" * (16 << 20)})

    with slow_reader(big, send_s=0.2, rate_bytes_per_s=1 << 30) as (web, client):
        client.send(request_bytes("GET", "/feed"))
        wait_until(lambda: web.figure("n_working") == 1)
        wait_until(lambda: web.figure("n_connections") == 0)


def test_a_large_plain_answer_arrives():
    def big(exchange):
        exchange.reply_json({"text": "x" * (16 << 20)})

    with web_server({("GET", "/big"): big}) as web:
        assert len(json.loads(web.ask("GET", "/big").body)["text"]) == 16 << 20
