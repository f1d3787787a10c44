"""Front and engine in a made-up world: real policy, real scheduler, everything else from a seed.

Time, the pipe, the child process, libllama and all its faults are simulated; nothing is random but
the seed, so a seed that fails fails again. IGLLAMA_SEEDS=1000 runs that many, IGLLAMA_SEED=17 one.

What must hold in every world:
- each request ends exactly once, and nothing is said of it before it was asked or after it ended;
- what a client got is the text that an undisturbed engine gives: all of it, or a part from its
  beginning if the request failed;
- one engine gets requests in the order in which they came, suspects before the others;
- there is never a second child, and the world comes to an end.
"""

from __future__ import annotations

import contextlib
import functools
import heapq
import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from typing import Callable

import pytest
from fakes import Bench, FakeBatch, FakeChain, FakeClock, FakeContext, FakeModel

from libloader import core, errors
from libloader.engine.engine import Engine
from libloader.supervise import channel, policy
from libloader.supervise.blame import Exit, Verdict
from libloader.supervise.breadcrumb import Crumb
from libloader.supervise.ledger import Entry, Ledger
from libloader.supervise.limits import Limits

SEEDS = range(int(os.environ.get("IGLLAMA_SEEDS", "60")))
if "IGLLAMA_SEED" in os.environ:
    SEEDS = range(int(os.environ["IGLLAMA_SEED"]), int(os.environ["IGLLAMA_SEED"]) + 1)

N_SLOTS = 4
INFO = core.ModelInfo(n_slots=N_SLOTS)
PROMPTS = ["hi", "a longer prompt " * 4, "é🙂", "count to ten", "x" * 90, "the same", "0123456789"]
SETTINGS = core.EngineSettings(n_parallel=N_SLOTS, n_queue=60)
SEGV, KILLED = Exit("SIGSEGV"), Exit("SIGKILL", "outside")


class Died(Exception):
    """Raised out of the fake native code: the process is no more."""


class Hangs(Exception):
    """Raised out of the fake native code: the process says nothing any more."""


class Faults:
    """What may go wrong in one world, each with its own chance per visit."""

    def __init__(self, rng: random.Random, calm: bool) -> None:
        def chance(most: float) -> float:
            return 0.0 if calm or rng.random() < 0.5 else rng.random() * most

        self.crash = chance(0.002)  # at a mark of the breadcrumb
        self.hang = chance(0.0005)
        self.kill = chance(0.01)  # from outside, at a turn
        self.babble = chance(0.003)
        self.slow = chance(0.005)  # a step of up to 20 s
        self.bad_load = chance(0.3)  # after the first start
        self.lost_frame = rng.random()  # the step that a crash interrupts was not sent yet
        self.cancel = chance(0.3)
        self.pause = chance(0.01)  # the front itself stands still for a minute
        self.n_poison = 0 if rng.random() < 0.5 else rng.randrange(1, 6)


class SimChild:
    """An engine process: a real Engine on fakes, stepped by the world."""

    def __init__(self, world: World, generation: int) -> None:
        self.world = world
        self.generation = generation
        self.crumb = Crumb(phase="load")
        self.inbox: list[dict[str, object]] = []
        self.sent: list[str] = []
        self.alive = True
        self.frozen = self.ready = False
        context = FakeContext(n_ctx=512, n_seq_max=N_SLOTS, clock=FakeClock())
        self.engine = Engine(
            FakeModel(),
            context,
            core.EngineSettings(n_parallel=N_SLOTS, n_queue=1 << 30),
            batch=FakeBatch(context.n_batch),
            open_chain=FakeChain,
            open_embedder=open_embedder,
            clock=context.clock,
            breadcrumb=self.mark,
        )

    def mark(self, phase: str, ids: str, step: int) -> None:
        self.crumb = Crumb(self.crumb.beat + 1, step, phase, tuple(ids.split()))
        if ids.startswith("poison") and f"-{phase}-" in ids and " " not in ids:
            raise Died
        if self.world.strikes("crash"):
            raise Died
        if self.world.strikes("hang"):
            raise Hangs

    def load(self) -> None:
        if not self.alive:
            return
        if self.generation > 1 and self.world.strikes("bad_load"):
            self.world.rng.choice([self.refuse, self.die, self.freeze])()
            return
        self.ready = True
        self.say(channel.Ready(INFO))
        self.world.after(0.001, self.turn)

    def refuse(self) -> None:
        self.say(channel.StartRefused(errors.ModelLoadFailed("no")))
        self.die(Exit("exit code 78"))

    def freeze(self) -> None:
        self.frozen = True

    def turn(self) -> None:
        """One turn of the child's loop, and the next one planned."""
        if not self.alive or self.frozen:
            return
        if self.world.strikes("kill"):
            self.die(KILLED)
            return
        if self.world.strikes("babble"):
            self.world.happens(policy.Babbled(self.generation, "nonsense"))
        try:
            events = self.step()
        except Hangs:
            self.freeze()
            return
        except Died:
            self.die()
            return
        if events:
            if self.world.strikes("kill") and self.world.strikes("lost_frame"):
                self.die(KILLED)
                return
            self.say(channel.Step(1.0, tuple(events), None))
        self.world.after(self.world.step_s(), self.turn)

    def step(self) -> list[core.Event]:
        inbox, self.inbox = self.inbox, []
        for message in inbox:
            self.obey(message)
        if self.engine.idle:
            self.crumb = Crumb(self.crumb.beat + 1, 0, "idle")
            return []
        events = self.engine.step()
        self.engine.check_integrity()
        self.crumb = Crumb(self.crumb.beat + 1, 0, "ipc_write")
        return through_the_pipe(events)

    def obey(self, message: dict[str, object]) -> None:
        if message["op"] == "submit":
            request = core.from_wire(core.Request, json.loads(json.dumps(message["request"])))
            self.engine.submit(request)
        elif message["op"] == "cancel":
            self.engine.cancel(str(message["id"]))
        elif message["op"] == "stop":
            raise Died

    def die(self, end: Exit = SEGV) -> None:
        if self.alive:
            self.alive = False
            ended = policy.Ended(self.generation, end, self.crumb, "last words")
            self.world.after(0.005, lambda: self.world.end_of(self, ended))

    def say(self, message: channel.ChildMessage) -> None:
        self.world.happens(policy.Said(self.generation, [message]))


class World:
    """Runs one seed from the first spawn to the last event."""

    def __init__(self, seed: int, calm: bool = False) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.plan: list[tuple[float, int, Callable[[], None]]] = []
        self.n_planned = 0
        self.faults = Faults(self.rng, calm)
        self.limits = Limits()
        self.policy = policy.Policy(SETTINGS, self.limits)
        self.child: SimChild | None = None
        self.requests: dict[str, core.Request] = {}
        self.heard: dict[str, list[core.Event]] = {}
        self.ended: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.spawned_at: list[float] = []
        self.finished = False
        self.n_requests = self.rng.randrange(5, 60)
        self.hurry = self.rng.choice([0.005, 0.05, 1.0])

    # --- time ----------------------------------------------------------------------------------

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        self.n_planned += 1
        heapq.heappush(self.plan, (self.now + seconds, self.n_planned, act))

    def strikes(self, fault: str) -> bool:
        chance = getattr(self.faults, fault)
        return bool(chance) and self.rng.random() < chance

    def step_s(self) -> float:
        return self.rng.random() * 20 if self.strikes("slow") else 0.001 + self.rng.random() * 0.01

    def run(self) -> None:
        self.happens(policy.Started())
        self.after(0.0, self.tick)
        for _ in range(self.n_requests):
            self.after(0.2 + self.rng.random() * self.hurry * self.n_requests, self.ask)
        n_turns = 0
        while self.plan and not self.finished:
            at, _, act = heapq.heappop(self.plan)
            self.now = max(self.now, at)
            act()
            n_turns += 1
            assert n_turns < 200_000, f"no end in sight at {self.now:.1f} s"
        assert self.finished

    def tick(self) -> None:
        crumb = self.child.crumb if self.child else Crumb()
        self.happens(policy.Ticked(crumb.beat, crumb.phase))
        if self.strikes("pause"):
            self.now += 60.0
        if len(self.requests) + sum(self.refused.values()) == self.n_requests and self.all_over():
            self.happens(policy.StopAsked())
        if not self.finished:
            self.after(max(0.001, self.policy.next_wake(self.now)), self.tick)

    def all_over(self) -> bool:
        return all(self.ended[name] for name in self.requests)

    # --- clients -------------------------------------------------------------------------------

    def ask(self) -> None:
        number = len(self.requests) + sum(self.refused.values())
        request = self.poison(number) if self.faults.n_poison else self.harmless(number)
        refusal = self.policy.refusal(self.now, request)
        if refusal is not None:
            self.refused[type(refusal).__name__] += 1
            return
        self.requests[request.id] = request
        self.heard[request.id] = []
        self.happens(policy.Submitted(request))
        if self.strikes("cancel"):
            act = functools.partial(self.happens, policy.Cancelled(request.id))
            self.after(self.rng.random(), act)

    def poison(self, number: int) -> core.Request:
        self.faults.n_poison -= 1
        phase = self.rng.choice(["tokenize", "grammar_init", "prefill", "decode", "sample"])
        return generate(f"poison-{phase}-{number}", f"boom {phase}", 8)

    def harmless(self, number: int) -> core.Request:
        prompt = self.rng.choice(PROMPTS)
        kind = self.rng.choice(["generate"] * 6 + ["embed", "tokenize"])
        if kind != "generate":
            prompts = (core.Prompt(segments=((prompt, False),)),)
            return core.Request(f"{kind}-{number}", kind, prompts)
        n, max_tokens = self.rng.choice([1, 1, 2]), self.rng.randrange(1, 40)
        return generate(f"request-{number}", prompt, max_tokens, n)

    # --- carrying out --------------------------------------------------------------------------

    def happens(self, happening: policy.Happening) -> None:
        for action in self.policy.handle(self.now, happening):
            self.carry_out(action)

    def carry_out(self, action: policy.Action) -> None:
        if isinstance(action, policy.Spawn):
            assert self.child is None, "two children"
            self.spawned_at.append(self.now)
            self.child = SimChild(self, action.generation)
            self.after(0.05 + self.rng.random(), self.child.load)
        elif isinstance(action, policy.Kill):
            if self.child is not None and self.child.generation == action.generation:
                self.child.die(KILLED)
        elif isinstance(action, policy.Send):
            self.send(action)
        elif isinstance(action, policy.Deliver):
            self.hear(action)
        elif isinstance(action, policy.Finish):
            self.finished = True

    def send(self, send: policy.Send) -> None:
        child = self.child
        if child is None or child.generation != send.generation or not child.alive:
            return
        if send.message["op"] == "submit":
            assert child.ready, "sent to an engine that is not ready"
            child.sent.append(send.message["request"]["id"])
        if send.message["op"] == "stop" and not child.ready:
            child.die(Exit("exit code 0"))
        child.inbox.append(send.message)

    def end_of(self, child: SimChild, ended: policy.Ended) -> None:
        assert self.child is child
        check_order(child.sent)
        self.child = None
        self.happens(ended)

    def hear(self, delivery: policy.Deliver) -> None:
        name = delivery.event.request_id
        assert name in self.requests, f"{name} was never asked for"
        assert not self.ended[name], f"{name} hears {delivery.event} after its end"
        last = isinstance(delivery.event, (core.RequestDone, core.RequestFailed))
        assert last == delivery.last
        self.heard[name].append(delivery.event)
        self.ended[name] += last

    # --- verdict -------------------------------------------------------------------------------

    def check(self) -> None:
        assert self.child is None or not self.child.alive or self.finished
        for name, request in self.requests.items():
            assert self.ended[name] == 1, f"{name} ended {self.ended[name]} times"
            check_answer(request, self.heard[name])
        for line in core.LINES:
            assert not self.policy._lines.n_in(line), "whoever is gone is in line no more"
        for first, sixth in zip(self.spawned_at, self.spawned_at[7:]):
            assert sixth - first > 20, "restarts without end"

    def failed(self, name: str) -> str:
        """Return the error class that a request ended with, "" if it ended well."""
        last = self.heard[name][-1]
        return str(last.error["name"]) if isinstance(last, core.RequestFailed) else ""


def generate(name: str, prompt: str, max_tokens: int, n: int = 1) -> core.Request:
    prompts = (core.Prompt(segments=((prompt, False),)),)
    return core.Request(name, "generate", prompts, n=n, max_tokens=max_tokens)


@contextlib.contextmanager
def open_embedder() -> Iterator[tuple[FakeContext, FakeBatch]]:
    yield FakeContext(256, 8, n_batch=96, n_ubatch=96), FakeBatch(96)


def through_the_pipe(events: list[core.Event]) -> list[core.Event]:
    frame = channel.encode(
        {"op": "step", "ms": 1, "events": [core.event_to_wire(e) for e in events], "figures": None}
    )
    (message,) = channel.FrameDecoder().feed(frame)
    step = channel.read_child_message(message)
    assert isinstance(step, channel.Step)
    return list(step.events)


def number_of(name: str) -> int:
    return int(name.rpartition("-")[2])


def check_order(sent: list[str]) -> None:
    """Suspects come first, each group in the order of asking: at most one step back."""
    numbers = [number_of(name) for name in sent]
    falls = sum(later < earlier for earlier, later in zip(numbers, numbers[1:]))
    assert falls <= 1, f"out of order: {sent}"


@functools.cache
def undisturbed(prompt: str, max_tokens: int) -> str:
    """Return what an engine says to `prompt` when nothing goes wrong."""
    bench = Bench(FakeContext(n_ctx=512, n_seq_max=N_SLOTS))
    bench.submit("a", prompt, max_tokens=max_tokens)
    bench.run()
    return "".join(event.text for event in bench.of("a", core.TokenEvent))


def check_answer(request: core.Request, heard: list[core.Event]) -> None:
    if request.kind != "generate":
        return
    complete = isinstance(heard[-1], core.RequestDone)
    whole = undisturbed(request.prompts[0].segments[0][0], request.max_tokens)
    for index in range(request.n):
        mine = [event for event in heard[:-1] if getattr(event, "index", None) == index]
        text = "".join(event.text for event in mine if isinstance(event, core.TokenEvent))
        ends = [event for event in mine if isinstance(event, core.ChoiceDone)]
        assert (text == whole) if complete else whole.startswith(text), (request.id, text, whole)
        assert len(ends) == 1 if complete else len(ends) <= 1
        assert not ends or mine[-1] is ends[0], "text after the end of a choice"


@pytest.mark.parametrize("seed", SEEDS)
def test_every_request_ends_exactly_once_with_the_right_text(seed):
    world = World(seed)
    world.run()
    world.check()


@pytest.mark.parametrize("seed", SEEDS[:10])
def test_in_a_world_without_faults_nothing_fails_and_nothing_restarts(seed):
    world = World(seed, calm=True)
    world.faults.n_poison = 0
    world.run()
    world.check()
    assert len(world.spawned_at) == 1
    assert not any(map(world.failed, world.requests))


@pytest.mark.parametrize("seed", SEEDS[:20])
def test_only_the_poison_dies_of_poison(seed):
    world = World(seed, calm=True)
    world.faults.n_poison = 3
    world.n_requests = max(10, world.n_requests)
    world.run()
    world.check()
    failed = [name for name in world.requests if world.failed(name) == "EngineCrashed"]
    assert all(name.startswith("poison") for name in failed)


def test_a_seed_replays_to_the_same_world():
    one, two = World(3), World(3)
    one.run()
    two.run()
    assert one.heard == two.heard
    assert one.spawned_at == two.spawned_at


def forget_tokens(entry, now):
    return entry.request


def take_everything(entry, event):
    entry.moved = True
    return True


def lose_the_last_request(ledger, verdict):
    failed = engine_lost(ledger, verdict)
    if ledger._unsent:
        ledger._unsent.popitem()
    return failed


def send_backwards(ledger, now):
    return iter(list(due(ledger, now))[::-1])


def blame_nobody(end, crumb, sent):
    return Verdict()


engine_lost, due = Ledger.engine_lost, Ledger.due
DEFECTS = {
    "a replay forgets what its client has": (Entry, "for_engine", forget_tokens),
    "a replay tells everything again": (Entry, "take", take_everything),
    "a crash loses a request": (Ledger, "engine_lost", lose_the_last_request),
    "requests go out backwards": (Ledger, "due", send_backwards),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_found_within_a_few_seeds(defect, monkeypatch):
    monkeypatch.setattr(*DEFECTS[defect])
    with pytest.raises(AssertionError):
        for seed in range(40):
            world = World(seed)
            world.run()
            world.check()


def test_without_blame_a_poisonous_request_takes_the_others_down(monkeypatch):
    """The test above that only poison dies of poison would notice."""
    monkeypatch.setattr(policy, "judge", blame_nobody)
    died = set()
    for seed in range(20):
        world = World(seed, calm=True)
        world.faults.n_poison = 3
        world.run()
        died |= {name.partition("-")[0] for name in world.requests if world.failed(name)}
    assert "request" in died
