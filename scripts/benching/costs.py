"""Rows of what serving costs beside the tokens: gaps, the pipe, the start, memory."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from benching import arithmetic, client, processes, prose
from benching.arithmetic import middle
from benching.client import Target
from benching.common import Figures, RowMaker, Run, warm_up
from benching.prefixes import words_for
from benching.table import Row, at_most, row

HOOKS = Path(__file__).resolve().parent / "hooks"


# ---- a long prompt beside a running stream ----

LONG_TOKENS = 4000


def gap(model: str) -> RowMaker:
    def rows(run: Run) -> Iterator[Row]:
        if model not in run.models:
            return
        flags = ("-np", "2", "-c", "4608")
        with run.sides(model, *flags) as sides:
            figures, gaps, alone = Figures(len(sides.servers)), [], []
            for target in sides.servers:
                warm_up(target, 2)
            n_words = words_for(sides.ours, LONG_TOKENS)
            for number in run.rounds():
                for server, target in enumerate(sides.servers):
                    chunk_s = middle(sides.raw.ask("prefill", n=LONG_TOKENS)["chunk_s"])
                    gap_s, alone_s = largest_gaps(target, n_words, number)
                    figures.add(server, gap_s / chunk_s)
                    if server == 0:
                        gaps.append(gap_s)
                        alone.append(alone_s)
        words = f"largest gap of a stream while a {LONG_TOKENS}-token prompt comes / one n_ubatch"
        words += f" of it; {middle(gaps) * 1e3:.0f} ms, alone {middle(alone) * 1e3:.0f} ms"
        yield row(f"gap {model}", figures.ours, words, at_most(1.0), figures.against)

    return rows


def largest_gaps(target: Target, n_words: int, number: int) -> tuple[float, float]:
    """Return the largest gap of a running stream, in seconds: with a long prompt, and before it."""
    running = client.chat(target, f"round {number}", 500, logprobs=True, top_logprobs=0)
    load = client.Load()
    load.add(running)
    load.add_when(
        lambda: len(running.parts) > 40,
        lambda: client.chat(target, prose.words(n_words, ("long", number)), 1, stream=False),
    )
    load.run()
    long = load.calls[1]
    times = token_times(running)
    before = arithmetic.largest_gap(times, times[0], long.sent_at)
    return arithmetic.largest_gap(times, long.sent_at, long.ended_at), before


# ---- a long prompt beside several streams: catalogue D18 ----

FAIR_STREAMS = 4
FAIR_TOKENS = {"S": 8000, "M": 2000}  # of the prompt
FAIR_ANSWER = 4000  # tokens: more than come while that is read
FAIR_GOAL = 3.0


def fairness(model: str) -> RowMaker:
    """The gaps between tokens of four streams while a long prompt is read / without it."""

    def rows(run: Run) -> Iterator[Row]:
        if model not in run.models:
            return
        n_tokens = FAIR_TOKENS[model] // (4 if run.quick else 1)
        flags = ("-np", str(FAIR_STREAMS + 1), "-c", str(n_tokens + FAIR_ANSWER + 256))
        with run.server(model, *flags) as ours:
            servers = [ours] if run.against is None else [ours, run.against]
            figures, alone, slowed = Figures(len(servers)), [], []
            for target in servers:
                warm_up(target, FAIR_STREAMS + 1)
            n_words = words_for(ours, n_tokens)
            for number in run.rounds():
                for server, target in enumerate(servers):
                    during, without, read_s = gaps_around(target, n_words, number)
                    figures.add(server, arithmetic.quantile(during, 0.99) / middle(without))
                    if server == 0:
                        text = prose.words(n_words, ("alone", number))
                        slowed.append(read_s / client.first_token_s(target, text)[0])
                        alone.append(middle(without))
        words = (
            f"p99 of the gap between tokens of {FAIR_STREAMS} streams while a {n_tokens}-token "
            f"prompt is read / median of the same tokens without it, {middle(alone) * 1e3:.0f} ms; "
            f"the prompt takes {middle(slowed):.1f} times as long as alone"
        )
        yield row(f"fairness {model}", figures.ours, words, at_most(FAIR_GOAL), figures.against)

    return rows


def gaps_around(
    target: Target, n_words: int, number: int
) -> tuple[list[float], list[float], float]:
    """Return the gaps of all streams while a long prompt is read, the gaps of the same tokens
    without that, and the seconds until the prompt's first token."""
    load = client.Load(lambda call: load.stop() if call is load.calls[-1] else None)
    for i in range(FAIR_STREAMS):
        load.add(fair_stream(target, (number, i), FAIR_ANSWER))
    load.add_when(
        lambda: all(len(call.parts) > 60 for call in load.calls),
        lambda: client.chat(target, prose.words(n_words, ("fair", number)), 1, stream=False),
    )
    load.run()
    *streams, long = load.calls
    if any(call.ended_at < long.ended_at for call in streams):
        raise SystemExit("a stream ended before the prompt was read")
    times = [token_times(call) for call in streams]
    during = [arithmetic.gaps(each, long.sent_at, long.ended_at) for each in times]
    again = [fair_stream(target, (number, i), len(each)) for i, each in enumerate(times)]
    client.run_calls(again)
    without = [
        arithmetic.gaps(token_times(call), 0.0, math.inf)[-len(each) :]
        for call, each in zip(again, during)
    ]
    return sum(during, []), sum(without, []), long.seconds


def fair_stream(target: Target, seed: object, n_tokens: int) -> client.Call:
    fields = {"logprobs": True, "top_logprobs": 0}
    return client.chat(target, prose.words(8, ("stream", seed)), n_tokens, **fields)


def token_times(call: client.Call) -> list[float]:
    """Return when each token came: with log probabilities each one is a chunk of its own."""
    return [when for when, part in call.parts for _ in range(part.count(b'"logprobs":{'))]


# ---- the pipe between front and engine child ----


def channel(run: Run) -> Iterator[Row]:
    """What the pipe costs a decode step of 16 streams, counted inside the live processes."""
    n_tokens = run.tokens(256)
    shares, costs = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = os.pathsep.join([str(HOOKS), str(processes.ROOT)])
        environment = {"PYTHONPATH": path, "IGLLAMA_BENCH_COUNTERS": folder}
        with run.server("S", "-np", "16", "-c", "512", environment=environment) as target:
            warm_up(target, 16)
            for number in run.rounds():
                before = sums(folder)
                clock = processes.CpuClock(processes.family(target.pid)[1:])
                elapsed = sixteen_streams(target, number, n_tokens)
                # On a busy machine steps take longer than their work, which would flatter us.
                elapsed = min(elapsed, clock.elapsed_s() / run.threads_for("S") or elapsed)
                spent = {name: b - a for name, a, b in zipped(before, sums(folder))}
                n_steps = int(spent["child calls"])
                piped = spent["child"] + spent["feed"] + spent["check"]
                microseconds, share = arithmetic.cost_of_steps(piped, n_steps, elapsed)
                shares.append(share)
                costs.append((microseconds, spent["child"] / n_steps * 1e6))
    both, in_child = (middle(column) for column in zip(*costs))
    words = f"CPU of the pipe / time of a step, 16 streams on S: {both:.0f} us a step"
    yield row("channel", shares, f"{words}, {in_child:.0f} of them in the child", at_most(0.015))
    yield isolation_row(run, n_tokens)


def isolation_row(run: Run, n_tokens: int) -> Row:
    flags = ("-np", "16", "-c", "512")
    ratios = []
    with run.server("S", *flags) as child, run.server("S", *flags, "--isolation", "none") as thread:
        for target in (child, thread):
            warm_up(target, 16)
        for number in run.rounds():
            in_child_s = sixteen_streams(child, number, n_tokens)
            ratios.append(sixteen_streams(thread, number, n_tokens) / in_child_s)
    words = "tok/s with the engine in a child / in a thread of the front, 16 streams on S"
    return row("channel isolation", ratios, words)


def sixteen_streams(target: Target, number: int, n_tokens: int) -> float:
    """Return the seconds from the first token to the last."""
    texts = [prose.words(12, (number, i)) for i in range(16)]
    calls = [client.chat(target, text, n_tokens) for text in texts]
    client.run_calls(calls)
    times = [call.text_times() for call in calls]
    return max(each[-1] for each in times) - min(each[0] for each in times)


def sums(folder: str) -> dict[str, float]:
    """Return what all processes have counted, after they have written it down once more."""
    time.sleep(1.1)
    total: dict[str, float] = {}
    for path in Path(folder).glob("*.json"):
        for name, (n_calls, seconds) in json.loads(path.read_text()).items():
            total[name] = total.get(name, 0.0) + seconds
            total[f"{name} calls"] = total.get(f"{name} calls", 0.0) + n_calls
    return total


def zipped(
    before: Mapping[str, float], after: Mapping[str, float]
) -> Iterator[tuple[str, float, float]]:
    return ((name, before.get(name, 0.0), after[name]) for name in after)


# ---- the start ----


def start(run: Run) -> Iterator[Row]:
    """Seconds from the command to /health ok, and to the first token."""
    for model in run.models:
        ready, answered = [], []
        for number in run.rounds():
            began = time.perf_counter()
            port = processes.free_port()
            with processes.starting(run.flags(model, "-c", "512", "-p", str(port))) as pid:
                target = Target("127.0.0.1", port, pid)
                processes.wait_until(lambda target=target: is_well(target))
                ready.append(time.perf_counter() - began)
                client.first_token_s(target, f"Hello {number}")
                answered.append(time.perf_counter() - began)
        yield row(f"start {model}", ready, "seconds from the command to the first /health ok")
        yield row(f"start-token {model}", answered, "seconds from the command to the first token")


def is_well(target: Target) -> bool:
    with suppress(OSError, ValueError, IndexError):
        return client.get(target, "/health")[0] == 200
    return False


# ---- memory ----

MEMORY_GOAL_MB = 80
REPACKED = re.compile(r"(\S+) model buffer size = +([\d.]+) MiB")


def memory(run: Run) -> Iterator[Row]:
    """Memory of front and child above the model and the KV cache, with 8 slots at work.

    The model is its weights, their repacked copies, and the vocabulary as libllama holds it.
    """
    model = "M" if "M" in run.models else "S"
    above, alone, parts = [], [], []
    for number in run.rounds(at_most=2):
        with tempfile.TemporaryFile("w+") as log:
            flags = run.flags(model, "-np", "8", "-c", "512", "--log-level", "info")
            with processes.our_server(flags, log=log) as target:
                client.run_calls(
                    [client.chat(target, prose.words(150, (number, i)), 32) for i in range(8)]
                )
                used = [processes.memory_of(pid, run.models[model])
                        for pid in processes.family(target.pid)]  # fmt: skip
                log.seek(0)
                copies = weight_copies(log.read())
                kv = kv_bytes(target.said)
        raw, vocabulary = raw_memory(run, model)
        above.append(arithmetic.memory_above(used, copies + vocabulary, kv) / 1e6)
        alone.append(arithmetic.memory_above([raw], copies + vocabulary, kv) / 1e6)
        parts.append((sum(each.pss for each in used), copies, vocabulary, kv))
    pss, copies, vocabulary, kv = (middle(column) / 1e6 for column in zip(*parts))
    words = (
        f"MB: PSS of front and child without the model file's pages, - repacked weights "
        f"{copies:.0f} - vocabulary {vocabulary:.0f} - KV cache {kv:.0f} (PSS of all "
        f"{pss:.0f}); 8 slots after 8 streams; the raw loop alone {middle(alone):.0f}"
    )
    yield row(f"memory {model}", above, words, at_most(MEMORY_GOAL_MB))


def raw_memory(run: Run, model: str) -> tuple[arithmetic.Memory, int]:
    """Memory of the raw loop with short prompts; and the bytes of the vocabulary."""
    with processes.raw_loop(run.flags(model, "-np", "8", "-c", "512")) as raw:
        body = client.chat_body("x", 8)
        raw.ask("decode", n_streams=8, n_prompt=16, n_tokens=8, body=body)
        used = processes.memory_of(raw.pid, run.models[model])
        return used, raw.ask("vocabulary")["bytes"]


def weight_copies(log: str) -> int:
    """Return the bytes of model buffers that are no mapping of the file, as libllama logs them."""
    sizes = [float(size) for name, size in REPACKED.findall(log) if "Mapped" not in name]
    return int(sum(sizes) * 2**20)


def kv_bytes(said: str) -> int:
    found = re.search(r"KV cache ([\d.]+) MiB", said)
    if found is None:
        raise SystemExit(f"no size of the KV cache in: {said}")
    return int(float(found.group(1)) * 2**20)
