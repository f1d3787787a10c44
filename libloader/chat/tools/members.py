"""Arguments that arrive one by one, written on as a JSON object, member by member."""

from __future__ import annotations

import json
from typing import Any

from libloader.chat.tools.format import Steps
from libloader.chat.tools.reader import Reader


class Members:
    """Announces a call and writes its arguments. Left unfinished, the JSON stays open."""

    def __init__(self, reader: Reader, name: str, id: str = "") -> None:
        self._reader = reader
        self._next = "{"
        self.name = name
        reader.begin(name, id)

    def add(self, key: str, value: Any) -> None:
        text = f"{json.dumps(key, ensure_ascii=False)}: {json.dumps(value, ensure_ascii=False)}"
        self._reader.arguments(self._next + text)
        self._next = ", "

    def add_text(self, key: str, text: str) -> None:
        """Add a value that is text, or JSON, by the type that the function's schema gives it."""
        self.add(key, self._reader.value(self.name, key, text))

    def is_text(self, key: str) -> bool:
        """Say whether the value of `key` is text whatever it looks like: it may be streamed."""
        return self._reader.schema(self.name).property(key).kinds() == {"string"}

    def stream_text(self, key: str, end: str, padding: str = "") -> Steps:
        """Read and add a text value as it comes, up to and past `end`.

        `padding` is what is cut off once on each side.
        """
        yield from self._reader.skip(padding)
        self._reader.arguments(f'{self._next}{json.dumps(key, ensure_ascii=False)}: "')
        self._next = ", "
        yield from self._reader.text_until(end, padding, self._write_text)
        self._reader.arguments('"')

    def _write_text(self, text: str) -> None:
        self._reader.arguments(json.dumps(text, ensure_ascii=False)[1:-1])

    def end(self) -> None:
        self._reader.arguments("{}" if self._next == "{" else "}")
