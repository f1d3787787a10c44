"""The filters of jinja2 that make sense for plain text, plus tojson, from_json and `safe`.

A filter takes the Budget, the value, and then its arguments by jinja2's names.
"""

from __future__ import annotations

import json
import math
import re
import urllib.parse
from collections.abc import Mapping
from typing import Any, Callable

from libloader.chat.jinja.checks import TESTS
from libloader.chat.jinja.limits import MAX_WIDTH, Budget
from libloader.chat.jinja.methods import item, join, method, replace, splitlines
from libloader.chat.jinja.operators import add
from libloader.chat.jinja.printf import printf
from libloader.chat.jinja.values import (
    OwnDict,
    OwnList,
    Selected,
    Undefined,
    Value,
    checked_int,
    iterable,
    json_of,
    new_list,
    shorten,
    text_of,
)
from libloader.errors import TemplateError

Function = Callable[..., Value]
MAX_NUMERAL = 1200  # characters that int() reads: its time grows with their square
MAX_SLOW_TEXT = 200_000  # characters
MAX_PRECISION = 300  # digits

# --- text --------------------------------------------------------------------------------------


def _on_text(function: Callable[[str], str]) -> Function:
    """Return a filter from a function whose time is a few nanoseconds per character."""

    def call(budget: Budget, value: Value) -> str:
        text = text_of(budget, value)
        budget.spend(len(text) >> 5)
        return budget.text(function(text))

    return call


def _slowly(function: Callable[[str], Value]) -> Function:
    """Return a filter from a function that handles words or characters one by one."""

    def call(budget: Budget, value: Value) -> Value:
        text = text_of(budget, value)
        if len(text) > MAX_SLOW_TEXT:
            raise TemplateError("the text is too long for this filter")
        budget.spend(len(text))
        result = function(text)
        return budget.text(result) if isinstance(result, str) else result

    return call


def _trim(budget: Budget, value: Value, chars: str | None = None) -> str:
    text = text_of(budget, value)
    budget.spend(len(text) >> 7)
    return budget.text(text.strip(chars))


_WORD = re.compile(r"[^-\s({\[<]+")


def _title(text: str) -> str:
    return _WORD.sub(lambda word: word.group()[0].upper() + word.group()[1:].lower(), text)


def _replace(budget: Budget, value: Value, old: Value, new: Value, count: Value = None) -> str:
    old, new = text_of(budget, old), text_of(budget, new)
    return replace(budget, text_of(budget, value), old, new, -1 if count is None else count)


def _indent(
    budget: Budget, value: Value, width: Value = 4, first: bool = False, blank: bool = False
) -> str:
    margin = width if isinstance(width, str) else " " * _width(width)
    _width(len(margin))
    if not isinstance(value, str):
        raise TemplateError("indent needs a string")
    lines = splitlines(budget, value + "\n")  # so that a last empty line counts
    budget.room(sum(map(len, lines)) + len(lines) * (len(margin) + 1))
    rest = [margin + line if line or blank else line for line in lines[1:]]
    return budget.text("\n".join([margin + lines[0] if first else lines[0], *rest]))


def _width(width: Value) -> int:
    if width > MAX_WIDTH:
        raise TemplateError(f"a padding width is above {MAX_WIDTH}")
    return int(width)


def _center(budget: Budget, value: Value, width: int = 80) -> str:
    return budget.text(text_of(budget, value).center(_width(width)))


def _truncate(
    budget: Budget,
    value: Value,
    length: int = 255,
    killwords: bool = False,
    end: str = "...",
    leeway: int = 5,
) -> str:
    text = text_of(budget, value)
    if len(text) <= length + leeway:
        return text
    cut = text[: length - len(end)]
    return budget.text((cut if killwords else cut.rsplit(" ", 1)[0]) + end)


_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "'": "&#39;", '"': "&#34;"})


def _escape(budget: Budget, value: Value) -> str:
    text = text_of(budget, value)
    budget.room(5 * len(text))
    budget.spend(len(text) >> 2)
    return budget.text(text.translate(_HTML))


def _urlencode(text: str) -> str:
    return urllib.parse.quote(text, safe="/")


def _format(budget: Budget, value: Value, *args: Value, **kwargs: Value) -> str:
    return printf(budget, text_of(budget, value), (kwargs,) if kwargs else args)


def _wordcount(text: str) -> int:
    return len(re.findall(r"\w+", text))


def _string(budget: Budget, value: Value) -> str:
    return text_of(budget, value)


def _safe(budget: Budget, value: Value) -> Value:
    # Nothing is ever HTML-escaped here, so there is nothing to protect from it.
    return value if isinstance(value, str) else text_of(budget, value)


def _from_json(budget: Budget, value: Value) -> Value:
    """Not of jinja2: DeepSeek's templates expect it from the program that runs them."""
    if not isinstance(value, str):
        raise TemplateError("from_json needs a string")
    budget.room_for_items(value.count(",") + value.count("[") + value.count("{") + 1)
    budget.text(value)
    return _adopt(json.loads(value))


def _adopt(value: Value) -> Value:
    """Make the outermost list or dict the template's own."""
    if isinstance(value, dict):
        return OwnDict(value)
    return OwnList(value) if isinstance(value, list) else value


# --- numbers -----------------------------------------------------------------------------------


def _abs(budget: Budget, value: Value) -> Value:
    return abs(value)


def _int(budget: Budget, value: Value, default: Value = 0, base: int = 10) -> Value:
    if isinstance(value, Undefined):
        raise value.fail()
    try:
        if isinstance(value, str):
            if len(value) > MAX_NUMERAL:
                return default
            return checked_int(int(value, base))
        return int(value)
    except (TypeError, ValueError):
        return _int_of_float(value, default)


def _int_of_float(value: Value, default: Value) -> Value:
    try:
        return checked_int(int(float(value)))
    except (TypeError, ValueError, OverflowError):
        return default


def _float(budget: Budget, value: Value, default: Value = 0.0) -> Value:
    if isinstance(value, Undefined):
        raise value.fail()
    try:
        return float(value)
    except (TypeError, ValueError):
        return default


def _round(budget: Budget, value: Value, precision: int = 0, method: str = "common") -> Value:
    if abs(precision) > MAX_PRECISION:  # round() would compute 10**precision
        raise TemplateError(f"round knows {MAX_PRECISION} digits")
    if method == "common":
        return round(value, precision)
    if method not in ("ceil", "floor"):
        raise TemplateError("round knows the methods common, ceil and floor")
    scale = 10.0**precision
    return (math.ceil if method == "ceil" else math.floor)(value * scale) / scale


# --- lists -------------------------------------------------------------------------------------


def _length(budget: Budget, value: Value) -> int:
    return len(value)


def _list(budget: Budget, value: Value) -> Value:
    return new_list(budget, iterable(value))


def _first(budget: Budget, value: Value) -> Value:
    for first in iterable(value):
        return first
    return Undefined("the first item of an empty sequence")


def _last(budget: Budget, value: Value) -> Value:
    for last in reversed(iterable(value) or ()):
        return last
    return Undefined("the last item of an empty sequence")


def _join(budget: Budget, value: Value, d: Value = "", attribute: Value = None) -> str:
    values = _values(budget, value, attribute)
    return join(budget, text_of(budget, d), [text_of(budget, each) for each in values])


def _reverse(budget: Budget, value: Value) -> Value:
    if isinstance(value, str):
        return budget.text(value[::-1])
    values = new_list(budget, iterable(value))
    values.reverse()
    return Selected(values)


def _sum(budget: Budget, value: Value, attribute: Value = None, start: Value = 0) -> Value:
    total = start
    for each in _values(budget, value, attribute):
        total = add(budget, total, each)
    return total


def _batch(budget: Budget, value: Value, linecount: int, fill_with: Value = None) -> Value:
    values = new_list(budget, iterable(value))
    size = max(1, _width(linecount))
    rows = [OwnList(values[start : start + size]) for start in range(0, len(values), size)]
    if rows and fill_with is not None:
        rows[-1].extend([fill_with] * (size - len(rows[-1])))
    return Selected(rows)


def _path(budget: Budget, attribute: Value, default: Value = None) -> Callable[[Value], Value]:
    """Return a function that looks up `attribute`: an index, or names and indexes with dots."""
    steps: list[Any] = [attribute]
    if isinstance(attribute, str):
        steps = [int(s) if s.isdecimal() else s for s in attribute.split(".", MAX_WIDTH)]

    def look_up(value: Value) -> Value:
        for step in steps:
            value = item(budget, value, step)
            if default is not None and isinstance(value, Undefined):
                return default
        return value

    return look_up


def _values(budget: Budget, value: Value, attribute: Value) -> list[Value]:
    values = new_list(budget, iterable(value))
    if attribute is None:
        return values
    look_up = _path(budget, attribute)
    return [look_up(each) for each in values]


def _fold_case(budget: Budget, value: Value, case_sensitive: Value) -> Value:
    if isinstance(value, str) and not case_sensitive:
        budget.spend(len(value) >> 6)
        return budget.text(value.lower())
    return value


def _sorted(
    budget: Budget, values: list[Value], keys: list[Value], reverse: Value = False
) -> list[Value]:
    """Return `values` in the order of their `keys`."""
    steps = budget.steps
    budget.walk(keys)
    budget.spend((steps - budget.steps) * len(keys).bit_length())
    order = sorted(range(len(keys)), key=keys.__getitem__, reverse=bool(reverse))
    return [values[index] for index in order]


def _sort(
    budget: Budget,
    value: Value,
    reverse: Value = False,
    case_sensitive: Value = False,
    attribute: Value = None,
) -> Value:
    values = new_list(budget, iterable(value))
    keys = _sort_keys(budget, values, attribute, case_sensitive)
    return OwnList(_sorted(budget, values, keys, reverse))


def _sort_keys(
    budget: Budget, values: list[Value], attribute: Value, case_sensitive: Value
) -> list[Value]:
    if attribute is None:
        return [_fold_case(budget, each, case_sensitive) for each in values]
    paths = attribute.split(",") if isinstance(attribute, str) else [attribute]
    look_ups = [_path(budget, path) for path in paths]
    return [
        tuple(_fold_case(budget, look_up(each), case_sensitive) for look_up in look_ups)
        for each in values
    ]


def _extreme(choose: Callable[..., Value]) -> Function:
    def call(
        budget: Budget, value: Value, case_sensitive: Value = False, attribute: Value = None
    ) -> Value:
        values = new_list(budget, iterable(value))
        if not values:
            return Undefined("the extreme of an empty sequence")
        keys = _sort_keys(budget, values, attribute, case_sensitive)
        budget.walk(keys)
        return values[choose(range(len(keys)), key=keys.__getitem__)]

    return call


def _unique(
    budget: Budget, value: Value, case_sensitive: Value = False, attribute: Value = None
) -> Value:
    values = new_list(budget, iterable(value))
    keys = _sort_keys(budget, values, attribute, case_sensitive)
    budget.walk(keys)
    first: dict[Value, Value] = {}
    for key, each in zip(keys, values):
        first.setdefault(key, each)
    return Selected(first.values())


def _items(budget: Budget, value: Value) -> Value:
    if isinstance(value, Undefined):
        return Selected()
    if not isinstance(value, dict):
        raise TemplateError("only a mapping has items")
    budget.room_for_items(len(value))
    return Selected(value.items())


def _dictsort(
    budget: Budget,
    value: Value,
    case_sensitive: Value = False,
    by: str = "key",
    reverse: Value = False,
) -> Value:
    if by not in ("key", "value"):
        raise TemplateError("dictsort sorts by 'key' or 'value'")
    if not isinstance(value, dict):
        raise TemplateError("dictsort needs a mapping")
    pairs = new_list(budget, value.items())
    position = 0 if by == "key" else 1
    keys = [_fold_case(budget, pair[position], case_sensitive) for pair in pairs]
    return OwnList(_sorted(budget, pairs, keys, reverse))


# --- filters that take a filter or a test --------------------------------------------------------


def _items_of(budget: Budget, value: Value) -> OwnList:
    """Return the items that map and select go through: none, for anything false."""
    return new_list(budget, iterable(value)) if value else OwnList()


def _map(budget: Budget, value: Value, *args: Value, **kwargs: Value) -> Value:
    values = _items_of(budget, value)
    if not args and "attribute" in kwargs:
        function = _path(budget, kwargs.pop("attribute"), kwargs.pop("default", None))
        if kwargs:
            raise TemplateError(f"map has no argument '{shorten(next(iter(kwargs)))}'")
        return Selected([function(each) for each in values])
    if not args:
        raise TemplateError("map needs a filter or attribute=")
    name, rest = args[0], args[1:]
    chosen = _named(FILTERS, name, "filter")
    budget.spend(4 * len(values))
    return Selected([chosen(budget, each, *rest, **kwargs) for each in values])


def _named(table: Mapping[str, Function], name: Value, what: str) -> Function:
    if isinstance(name, str) and name in table:
        return table[name]
    raise TemplateError(f"there is no {what} named '{shorten(str(name))}'")


def _select(by_attribute: bool, keep: bool) -> Function:
    """Return select, reject, selectattr or rejectattr."""

    def call(budget: Budget, value: Value, *args: Value, **kwargs: Value) -> Value:
        values = _items_of(budget, value)
        if by_attribute and not args:
            raise TemplateError("selectattr and rejectattr need the name of an attribute")
        look_up = _path(budget, args[0]) if by_attribute else None
        test, rest = _condition(args[1:] if by_attribute else args)
        chosen = Selected()
        budget.spend(4 * len(values))
        for each in values:
            if bool(test(budget, look_up(each) if look_up else each, *rest, **kwargs)) is keep:
                chosen.append(each)
        return chosen

    return call


def _condition(args: Any) -> Any:
    """Return the test that `args` names, and its arguments; without any, truth is the test."""
    if not args:
        return (lambda budget, value: value), ()
    return _named(TESTS, args[0], "test"), args[1:]


def _default(
    budget: Budget, value: Value, default_value: Value = "", boolean: Value = False
) -> Value:
    if isinstance(value, Undefined) or (boolean and not value):
        return default_value
    return value


def _attr(budget: Budget, value: Value, name: Value) -> Value:
    return method(value, text_of(budget, name))


FILTERS: dict[str, Function] = {
    "abs": _abs,
    "attr": _attr,
    "batch": _batch,
    "capitalize": _on_text(str.capitalize),
    "center": _center,
    "count": _length,
    "d": _default,
    "default": _default,
    "dictsort": _dictsort,
    "e": _escape,
    "escape": _escape,
    "first": _first,
    "float": _float,
    "forceescape": _escape,
    "format": _format,
    "from_json": _from_json,
    "fromjson": _from_json,
    "indent": _indent,
    "int": _int,
    "items": _items,
    "join": _join,
    "last": _last,
    "length": _length,
    "list": _list,
    "lower": _on_text(str.lower),
    "map": _map,
    "max": _extreme(max),
    "min": _extreme(min),
    "reject": _select(by_attribute=False, keep=False),
    "rejectattr": _select(by_attribute=True, keep=False),
    "replace": _replace,
    "reverse": _reverse,
    "round": _round,
    "safe": _safe,
    "select": _select(by_attribute=False, keep=True),
    "selectattr": _select(by_attribute=True, keep=True),
    "sort": _sort,
    "string": _string,
    "sum": _sum,
    "title": _slowly(_title),
    "tojson": json_of,
    "trim": _trim,
    "truncate": _truncate,
    "unique": _unique,
    "upper": _on_text(str.upper),
    "urlencode": _slowly(_urlencode),
    "wordcount": _slowly(_wordcount),
}
