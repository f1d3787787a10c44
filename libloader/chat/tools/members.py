"""Arguments that arrive one by one, written on as a JSON object, member by member."""

from __future__ import annotations

import json
from typing import Any

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

    def end(self) -> None:
        self._reader.arguments("{}" if self._next == "{" else "}")
