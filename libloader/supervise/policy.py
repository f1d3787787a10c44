"""Every decision of the supervisor, with no clock, no thread and no I/O.

`Policy.handle(now, happening)` takes in one thing that happened and returns the actions to be
carried out, in order. The shell (supervisor.py) gives it the real world, the simulation
(tests/test_supervise_simulation.py) a made-up one from a seed.

    child      none --Spawn--> starting --Ready--> ready --Kill--> dying
                 ^---------------- Ended, from any of them ----------'

Laws:
- Each request that was submitted gets exactly one RequestDone or RequestFailed.
- At most one child lives; what an earlier one still says is ignored by its generation number.
- Before the first Ready a lost child is the end (the user must be told); after it, never.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, NamedTuple, Union

from libloader import core, errors
from libloader.supervise import channel
from libloader.supervise.blame import Exit, PoisonList, Verdict, judge
from libloader.supervise.breadcrumb import Crumb
from libloader.supervise.ledger import Ledger
from libloader.supervise.limits import Limits
from libloader.supervise.lines import Lines
from libloader.supervise.restarts import RestartPolicy
from libloader.supervise.watchdog import SAVING, Watchdog

# --- what happens ------------------------------------------------------------------------------


class Started(NamedTuple):
    """The front wants an engine."""


class Submitted(NamedTuple):
    request: core.Request


class Cancelled(NamedTuple):
    request_id: str


class Said(NamedTuple):
    """Messages arrived from the child of this generation."""

    generation: int
    messages: list[channel.ChildMessage]


class Unsendable(NamedTuple):
    """A request cannot be put into a frame."""

    request_id: str
    reason: str


class Babbled(NamedTuple):
    """The child wrote something that is no message."""

    generation: int
    detail: str


class Ended(NamedTuple):
    """The child is gone; `last_words` is the last line that it printed."""

    generation: int
    end: Exit
    crumb: Crumb
    last_words: str = ""


class Ticked(NamedTuple):
    """Time passed; beat and phase are the breadcrumb's."""

    beat: int
    phase: str


class DrainAsked(NamedTuple):
    until: float


class StopAsked(NamedTuple):
    pass


Happening = Union[
    Started, Submitted, Cancelled, Said, Unsendable, Babbled, Ended, Ticked, DrainAsked, StopAsked
]

# --- what is to be done ------------------------------------------------------------------------


class Spawn(NamedTuple):
    generation: int


class Kill(NamedTuple):
    """End the child of this generation at once, whatever it does; Ended follows."""

    generation: int


class Send(NamedTuple):
    generation: int
    message: dict[str, Any]


class Deliver(NamedTuple):
    event: core.Event
    last: bool


class Announce(NamedTuple):
    """The first start succeeded (error is None) or failed for good."""

    error: errors.IgllamaError | None


class Finish(NamedTuple):
    """Nothing is left to do: no child, no request."""


Action = Union[Spawn, Kill, Send, Deliver, Announce, Finish]

_NO_LIMIT = 1 << 30
# Ends that we bring about. Of a broken channel nobody knows whose request broke it.
KILLED = Exit("SIGKILL", "outside")
BABBLED = Exit("broken channel", "outside")
# What the status tells a client to wait, by state.
_RETRY_AFTER_S = {"loading": 5.0, "restarting": 1.0, "stalled": 10.0, "draining": 5.0}


class Policy:
    """The whole state of supervision; `handle` is its one way forward."""

    def __init__(self, settings: core.EngineSettings, limits: Limits) -> None:
        # The front alone limits the queue: after a crash the engine gets everything back at once.
        self._settings = dataclasses.replace(settings, n_queue=_NO_LIMIT)
        self._lines = Lines(settings.n_parallel, settings.n_queue or limits.n_queue)
        self._limits = limits
        self._ledger = Ledger(limits, self._lines)
        self._restarts = RestartPolicy(limits)
        self._watchdog = Watchdog(limits)
        self._poison = PoisonList(limits)
        self._now = self._ticked_at = 0.0
        self._actions: list[Action] = []
        self._generation = 0
        self._child = "none"
        self._spawn_at: float | None = None
        self._kill_at: float | None = None  # patience with a child that was asked to stop
        self._saved_by = 0.0  # until when it is spared while it saves
        self._drain_until: float | None = None
        self._killed_as: Exit | None = None  # how the child ended, if we ended it ourselves
        self._refusal: errors.IgllamaError | None = None  # why the child did not start
        self._stopping = self._finished = False
        self._info: core.ModelInfo | None = None
        self._progress = 0.0
        self._last_exit = self._detail = ""
        self._figures: dict[str, float] = {}
        # All keys from the start: other threads copy this dict while it changes.
        self._counts = dict.fromkeys(
            ("restarts_fault", "restarts_outside", "restarts_hung", "replayed", "blamed"), 0.0
        )
        self._handlers: dict[type[Any], Callable[[Any], None]] = {
            Started: self._on_started,
            Submitted: self._on_submitted,
            Cancelled: self._on_cancelled,
            Said: self._on_said,
            Unsendable: self._on_unsendable,
            Babbled: self._on_babbled,
            Ended: self._on_ended,
            Ticked: self._on_ticked,
            DrainAsked: self._on_drain_asked,
            StopAsked: self._on_stop_asked,
        }

    def handle(self, now: float, happening: Happening) -> list[Action]:
        """Take in what happened; return what to do about it. One thread at a time."""
        self._now = now
        self._handlers[type(happening)](happening)
        if self._child == "ready" and not self._stopping:
            self._send_due()
        if self._drain_until is not None and not self._stopping and not len(self._ledger):
            self._stop(self._limits.save_s)
        actions, self._actions = self._actions, []
        return actions

    def next_wake(self, now: float) -> float:
        """Return in how many seconds the next Ticked is wanted."""
        moments = [self._ticked_at + self._limits.tick_s]
        moments += [at for at in (self._spawn_at, self._kill_at, self._drain_until) if at]
        return max(0.0, min(moments) - now)

    def give_up(self, detail: str) -> None:
        """Nobody will call `handle` any more: say so in the status and refuse what comes."""
        self._finished, self._child, self._detail = True, "none", detail

    @property
    def stopping(self) -> bool:
        return self._stopping

    # --- read by other threads: single fields only, so no lock ---------------------------------

    def refusal(self, now: float, request: core.Request) -> errors.IgllamaError | None:
        """Return why a new request is not taken, None if it is. Any thread, never blocks."""
        closed = self.closed(request.kind, request.fair_key)
        if closed is not None:
            return closed
        refused_s = self._poison.refused_s(request, now)
        if refused_s:
            return errors.RequestPoisoned(
                "this request crashed the engine twice and is refused for a while",
                retry_after_s=refused_s,
            )
        return None

    def closed(self, kind: str = "", fair_key: str = "") -> errors.IgllamaError | None:
        """Return why no request of this kind and key is taken now, None if some are. Any thread.

        Without a kind: why none at all is.
        """
        if self._stopping or self._drain_until is not None:
            return errors.ServerDraining("the server is shutting down")
        state = self.state()
        if state in ("loading", "failed"):
            return self._unavailable()
        return self._lines.refusal(kind, fair_key) if kind else None

    def state(self) -> str:
        """Return EngineStatus.state. Any thread."""
        if self._stopping or self._drain_until is not None:
            return "draining"
        if self._finished or self._restarts.failed:
            return "failed"
        if self._info is None:
            return "loading"
        if self._child != "ready":
            return "restarting"
        return "stalled" if self._watchdog.stalled else "ok"

    def status(self, now: float) -> core.EngineStatus:
        """Return the engine as the front sees it. Any thread, never blocks."""
        state = self.state()
        figures, counts = self._figures, dict(self._counts)
        return core.EngineStatus(
            state=state,
            progress=self._progress,
            restarts=int(sum(counts[name] for name in counts if name.startswith("restarts_"))),
            last_exit=self._last_exit,
            n_running=int(figures.get("n_running", 0)),
            n_waiting=int(figures.get("n_waiting", 0)) if state == "ok" else len(self._ledger),
            heartbeat_age_s=self._watchdog.age_s(now) if self._child == "ready" else 0.0,
            retry_after_s=self._retry_after_s(state, now),
            info=self._info,
            detail=self._detail,
            counters={**figures, **counts},
        )

    def _retry_after_s(self, state: str, now: float) -> float:
        if state == "failed" and self._spawn_at is not None:
            return max(1.0, self._spawn_at - now)
        return _RETRY_AFTER_S.get(state, 0.0 if state == "ok" else 5.0)

    def _unavailable(self) -> errors.IgllamaError:
        state = self.state()
        message = {"loading": "the model is being loaded"}.get(
            state, "the engine crashes repeatedly and is tried again later"
        )
        return errors.EngineUnavailable(
            message, retry_after_s=self._retry_after_s(state, self._now)
        )

    # --- the child's life ----------------------------------------------------------------------

    def _on_started(self, _: Started) -> None:
        self._spawn()

    def _spawn(self) -> None:
        self._generation += 1
        self._child, self._spawn_at, self._refusal = "starting", None, None
        self._killed_as, self._progress, self._figures = None, 0.0, {}
        self._watchdog.restart(self._now)
        self._actions.append(Spawn(self._generation))
        self._send({"op": "start", "settings": core.to_wire(self._settings)})

    def _on_ticked(self, tick: Ticked) -> None:
        self._ticked_at = self._now
        if self._child in ("starting", "ready"):
            self._watch(tick)
        if self._spawn_at is not None and self._now >= self._spawn_at and not self._stopping:
            self._spawn()
        if self._kill_at is not None and self._now >= self._kill_at:
            self._lose_patience(tick.phase)
        if self._drain_until is not None and self._now >= self._drain_until:
            self._drain_until = None
            self._stop(self._limits.save_s)

    def _lose_patience(self, phase: str) -> None:
        """The grace of a child that was asked to stop is over; it may go on saving."""
        if phase == SAVING and self._now < self._saved_by:
            self._kill_at = self._now + self._limits.tick_s
        else:
            self._kill_at = None
            self._kill(KILLED)

    def _watch(self, tick: Ticked) -> None:
        self._watchdog.look(self._now, tick.beat, tick.phase)
        if self._watchdog.hung:
            self._kill(Exit(f"hung in {tick.phase or 'load'}", "hung"))

    def _kill(self, as_what: Exit) -> None:
        if self._child in ("starting", "ready"):
            self._child, self._killed_as = "dying", as_what
            self._actions.append(Kill(self._generation))

    def _on_babbled(self, babble: Babbled) -> None:
        if babble.generation == self._generation:
            self._detail = babble.detail
            self._kill(BABBLED)

    def _on_ended(self, ended: Ended) -> None:
        if ended.generation != self._generation or self._child == "none":
            return
        self._child, self._kill_at = "none", None
        if self._stopping:
            self._finish()
            return
        end = self._killed_as or ended.end
        self._last_exit = str(end)
        if self._info is None:
            self._start_failed(end, ended.last_words)
        else:
            self._recover(end, ended)

    def _start_failed(self, end: Exit, last_words: str) -> None:
        said = f": {last_words}" if last_words else ""
        error = self._refusal or errors.StartError(
            f"the engine ended while it loaded the model ({end}){said}"
        )
        if self._refusal and end.remark:
            error = type(error)(f"{error.message} ({end.remark})")
        self._detail = error.message
        self._actions.append(Announce(error))
        self._fail_all(lambda name: errors.EngineUnavailable(error.message))
        self._finish()

    def _recover(self, end: Exit, ended: Ended) -> None:
        """The engine is gone while the front serves: blame, plan the restart, keep the rest."""
        self._counts[f"restarts_{end.cause}"] += 1
        self._detail = self._refusal.message if self._refusal else _sentence(end, ended.crumb)
        delay_s = self._restarts.crashed(self._now)
        self._spawn_at = self._now + delay_s
        self._settle(judge(end, ended.crumb, self._ledger.sent()))
        if self._restarts.failed:
            self._fail_all(self._failed_error)
        elif delay_s == 0.0:
            self._spawn()

    def _settle(self, verdict: Verdict) -> None:
        """Fail who is to fail; the ledger sends the others again."""
        alone = verdict.culprit or (verdict.suspects[0] if len(verdict.suspects) == 1 else "")
        n_sent = len(self._ledger.sent())
        failed = self._ledger.engine_lost(verdict)
        # A suspect may have stood beside a kill from outside; two in a row are its own.
        n_crashes = 1 if verdict.culprit else 2 * (alone in failed)
        for _ in range(n_crashes if alone in self._ledger else 0):
            self._poison.count(self._ledger.request(alone), self._now)
        for name in failed:
            self._fail(name, self._crash_error(name == alone))
        self._counts["blamed"] += len(failed)
        self._counts["replayed"] += n_sent - len(failed)

    def _crash_error(self, culprit: bool) -> errors.IgllamaError:
        whose = "this request" if culprit else "a step with this request in it"
        return errors.EngineCrashed(f"the engine ended ({self._last_exit}) while it ran {whose}")

    def _failed_error(self, name: str) -> errors.IgllamaError:
        if self._ledger.started(name):
            return errors.EngineCrashed(f"the engine ended ({self._last_exit}) too often")
        return self._unavailable()

    # --- what the child says -------------------------------------------------------------------

    def _on_said(self, said: Said) -> None:
        if said.generation != self._generation or self._child == "none":
            return
        for message in said.messages:
            if isinstance(message, channel.Step):
                self._on_step(message)
            elif isinstance(message, channel.Ready):
                self._on_ready(message.info)
            elif isinstance(message, channel.Progress):
                self._progress = message.value
            else:
                self._refusal = message.error

    def _on_ready(self, info: core.ModelInfo) -> None:
        if self._child != "starting":
            return
        first, self._info = self._info is None, info
        self._child, self._progress = "ready", 1.0
        self._restarts.ready(self._now)
        if first:
            self._actions.append(Announce(None))

    def _on_step(self, step: channel.Step) -> None:
        self._watchdog.step_took(step.ms)
        if step.figures is not None:
            self._figures = step.figures
            self._lines.note_speed(step.figures)
        try:
            for event in step.events:
                if self._ledger.take(event):
                    self._actions.append(Deliver(event, isinstance(event, core.LAST_EVENTS)))
        except ValueError as exc:
            self._on_babbled(Babbled(self._generation, str(exc)))

    # --- requests ------------------------------------------------------------------------------

    def _on_submitted(self, submitted: Submitted) -> None:
        request = submitted.request
        refusal = self.refusal(self._now, request)  # the world may have changed since submit()
        if refusal is None:
            self._ledger.add(request, self._now)
        else:
            self._deliver_failure(request.id, refusal)

    def _on_cancelled(self, cancelled: Cancelled) -> None:
        if cancelled.request_id in self._ledger:
            self._fail(cancelled.request_id, errors.ClientGone("the request was cancelled"))

    def _on_unsendable(self, unsendable: Unsendable) -> None:
        if unsendable.request_id in self._ledger:
            self._fail(unsendable.request_id, errors.BodyInvalid(unsendable.reason))

    def _send_due(self) -> None:
        for request in self._ledger.due(self._now):
            self._send({"op": "submit", "request": core.to_wire(request)})

    def _send(self, message: dict[str, Any]) -> None:
        self._actions.append(Send(self._generation, message))

    def _fail(self, name: str, error: errors.IgllamaError) -> None:
        """End a request from the front's side; the engine, if it has it, is told to drop it."""
        engine_has_it = self._ledger.remove(name)
        if engine_has_it and self._child == "ready":
            self._send({"op": "cancel", "id": name})
        self._deliver_failure(name, error)

    def _deliver_failure(self, name: str, error: errors.IgllamaError) -> None:
        self._actions.append(Deliver(core.RequestFailed(name, errors.to_wire(error)), True))

    def _fail_all(self, error_for: Callable[[str], errors.IgllamaError]) -> None:
        for name in self._ledger.ids():
            self._fail(name, error_for(name))

    # --- the end -------------------------------------------------------------------------------

    def _on_drain_asked(self, drain: DrainAsked) -> None:
        self._drain_until = drain.until

    def _on_stop_asked(self, _: StopAsked) -> None:
        if self._stopping:  # whoever asks after a drain does not want to wait
            self._kill(KILLED)
        self._stop(0.0)

    def _stop(self, save_s: float) -> None:
        """Ask the child to end; it may take `save_s` longer if it saves."""
        if self._stopping:
            return
        self._stopping, self._spawn_at = True, None
        self._fail_all(lambda name: errors.ServerDraining("the server is shutting down"))
        if self._info is None and not self._finished:
            self._actions.append(Announce(errors.ServerDraining("stopped while loading")))
        if self._child == "none":
            self._finish()
        elif self._child != "dying":
            self._send({"op": "stop"})
            self._kill_at = self._now + self._limits.stop_grace_s
            self._saved_by = self._now + save_s

    def _finish(self) -> None:
        if not self._finished:
            self._finished = True
            self._actions.append(Finish())


def _sentence(end: Exit, crumb: Crumb) -> str:
    where = f" in {crumb.phase}" if crumb.phase and end.cause != "hung" else ""
    return f"the last engine ended: {end}{where}"
