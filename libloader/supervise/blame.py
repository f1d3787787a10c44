"""Who crashed the engine? A verdict from how it ended and what the breadcrumb said.

Pure. The rules, first match wins:

    the engine was in ...                and ended by ...    then
    a phase with one request in hand     fault or hang       that request is the culprit
    a phase with one request in hand     SIGKILL             it is the only suspect (out of memory?)
    a decode, prefill or unknown phase   fault or hang       every request in it is a suspect
    a decode, prefill or unknown phase   SIGKILL             nobody: it came from outside
    idle, load or ipc_write              anything            nobody

A culprit fails. A suspect is replayed, at first alone, and fails when it is suspected again.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from collections import OrderedDict
from typing import NamedTuple

from libloader import core, digests
from libloader.supervise.breadcrumb import Crumb
from libloader.supervise.limits import Limits

# Phases in which the native code holds the data of exactly one request.
ONE_REQUEST_PHASES = frozenset({"tokenize", "grammar_init", "sample", "accept", "detok"})
# Phases in which it holds nothing of any request.
NOBODYS_PHASES = frozenset({"idle", "load", "ipc_write", ""})


class Exit(NamedTuple):
    """How a child ended; `name` is for people.

    `cause` is fault (its own), hung, or outside: SIGKILL, or anything that no request explains.
    """

    name: str
    cause: str = "fault"
    remark: str = ""  # what its log said of the reason

    def __str__(self) -> str:
        return f"{self.name}: {self.remark}" if self.remark else self.name


class Verdict(NamedTuple):
    """Who was `present`, and of these either one culprit, or suspects, or neither."""

    present: tuple[str, ...] = ()
    culprit: str = ""
    suspects: tuple[str, ...] = ()


def judge(end: Exit, crumb: Crumb, sent: tuple[str, ...]) -> Verdict:
    """Return the verdict; `sent` is what the engine had, for when the breadcrumb names nobody."""
    if crumb.phase in NOBODYS_PHASES:
        return Verdict()
    present = crumb.ids or sent
    from_outside = end.cause == "outside"
    if crumb.phase in ONE_REQUEST_PHASES and len(present) == 1:
        if from_outside:
            return Verdict(present, suspects=present)
        return Verdict(present, culprit=present[0])
    return Verdict(present, suspects=() if from_outside else present)


# Windows has no signals: a crash shows as an NTSTATUS in the exit code.
_NTSTATUS = {
    0xC0000005: "ACCESS_VIOLATION",
    0xC000001D: "ILLEGAL_INSTRUCTION",
    0xC0000094: "INTEGER_DIVIDE_BY_ZERO",
    0xC00000FD: "STACK_OVERFLOW",
    0xC0000374: "HEAP_CORRUPTION",
    0xC0000409: "FAST_FAIL",
    0x40000015: "ABORT",
}


def describe_exit(returncode: int) -> Exit:
    """Name an exit status as subprocess gives it: minus a signal, or a code."""
    if returncode < 0:
        try:
            name = signal.Signals(-returncode).name
        except ValueError:
            name = f"signal {-returncode}"
        return Exit(name, "outside" if name == "SIGKILL" else "fault")
    if sys.platform == "win32" and (returncode & 0xFFFFFFFF) in _NTSTATUS:
        return Exit(_NTSTATUS[returncode & 0xFFFFFFFF])
    return Exit(f"exit code {returncode}")


def body_key(request: core.Request) -> str:
    """Return a hash over what the engine works on: equal for a body that is sent again.

    Neither the id nor the seed (drawn anew for each request) nor who asks, and how, takes part.
    """
    same = dataclasses.replace(request.sampling, seed=0)
    body = core.to_wire(dataclasses.replace(request, sampling=same))
    for name in ("id", "fair_key", "deadline_s", "streamed", "resume"):
        body.pop(name, None)
    return digests.sha256(json.dumps(body, sort_keys=True).encode("utf-8", "replace")).hexdigest()


class PoisonList:
    """Bodies that crashed the engine, the latest few; after two within a while one is refused."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._crashes: OrderedDict[str, list[float]] = OrderedDict()  # when, not long ago
        # Replaced whole on each change: `refused_s` reads it from any thread without a lock.
        self._refused_until: dict[str, float] = {}

    def count(self, request: core.Request, now: float) -> None:
        """Note that `request` crashed the engine."""
        key = body_key(request)
        recent = [at for at in self._crashes.pop(key, []) if now - at < self._limits.poison_s]
        self._crashes[key] = [*recent, now][-self._limits.poison_crashes :]
        if len(self._crashes[key]) >= self._limits.poison_crashes:
            until = {**self._refused_until, key: now + self._limits.poison_s}
            self._refused_until = {k: at for k, at in until.items() if at > now}
        while len(self._crashes) > self._limits.poison_bodies:
            oldest, _ = self._crashes.popitem(last=False)
            self._refused_until = {k: at for k, at in self._refused_until.items() if k != oldest}

    def refused_s(self, request: core.Request, now: float) -> float:
        """Return for how long this body is still refused, 0 if it is not. Any thread."""
        refused = self._refused_until
        if not refused:  # the usual case costs nothing
            return 0.0
        return max(0.0, refused.get(body_key(request), 0.0) - now)
