#!/usr/bin/env python3
"""Speed as ratios measured in one run: the server over HTTP against the raw decode loop.

    python3 scripts/bench.py MODEL.gguf [--lib PATH] [--only streams,prefix] [--rounds 5]
    python3 scripts/bench.py MODEL.gguf --against URL       the same load on another server

Laws:
- Server and raw loop use the same library, model, threads and batch, and take turns round by round:
  what a noisy machine does to one it does to the other. The table shows the median of the ratios.
- The client is one lean thread over plain sockets in this process; server and raw loop are others.
- Absolute figures are printed for orientation; only the ratios are comparable between runs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

WARM_UP_TOKENS = 8
FILLER = "The quick brown fox jumps over the lazy dog near the river bank. "


# ---- the raw decode loop, in a process of its own ----


def raw_loop(model_path: str, lib: str, n_streams: int, n_tokens: int, threads: int) -> float:
    """Tokens per second of decode and greedy sampling with `n_streams` sequences, no server."""
    from libloader import core
    from libloader.abi import find, library
    from libloader.llama.batch import Batch
    from libloader.llama.context import Context
    from libloader.llama.model import Model
    from libloader.llama.sampler import SamplerChain

    settings = core.EngineSettings(
        model=model_path, n_ctx=512, n_parallel=n_streams, n_threads=threads
    )
    native = find.find_library(lib, library.load)
    with (
        Model.load(native, model_path, settings, lambda done: None) as model,
        Context(model, settings) as context,
    ):
        batch = Batch(native, context.n_batch, context.n_seq_max)
        chains = [
            SamplerChain(model, core.Sampling(temperature=0), context.n_ctx_seq)
            for _ in range(n_streams)
        ]
        tokens = [5 + i for i in range(n_streams)]
        started = 0.0
        for position in range(WARM_UP_TOKENS + n_tokens):
            if position == WARM_UP_TOKENS:
                started = time.perf_counter()
            batch.clear()
            for seq_id, token in enumerate(tokens):
                batch.add(token, position, seq_id, True)
            assert context.decode(batch) == 0
            tokens = [chain.sample(context, row) for row, chain in enumerate(chains)]
        elapsed = time.perf_counter() - started
        for chain in chains:
            chain.close()
    return n_streams * n_tokens / elapsed


def raw_in_child(options: argparse.Namespace, n_streams: int, n_tokens: int) -> float:
    command = [sys.executable, __file__, options.model, "--lib", options.lib]
    command += ["--threads", str(options.threads), "--raw", str(n_streams), str(n_tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


# ---- the server and the lean client ----


class Target(NamedTuple):
    """A server to measure: where it listens, and its process if it is ours."""

    host: str
    port: int
    pid: int = 0


@contextmanager
def our_server(options: argparse.Namespace, *flags: str) -> Iterator[Target]:
    """Start our own server on a free port; yields once it is ready."""
    command = [sys.executable, str(ROOT / "igllama.py"), "api", options.model, "-p", "0"]
    command += ["--lib", options.lib, "-t", str(options.threads), *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            listening = re.search(r"listening +http://([\d.]+):(\d+)", line)
            if listening:
                yield Target(listening.group(1), int(listening.group(2)), process.pid)
                break
        else:
            raise SystemExit("the server did not start")
    finally:
        process.terminate()
        process.wait(30)
        if process.stdout:
            process.stdout.close()


class Call:
    """One request in flight: what arrived, and when each piece did."""

    def __init__(self, target: Target, path: str, body: dict[str, Any]) -> None:
        raw = json.dumps(body).encode()
        self.streamed = bool(body.get("stream"))
        self.request = (
            f"POST {path} HTTP/1.1\r\nHost: {target.host}\r\nConnection: close\r\n"
            f"Content-Length: {len(raw)}\r\n\r\n"
        ).encode() + raw
        self.sock = socket.create_connection((target.host, target.port))
        self.data = bytearray()
        self.arrivals: list[tuple[float, int]] = []  # (when, content events so far)
        self.sent_at = self.ended_at = 0.0

    def send(self) -> None:
        self.sent_at = time.perf_counter()
        self.sock.sendall(self.request)

    def receive(self) -> bool:
        """Take what is there; False at the end."""
        part = self.sock.recv(1 << 18)
        now = time.perf_counter()
        if not part:
            self.ended_at = now
            self.sock.close()
            return False
        self.data += part
        self.arrivals.append((now, part.count(b'"content":"')))
        return True

    @property
    def first_token_s(self) -> float:
        """Seconds from sending to the first text (the role chunk before it does not count)."""
        seen = 0
        for when, n_events in self.arrivals:
            seen += n_events
            if seen > 1 or not self.streamed:
                return when - self.sent_at
        return self.ended_at - self.sent_at

    @property
    def largest_gap_s(self) -> float:
        times = [when for when, n in self.arrivals if n]
        return max((b - a for a, b in zip(times, times[1:])), default=0.0)

    @property
    def n_tokens(self) -> int:
        """Completion tokens as the server counted them."""
        found = re.findall(rb'"completion_tokens":\s*(\d+)', bytes(self.data))
        if not found:
            raise SystemExit(f"no usage in the answer: {bytes(self.data[:600])!r}")
        return int(found[-1])


def run_calls(calls: Sequence[Call]) -> float:
    """Send all at once and wait for all; return the seconds from the first to the last byte."""
    with selectors.DefaultSelector() as selector:
        for call in calls:
            selector.register(call.sock, selectors.EVENT_READ, call)
        for call in calls:
            call.send()
        n_open = len(calls)
        while n_open:
            for key, _ in selector.select():
                if not key.data.receive():
                    selector.unregister(key.fileobj)
                    n_open -= 1
    return max(c.ended_at for c in calls) - min(c.sent_at for c in calls)


def chat_body(text: str, n_tokens: int, *, stream: bool, **fields: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": n_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": stream,
        "stream_options": {"include_usage": True} if stream else None,
        **fields,
    }


def chat(target: Target, text: str, n_tokens: int, *, stream: bool = True, **fields: Any) -> Call:
    body = chat_body(text, n_tokens, stream=stream, **fields)
    return Call(target, "/v1/chat/completions", body)


# ---- the benchmarks: each prints rows ----


class Row(NamedTuple):
    what: str
    ratio: float
    note: str


def bench_streams(options: argparse.Namespace) -> Iterator[Row]:
    """1, 4, 8, 16, ... streams: tokens per second over HTTP / raw loop with as many sequences."""
    for n_streams in options.streams:
        for stream in (True, False):
            yield streams_row(options, n_streams, stream)


def streams_row(options: argparse.Namespace, n_streams: int, stream: bool) -> Row:
    ratios, ours, raw = [], [], []
    with target_for(options, "-np", str(n_streams), "-c", "512") as target:
        run_calls([chat(target, "Hi", 8, stream=stream) for _ in range(n_streams)])
        for _ in range(options.rounds):
            raw.append(raw_in_child(options, n_streams, options.tokens))
            ours.append(served_rate(target, n_streams, options.tokens, stream))
            ratios.append(ours[-1] / raw[-1])
    kind = "streamed" if stream else "plain"
    note = f"{statistics.median(ours):.0f} of {statistics.median(raw):.0f} tok/s"
    return Row(f"{n_streams} x {kind} / raw loop", statistics.median(ratios), note)


def served_rate(target: Target, n_streams: int, n_tokens: int, stream: bool) -> float:
    """Tokens per second between the first token and the end: prefill is measured elsewhere."""
    calls = [chat(target, f"Hi {i}", n_tokens, stream=stream) for i in range(n_streams)]
    elapsed = run_calls(calls)
    if stream:
        begun = min(c.sent_at + c.first_token_s for c in calls)
        elapsed = max(c.ended_at for c in calls) - begun
        return sum(c.n_tokens - 1 for c in calls) / elapsed
    return sum(c.n_tokens for c in calls) / elapsed


def bench_channel(options: argparse.Namespace) -> Iterator[Row]:
    """What front and child cost: the same 16 streams with the engine in a child and in a thread."""
    pairs = []
    flags = ("-np", "16", "-c", "512")
    with (
        our_server(options, *flags) as child,
        our_server(options, *flags, "--isolation", "none") as thread,
    ):
        for target in (child, thread):
            served_rate(target, 16, 8, True)
        for _ in range(options.rounds):
            in_child = served_rate(child, 16, options.tokens, True)
            pairs.append((in_child, served_rate(thread, 16, options.tokens, True)))
    ratio = statistics.median(a / b for a, b in pairs)
    yield Row("16 streams: engine in a child / in a thread", ratio, f"{pairs[-1][0]:.0f} tok/s")


def bench_gap(options: argparse.Namespace) -> Iterator[Row]:
    """The largest gap between two tokens of a running stream while a long prompt arrives."""
    gaps, chunks = [], []
    with target_for(options, "-np", "2", "-c", "4096") as target:
        for i in range(options.rounds):
            alone = chat(target, f"round {i} alone", 64)
            run_calls([alone])
            running = chat(target, f"round {i}", 200)
            long = chat(target, f"{i} " + FILLER * 60, 1)
            run_calls([running, long])
            gaps.append(running.largest_gap_s)
            chunks.append(long.first_token_s)
    gap, prefill = statistics.median(gaps), statistics.median(chunks)
    yield Row("largest gap while a long prompt arrives / its prefill", gap / prefill,
              f"{gap * 1e3:.0f} ms of {prefill * 1e3:.0f} ms")  # fmt: skip


def bench_prefix(options: argparse.Namespace) -> Iterator[Row]:
    """Time to first token with a known prefix / cold."""
    cold, warm = [], []
    with target_for(options, "-np", "2", "-c", "4096") as target:
        for i in range(options.rounds):
            text = f"{i} " + FILLER * 60
            first, again = chat(target, text + " A", 2), chat(target, text + " B", 2)
            run_calls([first])
            run_calls([again])
            cold.append(first.first_token_s)
            warm.append(again.first_token_s)
    ratio = statistics.median(w / c for w, c in zip(warm, cold))
    note = f"{statistics.median(warm) * 1e3:.0f} of {statistics.median(cold) * 1e3:.0f} ms"
    yield Row("first token, known prefix / cold", ratio, note)


def bench_start(options: argparse.Namespace) -> Iterator[Row]:
    """Start-up: seconds to ready and to the first token (no ratio: orientation only)."""
    begun = time.perf_counter()
    with our_server(options) as target:
        ready = time.perf_counter() - begun
        call = chat(target, "Hi", 1)
        run_calls([call])
        note = f"ready after {ready:.2f} s, first token {call.first_token_s * 1e3:.0f} ms later"
        yield Row("start-up", float("nan"), note)


BENCHES: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "streams": bench_streams,
    "channel": bench_channel,
    "gap": bench_gap,
    "prefix": bench_prefix,
    "start": bench_start,
}


@contextmanager
def target_for(options: argparse.Namespace, *flags: str) -> Iterator[Target]:
    """Our server with these flags, or the one that --against names, as it is."""
    if options.against:
        host, _, port = options.against.rpartition("//")[2].rstrip("/").partition(":")
        yield Target(host, int(port or 80))
        return
    with our_server(options, *flags) as target:
        yield target


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed as ratios against the raw decode loop.")
    parser.add_argument("model")
    parser.add_argument("--lib", default=os.environ.get("IGLLAMA_LIB", ""))
    parser.add_argument("--against", default="", help="URL of another server")
    parser.add_argument("--only", default=",".join(BENCHES), help="benchmarks, comma-separated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--streams", type=lambda t: [int(n) for n in t.split(",")],
                        default=[1, 4, 8, 16, 32])  # fmt: skip
    parser.add_argument("--raw", type=int, nargs=2, metavar=("STREAMS", "TOKENS"))
    return parser.parse_args()


def main() -> int:
    options = read_options()
    if options.raw:
        print(raw_loop(options.model, options.lib, *options.raw, options.threads))
        return 0
    print(f"{'what':<56} {'ratio':>6}   note")
    for name in options.only.split(","):
        for row in BENCHES[name](options):
            print(f"{row.what:<56} {row.ratio:>6.3f}   {row.note}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
