"""An incremental JSON validator: how much of a text, still growing, belongs to one value.

It accepts what json.loads accepts of objects, arrays and strings, and forgives one habit of models:
line feeds and tabs written raw inside strings, which it hands on escaped.
"""

from __future__ import annotations

import re

_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_SPACES = re.compile(r"[ \t\r\n]+")
_ATOM = re.compile(r"[-+.\w]+")
_ATOM_VALUE = re.compile(r"true|false|null|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?")
MAX_DEPTH = 200

# What may come next, outside of strings and atoms.
VALUE, VALUE_OR_END, KEY, KEY_OR_END, COLON, COMMA_OR_END, NOTHING = range(7)


class JsonScan:
    """Reads one object, array or string. `done` once it is complete, `broken` if it cannot be."""

    def __init__(self) -> None:
        self.done = False
        self.broken = False
        self._stack: list[str] = []  # the open brackets
        self._expects = VALUE
        self._in_string = False
        self._is_key = False
        self._escape = ""  # what of an escape has been read
        self._atom = ""  # what of a number or word has been read

    def take(self, text: str) -> tuple[int, str]:
        """Read on. Return how many characters belong to the value, and these, mended."""
        position, pieces = 0, []
        while position < len(text) and not (self.done or self.broken):
            length, piece = (
                self._string(text, position)
                if self._in_string
                else (self._structure(text, position))
            )
            position += length
            pieces.append(piece)
        return position, "".join(pieces)

    # --- inside a string --------------------------------------------------------------------------

    def _string(self, text: str, position: int) -> tuple[int, str]:
        character = text[position]
        if self._escape:
            return self._escaped(character)
        plain = _PLAIN.match(text, position)
        if plain:
            return len(plain.group()), plain.group()
        if character == "\\":
            self._escape = "\\"
        elif character == '"':
            self._in_string = False
            self._ended(COLON if self._is_key else COMMA_OR_END)
        else:
            return 1, f"\\u{ord(character):04x}"
        return 1, character

    def _escaped(self, character: str) -> tuple[int, str]:
        self._escape += character
        if self._escape[1] == "u":
            if len(self._escape) > 2 and character not in "0123456789abcdefABCDEF":
                return self._break()
            if len(self._escape) == 6:
                self._escape = ""
        elif character in '"\\/bfnrt':
            self._escape = ""
        else:
            return self._break()
        return 1, character

    # --- between strings --------------------------------------------------------------------------

    def _structure(self, text: str, position: int) -> tuple[int, str]:
        atom = _ATOM.match(text, position)
        if atom:
            return self._in_atom(atom.group())
        if self._atom:
            if not _ATOM_VALUE.fullmatch(self._atom):
                return self._break()
            self._atom = ""
            self._ended(COMMA_OR_END)
        spaces = _SPACES.match(text, position)
        if spaces:
            return len(spaces.group()), spaces.group()
        character = text[position]
        if character == '"':
            return self._open_string()
        if character in "{[":
            return self._open(character)
        if character in "}]":
            return self._close(character)
        return self._separate(character)

    def _in_atom(self, text: str) -> tuple[int, str]:
        if self._expects not in (VALUE, VALUE_OR_END) or not self._stack:
            return self._break()
        self._atom += text
        return len(text), text

    def _open_string(self) -> tuple[int, str]:
        if self._expects not in (VALUE, VALUE_OR_END, KEY, KEY_OR_END):
            return self._break()
        self._is_key = self._expects in (KEY, KEY_OR_END)
        self._in_string = True
        return 1, '"'

    def _open(self, bracket: str) -> tuple[int, str]:
        if self._expects not in (VALUE, VALUE_OR_END) or len(self._stack) >= MAX_DEPTH:
            return self._break()
        self._stack.append(bracket)
        self._expects = KEY_OR_END if bracket == "{" else VALUE_OR_END
        return 1, bracket

    def _close(self, bracket: str) -> tuple[int, str]:
        may_end = (KEY_OR_END, COMMA_OR_END) if bracket == "}" else (VALUE_OR_END, COMMA_OR_END)
        opening = "{" if bracket == "}" else "["
        if self._expects not in may_end or not self._stack or self._stack.pop() != opening:
            return self._break()
        self._ended(COMMA_OR_END)
        return 1, bracket

    def _separate(self, character: str) -> tuple[int, str]:
        if character == ":" and self._expects == COLON:
            self._expects = VALUE
        elif character == "," and self._expects == COMMA_OR_END:
            self._expects = KEY if self._stack[-1] == "{" else VALUE
        else:
            return self._break()
        return 1, character

    def _ended(self, expects: int) -> None:
        """A string, number, object or array is complete."""
        self._expects = expects
        if not self._stack:
            self.done = True

    def _break(self) -> tuple[int, str]:
        self.broken = True
        return 0, ""
