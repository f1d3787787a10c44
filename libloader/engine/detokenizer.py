"""Bytes of tokens in, text out: whole characters only, and never a piece of a stop string.

Lives here: what is held back and why. Not here: which token ends a sequence (sequence.py).

Laws:
- The text that comes out, and the stop string that is found, do not depend on how the bytes were
  cut into tokens. So the stop string that *ends* first wins, as if characters came one by one.
- Bytes that can never become a character are U+FFFD at once; an unfinished one waits for the rest.
"""

from __future__ import annotations

from codecs import utf_8_decode


class Detokenizer:
    """The text side of one sequence. `stop` is the stop string that was found, else None."""

    __slots__ = ("stop", "_bytes", "_held", "_stops", "_starting_with")

    def __init__(self, stops: tuple[str, ...] = ()) -> None:
        self.stop: str | None = None
        self._bytes = b""  # the beginning of a character
        self._held = ""  # may be the beginning of a stop string
        self._stops = tuple(filter(None, stops))
        self._starting_with: dict[str, list[str]] = {}
        for stop in self._stops:
            self._starting_with.setdefault(stop[0], []).append(stop)

    def push(self, piece: bytes) -> str:
        """Return the text that is now certain. Hot: once per token."""
        if self._bytes or not piece.isascii():
            data = self._bytes + piece
            text, n_used = utf_8_decode(data, "replace", False)
            self._bytes = data[n_used:]
        else:
            text = piece.decode("ascii")
        if not self._stops:
            return text
        return self._cut(self._held + text)

    def flush(self) -> str:
        """Return what was held back; an unfinished character comes as U+FFFD."""
        if self.stop is not None:
            return ""
        text, self._bytes = self._bytes.decode("utf-8", "replace"), b""
        text = self._cut(self._held + text) + self._held
        self._held = ""
        return text

    def _cut(self, text: str) -> str:
        hit = min(self._hits(text), default=None)
        if hit is not None:
            end, start = hit
            self.stop, self._held = text[start:end], ""
            return text[:start]
        keep = self._first_possible_start(text)
        self._held = text[keep:]
        return text[:keep]

    def _hits(self, text: str) -> list[tuple[int, int]]:
        found = ((text.find(stop), stop) for stop in self._stops)
        return [(start + len(stop), start) for start, stop in found if start >= 0]

    def _first_possible_start(self, text: str) -> int:
        """Return where the earliest suffix begins that a stop string may continue."""
        for index, char in enumerate(text):
            for stop in self._starting_with.get(char, ()):
                if stop.startswith(text[index:]):
                    return index
        return len(text)
