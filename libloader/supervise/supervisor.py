"""The front's side of the engine: threads and a child process around `policy`.

Whoever holds `_turn` owns the policy and does what it says: the loop thread, for what lies in its
inbox, and the reader of the pipe, for what the child says. Per child there is such a reader, a
writer (queue -> pipe: a child that does not read blocks only this thread) and the reader of its
log. `deliver` is called for one event after the other, of all requests, and must not block.

    HTTP threads --submit, cancel--> inbox --> loop thread --> policy --> writer --> pipe --> child
                                       ^                         ^ '--> deliver                 |
                            its end ---'---- reader, its words --'<--------------- pipe <-------'

The reader hands nothing over, for that happens with every token: where all cores compute, each
thread that wakes up takes a core from the model.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Callable

from libloader import core, errors
from libloader.supervise import channel, policy
from libloader.supervise.blame import Exit
from libloader.supervise.breadcrumb import Crumb
from libloader.supervise.launch import Child
from libloader.supervise.limits import Limits

Deliver = Callable[[core.Event], None]
_ORPHAN_GRACE_S = 1.0  # for the pipe of a dead child that something else still holds open
_STOP_PATIENCE_S = 5.0

logger = logging.getLogger("igllama.supervise")


@dataclass(frozen=True)
class Options:
    """How to start the child. `command` is the interpreter, the file and what makes it a child."""

    command: Sequence[str]
    memory_limit_bytes: int = 0  # 0 = none
    test_mode: bool = False  # lets IGLLAMA_FAULT reach the child
    limits: Limits = field(default_factory=Limits)


class Supervisor:
    """An engine that comes back. Every method may be called from any thread."""

    def __init__(self, settings: core.EngineSettings, options: Options) -> None:
        self._options = options
        self._policy = policy.Policy(settings, options.limits)
        self._inbox: queue.SimpleQueue[policy.Happening] = queue.SimpleQueue()
        self._delivers: dict[str, Deliver] = {}
        self._line: _Line | None = None
        self._turn = threading.Lock()
        self._answer: queue.SimpleQueue[errors.IgllamaError | None] = queue.SimpleQueue()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._do: dict[type[Any], Callable[[Any], None]] = {
            policy.Spawn: self._spawn,
            policy.Kill: self._kill,
            policy.Send: self._send,
            policy.Deliver: self._deliver,
            policy.Announce: lambda action: self._answer.put(action.error),
            policy.Finish: lambda action: self._over.set(),
        }

    def start(self) -> core.ModelInfo:
        """Start the engine and wait until it is ready.

        Raises a StartError if it cannot, ServerDraining if `stop` came first. `status` tells how
        the loading goes meanwhile.
        """
        self._thread.start()
        self._inbox.put(policy.Started())
        error = self._wait_for_answer()
        if error is not None:
            raise error
        info = self.status().info
        assert info is not None, "announced ready without a ModelInfo"
        return info

    def _wait_for_answer(self) -> errors.IgllamaError | None:
        while True:
            with contextlib.suppress(queue.Empty):
                return self._answer.get(timeout=0.5)  # on Windows only a timeout lets Ctrl-C in

    def check_open(self, kind: str = "", fair_key: str = "") -> None:
        """Raise what `submit` would raise for any request of this kind and key; "" is any kind.

        Before work is spent on it.
        """
        closed = self._policy.closed(kind, fair_key)
        if closed is not None:
            raise closed

    def submit(self, request: core.Request, deliver: Deliver) -> None:
        """Give a request to the engine; `deliver` gets its events, the last one exactly once.

        Raises ServerDraining, EngineUnavailable, QueueFull or RequestPoisoned instead if it is
        clear at once that it is not taken. `deliver` is called by one thread at a time.
        """
        refusal = self._policy.refusal(time.monotonic(), request)
        if refusal is not None:
            raise refusal
        assert request.id not in self._delivers, f"request id {request.id} is used twice"
        self._delivers[request.id] = deliver
        self._put(policy.Submitted(request))

    def cancel(self, request_id: str) -> None:
        """End a request that nobody waits for; it fails with ClientGone unless it is over."""
        self._put(policy.Cancelled(request_id))

    def status(self) -> core.EngineStatus:
        """Return the state of the engine; never blocks, whatever the engine does."""
        return self._policy.status(time.monotonic())

    def drain(self, timeout_s: float) -> None:
        """Take no more requests, wait for the running ones, fail the rest, stop; then return.

        The engine gets limits.save_s to save prefixes in, unless `stop` is called meanwhile.
        """
        self._put(policy.DrainAsked(time.monotonic() + timeout_s))
        self._over.wait(timeout_s + self._options.limits.save_s + _STOP_PATIENCE_S)
        self.stop()

    def stop(self) -> None:
        """End now: running requests fail with ServerDraining. Returns when the child is gone."""
        self._put(policy.StopAsked())
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(_STOP_PATIENCE_S)

    def _put(self, happening: policy.Happening) -> None:
        self._inbox.put(happening)
        if self._over.is_set():
            self._refuse_leftovers()

    # --- the loop thread -----------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                self._go_on()
        except Exception:
            self._break_down()
        self._retire()
        self._refuse_leftovers()

    def _break_down(self) -> None:
        """Our bug. The front must outlive it: clients get an answer, the child does not linger."""
        logger.critical("supervision failed; the engine is stopped", exc_info=True)
        self._policy.give_up("supervision failed; see the log")
        self._answer.put(errors.StartError("supervision failed; see the log"))
        self._over.set()

    def _hear(self, said: policy.Said) -> None:
        """Take in what the child says; called by the reader of its pipe."""
        try:
            self._take_in(said)
        except Exception:
            self._break_down()

    def _go_on(self) -> None:
        wait_s = self._policy.next_wake(time.monotonic())
        with contextlib.suppress(queue.Empty):
            self._take_in(self._inbox.get(timeout=wait_s))
        if self._policy.next_wake(time.monotonic()) <= 0:  # also when the inbox never runs dry
            self._take_in(self._look())

    def _take_in(self, happening: policy.Happening) -> None:
        with self._turn:
            if isinstance(happening, policy.Ended):
                self._note_end(happening)
            for action in self._policy.handle(time.monotonic(), happening):
                self._do[type(action)](action)

    def _look(self) -> policy.Happening:
        """Read the breadcrumb, and see to a child that died without closing its pipe."""
        if self._line is None:
            return policy.Ticked(0, "")
        self._line.end_orphan(time.monotonic())
        crumb = self._line.child.breadcrumb.read()
        return policy.Ticked(crumb.beat, crumb.phase)

    def _note_end(self, ended: policy.Ended) -> None:
        if self._line is not None and self._line.generation == ended.generation:
            self._retire()
            if not self._policy.stopping:
                # Before the first ready, `start` raises what there is to say: once is enough.
                level = logging.ERROR if self.status().info else logging.INFO
                words = f": {ended.last_words}" if ended.last_words else ""
                where = ended.crumb.phase or "start"
                logger.log(level, "engine ended: %s in %s%s", ended.end.name, where, words)

    def _retire(self) -> None:
        if self._line is not None:
            self._line.retire()
            self._line = None

    # --- actions -------------------------------------------------------------------------------

    def _spawn(self, spawn: policy.Spawn) -> None:
        try:
            child = Child(self._options.command, self._options.memory_limit_bytes)
        except OSError as exc:
            end = Exit(f"no process: {exc}")
            self._inbox.put(policy.Ended(spawn.generation, end, Crumb()))
            return
        self._line = _Line(child, spawn.generation, self._inbox.put, self._hear)

    def _kill(self, kill: policy.Kill) -> None:
        if self._line is not None and self._line.generation == kill.generation:
            self._line.child.kill()

    def _send(self, send: policy.Send) -> None:
        if self._line is None or self._line.generation != send.generation:
            return
        message = send.message
        if message["op"] == "start":
            message = {**message, **self._start_fields(send.generation)}
        self._line.send(message)

    def _start_fields(self, generation: int) -> dict[str, Any]:
        fault = os.environ.get("IGLLAMA_FAULT", "") if self._options.test_mode else ""
        return {
            "memory_limit_bytes": self._options.memory_limit_bytes,
            "generation": generation,
            "fault": fault,
        }

    def _deliver(self, delivery: policy.Deliver) -> None:
        name = delivery.event.request_id
        take = self._delivers.pop if delivery.last else self._delivers.get
        deliver = take(name, None)
        if deliver is None:
            return
        try:
            deliver(delivery.event)
        except Exception:  # one client's trouble must not end the thread that serves all
            logger.exception("delivering to request %s failed", name)
            self._inbox.put(policy.Cancelled(name))

    def _refuse_leftovers(self) -> None:
        """Answer what came too late for the loop thread; also called by the latecomer's own."""
        error = errors.to_wire(errors.ServerDraining("the server is shutting down"))
        for name in list(self._delivers):
            deliver = self._delivers.pop(name, None)  # atomic: one thread gets it
            if deliver is not None:
                deliver(core.RequestFailed(name, error))


class _Line:
    """One child with the threads that speak with it."""

    def __init__(
        self,
        child: Child,
        generation: int,
        put: Callable[[policy.Happening], None],
        hear: Callable[[policy.Said], None],
    ) -> None:
        """`hear` gets the child's words at once, `put` everything else for later."""
        self.child = child
        self.generation = generation
        self._put = put
        self._hear = hear
        self._outbox: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._exited_at = 0.0
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for target, name in ((self._read, "engine-reader"), (self._write, "engine-writer"))
        ]
        for thread in self._threads:
            thread.start()

    def send(self, message: dict[str, Any]) -> None:
        self._outbox.put(message)

    def retire(self) -> None:
        """Let go of a child that ended (or must)."""
        self.child.kill()
        self._outbox.put(None)
        for thread in self._threads:
            thread.join(_ORPHAN_GRACE_S)
        if not any(thread.is_alive() for thread in self._threads):
            self.child.close()  # else a stuck thread would read or write another file by its number

    def end_orphan(self, now: float) -> None:
        """Report a dead child whose pipe is held open by a process that it left behind."""
        if not self.child.exited():
            return
        self._exited_at = self._exited_at or now
        if now - self._exited_at > _ORPHAN_GRACE_S:
            self._report_end()

    def _read(self) -> None:
        decoder = channel.FrameDecoder()
        try:
            for data in iter(self.child.read, b""):
                messages = [channel.read_child_message(item) for item in decoder.feed(data)]
                if messages:
                    self._hear(policy.Said(self.generation, messages))
        except (ValueError, OSError, RecursionError) as exc:
            self._put(policy.Babbled(self.generation, str(exc)))
            self.child.kill()
        self._report_end()

    def _report_end(self) -> None:
        end = self.child.reap()
        crumb = self.child.breadcrumb.read()
        self._put(policy.Ended(self.generation, end, crumb, self.child.last_words))

    def _write(self) -> None:
        for message in iter(self._outbox.get, None):
            try:
                self.child.write(channel.encode(message))
            except ValueError as exc:
                if message["op"] == "submit":
                    self._put(policy.Unsendable(message["request"]["id"], str(exc)))
            except OSError:
                return  # the child is gone: the reader tells
