"""Answers on their way out: the events of one request become what its client gets.

    Collected   a plain answer: the handler's thread waits for the last event
    Streamed    a streamed chat answer: each event is rendered and sent as it comes

Composes the engine's events with protocol's JSON and the connection; errors get their HTTP form
from the caller.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Callable

from libloader import core, errors
from libloader.chat.message import JsonDelta, MessageReader, message
from libloader.protocol import chat
from libloader.web import events
from libloader.web.problems import Reply
from libloader.web.server import Exchange

# A stream's headers wait so long for the first token, so that an early failure is a plain error.
OPEN_STREAM_AFTER_S = 10.0


class Collected:
    """Gathers the events of a plain answer; the handler's thread waits for the last one."""

    def __init__(self, n_choices: int) -> None:
        self.pieces: list[list[tuple[str, int]]] = [[] for _ in range(n_choices)]
        self.logprobs: list[list[Any]] = [[] for _ in range(n_choices)]
        self.reasons = ["stop"] * n_choices
        self.vectors: list[str] = [""] * n_choices
        self.last: core.Event | None = None
        self._done = threading.Event()

    def deliver(self, event: core.Event) -> None:
        if isinstance(event, core.TokenEvent):
            self.pieces[event.index].append((event.text, len(event.tokens)))
            self.logprobs[event.index].extend(event.logprobs or ())
        elif isinstance(event, core.ChoiceDone):
            self.reasons[event.index] = event.reason
        elif isinstance(event, core.EmbeddingEvent):
            self.vectors[event.index] = event.vector
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

    def choice(self, index: int, reader: MessageReader) -> chat.Choice:
        """Read one choice of a chat answer, after `wait`."""
        deltas: list[JsonDelta] = []
        for text, n_tokens in self.pieces[index]:
            deltas += reader.feed(text, n_tokens)
        rest, reason = reader.finish(self.reasons[index])
        logprobs = self.logprobs[index]
        return chat.Choice(
            message([*deltas, *rest]), reason, chat.logprobs_dict(logprobs) if logprobs else None
        )


class Streamed:
    """Renders the events of a streamed chat answer into chunks, as they come.

    `deliver` runs on the one thread that serves all streams: it renders, offers and returns.
    Until the headers are out, events wait in `_early`: a failure before the first token is still
    a plain JSON error with a status of its own.
    """

    def __init__(
        self,
        exchange: Exchange,
        chunks: chat.Chunks,
        readers: Sequence[MessageReader],
        describe_error: Callable[[BaseException], Reply],
        warnings: Sequence[str] = (),
    ) -> None:
        self._exchange = exchange
        self._chunks = chunks
        self._readers = readers
        self._describe_error = describe_error
        self._warnings = warnings
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
                self._stream.offer(events.sse(self._chunks.first(index, self._warnings)))
            for event in self._early:
                self._send(event)
        self._stream.wait()

    def _send(self, event: core.Event) -> None:
        """Hot: runs once per token of every stream."""
        if isinstance(event, core.TokenEvent):
            deltas = self._readers[event.index].feed(event.text, len(event.tokens))
            if deltas or event.logprobs:
                self._offer(event.index, deltas, event.logprobs)
        elif isinstance(event, core.ChoiceDone):
            deltas, reason = self._readers[event.index].finish(event.reason)
            self._offer(event.index, deltas)
            self._stream.offer(events.sse(self._chunks.delta(event.index, {}, reason)))
        elif isinstance(event, core.RequestDone):
            self._stream.finish(self._ending(event))
        elif isinstance(event, core.RequestFailed):
            body = self._describe_error(errors.from_wire(event.error)).body
            self._stream.finish(events.sse(chat.dumps(body)))

    def _offer(self, index: int, deltas: list[JsonDelta], entries: Any = None) -> None:
        """Send deltas; logprobs go with the first, or alone while their text is held back."""
        logprobs = chat.logprobs_dict(entries) if entries else None
        if logprobs is not None and not deltas:
            deltas = [{"content": ""}]
        for delta in deltas:
            if "content" in delta:
                chunk = self._chunks.text(index, delta["content"], logprobs)
            else:
                chunk = self._chunks.delta(index, delta, None, logprobs)
            self._stream.offer(events.sse(chunk))
            logprobs = None

    def _ending(self, event: core.RequestDone) -> bytes:
        usage = b""
        if self._chunks.include_usage:
            n_reasoning = sum(reader.n_reasoning_tokens for reader in self._readers)
            usage = events.sse(self._chunks.usage(event.usage, event.timings, n_reasoning))
        return usage + events.DONE
