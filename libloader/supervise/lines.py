"""The lines before the engine: how many requests are in each, and whether one more may come.

What needs a slot, what is embedded and what is only read (a dry run) stand in three lines of the
same length (core.line_of): nobody is refused for work of another kind. Who is being served is in
its line too, but waits no more.

Laws:
- A line is full with n_parallel + n_queue requests. A key that has fewer waiting in it than there
  are slots may come all the same: no key locks another one out, and nobody in line is sent away.
  Keys are the server's own and few, so a line with many of them is bounded as well.
- A line with one key in it, or none, is as long as it was said to be.
- One thread at a time writes, any may ask: answers are made of single numbers, so there is no lock.
"""

from __future__ import annotations

from collections.abc import Mapping

from libloader import core, errors

UNMEASURED_S = 1.0  # what a request is taken to last while none has ended


class Lines:
    def __init__(self, n_parallel: int, n_queue: int) -> None:
        self._n_parallel = n_parallel
        self._n_most = n_parallel + n_queue
        self._n_of_right = min(n_parallel, n_queue)  # of one key, waiting, in a full line
        self._n_all = dict.fromkeys(core.LINES, 0)
        self._n_waiting = dict.fromkeys(core.LINES, 0)
        self._n_waiting_of: dict[tuple[str, str], int] = {}  # by line and key
        self._waiting: set[str] = set()
        self._service_s = dict.fromkeys(core.LINES, UNMEASURED_S)

    def enter(self, request: core.Request) -> None:
        self._n_all[core.line_of(request.kind)] += 1
        self._waiting.add(request.id)
        self._count_waiting(request, 1)

    def begin(self, request: core.Request) -> None:
        """Take note that the engine has begun with it; for a second time that is no news."""
        if request.id in self._waiting:
            self._waiting.remove(request.id)
            self._count_waiting(request, -1)

    def leave(self, request: core.Request) -> None:
        self.begin(request)
        self._n_all[core.line_of(request.kind)] -= 1

    def _count_waiting(self, request: core.Request, n: int) -> None:
        line = core.line_of(request.kind)
        self._n_waiting[line] += n
        place = line, request.fair_key
        self._n_waiting_of[place] = self._n_waiting_of.get(place, 0) + n

    def note_speed(self, figures: Mapping[str, float]) -> None:
        """Learn from an engine's figures how long its requests last; a new one has none yet."""
        for line in core.LINES:
            self._service_s[line] = figures.get(f"service_s_{line}", self._service_s[line])

    def n_in(self, line: str) -> int:
        """Return how many are in `line`, served or waiting. Any thread."""
        return self._n_all[line]

    def refusal(self, kind: str, fair_key: str) -> errors.QueueFull | None:
        """Return why one more request of `kind` may not come from this key. Any thread."""
        line = core.line_of(kind)
        if self._n_all[line] < self._n_most:
            return None
        if self._n_waiting_of.get((line, fair_key), 0) < self._n_of_right:
            return None
        turns = (self._n_waiting[line] + 1) / self._n_parallel
        retry_after_s = max(1.0, turns * self._service_s[line])
        return errors.QueueFull("too many requests are waiting", retry_after_s=retry_after_s)
