"""The engine child's main: frames in, an engine loop, frames out, and an end with the front.

Two threads, and the engine's own. The main thread reads the pipe: commands go to the loop, the
pipe's end ends the process at once, even while native code runs. The engine thread builds the
engine and owns it; it has a large stack, because the grammar parser of libllama recurses. What it
samples in a row (engine/cruise.py) a third one writes to the pipe, never both at a time.

The process always ends by `os._exit`: its memory goes back whole, and no C++ destructor gets a
chance to abort. What is worth doing in order (closing the engine) is done before.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Callable

from libloader import core, errors
from libloader.supervise import channel, faults, heap, launch, lifetime
from libloader.supervise.loop import BuildEngine, Cancel, EngineLoop, Mark, Report, Stop, Submit

EXIT_BROKEN = 70  # an exception came out of the engine: EX_SOFTWARE of sysexits.h
EXIT_REFUSED = 78  # the engine could not be built and said why: EX_CONFIG
ENGINE_STACK_BYTES = 64 << 20
NO_THREAD = (
    f"the system gives the engine no thread with a stack of {ENGINE_STACK_BYTES >> 20} MiB: "
    "raise --memory-limit, if given"
)
_PROGRESS_S = 0.1

logger = logging.getLogger(__name__)


def main(argv: Sequence[str], build_engine: BuildEngine) -> int:
    """Be the engine child; the last of `argv` is the address that launch.Child passed. No return.

    Declared int so that a command line may end in `sys.exit(main())`.
    """
    heap.share()
    faulthandler.enable(sys.stderr)
    log_to_stderr()
    child = EngineChild(launch.open_address(argv[-1]), build_engine)
    child.read_commands()
    os._exit(0)


class EngineChild:
    def __init__(self, ends: launch.ChildEnds, build_engine: BuildEngine) -> None:
        self._ends = ends
        self._build_engine = build_engine
        self._loop: EngineLoop | None = None
        self._early: list[Any] = []  # commands that came while the engine was being built
        self._mark: Mark = ends.breadcrumb.mark
        self._write: Callable[[bytes], None] = self._write_frame
        self._handing_over = threading.Lock()
        self._cruises = True

    # --- main thread ---------------------------------------------------------------------------

    def read_commands(self) -> None:
        """Pass commands on until the front closes the pipe or ends."""
        decoder = channel.FrameDecoder()
        while True:
            data = os.read(self._ends.read_fd, launch.READ_BYTES)
            if not data:
                return
            for message in decoder.feed(data):
                self._handle(message)

    def _handle(self, message: dict[str, Any]) -> None:
        if message["op"] == "start":
            self._start(message)
        elif message["op"] == "submit":
            self._post(Submit(core.from_wire(core.Request, message["request"])))
        elif message["op"] == "cancel":
            self._post(Cancel(message["id"]))
        elif self._loop is None:
            os._exit(0)  # stopped while loading: nothing to close in order
        else:
            self._post(Stop())

    def _post(self, command: Any) -> None:
        with self._handing_over:
            if self._loop is None:
                self._early.append(command)
            else:
                self._loop.post(command)

    def _start(self, message: dict[str, Any]) -> None:
        lifetime.bind(self._ends.parent_pid, int(message.get("memory_limit_bytes", 0)))
        planted = faults.read(message.get("fault", ""), int(message.get("generation", 1)))
        if planted:
            self._mark = faults.in_mark(self._mark, planted)
            self._write = faults.in_write(self._write, planted)
            self._cruises = faults.spare_marks(planted)
        settings = core.from_wire(core.EngineSettings, message["settings"])
        logging.getLogger().setLevel(settings.log_level.upper())
        threading.stack_size(ENGINE_STACK_BYTES)
        try:
            threading.Thread(target=self._run, args=(settings,), name="engine", daemon=True).start()
        except RuntimeError:
            self._refuse(errors.StartError(NO_THREAD))
            os._exit(EXIT_REFUSED)
        threading.stack_size(0)

    # --- engine thread -------------------------------------------------------------------------

    def _run(self, settings: core.EngineSettings) -> None:
        """Build the engine, serve, close it, end the process."""
        code = EXIT_BROKEN
        try:
            code = self._serve(settings)
        except errors.IgllamaError as error:
            self._refuse(error)
            code = EXIT_REFUSED
        except BrokenPipeError:  # the front is gone
            code = 0
        except BaseException as exc:
            logger.exception("the engine is broken: %r", exc)
        finally:
            logging.shutdown()
            os._exit(code)

    def _serve(self, settings: core.EngineSettings) -> int:
        self._mark("load", "", 0)
        engine = self._build_engine(settings, self._progress(), self._mark)
        meanwhile = self._emit if self._cruises else None
        loop = EngineLoop(engine, self._emit_marked, self._mark, meanwhile)
        with self._handing_over:
            for command in self._early:
                loop.post(command)
            self._loop = loop
        self._send({"op": "ready", "info": core.to_wire(engine.info)})
        gc.collect()
        gc.freeze()  # what was loaded stays: later collections need not look at it
        loop.run()
        engine.close()
        return 0

    def _progress(self) -> Callable[[float], None]:
        """Return a function for the loader's progress that tells the front now and then."""
        told_at = 0.0

        def progress(value: float) -> None:
            nonlocal told_at
            now = time.monotonic()
            if now - told_at >= _PROGRESS_S or value >= 1.0:
                told_at = now
                self._send({"op": "progress", "value": value})
            self._mark("load", "", 0)

        return progress

    def _emit_marked(self, report: Report) -> None:
        """Send one step, and say so: nobody can be to blame for what happens now."""
        self._mark("ipc_write", "", 0)
        self._emit(report)

    def _emit(self, report: Report) -> None:
        """Send one step; an answer too long for a frame costs that request only."""
        try:
            self._send_step(report, report.events)
        except ValueError:
            for event in report.events:
                self._send_alone(report, event)

    def _send_alone(self, report: Report, event: core.Event) -> None:
        try:
            self._send_step(report, [event])
        except ValueError as exc:
            error = errors.ServerError(f"the answer cannot be passed on: {exc}")
            failed = core.RequestFailed(event.request_id, errors.to_wire(error))
            self._send_step(report, [failed])

    def _send_step(self, report: Report, events: Sequence[core.Event]) -> None:
        self._send_frame(channel.encode_step(report.ms, events, report.figures))

    def _refuse(self, error: errors.IgllamaError) -> None:
        logger.info("%s", error)  # the front says it
        self._send({"op": "start_error", "error": errors.to_wire(error)})

    def _send(self, message: dict[str, Any]) -> None:
        self._send_frame(channel.encode(message))

    def _send_frame(self, frame: bytes) -> None:
        self._write(frame)

    def _write_frame(self, frame: bytes) -> None:
        channel.write_frame(self._ends.write_fd, frame)


class _PriorityFormatter(logging.Formatter):
    """One line per record, with the priority that the front's log reader understands."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = launch.write_priority(record.levelno)
        lines = super().format(record).splitlines() or [""]
        return "\n".join(prefix + line for line in lines)


def log_to_stderr() -> None:
    """Send this process's logging to the pipe that the front reads as its engine log."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PriorityFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
