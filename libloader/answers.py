"""Answers on their way out: the events of one request become what its client gets.

    Collected   a plain answer: the handler's thread waits for the last event
    Streamed    a streamed chat answer: each event is rendered and sent as it comes

What a finished message lacks is found out by `Checks`, in both.

Composes the engine's events with protocol's JSON and the connection; errors get their HTTP form
from the caller.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Callable, NamedTuple, Union

from libloader import core, errors
from libloader.chat.message import JsonDelta, MessageReader, message
from libloader.protocol import chat
from libloader.web import events
from libloader.web.problems import Reply
from libloader.web.server import Exchange

# A stream's headers wait so long for the first token, so that an early failure is a plain error.
OPEN_STREAM_AFTER_S = 10.0
LOOK_FOR_CLIENT_S = 5.0  # how long a thread may wait for the end of a stream that nobody reads
End = Union[core.ChoiceDone, core.RequestDone, core.RequestFailed]
Message = dict[str, Any]


class Checks(NamedTuple):
    """What is said of finished messages beside what they are.

    `problems` are found in a whole message, none if it is cut off; `extra` are more fields of a
    choice. `warnings` are known before anything is generated.
    """

    problems: Callable[[Message], Sequence[str]] | None = None
    extra: Callable[[core.ChoiceDone], dict[str, Any]] = lambda done: {}
    warnings: Sequence[str] = ()

    def of(self, message: Message, reason: str) -> list[str]:
        is_whole = reason != "length"
        return list(self.problems(message)) if self.problems is not None and is_whole else []


class Collected:
    """Gathers the events of a plain answer; the handler's thread waits for the last one."""

    def __init__(self, n_choices: int) -> None:
        self.pieces: list[list[tuple[str, int]]] = [[] for _ in range(n_choices)]
        self.logprobs: list[list[Any]] = [[] for _ in range(n_choices)]
        self.ends: dict[int, core.ChoiceDone] = {}
        self.vectors: list[str] = [""] * n_choices
        self.dry_runs: list[core.DryRunEvent] = []
        self.last: core.Event | None = None
        self._done = threading.Event()

    def deliver(self, event: core.Event) -> None:
        if isinstance(event, core.TokenEvent):
            self.pieces[event.index].append((event.text, len(event.tokens)))
            self.logprobs[event.index].extend(event.logprobs or ())
        elif isinstance(event, core.ChoiceDone):
            self.ends[event.index] = event
        elif isinstance(event, core.EmbeddingEvent):
            self.vectors[event.index] = event.vector
        elif isinstance(event, core.DryRunEvent):
            self.dry_runs.append(event)
        elif isinstance(event, (core.RequestDone, core.RequestFailed)):
            self.last = event
            self._done.set()

    def wait(self) -> core.RequestDone:
        """Return the last event; raise the request's own error if it failed."""
        self._done.wait()
        if isinstance(self.last, core.RequestFailed):
            raise errors.from_wire(self.last.error)
        assert isinstance(self.last, core.RequestDone)
        return self.last

    def choice(self, index: int, reader: MessageReader, checks: Checks) -> chat.Choice:
        """Read one choice of a chat answer, after `wait`."""
        deltas = reader.feed_all(self.pieces[index])
        end, logprobs = self.ends[index], self.logprobs[index]
        rest, reason = reader.finish(end.reason)
        return chat.Choice(
            message([*deltas, *rest]),
            reason,
            chat.logprobs_dict(logprobs) if logprobs else None,
            checks.extra(end),
        )


class Streamed:
    """Renders the events of a streamed chat answer into chunks, as they come.

    `deliver` runs on the one thread that serves all streams: it renders, offers and returns.
    Until the headers are out, events wait in `_early`: a failure before the first token is still
    a plain JSON error with a status of its own. Where finished messages are checked, that takes
    time: then the handler's own thread renders the ends, from `_ends`.
    """

    def __init__(
        self,
        exchange: Exchange,
        chunks: chat.Chunks,
        readers: Sequence[MessageReader],
        describe_error: Callable[[BaseException], Reply],
        checks: Checks,
    ) -> None:
        self._exchange = exchange
        self._chunks = chunks
        self._readers = readers
        self._describe_error = describe_error
        self._checks = checks
        self._deltas: list[list[JsonDelta]] = [[] for _ in readers]  # where they are checked
        self._ends: queue.SimpleQueue[End] = queue.SimpleQueue()
        self._early: list[core.Event] = []
        self._begun = threading.Event()
        self._lock = threading.Lock()
        self._stream: Any = None

    def deliver(self, event: core.Event) -> None:
        with self._lock:
            if self._stream is None:
                self._early.append(event)
                self._begun.set()
            else:
                self._send(event)

    def run(self, headers: tuple[tuple[str, str], ...]) -> None:
        """Open the stream at the first event and wait for its end. The handler's thread."""
        self._begun.wait(OPEN_STREAM_AFTER_S)
        with self._lock:
            first = self._early[0] if self._early else None
            if isinstance(first, core.RequestFailed):
                raise errors.from_wire(first.error)
            self._stream = self._exchange.open_stream("text/event-stream", headers)
            for index in range(len(self._readers)):
                self._stream.offer(events.sse(self._chunks.first(index, self._checks.warnings)))
            for event in self._early:
                self._send(event)
        if self._checks.problems is not None:
            self._check_ends()
        self._stream.wait()

    def _send(self, event: core.Event) -> None:
        """Hot: runs once per token of every stream."""
        if isinstance(event, core.TokenEvent):
            deltas = self._readers[event.index].feed(event.text, len(event.tokens))
            if deltas or event.logprobs:
                self._offer(self._rendered(event.index, deltas, event.logprobs))
        elif isinstance(event, (core.ChoiceDone, core.RequestDone, core.RequestFailed)):
            if self._checks.problems is not None:
                self._ends.put(event)
            else:
                self._send_end(event, self._end(event))

    def _offer(self, chunks: Iterable[bytes]) -> None:
        for chunk in chunks:
            self._stream.offer(events.sse(chunk))

    def _send_end(self, event: End, chunks: Iterable[bytes]) -> None:
        if isinstance(event, core.ChoiceDone):
            self._offer(chunks)
        else:
            self._stream.finish(b"".join(map(events.sse, chunks)))

    def _check_ends(self) -> None:
        """Render the ends as they come, with what is wrong with each message."""
        event: End | None = None
        while not isinstance(event, (core.RequestDone, core.RequestFailed)):
            try:
                event = self._ends.get(timeout=LOOK_FOR_CLIENT_S)
            except queue.Empty:
                if self._stream.gone:
                    return
                continue
            chunks = list(self._end(event))
            with self._lock:
                self._send_end(event, chunks)

    def _rendered(
        self, index: int, deltas: list[JsonDelta], entries: Any = None
    ) -> Iterator[bytes]:
        """Yield chunks; logprobs go with the first, or alone while their text is held back."""
        if self._checks.problems is not None:
            self._deltas[index] += deltas
        logprobs = chat.logprobs_dict(entries) if entries else None
        if logprobs is not None and not deltas:
            deltas = [{"content": ""}]
        for delta in deltas:
            if "content" in delta:
                yield self._chunks.text(index, delta["content"], logprobs)
            else:
                yield self._chunks.delta(index, delta, None, logprobs)
            logprobs = None

    def _end(self, event: End) -> Iterator[bytes]:
        """Yield the last chunks of a choice, or of all."""
        if isinstance(event, core.ChoiceDone):
            deltas, reason = self._readers[event.index].finish(event.reason)
            yield from self._rendered(event.index, deltas)
            problems = self._checks.of(message(self._deltas[event.index]), reason)
            yield self._chunks.last(event.index, reason, self._checks.extra(event), problems)
        elif isinstance(event, core.RequestDone):
            if self._chunks.include_usage:
                n_reasoning = sum(reader.n_reasoning_tokens for reader in self._readers)
                yield self._chunks.usage(event.usage, event.timings, n_reasoning)
            yield b"[DONE]"
        else:
            yield chat.dumps(self._describe_error(errors.from_wire(event.error)).body)
