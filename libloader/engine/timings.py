"""Durations and counts: per request in llama-server's names, and over the engine's life.

Not here: any clock; all times come in as numbers.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import accumulate

from libloader.core import Usage
from libloader.engine.sequence import LiveRequest
from libloader.errors import IgllamaError


def usage_of(live: LiveRequest) -> Usage:
    return Usage(live.n_prompt, live.n_cached, live.n_completion)


def timings_of(live: LiveRequest, now_s: float) -> dict[str, float]:
    """Return llama-server's `timings`: prompt_* from seat to first token, predicted_* from there.

    predicted_n counts every choice; the first token of each belongs to the prompt's time.
    """
    first_s = min(live.first_token_s, now_s)
    prompt_ms = (first_s - min(live.seated_s, first_s)) * 1e3
    predicted_ms = (now_s - first_s) * 1e3
    return {
        "cache_n": live.n_cached,
        "prompt_n": live.n_computed,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": _ratio(prompt_ms, live.n_computed),
        "prompt_per_second": _ratio(live.n_computed * 1e3, prompt_ms),
        "predicted_n": live.n_completion,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": _ratio(predicted_ms, live.n_completion),
        "predicted_per_second": _ratio(live.n_completion * 1e3, predicted_ms),
        **_drafts(live),
        **_shifts(live),
    }


def _drafts(live: LiveRequest) -> dict[str, float]:
    """Return how many tokens were guessed and how many of these were right, if any were."""
    guessers = [sequence.guesser for sequence in live.sequences if sequence.guesser is not None]
    n_drafted = sum(guesser.n_drafted for guesser in guessers)
    n_accepted = sum(guesser.n_accepted for guesser in guessers)
    return {"draft_n": n_drafted, "draft_n_accepted": n_accepted} if n_drafted else {}


def _shifts(live: LiveRequest) -> dict[str, float]:
    """Return how often a context was full and forgot its older half, if one ever was."""
    n_shifts = sum(sequence.n_shifts for sequence in live.sequences)
    return {"context_shifts": n_shifts, "truncated": True} if n_shifts else {}


def _ratio(a: float, b: float) -> float:
    return a / b if b else 0.0


class Counters:
    """Totals since the engine began; `figures` names them for the metrics page."""

    def __init__(self) -> None:
        self.n_requests = 0
        self.n_cancelled = 0
        self.n_prompt_tokens = 0
        self.n_cached_tokens = 0
        self.n_completion_tokens = 0
        self.n_batches = 0
        self.n_refused_batches = 0
        self.n_preempted = 0
        self.n_context_shifts = 0
        self.failures: dict[str, int] = {}  # by error class
        self.queue_s = Histogram(SECONDS)  # from submit to the first work on it
        self.first_token_s = Histogram(SECONDS)  # from submit to its first token
        self.token_gap_s = Histogram(SECONDS)  # between two tokens of a choice
        self.batch_rows = Histogram(ROWS)

    def count_request(self, usage: Usage) -> None:
        self.n_requests += 1
        self.n_prompt_tokens += usage.n_prompt
        self.n_cached_tokens += usage.n_cached
        self.n_completion_tokens += usage.n_completion

    def count_failure(self, error: IgllamaError) -> None:
        name = type(error).__name__
        self.failures[name] = self.failures.get(name, 0) + 1

    def figures(self) -> dict[str, float]:
        """Return every counter by name; failures as `failed_<class>`, histograms in parts."""
        named: dict[str, float] = {f"failed_{name}": n for name, n in self.failures.items()}
        for name, value in vars(self).items():
            if isinstance(value, int):
                named[name] = value
            elif isinstance(value, Histogram):
                named.update(value.figures(name))
        return named


class Histogram:
    """Counts values by upper bound, as a metrics page wants them: cumulative when told."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)  # the last one: above all bounds
        self._sum = 0.0
        self._values: list[float] = []  # that are not counted yet: a step has no time for it
        self.add = self._values.append

    def figures(self, name: str) -> dict[str, float]:
        """Return name_le_<bound> for each bound, name_count and name_sum. Ask now and then."""
        for value in self._values:
            self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += sum(self._values)
        self._values.clear()
        totals = list(accumulate(self._counts))
        named = {f"{name}_le_{bound:g}": n for bound, n in zip(self._bounds, totals)}
        return {**named, f"{name}_count": totals[-1], f"{name}_sum": self._sum}


SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0)


class Average:
    """A mean that forgets: each new value counts one part in `memory`."""

    def __init__(self, memory: int = 16) -> None:
        self.value = math.nan
        self._memory = memory

    def add(self, value: float) -> None:
        known = not math.isnan(self.value)
        self.value = self.value + (value - self.value) / self._memory if known else value

    def or_else(self, default: float) -> float:
        return default if math.isnan(self.value) else self.value
