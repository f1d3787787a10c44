"""When the engine may start again: short pauses at first, then `failed` and rare probes.

Pure: time comes in as an argument. Spawning is not done here.
"""

from __future__ import annotations

from collections import deque

from libloader.supervise.limits import Limits


class RestartPolicy:
    """Counts crashes and answers each with a delay.

    steady --crash--> steady, after a backoff           (up to crashes_max in the window)
    steady --crash--> failed, probe after probe_first_s (one too many)
    failed --crash--> failed, the probe delay doubles
    failed --a full window without a crash--> steady
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._crashes: deque[float] = deque()
        self._ready_at: float | None = None
        self._probe_s = 0.0  # 0 = steady
        self.failed = False  # no engine, and none soon

    def crashed(self, now: float) -> float:
        """Note a crash; return the seconds until the next start."""
        if self._ready_at is not None and now - self._ready_at >= self._limits.crash_window_s:
            self._probe_s = 0.0
        self._ready_at = None
        self._crashes.append(now)
        while self._crashes[0] <= now - self._limits.crash_window_s:
            self._crashes.popleft()
        if self._probe_s or len(self._crashes) > self._limits.crashes_max:
            return self._next_probe()
        backoff_s = self._limits.backoff_s
        return backoff_s[min(len(self._crashes), len(backoff_s)) - 1]

    def ready(self, now: float) -> None:
        """Note that the engine takes requests; until it lasts, a probe proves nothing yet."""
        self._ready_at = now
        self.failed = False

    def _next_probe(self) -> float:
        self.failed = True
        doubled = self._probe_s * 2 or self._limits.probe_first_s
        self._probe_s = min(self._limits.probe_max_s, doubled)
        return self._probe_s
