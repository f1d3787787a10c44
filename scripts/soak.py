#!/usr/bin/env python3
"""Bad weather: mixed load, clients that vanish, malformed requests, and kills of the engine.

    python3 scripts/soak.py [MODEL.gguf] [--minutes 10] [--clients 32] [--kill-every 15]
    python3 scripts/soak.py --figures          each fault by itself, and how long it was felt

Starts the server on the pocket model (or MODEL), lets the clients loose, kills the engine child
every so many seconds, and prints what happened. Exit code 1 if anything must not be:

    hung          a client that got no byte for HUNG_S seconds
    unexplained   a 5xx, a broken answer or a refused connection that no kill accounts for
    wrong text    a greedy answer that differs from the first one to the same question
    tracebacks    in the server's log

Memory and descriptors are read from /proc, so kills and figures need Linux. Text is compared for
questions whose answers the pocket model is sure of.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Callable, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
POCKET = ROOT / "tests" / "models" / "pocket.gguf"
HUNG_S = 30.0
WARM_UP = 0.2  # of the time, before memory counts
SAMPLE_S = 2.0

QUESTIONS = (
    "Hello!",
    "What is the capital of France?",
    "Tell me a story.",
    "Write a poem.",
    "Count to twenty.",
    "What is 2 + 3?",
    "List three fruits.",
    "Say hello in Japanese.",
)
# Bodies and whole requests that must be refused with a 4xx and hurt nobody.
MALFORMED_BODIES = (
    b"",
    b"{",
    b"[]",
    b'{"messages": []}',
    b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
    b'{"messages": [{"role": "user", "content": "x"}], "n": 1000000}',
    b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 99999999999999999999}',
    b'{"messages": "x", "messages": "y"}',
    b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"a":' * 5000,
    b"\xff\xfe{}",
)
LABELS = ("Hi!", "No", "No way at all", "One, two, three", "1")
MALFORMED_REQUESTS = (
    b"GET / HTTP/9.9\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0",
    b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
)
# Error codes that a kill or a full queue explains; the client is told and may come again.
EXPLAINED = {"engine_crash", "engine_unavailable", "queue_full", "server_shutdown"}


class Tally:
    """What all clients saw, under one lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.latencies_s: list[tuple[float, float]] = []  # (when, how long)
        self.texts: dict[str, str] = {}

    def count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def problem(self, kind: str, detail: str) -> None:
        with self._lock:
            self.counts[kind] += 1
            if len(self.problems) < 20:
                self.problems.append(f"{kind}: {detail[:300]}")

    def answered(self, question: str, text: str, began: float) -> None:
        now = time.monotonic()
        with self._lock:
            self.counts["answers"] += 1
            self.latencies_s.append((now, now - began))
            expected = self.texts.setdefault(question, text)
        if text != expected:
            self.problem("wrong text", f"{question!r}: {text!r} instead of {expected!r}")


class Client(threading.Thread):
    """One client: it picks what to do next by chance, over and over."""

    def __init__(self, port: int, tally: Tally, seed: int, over: threading.Event) -> None:
        super().__init__(name=f"client-{seed}", daemon=True)
        self.port, self.tally, self.over = port, tally, over
        self.rng = random.Random(seed)
        self.questions = QUESTIONS

    def run(self) -> None:
        acts, weights = zip(*ACTS)
        while not self.over.is_set():
            act = self.rng.choices(acts, weights)[0]
            try:
                act(self)
            except socket.timeout:
                self.tally.problem("hung", act.__name__)
            except (OSError, http.client.HTTPException) as exc:
                self.tally.problem("unexplained", f"{act.__name__}: {exc!r}")

    def plain(self) -> None:
        question, began = self.rng.choice(QUESTIONS), time.monotonic()
        status, answer = self._post("/v1/chat/completions", chat(question))
        if status == 200:
            self.tally.answered(question, answer["choices"][0]["message"]["content"], began)
        else:
            self._refused(status, answer)

    def stream(self) -> None:
        question, began = self.rng.choice(self.questions), time.monotonic()
        with Connection(self.port) as connection:
            response = connection.post("/v1/chat/completions", chat(question, stream=True))
            if response.status != 200:
                self._refused(response.status, json.loads(response.read()))
                return
            payloads = payloads_of(response.read())
        if payloads and payloads[-1] == "[DONE]":
            self.tally.answered(question, text_of(payloads), began)
        elif payloads and "error" in payloads[-1]:
            self._refused(500, payloads[-1])
        else:
            self.tally.problem("unexplained", f"a stream without an end: {payloads[-1:]}")

    def choose(self) -> None:
        question, began = self.rng.choice(self.questions), time.monotonic()
        body = chat(question, choices=LABELS)
        status, answer = self._post("/v1/chat/completions", body)
        if status != 200:
            self._refused(status, answer)
            return
        choice = answer["choices"][0]
        self.tally.answered(f"choose: {question}", choice["message"]["content"], began)
        if abs(sum(row["probability"] for row in choice["choice_probs"]) - 1.0) > 1e-6:
            self.tally.problem("unexplained", f"probabilities: {choice['choice_probs']}")

    def embed(self) -> None:
        status, answer = self._post("/v1/embeddings", {"input": list(QUESTIONS)})
        if status != 200:
            self._refused(status, answer)
        elif len(answer["data"]) != len(QUESTIONS):
            self.tally.problem("unexplained", "vectors are missing")
        else:
            self.tally.count("embeddings")

    def look(self) -> None:
        began = time.monotonic()
        with Connection(self.port) as connection:
            connection.request("GET", self.rng.choice(["/health", "/v1/models", "/nothing"]))
            connection.getresponse().read()
        self.tally.count("looks")
        if time.monotonic() - began > 1.0:
            self.tally.count("looks slower than 1 s")

    def vanish(self) -> None:
        """Hang up in the middle of an answer."""
        with Connection(self.port) as connection:
            streamed = self.rng.random() < 0.7
            body = json.dumps(chat("Tell me a story.", stream=streamed))
            connection.request("POST", "/v1/chat/completions", body)
            time.sleep(self.rng.random() * 0.2)
        self.tally.count("vanished")

    def malformed_body(self) -> None:
        with Connection(self.port) as connection:
            connection.request("POST", "/v1/chat/completions", self.rng.choice(MALFORMED_BODIES))
            response = connection.getresponse()
            self._must_refuse(response.status, response.read())

    def malformed_request(self) -> None:
        with socket.create_connection(("127.0.0.1", self.port), HUNG_S) as plug:
            plug.sendall(self.rng.choice(MALFORMED_REQUESTS))
            plug.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: plug.recv(65536), b""))
        if answer:
            self._must_refuse(int(answer.split()[1]), answer)
        self.tally.count("malformed requests")

    def _post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        with Connection(self.port) as connection:
            response = connection.post(path, body)
            return response.status, json.loads(response.read())

    def _refused(self, status: int, answer: Any) -> None:
        code = answer["error"]["code"]
        if code in EXPLAINED:
            self.tally.count(code)
        else:
            self.tally.problem("unexplained", f"{status} {answer}")

    def _must_refuse(self, status: int, answer: bytes) -> None:
        if 400 <= status < 500 or status in (501, 503, 505):
            self.tally.count("malformed refused")
        else:
            self.tally.problem("unexplained", f"malformed, yet {status}: {answer[:200]!r}")


ACTS: Sequence[tuple[Callable[[Client], None], int]] = (
    (Client.plain, 35),
    (Client.stream, 35),
    (Client.choose, 8),
    (Client.embed, 10),
    (Client.look, 6),
    (Client.vanish, 7),
    (Client.malformed_body, 5),
    (Client.malformed_request, 2),
)


class Connection(http.client.HTTPConnection):
    def __init__(self, port: int) -> None:
        super().__init__("127.0.0.1", port, timeout=HUNG_S)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def post(self, path: str, body: dict[str, Any]) -> http.client.HTTPResponse:
        self.request("POST", path, json.dumps(body))
        return self.getresponse()


def chat(question: str, **fields: object) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"messages": messages, "temperature": 0, "max_tokens": 60, **fields}


def payloads_of(raw: bytes) -> list[Any]:
    """Return the data of each event: dicts, and the string [DONE]."""
    data = [block[6:] for block in raw.decode("utf-8").split("\n\n") if block.startswith("data: ")]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


def text_of(payloads: list[Any]) -> str:
    choices = [c for p in payloads if isinstance(p, dict) for c in p.get("choices", ())]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


# ---- the server, its engine and their figures ----


class Figures(NamedTuple):
    at: float
    front_mib: float
    engine_mib: float
    n_fds: int
    n_threads: int


class Served:
    def __init__(
        self,
        model: str,
        flags: Sequence[str],
        log: IO[bytes] | int,
        program: str = "igllama.py",
        **environment: str,
    ) -> None:
        command = [sys.executable, str(ROOT / program), "api", model, "-p", "0", *flags]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, cwd=ROOT, env={**os.environ, **environment}
        )
        assert self.process.stdout is not None
        found = None
        while not found:
            line = self.process.stdout.readline().decode()
            if not line:
                raise SystemExit("the server did not start")
            found = re.search(r"listening +http://[^ ]*:(\d+)", line)
        self.port = int(found.group(1))
        self.pid = self.process.pid

    def engine_pid(self) -> int | None:
        """Return the engine child, None while there is none."""
        try:
            for task in os.listdir(f"/proc/{self.pid}/task"):
                words = read(f"/proc/{self.pid}/task/{task}/children").split()
                if words:
                    return int(words[0])
        except OSError:
            pass
        return None

    def figures(self) -> Figures:
        folder = f"/proc/{self.pid}"
        engine = self.engine_pid()
        n_fds, n_threads = len(os.listdir(f"{folder}/fd")), len(os.listdir(f"{folder}/task"))
        engine_mib = mib_of(engine) if engine else 0.0
        return Figures(time.monotonic(), mib_of(self.pid), engine_mib, n_fds, n_threads)

    def state(self) -> str:
        return str(self.health()["status"])

    def health(self) -> dict[str, Any]:
        with Connection(self.port) as connection:
            connection.request("GET", "/health")
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
        return answer

    def stop(self) -> float:
        """SIGTERM; return the seconds to the exit."""
        began = time.monotonic()
        self.process.terminate()
        self.process.wait(60)
        return time.monotonic() - began


def mib_of(pid: int) -> float:
    """Return the resident memory of a process, 0 if it is gone."""
    try:
        return int(read(f"/proc/{pid}/statm").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return 0.0


def read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()


class Weather(threading.Thread):
    """Kills the engine now and then, and notes how long it takes to come back."""

    def __init__(self, served: Served, every_s: float, over: threading.Event) -> None:
        super().__init__(name="weather", daemon=True)
        self.served, self.every_s, self.over = served, every_s, over
        self.back_ms: list[float] = []

    def run(self) -> None:
        while self.every_s > 0 and not self.over.wait(self.every_s):
            pid = self.served.engine_pid()
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
                self._time_the_return(pid)

    def _time_the_return(self, dead: int) -> None:
        began = time.monotonic()
        while not self.over.is_set() and time.monotonic() - began < HUNG_S:
            if self.served.engine_pid() not in (None, dead) and self.served.state() == "ok":
                self.back_ms.append((time.monotonic() - began) * 1e3)
                return
            time.sleep(0.005)


# ---- the report ----


def report(tally: Tally, weather: Weather, figures: list[Figures], stop_s: float, log: str) -> int:
    """Print what happened; return the number of things that must not."""
    for name, count in sorted(tally.counts.items()):
        print(f"  {name:<28} {count}")
    late = figures[int(len(figures) * WARM_UP) :]
    n_requests = sum(tally.counts.values())
    growth = (late[-1].front_mib - late[0].front_mib) / max(1, n_requests) * 1e4
    rows = [
        ("requests", n_requests),
        ("engine kills", len(weather.back_ms)),
        ("kill to ready, ms, median/max", spread(weather.back_ms)),
        ("front MiB first/last", f"{late[0].front_mib:.1f} / {late[-1].front_mib:.1f}"),
        ("front growth per 10k, MiB", f"{growth:.2f}"),
        ("engine MiB max", f"{max(f.engine_mib for f in figures):.1f}"),
        ("fds first/max/last", counts_of(late, "n_fds")),
        ("threads first/max/last", counts_of(late, "n_threads")),
        ("latency p50/p99, ms, 1st half", quantiles(tally, True)),
        ("latency p50/p99, ms, 2nd half", quantiles(tally, False)),
        ("SIGTERM to exit, s", f"{stop_s:.2f}"),
    ]
    for name, value in rows:
        print(f"  {name:<32} {value}")
    n_tracebacks = log.count("Traceback (most recent call last)")
    if n_tracebacks:
        tally.problem("tracebacks", log[log.index("Traceback") :])
    print("\n".join(tally.problems) or "  nothing that must not be")
    return sum(tally.counts[kind] for kind in ("hung", "unexplained", "wrong text", "tracebacks"))


def counts_of(figures: list[Figures], name: str) -> str:
    values = [getattr(figure, name) for figure in figures]
    return f"{values[0]} / {max(values)} / {values[-1]}"


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.0f} / {max(values):.0f}" if values else "-"


def quantiles(tally: Tally, first_half: bool) -> str:
    times = [when for when, _ in tally.latencies_s]
    middle = statistics.median(times) if times else 0.0
    mine = sorted(long for when, long in tally.latencies_s if (when < middle) == first_half)
    if not mine:
        return "-"
    return f"{mine[len(mine) // 2] * 1e3:.0f} / {mine[int(len(mine) * 0.99)] * 1e3:.0f}"


# ---- each fault by itself: --figures ----

ATTACKERS = "1500"
ATTACK_S = "15"
# A hundred kills are more than a user's limits allow in so short a time.
UNBOUNDED = json.dumps({"limits": {"crashes_max": 1_000_000, "backoff_s": [0.0]}})


def print_figures(wanted: argparse.Namespace, flags: Sequence[str]) -> int:
    """Print each figure as soon as it is known; return 1 if a client hung or an answer failed."""
    failed = 0
    for figure in FIGURES:
        name, text, good = figure(wanted, flags)
        print(f"  {name:<42} {text}", flush=True)
        failed += not good
    return 1 if failed else 0


Figure = tuple[str, str, bool]


def kills_under_streams(wanted: argparse.Namespace, flags: Sequence[str]) -> Figure:
    served = Served(
        wanted.model, flags, subprocess.DEVNULL, "tests/altered.py", IGLLAMA_ALTERED=UNBOUNDED
    )
    tally, over = Tally(), threading.Event()
    clients = [Streamer(served.port, tally, n, over) for n in range(16)]
    sure = surest_questions(served.port, tally)
    for client in clients:
        client.questions = sure
        client.start()
    time.sleep(1.0)
    noticed_ms, ready_ms = zip(*(time_one_kill(served) for _ in range(wanted.kills)))
    over.set()
    for client in clients:
        client.join(2 * HUNG_S)
    served.stop()
    n_hung = tally.counts["hung"] + sum(client.is_alive() for client in clients)
    n_wrong = tally.counts["wrong text"] + tally.counts["unexplained"]
    text = (
        f"{n_hung} hung, {n_wrong} wrong, {tally.counts['answers']} streams whole; noticed "
        f"{spread(list(noticed_ms))} ms, ready {spread(list(ready_ms))} ms (median / max)"
    )
    print("\n".join(tally.problems[:3]), end="\n" * bool(tally.problems))
    return f"{wanted.kills} engine kills under 16 streams", text, not n_hung + n_wrong


def surest_questions(port: int, tally: Tally) -> tuple[str, ...]:
    """Return the half of QUESTIONS that no rounding changes, and note what each is answered alone.

    A batch of another shape sums in another order; that may turn a near tie of two tokens.
    """
    margins = {}
    for question in QUESTIONS:
        with Connection(port) as connection:
            body = chat(question, logprobs=True, top_logprobs=2)
            choice = json.loads(connection.post("/v1/chat/completions", body).read())["choices"][0]
        tops = [item["top_logprobs"] for item in choice["logprobs"]["content"]]
        margins[question] = min(best["logprob"] - other["logprob"] for best, other in tops)
        tally.texts[question] = choice["message"]["content"]
    return tuple(sorted(margins, key=lambda question: -margins[question])[: len(margins) // 2])


class Streamer(Client):
    """A client that only streams."""

    def run(self) -> None:
        while not self.over.is_set():
            try:
                self.stream()
            except socket.timeout:
                self.tally.problem("hung", "stream")


def time_one_kill(served: Served) -> tuple[float, float]:
    """Return the milliseconds until /health tells of a killed engine, and of the next one."""
    pid, n_before = served.engine_pid(), served.health()["restarts"]
    assert pid is not None, "no engine to kill"
    os.kill(pid, signal.SIGKILL)
    began, noticed_ms = time.monotonic(), 0.0
    while True:
        health, now = served.health(), time.monotonic()
        if health["restarts"] > n_before and not noticed_ms:
            noticed_ms = (now - began) * 1e3
        if health["restarts"] > n_before and health["status"] == "ok":
            break
        time.sleep(0.002)
    ready_ms = (now - began) * 1e3
    time.sleep(0.2)  # the streams go on for a while
    return noticed_ms, ready_ms


def health_under_attack(attack: str) -> Callable[[argparse.Namespace, Sequence[str]], Figure]:
    def figure(wanted: argparse.Namespace, flags: Sequence[str]) -> Figure:
        served = Served(wanted.model, flags, subprocess.DEVNULL)
        options = ("--clients", ATTACKERS, "--seconds", ATTACK_S)
        attackers = start_script(attack, str(served.port), *options)
        time.sleep(2.0)
        took_ms = json.loads(
            start_script("probe", str(served.port), "--seconds", "12").communicate()[0]
        )
        attackers.communicate()
        served.stop()
        return f"/health under {ATTACKERS} {attack}s", tail_of(took_ms), max(took_ms) < HUNG_S * 1e3

    return figure


def burst(wanted: argparse.Namespace, flags: Sequence[str]) -> Figure:
    served = Served(wanted.model, flags, subprocess.DEVNULL)
    took_ms = json.loads(start_script("burst", str(served.port)).communicate()[0])
    served.stop()
    n_errors = sum(ms < 0 for ms in took_ms)
    return "1,000 connections at once", f"{n_errors} errors; {tail_of(took_ms)}", not n_errors


def growth(wanted: argparse.Namespace, flags: Sequence[str]) -> Figure:
    """Memory of front and engine over 10,000 requests, after a tenth as many."""
    served = Served(wanted.model, flags, subprocess.DEVNULL)
    ask_many(served.port, wanted.requests // 10)
    before = served.figures()
    ask_many(served.port, wanted.requests)
    after = served.figures()
    served.stop()
    front, engine = after.front_mib - before.front_mib, after.engine_mib - before.engine_mib
    text = f"front {front:+.1f} MiB, engine {engine:+.1f} MiB, fds {after.n_fds - before.n_fds:+d}"
    return f"growth over {wanted.requests:,} requests", text, front + engine <= 8.0


def ask_many(port: int, n_requests: int) -> None:
    """Send short chat requests from eight clients that keep their connections."""

    def ask() -> None:
        body = json.dumps({**chat("Hello!"), "max_tokens": 2})
        with Connection(port) as connection:
            for _ in range(n_requests // 8):
                connection.request("POST", "/v1/chat/completions", body)
                connection.getresponse().read()

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def end_under_streams(wanted: argparse.Namespace, flags: Sequence[str]) -> Figure:
    served = Served(wanted.model, flags, subprocess.DEVNULL)
    tally, over = Tally(), threading.Event()
    clients = [Streamer(served.port, tally, n, over) for n in range(8)]
    for client in clients:
        client.start()
    time.sleep(1.0)
    over.set()  # what streams now is the last
    stop_s = served.stop()
    for client in clients:
        client.join(HUNG_S)
    n_lost = tally.counts["hung"] + tally.counts["unexplained"]
    return "SIGTERM under 8 streams, to the exit", f"{stop_s:.2f} s, {n_lost} lost", not n_lost


def start_script(*arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(ROOT / "scripts" / "attacks.py"), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def tail_of(took_ms: list[float]) -> str:
    values = sorted(took_ms)
    middle, late = values[len(values) // 2], values[int(len(values) * 0.99)]
    return f"p50 {middle:.1f} ms, p99 {late:.1f} ms, max {values[-1]:.1f} ms"


FIGURES: Sequence[Callable[[argparse.Namespace, Sequence[str]], Figure]] = (
    *(health_under_attack(name) for name in ("slow-header", "slow-body", "slow-reader")),
    burst,
    end_under_streams,
    kills_under_streams,
    growth,
)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", nargs="?", default=str(POCKET))
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--kill-every", type=float, default=15.0, help="seconds; 0 = never")
    parser.add_argument("--lib", default="", help="libllama, as for igllama.py")
    parser.add_argument("--parallel", type=int, default=8)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--figures", action="store_true", help="each fault by itself")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--requests", type=int, default=10_000)
    return parser.parse_args()


def main() -> int:
    wanted = read_arguments()
    flags = ["-np", str(wanted.parallel), "-c", "512", "-t", str(wanted.threads)]
    flags += ["--lib", wanted.lib] if wanted.lib else []
    if wanted.figures:
        return print_figures(wanted, flags)
    with tempfile.TemporaryFile() as log:
        served = Served(wanted.model, flags, log)
        tally, over = Tally(), threading.Event()
        clients = [
            Client(served.port, tally, wanted.seed * 1000 + n, over) for n in range(wanted.clients)
        ]
        weather = Weather(served, wanted.kill_every, over)
        for thread in (*clients, weather):
            thread.start()
        figures = watch(served, wanted.minutes * 60)
        over.set()
        for thread in (*clients, weather):
            thread.join(2 * HUNG_S)
        if any(client.is_alive() for client in clients):
            tally.problem("hung", "a client did not come back")
        figures.append(served.figures())
        stop_s = served.stop()
        log.seek(0)
        return 1 if report(tally, weather, figures, stop_s, log.read().decode()) else 0


def watch(served: Served, seconds: float) -> list[Figures]:
    until, figures = time.monotonic() + seconds, [served.figures()]
    while time.monotonic() < until:
        time.sleep(min(SAMPLE_S, seconds / 10))
        if served.process.poll() is not None:
            raise SystemExit(f"the server ended with exit code {served.process.returncode}")
        figures.append(served.figures())
    return figures


if __name__ == "__main__":
    sys.exit(main())
