"""What all rows need: the options of this run, its processes, alternating repeats.

Laws:
- The sides of a ratio take turns, repeat by repeat, so that noise hits both alike.
- Where two processes are compared, both are started anew for every few repeats: five raw loops of
  the 0.6B model, taking turns, kept apart by up to 11%, by where in the machine's memory each lay.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Callable

from benching import client, processes
from benching.client import Target
from benching.table import Row

RowMaker = Callable[["Run"], Iterator[Row]]
ROUNDS_OF_A_PAIR = 2


@dataclass(frozen=True)
class Run:
    """One run of the benchmark. `models` maps names to files; all but S may be missing."""

    models: Mapping[str, str]
    lib: str
    threads: int  # 0 = by model: S leaves one core to front and client, others take all
    repeats: int
    seconds: float  # no row begins another repeat after so long
    quick: bool = False
    against: Target | None = None
    more_flags: tuple[str, ...] = ()

    def threads_for(self, model: str) -> int:
        n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        return self.threads or (max(1, n_cores - 1) if model == "S" else n_cores)

    def flags(self, model: str, *more: str) -> list[str]:
        """Return the flags of server and raw loop alike."""
        lib = ["--lib", self.lib] if self.lib else []
        threads = ("-t", str(self.threads_for(model)))
        return [self.models[model], *lib, *threads, *more, *self.more_flags]

    def tokens(self, n: int) -> int:
        return max(8, n // 4) if self.quick else n

    def rounds(self, at_most: int = 1000) -> Iterator[int]:
        """Count repeats, at least one, until there are enough or the row's time is up."""
        began = time.monotonic()
        for number in range(min(self.repeats, at_most)):
            if number and time.monotonic() - began > self.seconds:
                return
            yield number

    @contextmanager
    def server(
        self, model: str, *flags: str, environment: Mapping[str, str] | None = None
    ) -> Iterator[Target]:
        with processes.our_server(self.flags(model, *flags), environment) as target:
            yield target

    def pairs(self, model: str, *flags: str) -> Iterator[tuple[Sides, Iterator[int]]]:
        """Yield new sides for every few rounds, and the numbers of those."""
        rounds = self.rounds()
        for pair, first in enumerate(rounds):
            with self.sides(model, *flags, raw_first=pair % 2 == 1) as sides:
                more = itertools.islice(rounds, ROUNDS_OF_A_PAIR - 1)
                yield sides, itertools.chain((first,), more)

    @contextmanager
    def sides(self, model: str, *flags: str, raw_first: bool = False) -> Iterator[Sides]:
        """Our server, the raw loop with the same flags, and the other server if there is one."""
        with ExitStack() as stack:

            def open_raw() -> processes.RawLoop:
                return stack.enter_context(processes.raw_loop(self.flags(model, *flags)))

            raw = open_raw() if raw_first else None
            ours = stack.enter_context(self.server(model, *flags))
            yield Sides(ours, raw or open_raw(), self.against)


@dataclass(frozen=True)
class Sides:
    ours: Target
    raw: processes.RawLoop
    against: Target | None

    @property
    def servers(self) -> Sequence[Target]:
        return [self.ours] if self.against is None else [self.ours, self.against]


class Figures:
    """Figures by server: ours first."""

    def __init__(self, n_servers: int) -> None:
        self._of: list[list[float]] = [[] for _ in range(n_servers)]

    def add(self, server: int, figure: float) -> None:
        self._of[server].append(figure)

    @property
    def ours(self) -> list[float]:
        return self._of[0]

    @property
    def against(self) -> list[float]:
        return self._of[1] if len(self._of) > 1 else []


def warm_up(target: Target, n_streams: int, **fields: Any) -> None:
    """Let everything run once that is made at its first use: threads, contexts, templates."""
    client.run_calls([client.chat(target, f"warm up {i}", 8, **fields) for i in range(n_streams)])
