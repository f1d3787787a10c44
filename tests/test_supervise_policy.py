"""The supervisor's decisions: happenings in, actions out; no process, no thread, no clock."""

from __future__ import annotations

import dataclasses

import pytest
from supervise_fakes import INFO, ask

from libloader import core, errors
from libloader.supervise import channel, policy
from libloader.supervise.blame import Exit
from libloader.supervise.breadcrumb import Crumb
from libloader.supervise.limits import Limits

SEGV, KILL = Exit("SIGSEGV"), Exit("SIGKILL", "outside")


class Front:
    """Drives a policy as the shell does, and remembers what it wanted."""

    def __init__(self, limits: Limits | None = None, **settings: int) -> None:
        self.limits = limits or Limits()
        self.policy = policy.Policy(core.EngineSettings(**settings), self.limits)
        self.now = 0.0
        self.beat = 0
        self.generation = self.ended = 0
        self.actions: list[policy.Action] = []

    def do(self, happening: policy.Happening) -> list[policy.Action]:
        actions = self.policy.handle(self.now, happening)
        self.generation += sum(isinstance(action, policy.Spawn) for action in actions)
        self.actions += actions
        return actions

    def up(self) -> Front:
        self.do(policy.Started())
        self.say(channel.Ready(INFO))
        return self

    def say(self, *messages: channel.ChildMessage) -> list[policy.Action]:
        return self.do(policy.Said(self.generation, list(messages)))

    def step(self, *events: core.Event) -> list[policy.Action]:
        return self.say(channel.Step(1.0, events, None))

    def submit(self, *names: str, **fields: object) -> None:
        for name in names:
            self.do(policy.Submitted(ask(name, **fields)))

    def end(self, end: Exit = SEGV, phase: str = "decode", *ids: str) -> list[policy.Action]:
        self.ended = self.generation
        return self.do(policy.Ended(self.ended, end, Crumb(1, 1, phase, ids), "last words"))

    def tick(self, seconds: float = 0.25, beats: bool = True, phase: str = "decode") -> None:
        self.now += seconds
        self.beat += beats
        self.do(policy.Ticked(self.beat, phase))

    def restart(self) -> None:
        """Bring the next child up."""
        while self.generation == self.ended:
            self.tick()
        self.say(channel.Ready(INFO))

    @property
    def state(self) -> str:
        return self.policy.state()

    def sent(self) -> list[str]:
        """Return what was sent since last asked, as `op id`."""
        messages = [a.message for a in self.actions if isinstance(a, policy.Send)]
        self.actions = [a for a in self.actions if not isinstance(a, policy.Send)]
        names = [message.get("id") or message.get("request", {}).get("id") for message in messages]
        return [f"{m['op']} {name or ''}".strip() for m, name in zip(messages, names)]

    def failures(self) -> dict[str, str]:
        return {
            action.event.request_id: str(action.event.error["name"])
            for action in self.actions
            if isinstance(action, policy.Deliver) and isinstance(action.event, core.RequestFailed)
        }


def token(name: str) -> core.TokenEvent:
    return core.TokenEvent(name, 0, "x", (1,))


def done(name: str) -> core.RequestDone:
    return core.RequestDone(name, core.Usage(), {})


def kinds(actions: list[policy.Action]) -> list[str]:
    return [type(action).__name__ for action in actions]


def test_a_start_spawns_tells_the_settings_and_is_announced_when_ready():
    front = Front()
    assert kinds(front.do(policy.Started())) == ["Spawn", "Send"]
    assert front.state == "loading"
    front.say(channel.Progress(0.4))
    assert front.policy.status(0.0).progress == 0.4
    assert front.say(channel.Ready(INFO)) == [policy.Announce(None)]
    assert front.state == "ok"
    assert front.policy.status(0.0).info == INFO


def test_while_the_model_loads_requests_are_refused_with_a_time_to_come_back():
    front = Front()
    front.do(policy.Started())
    refusal = front.policy.refusal(0.0, ask("a"))
    assert isinstance(refusal, errors.EngineUnavailable)
    assert refusal.retry_after_s == 5.0


def test_a_crash_before_the_first_ready_is_a_start_error_with_the_last_words():
    front = Front()
    front.do(policy.Started())
    announce, finish = front.end(Exit("SIGABRT"), "load")
    assert isinstance(announce, policy.Announce)
    assert isinstance(announce.error, errors.StartError)
    assert "SIGABRT" in announce.error.message and "last words" in announce.error.message
    assert "\n" not in announce.error.message
    assert finish == policy.Finish()
    assert front.state == "failed"


def test_a_refusal_to_start_is_announced_as_the_child_said_it():
    front = Front()
    front.do(policy.Started())
    refusal = errors.ModelFileInvalid("model.gguf: not a GGUF file")
    front.say(channel.StartRefused(refusal))
    assert front.end(Exit("exit code 78"), "load")[0] == policy.Announce(refusal)


def test_requests_go_to_the_engine_and_events_to_the_clients():
    front = Front().up()
    front.submit("a", "b")
    assert front.sent() == ["start", "submit a", "submit b"]
    assert front.step(token("a"), done("b")) == [
        policy.Deliver(token("a"), False),
        policy.Deliver(done("b"), True),
    ]
    assert front.step(token("b")) == []


def test_a_crash_is_followed_by_a_restart_and_a_replay():
    front = Front().up()
    front.submit("a")
    front.step(token("a"))
    front.sent()
    assert kinds(front.end(KILL)) == ["Spawn", "Send"]
    assert front.state == "restarting"
    front.say(channel.Ready(INFO))
    assert front.sent() == ["start", "submit a"]
    status = front.policy.status(front.now)
    assert (status.state, status.restarts, status.last_exit) == ("ok", 1, "SIGKILL")
    assert status.counters["restarts_outside"] == 1
    assert status.counters["replayed"] == 1


def test_requests_that_come_during_a_restart_wait_for_it():
    front = Front().up()
    front.end()
    assert front.policy.refusal(front.now, ask("a")) is None
    front.submit("a")
    front.sent()
    front.say(channel.Ready(INFO))
    assert front.sent() == ["submit a"]
    assert front.failures() == {}


def test_the_culprit_gets_engine_crashed_and_the_others_a_replay():
    front = Front().up()
    front.submit("a", "b", "c")
    front.end(SEGV, "grammar_init", "b")
    assert front.failures() == {"b": "EngineCrashed"}
    front.sent()
    front.say(channel.Ready(INFO))
    assert front.sent() == ["submit a", "submit c"]


def test_a_body_that_crashed_the_engine_twice_is_refused():
    front = Front().up()
    for name in ("a", "b"):
        front.submit(name, prompt="poison")
        front.end(SEGV, "tokenize", name)
        front.restart()
    refusal = front.policy.refusal(front.now, ask("c", "poison"))
    assert isinstance(refusal, errors.RequestPoisoned)
    assert refusal.retry_after_s == pytest.approx(600.0, abs=2.0)
    assert front.policy.refusal(front.now, ask("c", "water")) is None


def test_a_request_that_crashes_a_decode_alone_and_again_is_poison_too():
    front = Front().up()
    front.submit("a", prompt="poison")
    front.end(SEGV, "decode", "a")
    assert front.failures() == {}
    front.say(channel.Ready(INFO))
    front.end(SEGV, "decode", "a")
    assert front.failures() == {"a": "EngineCrashed"}
    assert isinstance(front.policy.refusal(front.now, ask("b", "poison")), errors.RequestPoisoned)


def test_who_stood_beside_a_kill_from_outside_is_not_poison_but_two_kills_in_a_row_are_its_own():
    front = Front(Limits(crashes_max=1000)).up()
    for name in ("a", "b", "c"):
        front.submit(name, prompt="popular")
        front.end(KILL, "sample", name)
        front.restart()
        front.step(token(name), done(name))
    assert front.failures() == {}
    assert front.policy.refusal(front.now, ask("d", "popular")) is None
    front.submit("d", prompt="popular")
    for _ in range(2):
        front.end(KILL, "sample", "d")
        front.restart()
    assert front.failures() == {"d": "EngineCrashed"}
    assert isinstance(front.policy.refusal(front.now, ask("e", "popular")), errors.RequestPoisoned)


def test_bystanders_of_a_crashed_batch_are_not_poison():
    front = Front().up()
    front.submit("a", prompt="water")
    front.submit("b", prompt="poison")
    for _ in range(2):
        front.end(SEGV, "decode", "a", "b")
        front.restart()
        front.step(token("a"))
        front.step(token("b"))
    assert front.failures() == {"a": "EngineCrashed", "b": "EngineCrashed"}
    assert front.policy.refusal(front.now, ask("c", "water")) is None


def test_suspects_are_sent_one_by_one_and_the_rest_after_them():
    front = Front().up()
    front.submit("a", "b", "c")
    front.end(SEGV, "decode", "a", "b")
    front.sent()
    front.say(channel.Ready(INFO))
    front.submit("d")
    assert front.sent() == ["submit a"]
    front.step(token("a"))
    assert front.sent() == ["submit b"]
    front.step(token("b"))
    assert front.sent() == ["submit c", "submit d"]


def test_a_storm_of_crashes_ends_in_failed_and_probing():
    front = Front().up()
    for _ in range(5):
        front.end(SEGV, "idle")
        front.restart()
    front.submit("a", "b")
    front.step(token("a"))
    front.end(KILL, "idle")
    assert front.state == "failed"
    assert front.failures() == {"a": "EngineCrashed", "b": "EngineUnavailable"}
    refusal = front.policy.refusal(front.now, ask("c"))
    assert isinstance(refusal, errors.EngineUnavailable)
    assert refusal.retry_after_s == 30.0
    generation = front.generation
    for _ in range(119):
        front.tick()
    assert front.generation == generation
    front.tick()
    assert front.generation == generation + 1
    assert front.state == "failed"
    front.say(channel.Ready(INFO))
    assert front.state == "ok"


def test_a_hung_call_is_stalled_then_killed_and_its_request_blamed():
    front = Front().up()
    front.submit("a", "b")
    while front.state == "ok":
        front.tick(beats=False, phase="sample")
    assert front.state == "stalled"
    assert front.now < 6
    assert front.policy.refusal(front.now, ask("c")) is None
    while front.now < 29:
        front.tick(beats=False, phase="sample")
    assert "Kill" not in kinds(front.actions)
    for _ in range(8):
        front.tick(beats=False, phase="sample")
    assert kinds(front.actions).count("Kill") == 1
    front.end(KILL, "sample", "a")
    assert front.failures() == {"a": "EngineCrashed"}
    status = front.policy.status(front.now)
    assert (status.last_exit, status.counters["restarts_hung"]) == ("hung in sample", 1)


def test_a_child_that_hangs_while_it_loads_is_a_start_error():
    front = Front()
    front.do(policy.Started())
    for _ in range(1210):
        front.tick(beats=False, phase="load")
    assert "Kill" in kinds(front.actions)
    announce = front.end(KILL, "load")[0]
    assert isinstance(announce, policy.Announce)
    assert "hung in load" in str(announce.error)


def test_a_child_that_breaks_the_channel_is_killed_and_replaced():
    front = Front().up()
    front.submit("a")
    assert front.do(policy.Babbled(1, "nonsense")) == [policy.Kill(1)]
    front.end(KILL, "ipc_write")
    assert front.policy.status(front.now).last_exit == "broken channel"
    front.say(channel.Ready(INFO))
    assert front.failures() == {}
    assert front.sent() == ["start", "submit a", "start", "submit a"]


def test_an_absurd_event_is_a_broken_channel():
    front = Front().up()
    front.submit("a")
    assert front.step(core.TokenEvent("a", 5, "x", (1,))) == [policy.Kill(1)]


def test_what_an_earlier_child_says_is_ignored():
    front = Front().up()
    front.submit("a")
    front.end(KILL, "idle")
    assert front.do(policy.Said(1, [channel.Step(1.0, (token("a"),), None)])) == []
    assert front.do(policy.Ended(1, SEGV, Crumb())) == []
    assert front.do(policy.Babbled(1, "late")) == []


def test_a_cancelled_request_ends_at_once_and_the_engine_is_told():
    front = Front().up()
    front.submit("a")
    front.sent()
    front.do(policy.Cancelled("a"))
    assert front.failures() == {"a": "ClientGone"}
    assert front.sent() == ["cancel a"]
    assert front.step(token("a"), done("a")) == []
    assert front.do(policy.Cancelled("a")) == []


def test_a_request_cancelled_during_a_restart_never_reaches_the_engine():
    front = Front().up()
    front.end()
    front.submit("a")
    front.do(policy.Cancelled("a"))
    front.sent()
    front.say(channel.Ready(INFO))
    assert front.sent() == []


def test_a_request_that_fits_no_frame_is_the_clients_mistake():
    front = Front().up()
    front.submit("a")
    front.do(policy.Unsendable("a", "a frame of 17000000 bytes"))
    assert front.failures() == {"a": "BodyInvalid"}


def test_the_queue_has_an_end_and_the_engine_never_refuses_a_replay_for_it():
    front = Front(n_parallel=2, n_queue=3).up()
    start = next(a.message for a in front.actions if isinstance(a, policy.Send))
    assert start["settings"]["n_queue"] > 1000
    front.submit("a", "b", "c", "d", "e")
    assert isinstance(front.policy.refusal(0.0, ask("f")), errors.QueueFull)
    front.step(done("a"))
    assert front.policy.refusal(0.0, ask("f")) is None


def test_a_full_line_for_slots_refuses_neither_embeddings_nor_dry_runs():
    front = Front(n_parallel=2, n_queue=3).up()
    front.submit("a", "b", "c", "d", "e")
    assert isinstance(front.policy.closed("choose"), errors.QueueFull)
    for kind in ("embed", "dry_run"):
        assert front.policy.closed(kind) is None
        for number in range(5):
            front.do(policy.Submitted(dataclasses.replace(ask(f"{kind}{number}"), kind=kind)))
        assert isinstance(front.policy.closed(kind), errors.QueueFull)
    assert front.failures() == {}


def test_a_key_gets_into_a_line_that_another_one_has_filled():
    front = Front(n_parallel=2, n_queue=3).up()
    front.submit("a", "b", "c", "d", "e", "f", fair_key="many")
    assert front.failures() == {"f": "QueueFull"}
    assert front.policy.closed("generate", "few") is None
    front.submit("x", "y", "z", fair_key="few")  # as many as there are slots
    assert front.failures() == {"f": "QueueFull", "z": "QueueFull"}
    front.step(token("x"))
    assert front.policy.closed("generate", "few") is None  # of those that wait
    assert isinstance(front.policy.closed("generate", "many"), errors.QueueFull)


def test_one_key_alone_gets_no_more_than_the_queue_holds():
    front = Front(n_parallel=4, n_queue=1).up()
    front.submit("a", "b", "c", "d", "e")
    front.step(token("a"), token("b"), token("c"), token("d"))
    assert isinstance(front.policy.closed("generate"), errors.QueueFull)


def test_whoever_leaves_a_line_makes_room_whatever_the_reason():
    front = Front(n_parallel=1, n_queue=1).up()
    front.submit("a", "b")
    front.do(policy.Cancelled("b"))
    front.submit("c")
    front.step(token("a"))
    front.end(SEGV, "grammar_init", "a")
    front.submit("d", "e")
    assert front.failures() == {"b": "ClientGone", "a": "EngineCrashed", "e": "QueueFull"}


def test_a_full_line_says_when_to_come_back_by_the_speed_that_was_measured():
    front = Front(n_parallel=2, n_queue=8).up()
    front.submit(*"abcdefghij")
    refusal = front.policy.closed("generate")
    assert refusal is not None and refusal.retry_after_s == pytest.approx(5.5)  # 11 turns of 1 s
    front.say(channel.Step(1.0, (token("a"), token("b")), {"service_s_slot": 12.0}))
    refusal = front.policy.closed("generate")
    assert refusal is not None and refusal.retry_after_s == pytest.approx(9 / 2 * 12.0)
    front.say(channel.Step(1.0, (), {"service_s_slot": 0.01}))
    refusal = front.policy.closed("generate")
    assert refusal is not None and refusal.retry_after_s == 1.0


def test_what_was_measured_outlives_an_engine():
    front = Front(n_parallel=1, n_queue=1).up()
    front.say(channel.Step(1.0, (), {"service_s_slot": 30.0}))
    front.end(KILL, "idle")
    front.restart()
    front.say(channel.Step(1.0, (), {"n_running": 0.0}))
    front.submit("a", "b")
    refusal = front.policy.closed("generate")
    assert refusal is not None and refusal.retry_after_s == pytest.approx(90.0)


def test_draining_refuses_the_new_and_waits_for_the_old():
    front = Front().up()
    front.submit("a")
    front.sent()
    front.do(policy.DrainAsked(10.0))
    assert front.state == "draining"
    assert isinstance(front.policy.refusal(0.0, ask("b")), errors.ServerDraining)
    front.submit("b")
    assert front.failures() == {"b": "ServerDraining"}
    front.step(done("a"))
    assert front.sent() == ["stop"]
    assert front.end(Exit("exit code 0"), "idle") == [policy.Finish()]


def test_what_does_not_finish_in_time_is_told_so():
    front = Front().up()
    front.submit("a")
    front.do(policy.DrainAsked(1.0))
    while front.now < 1.0:
        front.tick()
    assert front.failures() == {"a": "ServerDraining"}


def test_a_crash_while_draining_still_gets_its_replay():
    front = Front().up()
    front.submit("a")
    front.do(policy.DrainAsked(10.0))
    front.end(KILL, "decode", "a")
    front.say(channel.Ready(INFO))
    front.step(done("a"))
    assert front.failures() == {}
    assert front.end(Exit("exit code 0"), "idle") == [policy.Finish()]


def test_a_child_that_does_not_stop_in_a_second_is_killed():
    front = Front().up()
    front.sent()
    front.do(policy.StopAsked())
    assert front.sent() == ["stop"]
    for _ in range(5):
        front.tick(phase="decode")
    assert kinds(front.actions).count("Kill") == 1
    assert front.end(KILL) == [policy.Finish()]


def test_a_child_that_saves_is_killed_only_if_it_takes_too_long():
    front = Front().up()
    front.do(policy.DrainAsked(5.0))
    while front.now < front.limits.save_s - 1:
        front.tick(beats=False, phase="save")
        assert front.policy.next_wake(front.now) > 0, "no busy waiting"
    assert "Kill" not in kinds(front.actions)
    for _ in range(8):
        front.tick(beats=False, phase="save")
    assert kinds(front.actions).count("Kill") == 1


def test_a_child_that_has_saved_and_hangs_is_killed_at_once():
    front = Front().up()
    front.do(policy.DrainAsked(5.0))
    for _ in range(20):
        front.tick(phase="save")
    front.tick(phase="close")
    assert kinds(front.actions).count("Kill") == 1


def test_requests_that_took_too_long_leave_their_engine_time_to_save():
    front = Front().up()
    front.submit("a")
    front.do(policy.DrainAsked(2.0))
    for _ in range(40):
        front.tick(phase="save")
    assert front.failures() and "Kill" not in kinds(front.actions)


def test_a_stop_amid_a_drain_leaves_no_time_to_save():
    front = Front().up()
    front.submit("a")
    front.do(policy.DrainAsked(30.0))
    front.do(policy.StopAsked())
    for _ in range(5):
        front.tick(phase="save")
    assert kinds(front.actions).count("Kill") == 1


def test_whoever_asks_twice_to_stop_does_not_wait():
    front = Front().up()
    front.do(policy.DrainAsked(5.0))
    assert kinds(front.do(policy.StopAsked())) == ["Kill"]
    assert kinds(front.do(policy.StopAsked())) == []
    assert front.end(KILL) == [policy.Finish()]


@pytest.mark.parametrize("when", ["before", "loading", "ready", "restarting", "failed"])
def test_a_stop_finishes_in_every_state(when):
    front = Front(Limits(backoff_s=(5.0,)))
    if when != "before":
        front.do(policy.Started())
    if when in ("ready", "restarting", "failed"):
        front.say(channel.Ready(INFO))
        front.submit("a")
    for _ in range({"restarting": 1, "failed": 6}.get(when, 0)):
        front.end(KILL, "idle")
        if front.state == "restarting" and when == "failed":
            front.restart()
    front.do(policy.StopAsked())
    if when in ("loading", "ready"):
        front.end(KILL)
    assert kinds(front.actions).count("Finish") == 1
    assert front.policy.next_wake(front.now) >= 0
    before = front.generation
    for _ in range(50):
        front.tick(1.0)
    assert front.generation == before
    if when in ("ready", "restarting", "failed"):
        assert len(front.failures()) == 1


def test_stopped_while_loading_is_announced_as_that():
    front = Front()
    front.do(policy.Started())
    announce = front.do(policy.StopAsked())[0]
    assert isinstance(announce, policy.Announce)
    assert isinstance(announce.error, errors.ServerDraining)


def test_the_state_table_of_health_carries_a_retry_after_unless_ok():
    front = Front().up()
    assert front.policy.status(0.0).retry_after_s == 0.0
    front.end()
    status = front.policy.status(0.0)
    assert (status.state, status.retry_after_s) == ("restarting", 1.0)
    front.do(policy.DrainAsked(5.0))
    assert front.policy.status(0.0).retry_after_s > 0


def test_status_survives_the_wire():
    front = Front().up()
    status = front.policy.status(0.0)
    assert core.from_wire(core.EngineStatus, core.to_wire(status)) == status


def test_every_limit_has_a_use_in_the_policy():
    """A number that nobody reads would be a promise that nobody keeps."""
    import libloader.supervise as package

    source = ""
    for folder in package.__path__:
        for name in ("restarts", "watchdog", "blame", "ledger", "policy"):
            with open(f"{folder}/{name}.py", encoding="utf-8") as file:
                source += file.read()
    for field in dataclasses.fields(Limits):
        assert f"limits.{field.name}" in source, field.name
