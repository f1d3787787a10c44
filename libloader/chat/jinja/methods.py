"""What `.name` and `[index]` reach: keys, items, and the methods in the tables here.

The tables are the whitelist: a method that is not in them does not exist, whatever Python has.
Methods that change a list or dict work on those that the template made, never on the caller's.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Callable

from libloader.chat.jinja.limits import MAX_WIDTH, Budget
from libloader.chat.jinja.operators import contains
from libloader.chat.jinja.printf import str_format
from libloader.chat.jinja.values import (
    Method,
    Object,
    OwnDict,
    OwnList,
    Selected,
    Undefined,
    Value,
    missing,
    new_dict,
    new_list,
    shorten,
    text_of,
)
from libloader.errors import TemplateError

Function = Callable[..., Value]


def attribute(value: Value, name: str) -> Value:
    """Return `value.name`: a method of its type, else the value of the key `name`."""
    if isinstance(value, dict):
        if name in DICT_METHODS:
            return Method(value, name, DICT_METHODS[name])
        return value[name] if name in value else missing(name)
    return method(value, name)


def method(value: Value, name: str) -> Value:
    """Return the method or field `name` of `value`, keys not considered."""
    if isinstance(value, Object):
        return value.attribute(name)
    if isinstance(value, Undefined):
        raise value.fail()
    function = METHODS.get(type(value), {}).get(name)
    return Method(value, name, function) if function else missing(name)


def item(budget: Budget, value: Value, index: Value) -> Value:
    """Return `value[index]`: what is there, else the method of that name."""
    if isinstance(value, dict):
        if isinstance(index, Hashable) and budget.key(index) in value:
            return value[index]
    elif isinstance(value, (str, list, tuple, range)):
        if isinstance(index, int) and -len(value) <= index < len(value):
            return value[index]
    elif isinstance(value, Undefined):
        raise value.fail()
    if isinstance(index, str):
        return attribute(value, index)
    return Undefined(f"item {shorten(text_of(budget, index))}")


# --- str ---------------------------------------------------------------------------------------


def _plain(function: Function) -> Function:
    """Wrap a method of str whose time and result are at most in proportion to its receiver."""

    def call(budget: Budget, text: str, *args: Value, **kwargs: Value) -> Value:
        budget.spend(len(text) >> 6)
        result = function(text, *args, **kwargs)
        return budget.text(result) if isinstance(result, str) else result

    return call


def _searching(function: Function) -> Function:
    """Wrap a method of str that looks for its first argument."""

    def call(budget: Budget, text: str, part: Value, *args: Value) -> Value:
        budget.search(text, part if isinstance(part, str) else "")
        return function(text, part, *args)

    return call


def _padding(function: Function) -> Function:
    """Wrap a method of str that pads to a width."""

    def call(budget: Budget, text: str, width: int, fill: str = " ") -> str:
        if width > MAX_WIDTH:
            raise TemplateError(f"a padding width is above {MAX_WIDTH}")
        return budget.text(function(text, width, fill))

    return call


def _zfill(budget: Budget, text: str, width: int) -> str:
    if width > MAX_WIDTH:
        raise TemplateError(f"a padding width is above {MAX_WIDTH}")
    return budget.text(text.zfill(width))


def _affix(function: Function) -> Function:
    """Wrap startswith and endswith, which also take a tuple of strings."""

    def call(budget: Budget, text: str, affix: Value, *args: Value) -> Value:
        for part in affix if isinstance(affix, tuple) else (affix,):
            budget.spend(1 + (len(part) >> 8))
        return function(text, affix, *args)

    return call


def _splitting(function: Function) -> Function:
    """Wrap split and rsplit: `sep` None splits at runs of white space."""

    def call(budget: Budget, text: str, sep: str | None = None, maxsplit: int = -1) -> Value:
        if sep is None:
            n_parts = len(text) // 2 + 1
        else:
            budget.search(text, sep)
            n_parts = text.count(sep) + 1
        budget.room_for_items(n_parts if maxsplit < 0 else min(maxsplit + 1, n_parts))
        budget.text(text)  # the parts hold as much again
        return OwnList(function(text, sep, maxsplit))

    return call


def _partition(function: Function) -> Function:
    def call(budget: Budget, text: str, sep: str) -> Value:
        budget.search(text, sep)
        budget.text(text)
        return function(text, sep)

    return call


def splitlines(budget: Budget, text: str, keepends: bool = False) -> Value:
    budget.room_for_items(1 + sum(map(text.count, LINE_ENDS)))
    budget.text(text)
    return OwnList(text.splitlines(keepends))


LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


def replace(budget: Budget, text: str, old: str, new: str, count: int = -1) -> str:
    budget.search(text, old)
    n_found = text.count(old)
    times = n_found if count < 0 else min(count, n_found)
    budget.room(len(text) + times * (len(new) - len(old)))
    budget.spend(times >> 4)
    return budget.text(text.replace(old, new, count))


def join(budget: Budget, separator: str, values: Value) -> str:
    """Return `separator.join(values)`; all values must be strings."""
    budget.spend(len(values))
    budget.room(sum(map(len, values)) + len(separator) * len(values))
    return budget.text(separator.join(values))


STR_METHODS: Mapping[str, Function] = {
    "capitalize": _plain(str.capitalize),
    "casefold": _plain(str.casefold),
    "center": _padding(str.center),
    "count": _searching(str.count),
    "endswith": _affix(str.endswith),
    "find": _searching(str.find),
    "format": str_format,
    "index": _searching(str.index),
    "isalnum": _plain(str.isalnum),
    "isalpha": _plain(str.isalpha),
    "isascii": _plain(str.isascii),
    "isdecimal": _plain(str.isdecimal),
    "isdigit": _plain(str.isdigit),
    "islower": _plain(str.islower),
    "isnumeric": _plain(str.isnumeric),
    "isspace": _plain(str.isspace),
    "isupper": _plain(str.isupper),
    "join": join,
    "ljust": _padding(str.ljust),
    "lower": _plain(str.lower),
    "lstrip": _plain(str.lstrip),
    "partition": _partition(str.partition),
    "removeprefix": _plain(str.removeprefix),
    "removesuffix": _plain(str.removesuffix),
    "replace": replace,
    "rfind": _searching(str.rfind),
    "rindex": _searching(str.rindex),
    "rjust": _padding(str.rjust),
    "rpartition": _partition(str.rpartition),
    "rsplit": _splitting(str.rsplit),
    "rstrip": _plain(str.rstrip),
    "split": _splitting(str.split),
    "splitlines": splitlines,
    "startswith": _affix(str.startswith),
    "strip": _plain(str.strip),
    "swapcase": _plain(str.swapcase),
    "title": _plain(str.title),
    "upper": _plain(str.upper),
    "zfill": _zfill,
}

# --- list, tuple, dict -------------------------------------------------------------------------


def _count(budget: Budget, values: Value, wanted: Value) -> int:
    contains(budget, wanted, values)
    return int(values.count(wanted))


def _index(budget: Budget, values: Value, wanted: Value) -> int:
    contains(budget, wanted, values)
    return int(values.index(wanted))


def _own(value: Value) -> Any:
    if isinstance(value, (OwnList, OwnDict)):
        return value
    raise TemplateError("a template may only change the lists and dicts that it made itself")


def _append(budget: Budget, values: Value, value: Value) -> None:
    budget.room_for_items(len(values) + 1 if len(values) & 1023 == 1023 else 1)
    _own(values).append(value)


def _insert(budget: Budget, values: Value, index: int, value: Value) -> None:
    budget.room_for_items(1)
    budget.spend(len(values) >> 6)
    _own(values).insert(index, value)


def _extend(budget: Budget, values: Value, more: Value) -> None:
    budget.room_for_items(len(values) + len(more))
    _own(values).extend(more)


def _pop(budget: Budget, values: Value, *index: Value) -> Value:
    budget.spend(1 + (len(values) >> 8))
    return _own(values).pop(*map(budget.key, index))


def _reverse(budget: Budget, values: Value) -> None:
    budget.spend(len(values))
    _own(values).reverse()


def _clear(budget: Budget, values: Value) -> None:
    _own(values).clear()


def _copy_list(budget: Budget, values: Value) -> Value:
    return new_list(budget, values)


def _copy_dict(budget: Budget, values: Value) -> Value:
    budget.room_for_items(2 * len(values))
    return OwnDict(values)


def _get(budget: Budget, values: Value, key: Value, default: Value = None) -> Value:
    return values[key] if budget.key(key) in values else default


def _update(budget: Budget, values: Value, *more: Value, **named: Value) -> None:
    budget.room_for_items(2 * len(values))
    _own(values).update(new_dict(budget, *more, **named))


def _setdefault(budget: Budget, values: Value, key: Value, default: Value = None) -> Value:
    budget.room_for_items(2)
    return values[key] if budget.key(key) in values else _own(values).setdefault(key, default)


LIST_METHODS: Mapping[str, Function] = {
    "append": _append,
    "clear": _clear,
    "copy": _copy_list,
    "count": _count,
    "extend": _extend,
    "index": _index,
    "insert": _insert,
    "pop": _pop,
    "reverse": _reverse,
}
DICT_METHODS: Mapping[str, Function] = {
    "clear": _clear,
    "copy": _copy_dict,
    "get": _get,
    "items": lambda budget, values: values.items(),
    "keys": lambda budget, values: values.keys(),
    "pop": _pop,
    "setdefault": _setdefault,
    "update": _update,
    "values": lambda budget, values: values.values(),
}
METHODS: Mapping[type[Any], Mapping[str, Function]] = {
    str: STR_METHODS,
    list: LIST_METHODS,
    OwnList: LIST_METHODS,
    Selected: LIST_METHODS,
    tuple: {"count": _count, "index": _index},
    dict: DICT_METHODS,
    OwnDict: DICT_METHODS,
}
