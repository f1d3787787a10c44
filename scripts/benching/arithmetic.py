"""From what was seen to a figure. Pure: no clock, no socket, no process."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

Arrival = tuple[float, int]  # (seconds, stream): a token of `stream` came


class Step(NamedTuple):
    """One engine step as clients see it: streams that got a token, and when the first did."""

    began_s: float
    streams: frozenset[int]


def rate_while_it_comes(arrivals: Sequence[Sequence[float]], n_tokens: Sequence[int]) -> float:
    """Return tokens per second while all streams run: from the last to begin to the first to end.

    Before that, prompts of the others are read. `n_tokens` are the server's counts: several tokens
    may come in one piece of text. The first token of each stream belongs to its prompt.
    """
    begun = max(times[0] for times in arrivals)
    ended = min(times[-1] for times in arrivals)
    if begun >= ended:
        return float("nan")
    n = 0.0
    for times, n_of_stream in zip(arrivals, n_tokens):
        n_pieces = sum(begun < time <= ended for time in times)
        n += n_pieces * (n_of_stream - 1) / (len(times) - 1)
    return n / (ended - begun)


def largest_gap(times: Sequence[float], begin: float, end: float) -> float:
    """Return the largest gap between neighbours in `times` that overlaps [begin, end]."""
    gaps = (b - a for a, b in zip(times, times[1:]) if b > begin and a < end)
    return max(gaps, default=0.0)


def gaps(times: Sequence[float], begin: float, end: float) -> list[float]:
    """Return the gaps between neighbours in `times` that end in (begin, end]."""
    return [b - a for a, b in zip(times, times[1:]) if begin < b <= end]


def quantile(values: Sequence[float], part: float) -> float:
    """Return the value that `part` of all do not exceed."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(part * len(ranked)))] if ranked else float("nan")


def steps_of(arrivals: Iterable[Arrival]) -> list[Step]:
    """Group arrivals into steps: a step ends when a stream that had its token gets the next."""
    steps: list[Step] = []
    began, streams = 0.0, set[int]()
    for when, stream in sorted(arrivals):
        if stream in streams:
            steps.append(Step(began, frozenset(streams)))
            streams = set()
        if not streams:
            began = when
        streams.add(stream)
    if streams:
        steps.append(Step(began, frozenset(streams)))
    return steps


def ragged_ratio(
    arrivals: Iterable[Arrival], full_step_s: Mapping[int, float], clean_only: bool = True
) -> tuple[float, float]:
    """Return (time of steps / time of full-batch steps with as many streams, streams per step).

    `full_step_s` is measured for some numbers of streams and taken as linear between them. With
    `clean_only`, steps in which streams came or went are left out: they compute prompts too.
    """
    steps = steps_of(arrivals)
    taken = wanted = n_streams = 0.0
    n_steps = 0
    for step, following in zip(steps, steps[1:]):
        if clean_only and step.streams != following.streams:
            continue
        taken += following.began_s - step.began_s
        wanted += interpolated(full_step_s, len(step.streams))
        n_streams += len(step.streams)
        n_steps += 1
    return taken / wanted, n_streams / n_steps


def interpolated(known: Mapping[int, float], wished: int) -> float:
    """Return the value at `wished` on the straight lines between the known points."""
    if wished in known:
        return known[wished]
    below = max((n for n in known if n < wished), default=min(known))
    above = min((n for n in known if n > wished), default=max(known))
    if below == above:
        return known[below]
    part = (wished - below) / (above - below)
    return known[below] + part * (known[above] - known[below])


def n_distinct(prompts: Iterable[Sequence[int]]) -> int:
    """Return how many tokens must be computed at least: each distinct prefix ends in one."""
    seen: set[int] = set()
    for prompt in prompts:
        path = 0
        for token in prompt:
            path = hash((path, token))
            seen.add(path)
    return len(seen)


def computed_tokens(usages: Iterable[Mapping[str, int]]) -> int:
    """Return the prompt tokens that were not taken from a cache."""
    return sum(usage["prompt_tokens"] - usage["cached_tokens"] for usage in usages)


def cost_of_steps(cpu_s: float, n_steps: int, elapsed_s: float) -> tuple[float, float]:
    """Return (microseconds per step, share of a step) of work spread over `n_steps`."""
    return cpu_s / n_steps * 1e6, cpu_s / elapsed_s


class Memory(NamedTuple):
    """Of one process, in bytes: its proportional share, and how much of that maps the model."""

    pss: int
    model_pages: int


def memory_above(processes: Iterable[Memory], model_buffers: int, kv_bytes: int) -> int:
    """Return the bytes of all processes that are neither weights nor KV cache.

    `model_buffers` are copies of weights in anonymous memory (repacked for the CPU at hand).
    """
    private = sum(process.pss - process.model_pages for process in processes)
    return private - model_buffers - kv_bytes


def middle(values: Sequence[float]) -> float:
    return statistics.median(values) if values else float("nan")
