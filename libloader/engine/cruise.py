"""Many steps of the same streams in a row, and their text on a thread of its own.

A step with nothing new in it comes down to llama_decode and sampling. That is worth a path of its
own because a model's weights sweep the caches at each step: what else runs between two decodes
costs ten times what it costs warm. In us, from one llama_decode to the next, one stream of the 15M
model (5 ms a step):

    raw loop    cruise    a whole step, plain    streamed
    88          110       205                    265

Lives here: when a cruise ends, and what becomes of its tokens. Not here: the batches
(decoding.py), who may cruise (engine.py).

Laws:
- A cruise comes to what the same steps would have come to one by one, to the token and the event.
- Whatever is not an ordinary token ends it, and is treated as in any other step.
- From the first `say` to the end of `finish` nobody else makes text of these sequences.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Sequence as Many
from typing import Any, Callable, NamedTuple, Protocol

from libloader.core import Event, TokenEvent
from libloader.engine.sequence import Sequence
from libloader.engine.timings import Histogram
from libloader.engine.words import Words

Tell = Callable[[list[Event]], None]
LATE_S = 0.0004  # after a token is due, the teller looks for it
MOMENT_S = 0.0008  # and then, if it was not there, at first


class Company(Protocol):
    """For whom an engine cruises."""

    def goes_on(self) -> bool:
        """Say whether there is nothing else to do. Asked after each step."""

    def tell(self, events: list[Event]) -> None:
        """Take events while the next step computes. Teller's thread."""


class Said(NamedTuple):
    """What one step sampled: a token of each sequence, and when."""

    tokens: Many[int]
    at_s: float


class Cruise:
    """One run of steps, of at most `n_most`; all of them before `until_s`. Engine thread only."""

    def __init__(
        self,
        sequences: Many[Sequence],
        company: Company,
        teller: Teller,
        clock: Callable[[], float],
        n_most: int,
        until_s: float,
    ) -> None:
        self.n_most = n_most
        self._until_s = until_s
        self._clock = clock
        self._goes_on = company.goes_on
        self._teller = teller
        self._untold: list[Said] = []
        # Tokens that nobody looks at as they come are not worth waking a thread.
        is_watched = any(sequence.live.request.streamed for sequence in sequences)
        self._note = teller.put if is_watched else self._untold.append
        teller.begin(sequences, company.tell)

    def say(self, tokens: Many[int]) -> bool:
        """Take in a step's tokens; return whether another step may follow. Hot."""
        now_s = self._clock()
        self._note(Said(tokens, now_s))
        return self._goes_on() and now_s < self._until_s

    def finish(self) -> list[Event]:
        """Wait until all is told; return the events of what nobody looked at."""
        self._teller.finish()
        return [event for said in self._untold for event in self._teller.events(said)]


class Teller:
    """Makes events of tokens; the thread inside is started when there is first something to tell.

    It is not woken for each token: that would cost the engine's thread 30 us a step, and several
    times as much where the model computes on every core. It knows when the next one is due, and
    looks a moment later, when the next step computes and the interpreter is free.

    An error on it is the engine's: `finish` raises it.
    """

    def __init__(
        self, words: tuple[Words, Words], token_gap_s: Histogram, clock: Callable[[], float]
    ) -> None:
        self._words = words  # without and with the text of control tokens
        self._token_gap_s = token_gap_s
        self._clock = clock
        self._sequences: Many[Sequence] = ()
        self._tell: Tell = lambda events: None
        self._said: deque[Said] = deque()
        self._at_s = self._step_s = 0.0  # the latest token, and how long it took
        self._is_watching = False
        # "" begins to watch, an event ends that (it is set when all is told), None ends the thread
        self._calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def begin(self, sequences: Many[Sequence], tell: Tell) -> None:
        """Say whose tokens come next, and where their events go."""
        self._sequences, self._tell = sequences, tell

    def put(self, said: Said) -> None:
        """Have it told soon. Hot."""
        self._said.append(said)
        if not self._is_watching:
            self._is_watching = True
            self._call("")

    def finish(self) -> None:
        """Wait until all is told; raise what went wrong with it."""
        if self._is_watching:
            self._is_watching = False
            reached = threading.Event()
            self._call(reached)
            reached.wait()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        if self._thread is not None:
            self._call(None)
            self._thread.join()
            self._thread = None

    def events(self, said: Said) -> list[Event]:
        """Make the text of each token. Hot."""
        events: list[Event] = []
        for sequence, token in zip(self._sequences, said.tokens):
            self._token_gap_s.add(said.at_s - sequence.told_s)
            sequence.told_s = said.at_s
            request = sequence.live.request
            text = sequence.detokenizer.push(self._words[request.keep_special][token].piece)
            events.append(TokenEvent(request.id, sequence.index, text, (token,)))
        return events

    def _call(self, what: Any) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="teller", daemon=True)
            self._thread.start()
        self._calls.put(what)

    def _run(self) -> None:
        while self._calls.get() is not None:
            self._watch().set()

    def _watch(self) -> threading.Event:
        """Tell what is said until that is to end; return what is to be set then."""
        self._at_s, self._step_s = self._clock(), 0.0
        while True:
            try:
                reached: threading.Event = self._calls.get(timeout=self._patience_s())
            except queue.Empty:
                self._tell_all()
            else:
                self._tell_all()
                return reached

    def _patience_s(self) -> float:
        """Return how long to wait before the next look: the next token is due, or was."""
        late_s = self._clock() - self._at_s - self._step_s
        return LATE_S - late_s if late_s < 0 else min(MOMENT_S + late_s / 8, 1.0)

    def _tell_all(self) -> None:
        try:
            events: list[Event] = []
            while self._said:
                said = self._said.popleft()
                self._at_s, self._step_s = said.at_s, said.at_s - self._at_s
                events += self.events(said)
            if events and self._error is None:
                self._tell(events)
        except BaseException as error:  # thread top: `finish` raises it
            self._error = error
