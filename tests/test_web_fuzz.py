"""Mutated requests: every one ends in requests, a refusal or a wait, and h11 reads them as we do.

Agreement is asked for what we take: a request that h11 reads otherwise is one that a proxy before
us may read otherwise. What only we refuse is no disagreement. h11 is used here and nowhere else.

IGLLAMA_FUZZ_ROUNDS=1000000 runs longer; IGLLAMA_FUZZ_SEED repeats a run.
"""

from __future__ import annotations

import os
import random

import h11

from libloader.web.body import body_reader
from libloader.web.problems import HttpProblem
from libloader.web.request import HeadReader
from libloader.web.settings import WebSettings

ROUNDS = int(os.environ.get("IGLLAMA_FUZZ_ROUNDS", "20000"))
SEED = int(os.environ.get("IGLLAMA_FUZZ_SEED", "20261122"))
SETTINGS = WebSettings(body_bytes=100_000)

HOST = b"Host: localhost\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
TARGETS = (b"/", b"/health", b"/v1/models/a%2Fb?x=1", b"http://localhost/v1", b"*", b"//a")
FIELDS = (
    b"",
    b"Connection: close\r\n",
    b"Connection: keep-alive, TE\r\n",
    b"Expect: 100-continue\r\n",
    b"Content-Type: application/json\r\nAuthorization: Bearer k\r\n",
)
BODIES = (
    b"Content-Length: 0\r\n\r\n",
    b"Content-Length: 5\r\n\r\nhello",
    b"Content-Length: 05\r\n\r\nhello",
    CHUNKED + b"\r\n5\r\nhello\r\n0\r\n\r\n",
    CHUNKED + b"\r\n1;a=b\r\nh\r\n2\r\nel\r\n0\r\nTrailer: x\r\n\r\n",
)


def seed_requests() -> list[bytes]:
    """Sixty well-formed requests, and pairs of them as a pipelining client sends them."""
    gets = [
        b"GET %b HTTP/1.1\r\n" % target + HOST + f + b"\r\n" for target in TARGETS for f in FIELDS
    ]
    post = b"POST /echo HTTP/1.1\r\n" + HOST
    posts = [post + f + body for f in FIELDS for body in BODIES]
    old = [b"GET / HTTP/1.0\r\n\r\n", b"POST / HTTP/1.0\r\n" + BODIES[1]]
    pairs = [gets[0] + posts[1], posts[3] + gets[0], posts[4] + posts[1]]
    return gets + posts + old + pairs


NASTY = (
    *(b"\r", b"\n", b"\r\n", b"\0", b" ", b"\t", b"\x0b", b"\x80", b"\xff", b"\r\n ", b" :"),
    *(b":", b",", b";", b"0", b"9", b"-1", b"+", b"_", b"FFFFFFFFFFFFFFFFF", b"%00"),
    *(b"HTTP/1.0", b"HTTP/1.1", b"chunked", b"Content-Length: 5\r\n", b"Content-Length: 6\r\n"),
    *(CHUNKED, b"Transfer-Encoding: x\r\n", HOST),
)


def plant(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.choice(NASTY)


def overwrite(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    piece = rng.choice(NASTY)
    data[at : at + len(piece)] = piece


def flip(rng: random.Random, data: bytearray) -> None:
    data[rng.randrange(len(data))] = rng.randrange(256)


def cut_out(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.randint(1, 12)]


def double_up(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data))
    piece = data[start : start + rng.randint(1, 40)]
    data[start:start] = piece


MUTATIONS = (plant, plant, overwrite, flip, cut_out, double_up)


def mutated(rng: random.Random, seeds: list[bytes]) -> bytes:
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 3)):
        if data:
            rng.choice(MUTATIONS)(rng, data)
    return bytes(data)


def requests_of(data: bytes, rng: random.Random) -> list[tuple[object, ...]]:
    """Read `data` as a connection would; return each whole request and where it ended.

    The bytes arrive in random pieces. Any other exception than a refusal fails the test.
    """
    taken: list[tuple[object, ...]] = []
    source, reader = Source(data, rng), HeadReader(SETTINGS)
    try:
        while True:
            head = reader.take(source.buffer)
            if head is None:
                if not source.more():
                    return taken
                continue
            body, payload = body_reader(head.length, SETTINGS), b""
            while True:
                payload += body.take(source.buffer)
                if body.done:
                    break
                if not source.more():
                    return taken
            fields = [(n.encode(), v.encode("latin-1")) for n, v in head.headers]
            taken.append((head.method.encode(), fields, payload, source.position()))
    except HttpProblem:
        return taken


class Source:
    """Bytes that arrive in random pieces."""

    def __init__(self, data: bytes, rng: random.Random) -> None:
        self.buffer = bytearray()
        self._data, self._rng, self._at = data, rng, 0

    def more(self) -> bool:
        end = self._at + self._rng.choice((1, 7, 1000))
        piece = self._data[self._at : end]
        self.buffer += piece
        self._at += len(piece)
        return bool(piece)

    def position(self) -> int:
        return self._at - len(self.buffer)


def h11_request_of(data: bytes) -> tuple[object, ...] | None:
    """Return the first request as h11 reads it, with its length; None if it refuses or waits."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(data)
    try:
        request, payload = connection.next_event(), b""
        if not isinstance(request, h11.Request):
            return None
        while True:
            event = connection.next_event()
            if isinstance(event, h11.EndOfMessage):
                break
            if not isinstance(event, h11.Data):
                return None
            payload += bytes(event.data)
    except h11.RemoteProtocolError:
        return None
    n_bytes = len(data) - len(connection.trailing_data[0])
    return (request.method, list(request.headers), payload, n_bytes)


def check_agreement(data: bytes, taken: list[tuple[object, ...]]) -> None:
    start = 0
    for method, fields, payload, end in taken:
        skip = 2 if data[start : start + 2] == b"\r\n" else 0  # RFC 9112 2.2, which h11 refuses
        theirs = h11_request_of(data[start + skip :])
        ours = (method, fields, payload, end - start - skip)  # type: ignore[operator]
        assert theirs is not None, f"h11 refuses {data!r} from {start}"
        assert normal(theirs) == normal(ours), f"h11 reads {data!r} from {start} otherwise"
        start = end  # type: ignore[assignment]


def normal(request: tuple[object, ...]) -> tuple[object, ...]:
    """h11 writes the coding's name in lower case."""
    method, fields, payload, n_bytes = request
    plain = [
        (bytes(n), bytes(v).lower() if n == b"transfer-encoding" else bytes(v))
        for n, v in fields  # type: ignore[attr-defined]
    ]
    return (method, plain, payload, n_bytes)


def test_every_seed_is_taken_whole_but_those_that_we_refuse_on_purpose():
    """A19: the fuzzer starts from requests that work."""
    rng = random.Random(SEED)
    n_taken = [len(requests_of(data, rng)) for data in seed_requests()]
    assert sum(n > 0 for n in n_taken) >= len(n_taken) - len(FIELDS)  # GET * is refused


def test_mutated_requests_raise_nothing_and_are_read_as_h11_reads_them():
    """A19"""
    seeds, n_taken = seed_requests(), 0
    for number in range(ROUNDS):
        rng = random.Random(f"{SEED}-{number}")
        data = mutated(rng, seeds)
        taken = requests_of(data, rng)
        check_agreement(data, taken)
        n_taken += len(taken)
    assert n_taken > ROUNDS / 20, "almost nothing was taken: the mutations prove little"
