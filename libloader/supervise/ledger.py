"""The requests between submission and their one last event, and what each client already has.

Pure: no clock, no I/O. Laws:
- A request leaves the ledger with its last event, and with that only; nothing for it passes after.
- Requests go to the engine in the order in which they were submitted, also the second time.
- After a crash a request continues behind the tokens that its client has; what the client already
  knows (a finished choice, a vector, progress) is not told twice.
- Suspects go first and one at a time, each until it has passed its first step; the others wait so
  long, so that a second crash has a name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from libloader import core
from libloader.supervise.blame import Verdict
from libloader.supervise.limits import Limits
from libloader.supervise.lines import Lines


class Entry:
    """One request in the front's care."""

    def __init__(self, request: core.Request, now: float) -> None:
        self.request = request
        self.submitted_at = now
        self.tokens: list[list[int]] = [[] for _ in range(len(request.prompts) * request.n)]
        self.done: set[int] = set()  # choices that ended, prompts that were answered
        self.moved = False  # the present engine has produced something for it
        self.n_lives = 0  # engines that ended while they worked on it
        self.n_suspected = 0

    def for_engine(self, now: float) -> core.Request:
        """Return the request as the next engine must see it."""
        request = self.request
        if request.deadline_s:
            left = request.deadline_s - (now - self.submitted_at)
            request = dataclasses.replace(request, deadline_s=max(0.001, left))  # 0 would be none
        if not any(self.tokens):
            return request
        resume = tuple(tuple(tokens) for tokens in self.tokens)
        return dataclasses.replace(request, resume=resume)

    def take(self, event: core.Event) -> bool:
        """Note what the client learns by `event`; False if it must not learn it (again).

        ValueError if the engine speaks of a choice that was never asked for.
        """
        self.moved = True
        if isinstance(event, core.LAST_EVENTS):
            return True
        if isinstance(event, core.ProgressEvent):
            return self.n_lives == 0 or not any(self.tokens)
        if not 0 <= event.index < len(self.tokens):
            raise ValueError(f"choice {event.index} of {len(self.tokens)}")
        if event.index in self.done:
            return False
        if isinstance(event, core.TokenEvent):
            self.tokens[event.index].extend(event.tokens)
        else:
            self.done.add(event.index)
        return True


class Ledger:
    def __init__(self, limits: Limits, lines: Lines) -> None:
        """`lines` is told who comes, who is being served and who goes."""
        self._limits = limits
        self._lines = lines
        self._entries: dict[str, Entry] = {}  # in order of submission
        self._unsent: dict[str, Entry] = {}  # of these, what the present engine does not have
        self._trial: list[str] = []  # suspects that have not passed their first step yet

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._entries

    def ids(self) -> list[str]:
        return list(self._entries)

    def add(self, request: core.Request, now: float) -> None:
        assert request.id not in self._entries, f"request id {request.id} is used twice"
        self._entries[request.id] = self._unsent[request.id] = Entry(request, now)
        self._lines.enter(request)

    def request(self, request_id: str) -> core.Request:
        return self._entries[request_id].request

    def remove(self, request_id: str) -> bool:
        """Forget a request; True if the present engine has it and must be told."""
        entry = self._entries.pop(request_id, None)
        if entry is not None:
            self._lines.leave(entry.request)
        if request_id in self._trial:
            self._trial.remove(request_id)
        return self._unsent.pop(request_id, None) is None and entry is not None

    def take(self, event: core.Event) -> bool:
        """Note one event of the engine; True if it is to be delivered. ValueError if absurd."""
        name = event.request_id
        entry = self._entries.get(name)
        if entry is None or name in self._unsent:
            return False  # cancelled meanwhile, or never given to this engine
        if not entry.moved:
            self._lines.begin(entry.request)
            if name in self._trial:
                self._trial.remove(name)
        wanted = entry.take(event)
        if isinstance(event, core.LAST_EVENTS):
            del self._entries[name]
            self._lines.leave(entry.request)
        return wanted

    def due(self, now: float) -> Iterator[core.Request]:
        """Yield what a ready engine is to be sent now; it counts as sent from here on."""
        if not self._unsent:  # as a rule
            return
        names = self._trial[:1] if self._trial else list(self._unsent)
        for name in names:
            entry = self._unsent.pop(name, None)
            if entry is not None:
                yield entry.for_engine(now)

    def sent(self) -> tuple[str, ...]:
        """Return the requests that the present engine has."""
        return tuple(name for name in self._entries if name not in self._unsent)

    def started(self, request_id: str) -> bool:
        """True if any engine has produced anything for this request."""
        entry = self._entries[request_id]
        return entry.moved or entry.n_lives > 0

    def engine_lost(self, verdict: Verdict) -> list[str]:
        """Take everything back from a dead engine; return the ids that must fail for it."""
        failed = [name for name, entry in self._entries.items() if self._fails(entry, verdict)]
        self._trial = [
            name
            for name in self._entries
            if name not in failed and (name in verdict.suspects or name in self._trial)
        ]
        self._unsent = dict(self._entries)
        return failed

    def _fails(self, entry: Entry, verdict: Verdict) -> bool:
        """Charge the crash to one request; True if that was too much for it."""
        name = entry.request.id
        entry.n_lives += entry.moved or name in verdict.present
        entry.n_suspected += name in verdict.suspects
        entry.moved = False
        return (
            name == verdict.culprit
            or entry.n_suspected > self._limits.suspect_replays
            or entry.n_lives > self._limits.lives_max
        )
