"""Long texts are tokenized beside the step loop, on a thread of their own.

A megabyte of text takes up to a second to tokenize; the streams must not feel it. The vocabulary
never changes and libllama may read it from any thread.

Lives here: what is done beside the loop, and in which order. Not here: what is done (each kind of
request says so itself, as a generator: it yields one job, gets the job's result, and goes on).

Laws:
- A short job is done at once, by whoever asks: nothing is won by a second thread.
- Long jobs are done one after the other, in the order in which they came. A request stands in line
  for a slot once it has been read; so a short one may overtake a long one that came before it.
- A job that takes too long stops the loop as well, so that whoever watches the engine sees that it
  hangs, and in whose prompt.
- The thread has a stack as large as the engine's: a regular expression of libllama recurses.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Callable, NamedTuple, TypeVar

from libloader.core import Request
from libloader.engine.sequence import LiveRequest

Job = Callable[[], Any]
Steps = Generator[Job, Any, None]
T = TypeVar("T")
U = TypeVar("U")

LONG_CHARS = 16 << 10  # about 10 ms of tokenizing
OVERDUE_S = 60.0  # for one job: a hundred times what a megabyte of text takes
STACK_BYTES = 64 << 20
SLICE = 1024  # items that are handled before others may run


class Reading(NamedTuple):
    """One request that is being read, and how it goes on after that."""

    live: LiveRequest
    steps: Steps
    result: Future[Any]


class ReadingDesk:
    """Owns the thread and all readings on it. Engine thread only."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._pool: ThreadPoolExecutor | None = None
        self.readings: dict[str, Reading] = {}  # by request id, in the order in which they came
        self._since_s = 0.0  # when the last job ended, or the first came

    def __len__(self) -> int:
        return len(self.readings)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self.readings

    @property
    def ids(self) -> str:
        """The requests that the thread may be busy with, separated by spaces; "" as a rule."""
        return " ".join(self.readings) if self.readings else ""

    @property
    def results(self) -> list[Future[Any]]:
        return [reading.result for reading in self.readings.values()]

    def lives(self) -> list[LiveRequest]:
        return [reading.live for reading in self.readings.values()]

    def push(self, live: LiveRequest, steps: Steps, job: Job) -> None:
        """Do `job` beside the loop; `done` gives `steps` back when its result is there."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "reading")
        usual = threading.stack_size(STACK_BYTES)
        try:
            result = self._pool.submit(job)
        finally:
            threading.stack_size(usual)
        self._since_s = self._since_s if self.readings else self._clock()
        self.readings[live.request.id] = Reading(live, steps, result)

    def done(self) -> Iterator[Reading]:
        """Take away all whose job is done."""
        for name in [name for name, reading in self.readings.items() if reading.result.done()]:
            self._since_s = self._clock()
            yield self.readings.pop(name)

    @property
    def is_overdue(self) -> bool:
        return bool(self.readings) and self._clock() - self._since_s > OVERDUE_S

    def drop(self, request_id: str) -> None:
        """Forget a reading; a job that has begun runs to its end, for nobody."""
        reading = self.readings.pop(request_id)
        reading.result.cancel()
        reading.steps.close()

    def close(self) -> None:
        """Wait for the job that runs: it reads a vocabulary that is about to be freed."""
        for name in list(self.readings):
            self.drop(name)
        if self._pool is not None:
            self._pool.shutdown()


def is_long(request: Request) -> bool:
    """True for a request whose texts and tokens take longer to read than a step may wait."""
    n_chars = sum(len(text) for prompt in request.prompts for text, _ in prompt.segments)
    return n_chars + sum(len(prompt.tokens or ()) for prompt in request.prompts) > LONG_CHARS


def carry_on(steps: Steps, result: Any) -> None:
    """Let a request go on with the result of its job, to its end."""
    try:
        steps.send(result)
    except StopIteration:
        return
    raise AssertionError("a request has one job")


def in_slices(function: Callable[[T], U], items: Sequence[T]) -> tuple[U, ...]:
    """Return `function` of each item, making way for other threads now and then."""
    results: list[U] = []
    for start in range(0, len(items), SLICE):
        results += map(function, items[start : start + SLICE])
        time.sleep(0)
    return tuple(results)
