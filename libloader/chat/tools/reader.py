"""Reads calls of tools out of an answer, whatever the pieces it comes in.

A format is a generator that reads a call from a Reader, as if the whole answer were there; where
text is missing it waits (`yield`). So the pieces cannot matter: they only decide when it goes on.

Laws:
- Text is content until a trigger of the format is certain; only what may be the beginning of one
  is held back, and white space, which is dropped next to calls.
- A call is announced once its name and the beginning of its arguments are known; after that its
  arguments stream. What breaks before (`Broken`) is content after all, from the trigger on; what
  breaks later ends the call there, and the rest is content. No text is ever lost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Callable

from libloader.chat.tools.deltas import CallDelta, ContentDelta, Delta, ReasoningDelta, new_id
from libloader.chat.tools.format import Format, Steps
from libloader.chat.tools.json_scan import JsonScan
from libloader.chat.tools.typed import Typed

_NOT_SPACE = re.compile(r"\S")
_NAME = re.compile(r"[\w.\-/:]{1,256}")
_OBJECT = re.compile(r"\{\s*(\S?)")
_ATOM = re.compile(r"[-+.\w]+")


class Broken(Exception):
    """The text is no call after all. Never leaves the Reader."""


class Reader:
    """Turns the content of one answer into deltas.

    `tools` are the request's, as OpenAI sends them; formats without types look there.
    """

    def __init__(
        self,
        format: Format | None,
        tools: Sequence[dict[str, Any]] = (),
        make_id: Callable[[], str] = new_id,
    ) -> None:
        self.format = format
        self.functions = {
            str(tool.get("function", tool).get("name")): tool.get("function", tool)
            for tool in tools
        }
        self.n_calls = 0
        self._make_id = make_id
        self._ids: set[str] = set()
        self._buffer = ""
        self._position = 0
        self._accounted = False  # deltas tell all before the buffer, since the last trigger
        self._closed = False
        self._held = ""  # white space that is content only if content follows
        self._wrote = False  # content other than white space
        self._deltas: list[Delta] = []
        self._is_plain = format is None or not format.looks_for_anything
        if format is not None and format.read_all is not None:
            self._steps = format.read_all(self)
        else:
            self._steps = self._answer()

    # --- the caller's side ------------------------------------------------------------------------

    def feed(self, text: str) -> list[Delta]:
        """Return the deltas that are certain now that `text` has come. Hot."""
        if self._is_plain and text and not (self._held or text[-1].isspace()):
            self._wrote = True
            return [ContentDelta(text)]
        self._buffer += text
        return self._go_on()

    def finish(self) -> list[Delta]:
        """The answer has ended: return what was held back."""
        self._closed = True
        deltas = self._go_on()
        if self._held and not self.n_calls:
            deltas.append(ContentDelta(self._held))
        self._held = ""
        return deltas

    def _go_on(self) -> list[Delta]:
        next(self._steps, None)
        deltas, self._deltas = self._deltas, []
        return _joined(deltas)

    # --- the answer -------------------------------------------------------------------------------

    def _answer(self) -> Steps:
        while True:
            trigger = yield from self._content()
            if trigger is None:
                return
            self.mark()
            self._position = len(trigger)
            if self.format is None or self.format.read is None or trigger in self.format.wrappers:
                continue
            try:
                yield from self.format.read(self, trigger)
            except Broken:
                self.rewind()
                if not self._accounted:
                    self._write(trigger)
                    self._position = len(trigger)

    def _forget(self) -> None:
        """Drop the text that has been read."""
        self._buffer, self._position = self._buffer[self._position :], 0

    def _content(self) -> Steps:
        """Write content up to a trigger and return that, or None at the end."""
        while True:
            text = self._buffer[self._position :]
            index, trigger, certain = self._find(text)
            if trigger:
                self._write(text[:index])
                self._position += index
                return trigger
            if self._closed:
                certain = len(text)
            self._write(text[:certain])
            self._position += certain
            self._forget()
            if self._closed:
                return None
            yield

    def _find(self, text: str) -> tuple[int, str, int]:
        """Return (index, trigger) of the first trigger, and how much before any is certain."""
        if self.format is None:
            return 0, "", len(text)
        triggers = (*self.format.triggers, *self.format.wrappers)
        first = _NOT_SPACE.search(text)
        if not (self._wrote or self.n_calls):
            for trigger in self.format.first_triggers:
                if first and text.startswith(trigger, first.start()):
                    return first.start(), trigger, 0
                if first is None or trigger.startswith(text[first.start() :]):
                    return 0, "", 0
        found = [(text.index(trigger), trigger) for trigger in triggers if trigger in text]
        if found:
            index, trigger = min(found, key=lambda pair: (pair[0], -len(pair[1])))
            longer = [t for t in triggers if t != trigger and t.startswith(text[index:])]
            return (0, "", index) if longer and not self._closed else (index, trigger, index)
        return 0, "", len(text) - max((overlap(text, trigger) for trigger in triggers), default=0)

    def _write(self, text: str) -> None:
        """Emit content; hold back the white space at its end."""
        text = self._held + text
        kept = text.rstrip()
        if not self._wrote and self.n_calls:
            kept = kept.lstrip()
        self._held = text[len(text.rstrip()) :]
        if kept:
            self._wrote = True
            self._deltas.append(ContentDelta(kept))

    # --- for formats: reading text ----------------------------------------------------------------

    def wait(self) -> Steps:
        """Wait for more text; Broken if there will be none."""
        if self._closed:
            raise Broken
        yield

    def peek(self) -> Steps:
        """Return the next character."""
        while self._position >= len(self._buffer):
            yield from self.wait()
        return self._buffer[self._position]

    def skip(self, literal: str) -> Steps:
        """Go past `literal` if it is next; return whether it was."""
        while True:
            rest = self._buffer[self._position : self._position + len(literal)]
            if rest == literal:
                self._position += len(literal)
                return True
            if self._closed or not literal.startswith(rest):
                return False
            yield

    def skip_any(self, *literals: str) -> Steps:
        """Go past the first of `literals` that is next; return it, or ""."""
        for literal in literals:
            if (yield from self.skip(literal)):
                return literal
        return ""

    def looks_like(self, literal: str) -> Steps:
        """Return whether `literal` is next, without going past it."""
        found = yield from self.skip(literal)
        if found:
            self._position -= len(literal)
        return found

    def expect(self, literal: str) -> Steps:
        if not (yield from self.skip(literal)):
            raise Broken

    def back(self, length: int) -> None:
        """Un-read the last `length` characters, which must be there."""
        self._position -= length
        assert self._position >= 0

    def mark(self) -> None:
        """Remember this place: a section begins that may turn out not to be a call."""
        self._forget()
        self._accounted = False

    def rewind(self) -> None:
        """Go back to the mark, or behind the last text that became a call after it."""
        self._position = 0

    def spaces(self) -> Steps:
        """Go past white space."""
        while True:
            found = _NOT_SPACE.search(self._buffer, self._position)
            self._position = found.start() if found else len(self._buffer)
            if found or self._closed:
                return
            yield

    def each(self, read_one: Callable[[], Steps], separator: str) -> Steps:
        """Read one item, and another for as long as `separator` follows, white space before it."""
        while True:
            yield from read_one()
            yield from self.spaces()
            if not (yield from self.skip(separator)):
                return

    def rest_of_list(self, read_one: Callable[[], Steps]) -> Steps:
        """Read items between commas, from behind `[` up to and with `]`."""

        def read_spaced() -> Steps:
            yield from self.spaces()
            yield from read_one()

        yield from self.each(read_spaced, ",")
        yield from self.expect("]")

    def spaces_before(self, literal: str) -> Steps:
        """Go past white space and `literal`; where that is "", past nothing."""
        if literal:
            yield from self.spaces()
            yield from self.expect(literal)

    def until(self, *literals: str) -> Steps:
        """Return (text, literal): all up to the first of `literals`, and go past that."""
        searched = self._position  # what has been searched in vain is not searched again
        while True:
            places = [(self._buffer.find(each, searched), each) for each in literals]
            found = [place for place in places if place[0] >= 0]
            if found:
                index, literal = min(found)
                text = self._buffer[self._position : index]
                self._position = index + len(literal)
                return text, literal
            searched = max(searched, len(self._buffer) - max(map(len, literals)) + 1)
            yield from self.wait()

    def name(self) -> Steps:
        """Return the name of a function, which must end before the text does."""
        while True:
            found = _NAME.match(self._buffer, self._position)
            end = found.end() if found else self._position
            if end < len(self._buffer):
                break
            yield from self.wait()
        if found is None:
            raise Broken
        self._position = end
        return found.group()

    def json(self) -> Steps:
        """Return the text of one JSON value."""
        if (yield from self.peek()) not in '{["':
            return (yield from self._atom())
        scan, pieces = JsonScan(), []
        while True:
            length, piece = scan.take(self._buffer[self._position :])
            self._position += length
            pieces.append(piece)
            if scan.done:
                return "".join(pieces)
            if scan.broken:
                raise Broken
            yield from self.wait()

    def _atom(self) -> Steps:
        while True:
            found = _ATOM.match(self._buffer, self._position)
            end = found.end() if found else self._position
            if end < len(self._buffer):
                break
            yield from self.wait()
        self._position = end
        return found.group() if found else ""

    def stream(self, kind: type[ContentDelta] | type[ReasoningDelta], *ends: str) -> Steps:
        """Write all up to one of `ends` as content or reasoning; go past it and return it.

        At the end of the answer, return "".
        """
        while True:
            text = self._buffer[self._position :]
            found = [(text.index(end), end) for end in ends if end in text]
            index, end = min(found) if found else (len(text), "")
            if not found and not self._closed:
                index -= max(overlap(text, each) for each in ends)
            if index:
                self._deltas.append(kind(text[:index]))
            self._position += index + len(end)
            self._forget()
            if end or self._closed:
                return end
            yield

    def text_until(self, end: str, padding: str, write: Callable[[str], None]) -> Steps:
        """Hand all up to `end`, which may have `padding` before it, to `write` as it comes.

        Only for text inside a call that is announced: what is handed on will not become content.
        """
        while True:
            text = self._buffer[self._position :]
            before, found, _ = text.partition(end)
            if found:
                certain = (
                    before[: -len(padding)] if padding and before.endswith(padding) else before
                )
            else:
                certain = text[: len(text) - max(overlap(text, end), overlap(text, padding + end))]
            write(certain)
            self._position += len(before + end) if found else len(certain)
            self.done()
            if found:
                return
            yield from self.wait()

    # --- for formats: writing calls ---------------------------------------------------------------

    def stream_arguments(self, name: str, id: str = "") -> Steps:
        """Read a JSON object: the arguments of a call, which is announced, as they come."""
        yield from self._object_begins()
        self.begin(name, id)
        scan = JsonScan()
        while True:
            length, piece = scan.take(self._buffer[self._position :])
            self._position += length
            self.arguments(piece)
            if scan.done:
                return
            if scan.broken:
                raise Broken
            yield from self.wait()

    def _object_begins(self) -> Steps:
        """Wait for what makes an object likely: `{"` or `{}`."""
        while True:
            found = _OBJECT.match(self._buffer, self._position)
            if found and found.group(1):
                if found.group(1) not in '"}':
                    raise Broken
                return
            if not found and self._position < len(self._buffer):
                raise Broken
            yield from self.wait()

    def begin(self, name: str, id: str = "") -> None:
        """Announce a call. Ids that the model wrote are kept if they are new."""
        if not id or id in self._ids:
            id = self._make_id()
        self._ids.add(id)
        self._held = ""
        self._deltas.append(CallDelta(self.n_calls, id, name, ""))
        self.n_calls += 1
        self.done()

    def arguments(self, text: str) -> None:
        """Write a piece of the arguments of the call announced last."""
        self.done()
        if text:
            self._deltas.append(CallDelta(self.n_calls - 1, "", "", text))

    def call(self, name: str, arguments: Any, id: str = "") -> None:
        """Write a whole call; `arguments` is a value, or JSON text."""
        text = (
            arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        )
        self.begin(name, id)
        self.arguments(text)

    def done(self) -> None:
        """All text read so far belongs to calls written: it will not become content."""
        self._accounted = True
        self._forget()

    # --- for formats: what the tools say ----------------------------------------------------------

    def schema(self, function: str) -> Typed:
        """Return the schema of a function's arguments."""
        return Typed(self.functions.get(function, {}).get("parameters"))

    def value(self, function: str, parameter: str, text: str) -> Any:
        """Return a parameter's value from its text, by the type in the function's schema."""
        return self.schema(function).property(parameter).value(text)


def overlap(text: str, literal: str) -> int:
    """Return how many characters at the end of `text` may be the beginning of `literal`."""
    for length in range(min(len(text), len(literal) - 1), 0, -1):
        if text.endswith(literal[:length]):
            return length
    return 0


def _joined(deltas: list[Delta]) -> list[Delta]:
    """Join neighbouring pieces of the same kind."""
    result: list[Delta] = []
    for delta in deltas:
        last = result[-1] if result else None
        if isinstance(delta, ContentDelta) and isinstance(last, ContentDelta):
            result[-1] = ContentDelta(last.text + delta.text)
        elif (
            isinstance(delta, CallDelta)
            and isinstance(last, CallDelta)
            and not delta.name
            and not last.name
        ):
            result[-1] = last._replace(arguments=last.arguments + delta.arguments)
        else:
            result.append(delta)
    return result
