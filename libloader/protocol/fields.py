"""The one reader of request fields: a table says names, checks, defaults and aliases.

Laws:
- `null` means absent. A client's 0, "" or false is a value, never replaced by a default.
- A value of the wrong type or out of range is FieldInvalid: the message names the field and what
  would be right, in words made from the check itself.
- A field that no table knows is ignored, and named to the client (`Values.ignored`).
- Integers are JSON integers (5.0 is not one), booleans are not numbers.

To add a field: one row in a table, one attribute where it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Callable, Union

from libloader.errors import FieldInvalid, FieldUnsupported

Check = Callable[[Any, str], Any]
Number = Union[int, float]
MAX_TEXT = 16 << 20  # characters; the web layer bounds the body before


@dataclass(frozen=True)
class Field:
    """One row: JSON name, check, default when absent, other names for it (the first given wins)."""

    name: str
    check: Check
    default: Any = None
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)


@dataclass(frozen=True)
class Values:
    """Checked values by JSON name, the names the client gave, and the names nobody knew."""

    by_name: dict[str, Any]
    given: tuple[str, ...]
    ignored: tuple[str, ...]

    def __getitem__(self, name: str) -> Any:
        return self.by_name[name]


class Table:
    """The fields of one endpoint; they are checked in the order of the rows."""

    def __init__(self, *rows: Field) -> None:
        self._rows = rows
        self._defaults = {row.name: row.default for row in rows}
        self._number_of = {name: i for i, row in enumerate(rows) for name in row.names}
        assert len(self._number_of) == sum(len(row.names) for row in rows), "a name is there twice"

    def read(self, body: dict[str, Any], *, strict: bool = False) -> Values:
        """Check `body`. With `strict`, an unknown field is FieldUnsupported."""
        values, given = dict(self._defaults), []
        numbers = {self._number_of.get(key) for key, item in body.items() if item is not None}
        for number in sorted(n for n in numbers if n is not None):
            row = self._rows[number]
            name = next(n for n in row.names if body.get(n) is not None)
            values[row.name] = row.check(body[name], name)
            given.append(row.name)
        ignored = tuple(key for key in body if key not in self._number_of)
        if strict and ignored:
            raise FieldUnsupported(
                f"{ignored[0][:80]!r} is not a field of this endpoint", param=ignored[0][:80]
            )
        return Values(values, tuple(given), ignored)


def invalid(path: str, must: str) -> FieldInvalid:
    return FieldInvalid(f"{path} must be {must}", param=path)


# ---- checks: each takes (value, path) and returns the value to keep, or raises FieldInvalid ----


def _range_words(low: Number | None, high: Number | None) -> str:
    if low is not None and high is not None:
        return f" from {low} to {high}"
    if low is not None:
        return f" of at least {low}"
    return f" of at most {high}" if high is not None else ""


def _in_range(value: Number, low: Number | None, high: Number | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


def number(low: Number | None = None, high: Number | None = None) -> Check:
    must = "a number" + _range_words(low, high)

    def check(value: Any, path: str) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise invalid(path, must)
        if not _in_range(value, low, high):
            raise invalid(path, must)
        return float(value)

    return check


def integer(low: int | None = None, high: int | None = None) -> Check:
    must = "an integer" + _range_words(low, high)

    def check(value: Any, path: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise invalid(path, must)
        if not _in_range(value, low, high):
            raise invalid(path, must)
        return value

    return check


def boolean(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        raise invalid(path, "true or false")
    return value


def string(max_length: int = MAX_TEXT, min_length: int = 0) -> Check:
    must = "a string" if max_length == MAX_TEXT else f"a string of at most {max_length} characters"

    def check(value: Any, path: str) -> str:
        if not isinstance(value, str) or len(value) > max_length:
            raise invalid(path, must)
        if len(value) < min_length:
            raise invalid(path, f"a string of at least {min_length} characters")
        return value

    return check


def one_of(*allowed: str) -> Check:
    must = "one of " + ", ".join(f'"{name}"' for name in allowed)

    def check(value: Any, path: str) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise invalid(path, must)
        return value

    return check


def mapping(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise invalid(path, "an object")
    return value


def list_of(item: Check, max_items: int, min_items: int = 0) -> Check:
    def check(value: Any, path: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise invalid(path, "an array")
        if not min_items <= len(value) <= max_items:
            raise invalid(path, f"an array of {min_items} to {max_items} items")
        return tuple(item(entry, f"{path}[{i}]") for i, entry in enumerate(value))

    return check


def string_or_list(max_items: int, max_length: int) -> Check:
    """A string counts as a list of one, as OpenAI's `stop` allows."""
    one, many = string(max_length, 1), list_of(string(max_length, 1), max_items)

    def check(value: Any, path: str) -> tuple[str, ...]:
        if isinstance(value, str):
            return (one(value, path),)
        if not isinstance(value, list):
            raise invalid(path, "a string or an array of strings")
        result: tuple[str, ...] = many(value, path)
        return result

    return check


def token_ids(max_items: int) -> Check:
    """Token ids as integers from 0; the engine, which knows the vocabulary, checks the top."""
    bounded = integer(0, 2**31 - 1)

    def check(value: Any, path: str) -> tuple[int, ...]:
        if not isinstance(value, list) or len(value) > max_items:
            raise invalid(path, f"an array of at most {max_items} token ids")
        if all(type(item) is int and 0 <= item < 2**31 for item in value):
            return tuple(value)
        return tuple(bounded(item, f"{path}[{i}]") for i, item in enumerate(value))

    return check


def ignored_header(names: Sequence[str], limit: int = 512) -> str:
    """Return ignored field names for a header: printable ASCII, comma-separated, bounded."""
    safe: list[str] = []
    for name in names:
        text = "".join(c if " " < c < "\x7f" and c not in ',;"' else "?" for c in name[:64])
        safe.append(text or "?")
    joined = ", ".join(safe)
    return joined if len(joined) <= limit else joined[: limit - 3] + "..."
