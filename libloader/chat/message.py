"""An answer as OpenAI's JSON: the deltas of a stream, and the message that they add up to.

Laws: each delta is an object that a chunk carries as it is; `message` of all deltas is the plain
answer's message, however the text was cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from libloader.chat.answer import AnswerReader
from libloader.chat.tools.deltas import CallDelta, Delta, ReasoningDelta

JsonDelta = dict[str, Any]


class MessageReader:
    """Reads one answer and returns its deltas as JSON.

    `legacy` is for requests with `functions`: their answers hold one `function_call`.
    """

    def __init__(self, reader: AnswerReader, *, legacy: bool = False) -> None:
        self._reader = reader
        self._call = _legacy_call if legacy else _call
        self._reason_of_calls = "function_call" if legacy else "tool_calls"

    @property
    def n_reasoning_tokens(self) -> int:
        return self._reader.n_reasoning_tokens

    def feed(self, text: str, n_tokens: int = 0) -> list[JsonDelta]:
        """Return the deltas that are certain now that `text`, made of `n_tokens`, has come."""
        return self._written(self._reader.feed(text, n_tokens))

    def feed_all(self, pieces: Sequence[tuple[str, int]]) -> list[JsonDelta]:
        """Return the deltas of a whole answer, which came in pieces of (text, n_tokens)."""
        return self._written(self._reader.feed_all(pieces))

    def finish(self, reason: str) -> tuple[list[JsonDelta], str]:
        """The engine ended for `reason`: return what was held back, and OpenAI's finish_reason."""
        deltas = self._written(self._reader.finish())
        called = reason == "stop" and self._reader.n_calls
        return deltas, self._reason_of_calls if called else reason

    def _written(self, deltas: list[Delta]) -> list[JsonDelta]:
        return [written for delta in deltas if (written := self._write(delta))]

    def _write(self, delta: Delta) -> JsonDelta:
        if isinstance(delta, CallDelta):
            return self._call(delta)
        if isinstance(delta, ReasoningDelta):  # both names are in use among clients
            return {"reasoning_content": delta.text, "reasoning": delta.text}
        return {"content": delta.text}


def _call(delta: CallDelta) -> JsonDelta:
    if not delta.name:
        call: JsonDelta = {"index": delta.number, "function": {"arguments": delta.arguments}}
    else:
        function = {"name": delta.name, "arguments": delta.arguments}
        call = {"index": delta.number, "id": delta.id, "type": "function", "function": function}
    return {"tool_calls": [call]}


def _legacy_call(delta: CallDelta) -> JsonDelta:
    """The older form has room for one call."""
    if delta.number:
        return {}
    name = {"name": delta.name} if delta.name else {}
    return {"function_call": {**name, "arguments": delta.arguments}}


def message(deltas: Iterable[JsonDelta]) -> dict[str, Any]:
    """Return the message that the deltas of one choice add up to.

    As OpenAI has it, content is null where there are only calls.
    """
    texts: dict[str, list[str]] = {}
    calls: list[_CallParts] = []
    legacy = _CallParts({})
    for delta in deltas:
        for name, value in delta.items():
            if name == "tool_calls":
                _add_call(calls, value[0])
            elif name == "function_call":
                legacy.add(value)
            else:
                texts.setdefault(name, []).append(value)
    whole = {name: "".join(parts) for name, parts in texts.items()}
    content = whole.pop("content", None if calls or legacy.function else "")
    result: dict[str, Any] = {"role": "assistant", "content": content, **whole}
    if calls:
        result["tool_calls"] = [call.whole() for call in calls]
    if legacy.function:
        result["function_call"] = legacy.whole()["function"]
    return result


class _CallParts:
    """One call while its arguments are put together."""

    def __init__(self, head: dict[str, Any]) -> None:
        self.head = head
        self.function: dict[str, Any] = {}
        self._arguments: list[str] = []

    def add(self, function: dict[str, Any]) -> None:
        self.function.update(function)  # the name comes with the first piece only
        self._arguments.append(function["arguments"])

    def whole(self) -> dict[str, Any]:
        arguments = "".join(self._arguments)
        return {**self.head, "function": {**self.function, "arguments": arguments}}


def _add_call(calls: list[_CallParts], piece: JsonDelta) -> None:
    if "id" in piece:
        calls.append(_CallParts({"id": piece["id"], "type": "function"}))
    calls[piece["index"]].add(piece["function"])
