"""The tests of jinja2: what may follow `is`. Each takes the Budget and the value first."""

from __future__ import annotations

from typing import Callable

from libloader.chat.jinja.limits import CONTAINERS, Budget
from libloader.chat.jinja.operators import COMPARISONS, modulo
from libloader.chat.jinja.values import Object, Undefined, Value, text_of

Function = Callable[..., Value]


def _is_sequence(budget: Budget, value: Value) -> bool:
    return isinstance(value, (str, list, tuple, dict, range, Undefined))


def _is_iterable(budget: Budget, value: Value) -> bool:
    return isinstance(value, (str, range, Undefined, *CONTAINERS))


def _is_number(budget: Budget, value: Value) -> bool:
    return isinstance(value, (int, float))  # bool is an int, as jinja2 has it


def _divisible_by(budget: Budget, value: Value, num: Value) -> bool:
    return bool(modulo(budget, value, num) == 0)


def _parity(remainder: int) -> Function:
    return lambda budget, value: modulo(budget, value, 2) == remainder


TESTS: dict[str, Function] = {
    "boolean": lambda budget, value: isinstance(value, bool),
    "callable": lambda budget, value: isinstance(value, Object),
    "defined": lambda budget, value: not isinstance(value, Undefined),
    "divisibleby": _divisible_by,
    "escaped": lambda budget, value: False,
    "even": _parity(0),
    "false": lambda budget, value: value is False,
    "float": lambda budget, value: isinstance(value, float),
    "integer": lambda budget, value: type(value) is int,
    "iterable": _is_iterable,
    "lower": lambda budget, value: text_of(budget, value).islower(),
    "mapping": lambda budget, value: isinstance(value, dict),
    "none": lambda budget, value: value is None,
    "number": _is_number,
    "odd": _parity(1),
    "sameas": lambda budget, value, other: value is other,
    "sequence": _is_sequence,
    "string": lambda budget, value: isinstance(value, str),
    "true": lambda budget, value: value is True,
    "undefined": lambda budget, value: isinstance(value, Undefined),
    "upper": lambda budget, value: text_of(budget, value).isupper(),
}

_COMPARING = {
    "==": ("eq", "equalto", "=="),
    "!=": ("ne", "!="),
    "<": ("lt", "lessthan", "<"),
    "<=": ("le", "<="),
    ">": ("gt", "greaterthan", ">"),
    ">=": ("ge", ">="),
    "in": ("in",),
}
for _operator, _names in _COMPARING.items():
    for _name in _names:
        TESTS[_name] = COMPARISONS[_operator]
