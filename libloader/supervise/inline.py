"""The engine in a thread of this process (--isolation none): same interface, no safety net.

For debugging and for platforms where a child process is not possible. A native crash ends the
server, a hung call hangs the engine for good, and an exception out of the engine fails it: there
is no restart. `deliver` is called on the engine thread.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Callable

from libloader import core, errors
from libloader.supervise.limits import Limits
from libloader.supervise.loop import (
    BuildEngine,
    Cancel,
    EngineLoop,
    Report,
    Stop,
    Submit,
)

Deliver = Callable[[core.Event], None]
_STOP_PATIENCE_S = 5.0
_POLL_S = 0.02

logger = logging.getLogger("igllama.supervise")


class InlineEngine:
    """The Supervisor's interface over an engine in this process."""

    def __init__(self, settings: core.EngineSettings, build_engine: BuildEngine) -> None:
        self._settings = settings
        self._build_engine = build_engine
        self._loop: EngineLoop | None = None
        self._info: core.ModelInfo | None = None
        self._delivers: dict[str, Deliver] = {}
        self._figures: dict[str, float] = {}
        self._state = "loading"
        self._progress = 0.0
        self._marked_at = time.monotonic()
        self._detail = ""
        self._error: errors.IgllamaError | None = None
        self._answered = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> core.ModelInfo:
        """Build the engine in its thread and wait until it is ready. Raises a StartError."""
        self._thread.start()
        while not self._answered.wait(0.5):  # on Windows only a timeout lets Ctrl-C in
            pass
        if self._error is not None:
            raise self._error
        assert self._info is not None, "answered without info"
        return self._info

    def check_open(self, kind: str = "", fair_key: str = "") -> None:
        """As Supervisor.check_open, but for the queue: that is bounded by the engine itself."""
        if self._state == "draining":
            raise errors.ServerDraining("the server is shutting down")
        if self._loop is None or self._state != "ok":
            raise errors.EngineUnavailable(f"the engine is {self._state}", retry_after_s=5.0)

    def submit(self, request: core.Request, deliver: Deliver) -> None:
        """As Supervisor.submit."""
        self.check_open()
        assert self._loop is not None, "open without a loop"
        self._delivers[request.id] = deliver
        self._loop.post(Submit(request))
        if not self._thread.is_alive():
            self._fail_all(errors.ServerDraining("the server is shutting down"))

    def cancel(self, request_id: str) -> None:
        """As Supervisor.cancel."""
        if self._loop is not None:
            self._loop.post(Cancel(request_id))
        error = errors.ClientGone("the request was cancelled")
        self._deliver(core.RequestFailed(request_id, errors.to_wire(error)))

    def status(self) -> core.EngineStatus:
        """As Supervisor.status."""
        figures = self._figures
        return core.EngineStatus(
            state=self._state,
            progress=self._progress,
            n_running=int(figures.get("n_running", 0)),
            n_waiting=int(figures.get("n_waiting", 0)),
            heartbeat_age_s=time.monotonic() - self._marked_at,
            retry_after_s=0.0 if self._state == "ok" else 5.0,
            info=self._info,
            detail=self._detail,
            counters=dict(figures),
        )

    def drain(self, timeout_s: float) -> None:
        """As Supervisor.drain."""
        self._state = "draining"
        until = time.monotonic() + timeout_s
        while self._delivers and time.monotonic() < until:
            time.sleep(_POLL_S)
        self._end(Limits().save_s)

    def stop(self) -> None:
        """As Supervisor.stop; a native call that runs is waited for, but not for long."""
        self._end(_STOP_PATIENCE_S)

    def _end(self, patience_s: float) -> None:
        self._state = "draining"
        if self._loop is not None:
            self._loop.post(Stop())
        if self._thread.is_alive():
            self._thread.join(patience_s)
        self._fail_all(errors.ServerDraining("the server is shutting down"))

    # --- engine thread -------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._serve()
        except errors.IgllamaError as error:
            self._broken(error)
        except Exception as exc:
            logger.exception("the engine is broken")
            self._broken(errors.EngineCrashed(f"the engine is broken: {exc!r}"))
        self._answered.set()

    def _serve(self) -> None:
        engine = self._build_engine(self._settings, self._show_progress, self._mark)
        try:
            self._info = engine.info
            self._loop = EngineLoop(engine, self._emit, self._mark)
            if self._state == "loading":
                self._state = "ok"
                self._answered.set()
                self._loop.run()
            self._error = errors.ServerDraining("stopped while loading")
        finally:
            engine.close()

    def _broken(self, error: errors.IgllamaError) -> None:
        self._error, self._state, self._detail = error, "failed", error.message
        self._fail_all(error)

    def _emit(self, report: Report) -> None:
        if report.figures is not None:
            self._figures = dict(report.figures)
        for event in report.events:
            self._deliver(event)

    def _deliver(self, event: core.Event) -> None:
        name = event.request_id
        last = isinstance(event, core.LAST_EVENTS)
        deliver = self._delivers.pop(name, None) if last else self._delivers.get(name)
        if deliver is None:
            return
        try:
            deliver(event)
        except Exception:  # one client's trouble must not end the thread that serves all
            logger.exception("delivering to request %s failed", name)

    def _fail_all(self, error: errors.IgllamaError) -> None:
        for name in list(self._delivers):
            self._deliver(core.RequestFailed(name, errors.to_wire(error)))

    def _show_progress(self, value: float) -> None:
        self._progress = value

    def _mark(self, phase: str, ids: str, step: int) -> None:
        self._marked_at = time.monotonic()
