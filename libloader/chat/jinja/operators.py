"""Operators on values: Python's own, with sizes checked before anything grows."""

from __future__ import annotations

import operator
from typing import Callable

from libloader.chat.jinja.limits import MAX_INT_BITS, Budget
from libloader.chat.jinja.printf import printf
from libloader.chat.jinja.values import (
    OwnList,
    Undefined,
    Value,
    checked_int,
    new_list,
    type_name,
)
from libloader.errors import TemplateError

NUMBERS = (bool, int, float)
Operator = Callable[[Budget, Value, Value], Value]


def add(budget: Budget, left: Value, right: Value) -> Value:
    if isinstance(left, str) and isinstance(right, str):
        budget.room(len(left) + len(right))
        return budget.text(left + right)
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        budget.room_for_items(len(left) + len(right))
        joined = left + right  # type: ignore[operator]  # a list and a tuple: TypeError, as it is
        return OwnList(joined) if isinstance(joined, list) else joined
    return _calculate(operator.add, left, right)


def multiply(budget: Budget, left: Value, right: Value) -> Value:
    if isinstance(left, int) and isinstance(right, (str, list, tuple)):
        left, right = right, left
    if isinstance(right, int) and isinstance(left, (str, list, tuple)):
        return _repeat(budget, left, right)
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
    return _calculate(operator.mul, left, right)


def _repeat(budget: Budget, value: Value, times: int) -> Value:
    length = len(value) * max(times, 0)
    if isinstance(value, str):
        budget.room(length)
        return budget.text(value * times)
    budget.room_for_items(length)
    return OwnList(value * times) if isinstance(value, list) else value * times


def power(budget: Budget, left: Value, right: Value) -> Value:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * max(right, 0))
    return _calculate(operator.pow, left, right)


def modulo(budget: Budget, left: Value, right: Value) -> Value:
    if isinstance(left, str):
        return printf(budget, left, right if isinstance(right, tuple) else (right,))
    return _calculate(operator.mod, left, right)


def _check_bits(n_bits: int) -> None:
    if n_bits > MAX_INT_BITS:
        raise TemplateError("the template computes too large an integer")


def _calculate(function: Callable[[Value, Value], Value], left: Value, right: Value) -> Value:
    for value in (left, right):
        if isinstance(value, Undefined):
            raise value.fail()
    if not isinstance(left, NUMBERS) or not isinstance(right, NUMBERS):
        raise TemplateError(
            f"cannot calculate with {type_name(left)} and {type_name(right)}; ~ joins any values"
        )
    return checked_int(function(left, right))


def _arithmetic(function: Callable[[Value, Value], Value]) -> Operator:
    return lambda budget, left, right: _calculate(function, left, right)


ARITHMETIC: dict[str, Operator] = {
    "+": add,
    "-": _arithmetic(operator.sub),
    "*": multiply,
    "/": _arithmetic(operator.truediv),
    "//": _arithmetic(operator.floordiv),
    "%": modulo,
    "**": power,
}


def equal(budget: Budget, left: Value, right: Value) -> bool:
    budget.compare(left, right)
    return bool(left == right)


def contains(budget: Budget, part: Value, whole: Value) -> bool:
    """Return `part in whole`."""
    if isinstance(whole, str):
        if isinstance(part, str):
            budget.search(whole, part)
        return part in whole
    if isinstance(whole, dict):
        return budget.key(part) in whole
    if isinstance(part, str):
        budget.spend(len(whole) * (1 + (len(part) >> 8)))
    else:
        budget.walk(part)
        budget.walk(whole)
    return part in whole


def _ordering(function: Callable[[Value, Value], bool]) -> Operator:
    def compare(budget: Budget, left: Value, right: Value) -> bool:
        for value in (left, right):
            if isinstance(value, Undefined):
                raise value.fail()
        budget.compare(left, right)
        return function(left, right)

    return compare


COMPARISONS: dict[str, Operator] = {
    "==": equal,
    "!=": lambda budget, left, right: not equal(budget, left, right),
    "<": _ordering(operator.lt),
    "<=": _ordering(operator.le),
    ">": _ordering(operator.gt),
    ">=": _ordering(operator.ge),
    "in": contains,
    "not in": lambda budget, part, whole: not contains(budget, part, whole),
}


def negative(value: Value) -> Value:
    if isinstance(value, Undefined):
        raise value.fail()
    return -value


def positive(value: Value) -> Value:
    if isinstance(value, Undefined):
        raise value.fail()
    return +value


def take_slice(budget: Budget, value: Value, part: slice) -> Value:
    if isinstance(value, Undefined):
        raise value.fail()
    if not isinstance(value, (str, list, tuple, range)):
        raise TemplateError(f"{type_name(value)} cannot be sliced")
    for bound in (part.start, part.stop, part.step):
        if isinstance(bound, Undefined):
            raise bound.fail()
    if isinstance(value, str):
        return budget.text(value[part])
    length = len(range(*part.indices(len(value))))
    if isinstance(value, range):
        return value[part]
    budget.room_for_items(length)
    return new_list(budget, value[part]) if isinstance(value, list) else value[part]
