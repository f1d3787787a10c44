"""The thread that owns an engine: takes commands between steps, steps, hands the events out.

The same loop runs in the engine child (events go into a frame) and inline (events go to the
clients). It knows neither pipes nor libllama.

Tokens that nobody looks at before the last one is there (`Request.streamed`) wait for whatever goes
out next, the figures at the latest: to tell of each would cost a small model's step one part in 50.
The first one does not wait: it shows that the engine is well with this request.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Mapping
from typing import Any, Callable, NamedTuple, Protocol, Union

from libloader import core, errors

HEARTBEAT_S = 1.0  # an idle engine shows that it lives
FIGURES_S = 0.5  # figures travel at most this often while it works: each time costs 1.5 ms

logger = logging.getLogger(__name__)

# (phase, ids of the requests in hand separated by spaces, step number)
Mark = Callable[[str, str, int], None]


class EnginePort(Protocol):
    """What the loop needs of libloader.engine.engine.Engine."""

    @property
    def idle(self) -> bool: ...
    @property
    def info(self) -> core.ModelInfo: ...
    def submit(self, request: core.Request) -> None: ...
    def cancel(self, request_id: str) -> None: ...
    def interrupt(self, request_id: str = "") -> None: ...
    def step(self, company: EngineLoop | None = None) -> list[core.Event]: ...
    def figures(self) -> Mapping[str, float]: ...
    def close(self) -> None: ...


# (settings, where progress 0.0..1.0 goes, the breadcrumb) -> an engine that is ready
BuildEngine = Callable[[core.EngineSettings, Callable[[float], None], Mark], EnginePort]


class Submit(NamedTuple):
    request: core.Request


class Cancel(NamedTuple):
    request_id: str


class Stop(NamedTuple):
    pass


Command = Union[Submit, Cancel, Stop]


class Report(NamedTuple):
    """What one step brought, or several: `ms` is the longest. `figures` in some reports only."""

    ms: float
    events: list[core.Event]
    figures: Mapping[str, float] | None


class EngineLoop:
    """`post` is for any thread, everything else for the one that calls `run`.

    With `emit_meanwhile` the engine may make many steps in a row (engine.cruise). That is then
    called, instead of `emit`, by a thread of the engine's, while the one that calls `run` computes.
    """

    def __init__(
        self,
        engine: EnginePort,
        emit: Callable[[Report], None],
        mark: Mark,
        emit_meanwhile: Callable[[Report], None] | None = None,
    ) -> None:
        self._engine = engine
        self._emit = emit
        self._emit_meanwhile = emit_meanwhile
        self._mark = mark
        self._inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._refused: list[core.Event] = []
        self._unseen: dict[str, bool] = {}  # whose tokens nobody looks at yet: it was heard of
        self._held: list[core.Event] = []
        self._longest_s = 0.0  # of the steps since the last report
        self._since = 0.0  # when the step that runs began
        self._figures_due = 0.0
        self._nothing_came = self._inbox.empty
        self._is_idle = True  # there was nothing to do after the last step

    def post(self, command: Command) -> None:
        self._inbox.put(command)
        if isinstance(command, Cancel):
            self._engine.interrupt(command.request_id)
        elif isinstance(command, Stop):
            self._engine.interrupt()

    def run(self) -> None:
        """Serve until Stop arrives. An exception of `step` leaves it: the engine is broken then."""
        while self._take_commands():
            self._step()

    def _take_commands(self) -> bool:
        """Apply what has arrived, waiting for it while there is nothing to do; False on Stop."""
        waiting = self._is_idle
        if waiting:
            self._mark("idle", "", 0)
        while waiting or not self._inbox.empty():
            try:
                command = self._inbox.get(timeout=HEARTBEAT_S)
            except queue.Empty:
                self._mark("idle", "", 0)
                continue
            if isinstance(command, Stop):
                return False
            self._apply(command)
            waiting = False
        return True

    def _apply(self, command: Any) -> None:
        if isinstance(command, Cancel):
            self._unseen.pop(command.request_id, None)
            self._engine.cancel(command.request_id)
            return
        if not command.request.streamed:
            self._unseen[command.request.id] = False
        try:
            self._engine.submit(command.request)
        except errors.IgllamaError as error:
            self._refuse(command.request, error)
        except (ValueError, TypeError, KeyError, IndexError) as exc:
            # Our bug, in code that touches this request only: the others go on.
            logger.exception("request %s could not be submitted", command.request.id)
            self._refuse(command.request, errors.ServerError(f"internal error: {exc!r}"))

    def _refuse(self, request: core.Request, error: errors.IgllamaError) -> None:
        self._refused.append(core.RequestFailed(request.id, errors.to_wire(error)))

    def _step(self) -> None:
        self._since = time.monotonic()
        events = self._engine.step(self if self._emit_meanwhile else None)
        now = time.monotonic()
        self._longest_s = max(self._longest_s, now - self._since)
        if self._refused:
            events, self._refused = [*self._refused, *events], []
        self._is_idle = self._engine.idle
        figures = None
        if self._is_idle or now >= self._figures_due:
            figures, self._figures_due = self._engine.figures(), now + FIGURES_S
        elif not events or (self._unseen and self._can_wait(events)):
            self._held += events
            return
        self._report(events, figures, self._emit)

    # What an engine asks that makes many steps in a row: engine.cruise.Company.

    def goes_on(self, now_s: float) -> bool:
        """Say whether another step may follow at once; `now_s` is on time.monotonic. Hot."""
        took_s, self._since = now_s - self._since, now_s
        if took_s > self._longest_s:
            self._longest_s = took_s
        return now_s < self._figures_due and self._nothing_came()

    def tell(self, events: list[core.Event]) -> None:
        """Report what a step brought while the next one computes. The engine's other thread."""
        assert self._emit_meanwhile is not None, "the engine was not asked to"
        self._report(events, None, self._emit_meanwhile)

    def _can_wait(self, events: list[core.Event]) -> bool:
        heard_of = self._unseen
        for event in events:
            if type(event) is not core.TokenEvent or not heard_of.get(event.request_id):
                return False
        return True

    def _report(
        self,
        events: list[core.Event],
        figures: Mapping[str, float] | None,
        emit: Callable[[Report], None],
    ) -> None:
        if self._held:
            events = [*self._held, *events]
        report = Report(self._longest_s * 1000, events, figures)
        self._held, self._longest_s = [], 0.0
        for event in events if self._unseen else ():
            self._note(event)
        emit(report)

    def _note(self, event: core.Event) -> None:
        if isinstance(event, core.LAST_EVENTS):
            self._unseen.pop(event.request_id, None)
        elif event.request_id in self._unseen:
            self._unseen[event.request_id] = True
