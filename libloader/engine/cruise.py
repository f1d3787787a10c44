"""Many steps of the same streams in a row, and their text on a thread of its own.

A step with nothing new in it comes down to llama_decode and sampling. That is worth a path of its
own because a model's weights sweep the caches at each step: what else runs between two decodes
costs ten times what it costs warm. In us, from one llama_decode to the next, one stream of the 15M
model (5 ms a step):

    raw loop    cruise    a whole step, plain    streamed, with its frame
    88          110       205                    265
    237         250       -                      -         a slower machine, after more was left out

Lives here: when a cruise ends, and what becomes of its tokens. Not here: the batches
(decoding.py), who may cruise (engine.py).

Laws:
- A cruise comes to what the same steps would have come to one by one, to the token and the event.
- Whatever is not an ordinary token ends it, and is treated as in any other step.
- From the first `say` to the end of `finish` nobody else makes text of these sequences.
"""

from __future__ import annotations

import math
import queue
import threading
from collections import deque
from collections.abc import Sequence as Many
from typing import Any, Callable, Protocol

from libloader.core import Event, TokenEvent
from libloader.engine.sequence import Sequence
from libloader.engine.timings import Histogram
from libloader.engine.words import Words

Tell = Callable[[list[Event]], None]
Said = tuple[Many[int], float]  # what one step sampled: a token of each sequence, and when
# Tokens that follow sooner travel together: telling costs 0.5 ms of some core, and no eye sees it.
TOGETHER_S = 0.008


class Company(Protocol):
    """For whom an engine cruises."""

    def goes_on(self, now_s: float) -> bool:
        """Say whether there is nothing else to do. Asked after each step, by the engine's clock."""

    def tell(self, events: list[Event]) -> None:
        """Take events while the next step computes. Teller's thread."""


class Cruise:
    """One run of steps, of at most `n_most`; all of them before `until_s`. Engine thread only.

    `is_due` says that it is time to `let_tell`.
    """

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
        self._note = teller.said.append
        # Tokens that nobody looks at as they come are not worth waking a thread.
        self._is_watched = any(sequence.live.request.streamed for sequence in sequences)
        self._tell_at_s = -math.inf if self._is_watched else math.inf
        self.is_due = False
        teller.begin(sequences, company.tell)

    def say(self, tokens: Many[int]) -> bool:
        """Take in a step's tokens; return whether another step may follow. Hot."""
        now_s = self._clock()
        self._note((tokens, now_s))
        if now_s >= self._tell_at_s:
            self.is_due, self._tell_at_s = True, now_s + TOGETHER_S
        return now_s < self._until_s and self._goes_on(now_s)

    def let_tell(self) -> None:
        """Have told what was said: to be called when the next step is about to compute."""
        self.is_due = False
        self._teller.wake()

    def finish(self) -> list[Event]:
        """Wait until what is watched is told; return the events of what is not."""
        if self._is_watched:
            self._teller.finish()
        return self._teller.take()


class Teller:
    """Makes events of tokens; the thread inside is started when there is first something to tell.

    An error on it is the engine's: `finish` raises it.
    """

    def __init__(self, words: tuple[Words, Words], token_gap_s: Histogram) -> None:
        self.said: deque[Said] = deque()  # and not told yet
        self._words = words  # without and with the text of control tokens
        self._token_gap_s = token_gap_s
        self._sequences: Many[Sequence] = ()
        self._tell: Tell = lambda events: None
        # what is to be set when all is told, or nothing; a thread that gets None ends
        self._calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def begin(self, sequences: Many[Sequence], tell: Tell) -> None:
        """Say whose tokens come next, and where their events go."""
        self._sequences, self._tell = sequences, tell

    def wake(self) -> None:
        """Have told what was said. The thread begins when this one lets go of the interpreter."""
        self._call(())

    def finish(self) -> None:
        """Wait until all is told; raise what went wrong with it."""
        reached = threading.Event()
        self._call((reached,))
        reached.wait()
        if self._error is not None:
            raise self._error

    def take(self) -> list[Event]:
        """Make events of what was said."""
        events: list[Event] = []
        while self.said:
            events += self._events(self.said.popleft())
        return events

    def close(self) -> None:
        if self._thread is not None:
            self._call(None)
            self._thread.join()
            self._thread = None

    def _events(self, said: Said) -> list[Event]:
        """Make the text of each token. Hot."""
        events: list[Event] = []
        tokens, at_s = said
        for sequence, token in zip(self._sequences, tokens):
            self._token_gap_s.add(at_s - sequence.told_s)
            sequence.told_s = at_s
            request = sequence.live.request
            text = sequence.detokenizer.push(self._words[request.keep_special][token].piece)
            events.append(TokenEvent(request.id, sequence.index, text, (token,)))
        return events

    def _call(self, call: tuple[threading.Event, ...] | None) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="teller", daemon=True)
            self._thread.start()
        self._calls.put(call)

    def _run(self) -> None:
        for call in iter(self._calls.get, None):
            self._tell_all()
            for reached in call:
                reached.set()

    def _tell_all(self) -> None:
        try:
            events = self.take()
            if events and self._error is None:
                self._tell(events)
        except BaseException as error:  # thread top: `finish` raises it
            self._error = error
