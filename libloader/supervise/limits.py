"""Every number that supervision uses, in one table. No behaviour lives here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Defaults are what a user gets; tests and the simulation shrink them."""

    # Restarts: the delay before each one, and when to stop hurrying.
    backoff_s: tuple[float, ...] = (0.0, 0.1, 0.5, 1.0, 2.0)
    crashes_max: int = 5  # more than so many within the window is "failed"
    crash_window_s: float = 60.0
    probe_first_s: float = 30.0  # failed: one trial start after this, doubling up to probe_max_s
    probe_max_s: float = 300.0

    # Hung native calls: no sign of life for max(floor, p99_factor * p99 step).
    hung_s: float = 30.0
    hung_prefill_s: float = 300.0  # one llama_decode may carry n_batch prompt tokens
    hung_load_s: float = 300.0  # between two progress calls
    p99_factor: float = 20.0
    stalled_part: float = 1 / 6  # of the allowance: from there on /health says "stalled"

    # Blame and replay.
    suspect_replays: int = 1  # a request alive in that many crashes without a culprit is replayed
    lives_max: int = 5  # engine lives that one request may consume, whoever was at fault
    poison_crashes: int = 2
    poison_s: float = 600.0
    poison_bodies: int = 64

    n_queue: int = 128  # requests that may wait for a slot, unless the settings say otherwise
    stop_grace_s: float = 1.0  # between the wish to stop and SIGKILL
    save_s: float = 60.0  # instead, where prefixes are on their way to --cache-dir
    tick_s: float = 0.25  # how often the front looks at the breadcrumb
