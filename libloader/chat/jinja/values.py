"""The values that templates see: Python's plain ones, and a few objects with fixed fields.

A value is None, a bool, int, float, str, list, tuple, dict, range, a dict view, an Undefined or an
Object. Nothing here ever reads or writes a Python attribute that a template names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Callable

from libloader.chat.jinja.limits import CONTAINERS, MAX_INT_BITS, Budget
from libloader.errors import TemplateError

Value = Any
SHOWN = 200  # characters of a value or name that an error message may repeat

_SPACES = re.compile(r"\s+")


class Undefined:
    """A name, key or index that does not exist: prints nothing, is false, equals only its like."""

    __slots__ = ("hint",)

    def __init__(self, hint: str) -> None:
        self.hint = hint

    def __bool__(self) -> bool:
        return False

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Iterator[Value]:
        return iter(())

    def __eq__(self, other: object) -> bool:
        return type(other) is Undefined

    def __hash__(self) -> int:
        return hash(Undefined)

    def __str__(self) -> str:
        return ""

    def __repr__(self) -> str:
        return "Undefined"

    def fail(self) -> TemplateError:
        return TemplateError(f"{shorten(self.hint)} is undefined")


class OwnList(list[Value]):
    """A list that the template made itself, and may therefore change."""

    __slots__ = ()


class OwnDict(dict[Value, Value]):
    """A dict that the template made itself, and may therefore change."""

    __slots__ = ()


class Selected(OwnList):
    """What jinja2 yields lazily (map, select, ...): a generator there, hence true even if empty."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return True


class Object:
    """Base of the objects that are not data. `attribute` is all that a template can reach."""

    __slots__ = ()

    def attribute(self, name: str) -> Value:
        return missing(name)

    def parts(self) -> Sequence[Value]:
        """The values that this object keeps alive."""
        return ()

    def call(self, budget: Budget, args: list[Value], kwargs: dict[str, Value]) -> Value:
        raise TemplateError(f"{self!r} cannot be called")


class Function(Object):
    """A function of ours; `function` takes the Budget before the template's arguments."""

    __slots__ = ("name", "function")

    def __init__(self, name: str, function: Callable[..., Value]) -> None:
        self.name = name
        self.function = function

    def __repr__(self) -> str:
        return f"<function {self.name}>"

    def call(self, budget: Budget, args: list[Value], kwargs: dict[str, Value]) -> Value:
        return self.function(budget, *args, **kwargs)


class Method(Object):
    """A function of ours bound to the value that it was looked up on."""

    __slots__ = ("receiver", "name", "function")

    def __init__(self, receiver: Value, name: str, function: Callable[..., Value]) -> None:
        self.receiver = receiver
        self.name = name
        self.function = function

    def __repr__(self) -> str:
        return f"<method {self.name}>"

    def parts(self) -> Sequence[Value]:
        return (self.receiver,)

    def call(self, budget: Budget, args: list[Value], kwargs: dict[str, Value]) -> Value:
        return self.function(budget, self.receiver, *args, **kwargs)


class Namespace(Object):
    """`namespace(...)`: the only object whose fields a template can set."""

    __slots__ = ("names",)

    def __init__(self, names: dict[str, Value]) -> None:
        self.names = names

    def __repr__(self) -> str:
        return "<namespace>"

    def attribute(self, name: str) -> Value:
        return self.names[name] if name in self.names else missing(name)

    def parts(self) -> Sequence[Value]:
        return (self.names,)


def missing(name: str) -> Undefined:
    """Return the value of a field that does not exist. Python's own fields are an error at once."""
    if name.startswith("__") and name.endswith("__"):
        raise TemplateError(f"'{shorten(name)}' is out of reach of templates")
    return Undefined(f"'{name}'")


def shorten(text: str) -> str:
    """Return `text` on one line and short enough for an error message."""
    text = _SPACES.sub(" ", text[: 2 * SHOWN])
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def text_of(budget: Budget, value: Value) -> str:
    """Return what printing `value` writes: Python's str()."""
    if isinstance(value, CONTAINERS):
        budget.room(budget.walk(value).length)
        return budget.text(str(value))
    return str(value)


def json_of(
    budget: Budget,
    value: Value,
    ensure_ascii: bool = False,
    indent: Value = None,
    separators: Value = None,
    sort_keys: bool = False,
) -> str:
    """Return `value` as json.dumps writes it. Undefined and objects are errors."""
    extent = budget.walk(value)
    spread = 6 if ensure_ascii else 1  # \uXXXX
    spaces = 0 if indent is None else extent.n_values * extent.depth * _indent_width(indent)
    budget.room(extent.length * spread + spaces)
    budget.spend(extent.length >> 5)
    return budget.text(
        json.dumps(
            value,
            ensure_ascii=bool(ensure_ascii),
            indent=indent,
            separators=separators,
            sort_keys=bool(sort_keys),
            default=_refuse_json,
        )
    )


def _indent_width(indent: Value) -> int:
    width = len(indent) if isinstance(indent, str) else int(indent)
    if width > 16:
        raise TemplateError("tojson indents by at most 16")
    return max(width, 0)


def _refuse_json(value: Value) -> Value:
    if isinstance(value, Undefined):
        raise value.fail()
    raise TemplateError(f"{shorten(repr(value))} cannot be written as JSON")


def checked_int(value: Value) -> Value:
    """Return the result of an arithmetic operation, refused if it is a giant integer."""
    if type(value) is int and value.bit_length() > MAX_INT_BITS:
        raise TemplateError("the template computes too large an integer")
    return value


def new_list(budget: Budget, values: Any) -> OwnList:
    """Return a list of the items of `values`, which must have a length."""
    budget.room_for_items(len(values))
    return OwnList(values)


def new_dict(budget: Budget, *pairs: Value, **named: Value) -> OwnDict:
    """Return Python's `dict(*pairs, **named)`."""
    budget.room_for_items(2 * (len(named) + sum(len(iterable(each)) for each in pairs)))
    for each in pairs:
        if not isinstance(each, dict):
            budget.walk(each)  # hashing a key visits all of it
    return OwnDict(*pairs, **named)


def iterable(value: Value) -> Value:
    """Return `value` if a template may iterate over it; it then has a length."""
    if isinstance(value, (str, range, Undefined, *CONTAINERS)):
        return value
    raise TemplateError(f"{type_name(value)} is not iterable")


def type_name(value: Value) -> str:
    """Name the type of `value` for an error message."""
    names = {"NoneType": "none", "OwnList": "list", "Selected": "list", "OwnDict": "dict"}
    name = type(value).__name__
    return names.get(name, name.lower())
