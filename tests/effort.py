"""CPU time that does not depend on how fast a machine is at the moment."""

from __future__ import annotations

import time

USUAL_S = 0.025  # of CPU for `_piece_of_work`, where the bounds of the tests were set


def assert_takes_less(seconds: float, started_s: float) -> None:
    """Assert that less than `seconds` of CPU went by since `started_s`, on time.process_time.

    A machine that is slow now gets longer, by as much as it is slow at a known piece of work.
    """
    took_s = time.process_time() - started_s
    if took_s >= seconds:
        slowness = max(1.0, _piece_of_work() / USUAL_S)
        told = f"{took_s:.2f} s, on a machine {slowness:.1f} times slow"
        assert took_s / slowness < seconds, told


def _piece_of_work() -> float:
    """Return the seconds of CPU that it takes: strings, calls and a dict, as in what is tested."""
    started_s = time.process_time()
    counts: dict[str, int] = {}
    for number in range(150_000):
        key = str(number % 5_000)
        counts[key] = counts.get(key, 0) + len(key)
    return time.process_time() - started_s
