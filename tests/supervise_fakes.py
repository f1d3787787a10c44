"""An engine without libllama, and children that misbehave, for the supervision tests.

The fake engine's text is a function of prompt, choice and position, so it is the same however often
a request is replayed. A prompt may carry faults for itself: "!sample:segv:3" strikes when the
engine reaches `sample` of its 3rd token. Run as a program, this file is an engine child.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

from libloader import core, errors
from libloader.supervise import channel, child, faults, launch
from libloader.supervise.limits import Limits
from libloader.supervise.loop import Mark
from libloader.supervise.supervisor import Options, Supervisor

TESTS = Path(__file__).resolve().parent
INFO = core.ModelInfo(alias="fake", n_slots=4, n_vocab=1000)


def token_at(prompt: str, index: int, position: int) -> int:
    return zlib.crc32(f"{prompt}/{index}/{position}".encode()) % 1000


def text_of(prompt: str, n_tokens: int, index: int = 0) -> str:
    """Return what the fake engine answers."""
    return "".join(f" {token_at(prompt, index, at)}" for at in range(n_tokens))


def ask(name: str, prompt: str = "tell", max_tokens: int = 8, **fields: object) -> core.Request:
    """Return a generate request."""
    prompts = (core.Prompt(segments=((prompt, False),)),)
    return core.Request(name, "generate", prompts, max_tokens=max_tokens, **fields)  # type: ignore[arg-type]


class FakeEngine:
    """Slots, a queue and deterministic text; `pause` passes the time of one step."""

    def __init__(
        self,
        n_slots: int,
        mark: Mark,
        pause: Callable[[], None],
        save: Callable[[], None] = lambda: None,
    ) -> None:
        self.info = INFO
        self._n_slots = n_slots
        self._mark = mark
        self._pause = pause
        self._save = save
        self._waiting: deque[core.Request] = deque()
        self._running: dict[str, list[list[int]]] = {}
        self._requests: dict[str, core.Request] = {}
        self._step = 0

    @property
    def idle(self) -> bool:
        return not self._requests

    def figures(self) -> dict[str, float]:
        return {"n_running": float(len(self._running)), "n_waiting": float(len(self._waiting))}

    def submit(self, request: core.Request) -> None:
        if self._prompt(request).startswith("refuse me"):
            raise errors.PromptTooLong("the prompt is too long", param="prompt")
        assert request.id not in self._requests, "submitted twice"
        self._requests[request.id] = request
        self._waiting.append(request)

    def cancel(self, request_id: str) -> None:
        request = self._requests.pop(request_id, None)
        if request is not None and self._running.pop(request_id, None) is None:
            self._waiting.remove(request)

    def interrupt(self, request_id: str = "") -> None:
        pass

    def close(self) -> None:
        self._requests.clear()
        self._mark("save", "", self._step)
        self._save()

    def step(self, company: object = None) -> list[core.Event]:
        self._step += 1
        while self._waiting and len(self._running) < self._n_slots:
            self._seat(self._waiting.popleft())
        self._mark("decode", " ".join(self._running), self._step)
        self._pause()
        return [event for name in list(self._running) for event in self._advance(name)]

    def _seat(self, request: core.Request) -> None:
        for phase in ("tokenize", "grammar_init"):
            self._at(phase, request, 0)
        n_choices = len(request.prompts) * request.n
        resume = request.resume or ((),) * n_choices
        self._running[request.id] = [list(tokens) for tokens in resume]

    def _advance(self, name: str) -> Iterator[core.Event]:
        request = self._requests[name]
        for index, tokens in enumerate(self._running[name]):
            if len(tokens) < request.max_tokens:
                self._at("sample", request, len(tokens))
                token = token_at(self._prompt(request), index, len(tokens))
                tokens.append(token)
                yield core.TokenEvent(name, index, f" {token}", (token,))
            if len(tokens) >= request.max_tokens:
                yield core.ChoiceDone(name, index, "length")
        if all(len(tokens) >= request.max_tokens for tokens in self._running[name]):
            del self._running[name], self._requests[name]
            yield core.RequestDone(name, core.Usage(1, 0, request.max_tokens), {})

    def _at(self, phase: str, request: core.Request, position: int) -> None:
        """Mark `phase`, and do what the prompt asks to happen there."""
        self._mark(phase, request.id, self._step)
        for word in self._prompt(request).split():
            if word.startswith("!"):
                point, action, at = (word[1:] + ":0").split(":")[:3]
                if point == phase and int(at) == position:
                    faults.ACTIONS[action]()

    @staticmethod
    def _prompt(request: core.Request) -> str:
        return request.prompts[0].segments[0][0]


def build_engine(
    settings: core.EngineSettings, progress: Callable[[float], None], mark: Mark
) -> FakeEngine:
    """As the real one; `settings.model` holds words that say how to load, JSON for the rest."""
    wishes = json.loads(settings.model or "{}")
    progress(0.5)
    if "refuse" in wishes:
        raise errors.ModelFileInvalid("model.gguf: not a GGUF file")
    if "load" in wishes:
        faults.ACTIONS[wishes["load"]]()
    if "load_once" in wishes:  # the second child cannot load
        flag = Path(wishes["load_once"])
        if flag.exists():
            raise errors.ModelLoadFailed("the file is gone")
        flag.touch()
    if "noise" in wishes:
        os.write(1, b"noise on stdout \x00\xff{}\n" * 50)
        os.write(2, b"<3>an error of native code\n")
    time.sleep(wishes.get("load_s", 0.0))
    step_s = wishes.get("step_s", 0.001)

    def save() -> None:
        if "saved" in wishes:
            time.sleep(wishes["save_s"])
            Path(wishes["saved"]).touch()

    return FakeEngine(settings.n_parallel, mark, lambda: time.sleep(step_s), save)


# --- running it as a child ---------------------------------------------------------------------


def command(function: str = "be_child()") -> list[str]:
    """Return the command prefix of a child that runs `function` of this module."""
    code = f"import sys; sys.path[:0] = {[str(TESTS.parent), str(TESTS)]!r}; import supervise_fakes"
    return [sys.executable, "-c", f"{code}; supervise_fakes.{function}"]


def be_child() -> None:
    child.main(sys.argv, build_engine)


# Tests do not wait for seconds; a hundred kills are no restart storm here.
QUICK = Limits(
    backoff_s=(0.0, 0.01), crashes_max=1000, lives_max=1000, suspect_replays=1000, tick_s=0.05
)


def supervisor(
    limits: Limits = QUICK,
    function: str = "be_child()",
    n_parallel: int = 4,
    memory_limit_bytes: int = 0,
    **wishes: object,
) -> Supervisor:
    settings = core.EngineSettings(model=json.dumps(wishes), n_parallel=n_parallel)
    options = Options(command(function), memory_limit_bytes, True, limits)
    return Supervisor(settings, options)


class Client:
    """Collects one request's events, as an HTTP thread would."""

    def __init__(self) -> None:
        self.events: list[core.Event] = []
        self.over = threading.Event()
        self.started = threading.Event()

    def __call__(self, event: core.Event) -> None:
        assert not self.over.is_set(), f"an event after the last one: {event}"
        self.events.append(event)
        self.started.set()
        if isinstance(event, (core.RequestDone, core.RequestFailed)):
            self.over.set()

    def wait(self, timeout_s: float = 20.0) -> core.Event:
        assert self.over.wait(timeout_s), f"hung after {len(self.events)} events"
        return self.events[-1]

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, core.TokenEvent))

    @property
    def failure(self) -> str:
        last = self.events[-1]
        return str(last.error["name"]) if isinstance(last, core.RequestFailed) else ""


def send(engine: Supervisor, request: core.Request) -> Client:
    client = Client()
    engine.submit(request, client)
    return client


def wait_for(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.002)


# --- children that break the rules -------------------------------------------------------------

READY = {"op": "ready", "info": core.to_wire(INFO)}


def misbehave(how: str) -> None:
    """Say ready, wait for the first request, then break a rule of the channel."""
    ends = launch.open_address(sys.argv[-1])
    channel.write_frame(ends.write_fd, channel.encode(READY))
    decoder = channel.FrameDecoder()
    seen: list[str] = []
    while "submit" not in seen:
        seen += [message["op"] for message in decoder.feed(os.read(ends.read_fd, 65536))]
    half = channel.encode({"op": "step", "ms": 1, "figures": None, "events": []})[:-3]
    frames = {
        "partial": half,
        "length": b"\xff\xff\xff\xff",
        "json": b"\x02\x00\x00\x00{{",
        "shape": channel.encode({"op": "step", "ms": 1, "figures": None, "events": [["t", 1]]}),
        "choice": channel.encode(
            {"op": "step", "ms": 1, "figures": None, "events": [["t", "a", 9, "x", [1], None]]}
        ),
    }
    os.write(ends.write_fd, frames.get(how, b""))
    if how in ("partial", "json"):
        os._exit(3)
    if how == "closed":
        os.close(ends.write_fd)
    if how == "orphan" and os.fork():
        os._exit(3)
    time.sleep(30)
