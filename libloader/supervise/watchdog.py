"""Has the engine stopped moving? A judgement over readings of the breadcrumb's beat.

Pure: readings and time come in as arguments. Laws:
- Only time in which the front itself ran counts: after a suspended laptop or a SIGSTOP of the
  front, everything looks old and nothing is.
- A slow machine is no hung one: the allowance grows with the steps that were measured on it.
"""

from __future__ import annotations

from collections import deque

from libloader.supervise.limits import Limits

SAVING = "save"  # the phase in which a child that ends brings to disk what outlives it
_WINDOW = 256  # steps remembered


class Watchdog:
    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._floor_s = {
            "": limits.hung_load_s,  # a new interpreter that has not come to its first mark
            "load": limits.hung_load_s,
            "prefill": limits.hung_prefill_s,
            SAVING: limits.save_s,
        }
        self._steps_ms: deque[float] = deque(maxlen=_WINDOW)
        self._beat = -1
        self._moved_at = 0.0
        self._looked_at = 0.0
        self._phase = ""

    def restart(self, now: float) -> None:
        """A new child: it gets the full allowance from now."""
        self._beat, self._phase = -1, "load"
        self._moved_at = self._looked_at = now

    def step_took(self, ms: float) -> None:
        self._steps_ms.append(ms)

    def look(self, now: float, beat: int, phase: str) -> None:
        """Take in one reading; to be called every tick_s."""
        gap = now - self._looked_at
        if gap > max(2.0, 8 * self._limits.tick_s):
            self._moved_at += gap
        self._looked_at = now
        if beat != self._beat:
            self._beat, self._phase, self._moved_at = beat, phase, now

    def age_s(self, now: float) -> float:
        """Return the seconds since the last sign of life."""
        return max(0.0, now - self._moved_at)

    @property
    def hung(self) -> bool:
        return self._age_at_look() > self.allowance_s()

    @property
    def stalled(self) -> bool:
        return self._age_at_look() > self.allowance_s() * self._limits.stalled_part

    def allowance_s(self) -> float:
        """Return how long the present phase may take without a sign of life."""
        floor = self._floor_s.get(self._phase, self._limits.hung_s)
        if self._age_at_look() < floor * self._limits.stalled_part:
            return floor  # nobody is late: no need to sort
        return max(floor, self._limits.p99_factor * _p99(self._steps_ms) / 1000)

    def _age_at_look(self) -> float:
        return self._looked_at - self._moved_at


def _p99(values: deque[float]) -> float:
    ordered = sorted(tuple(values))  # a copy first: status() comes from other threads
    return ordered[int(len(ordered) * 0.99)] if ordered else 0.0
