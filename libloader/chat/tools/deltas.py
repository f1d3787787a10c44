"""What an answer consists of, as it streams: reasoning, content, and calls of tools."""

from __future__ import annotations

import secrets
import string
from typing import NamedTuple, Union

_ALPHABET = string.ascii_letters + string.digits


class ReasoningDelta(NamedTuple):
    text: str


class ContentDelta(NamedTuple):
    text: str


class CallDelta(NamedTuple):
    """A piece of call `number` of the answer, from 0. Only its first has an id and a name."""

    number: int
    id: str
    name: str
    arguments: str


Delta = Union[ReasoningDelta, ContentDelta, CallDelta]


class Call(NamedTuple):
    """A whole call. `arguments` is JSON text, unless the answer was cut inside it."""

    id: str
    name: str
    arguments: str


class Message(NamedTuple):
    reasoning: str
    content: str
    calls: tuple[Call, ...]


def new_id() -> str:
    """Return an id for a call. Nine letters and digits after the prefix suit Mistral's rule too."""
    return "call_" + "".join(secrets.choice(_ALPHABET) for _ in range(24))


def collect(deltas: list[Delta]) -> Message:
    """Put a stream together: the message that the same answer gives without streaming."""
    reasoning, content, calls = "", "", []
    for delta in deltas:
        if isinstance(delta, ReasoningDelta):
            reasoning += delta.text
        elif isinstance(delta, ContentDelta):
            content += delta.text
        elif delta.name:
            calls.append(Call(delta.id, delta.name, delta.arguments))
        else:
            call = calls[delta.number]
            calls[delta.number] = call._replace(arguments=call.arguments + delta.arguments)
    return Message(reasoning, content, tuple(calls))
