"""The nodes of expressions; each evaluates itself in a Scope.

Laws:
- Evaluating takes one Python frame per nested node: loops here are written out, because a
  comprehension is one frame more and limits.MAX_FRAMES counts nodes.
- Operators are Python's on plain values, after operators.py has checked sizes.
- Python's own errors (TypeError, ...) pass through: statements.Body turns them into
  TemplateError with the line.
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple, Protocol

from libloader.chat.jinja.methods import attribute, item
from libloader.chat.jinja.operators import take_slice
from libloader.chat.jinja.scope import Scope
from libloader.chat.jinja.values import (
    Object,
    OwnDict,
    OwnList,
    Undefined,
    Value,
    shorten,
    text_of,
    type_name,
)
from libloader.errors import TemplateError

MAX_ARGUMENTS = 1000  # of one call, `*values` included


class Expression(Protocol):
    def evaluate(self, scope: Scope) -> Value: ...


class Constant(NamedTuple):
    value: Value

    def evaluate(self, scope: Scope) -> Value:
        return self.value


class Name(NamedTuple):
    name: str

    def evaluate(self, scope: Scope) -> Value:
        return scope[self.name]


class ListLiteral(NamedTuple):
    items: tuple[Expression, ...]

    def evaluate(self, scope: Scope) -> Value:
        scope.budget.room_for_items(len(self.items))
        values = OwnList()
        for node in self.items:
            values.append(node.evaluate(scope))
        return values


class TupleLiteral(NamedTuple):
    items: tuple[Expression, ...]

    def evaluate(self, scope: Scope) -> Value:
        scope.budget.room_for_items(len(self.items))
        values = []
        for node in self.items:
            values.append(node.evaluate(scope))
        return tuple(values)


class DictLiteral(NamedTuple):
    pairs: tuple[tuple[Expression, Expression], ...]

    def evaluate(self, scope: Scope) -> Value:
        scope.budget.room_for_items(2 * len(self.pairs))
        values = OwnDict()
        for key, value in self.pairs:
            values[scope.budget.key(key.evaluate(scope))] = value.evaluate(scope)
        return values


class Attribute(NamedTuple):
    """`base.name`: a method of the type first, then a key."""

    base: Expression
    name: str

    def evaluate(self, scope: Scope) -> Value:
        return attribute(self.base.evaluate(scope), self.name)


class Item(NamedTuple):
    """`base[key]`: a key or index first, then a method of the type."""

    base: Expression
    key: Expression

    def evaluate(self, scope: Scope) -> Value:
        return item(scope.budget, self.base.evaluate(scope), self.key.evaluate(scope))


class Slice(NamedTuple):
    base: Expression
    start: Expression | None
    stop: Expression | None
    step: Expression | None

    def evaluate(self, scope: Scope) -> Value:
        base = self.base.evaluate(scope)
        start = self.start.evaluate(scope) if self.start else None
        stop = self.stop.evaluate(scope) if self.stop else None
        step = self.step.evaluate(scope) if self.step else None
        return take_slice(scope.budget, base, slice(start, stop, step))


class Arguments(NamedTuple):
    """What stands between the parentheses of a call, a filter or a test."""

    positional: tuple[Expression, ...] = ()
    named: tuple[tuple[str, Expression], ...] = ()
    rest: Expression | None = None  # *values
    named_rest: Expression | None = None  # **values

    def evaluate(self, scope: Scope) -> tuple[list[Value], dict[str, Value]]:
        args: list[Value] = []
        for node in self.positional:
            args.append(node.evaluate(scope))
        kwargs: dict[str, Value] = {}
        for name, node in self.named:
            kwargs[name] = node.evaluate(scope)
        if self.rest:
            args.extend(self.rest.evaluate(scope))
        if self.named_rest:
            kwargs.update(self.named_rest.evaluate(scope))
        if len(args) + len(kwargs) > MAX_ARGUMENTS:
            raise TemplateError("too many arguments")
        return args, kwargs


class Call(NamedTuple):
    function: Expression
    arguments: Arguments

    def evaluate(self, scope: Scope) -> Value:
        function = self.function.evaluate(scope)
        if isinstance(function, Object):
            args, kwargs = self.arguments.evaluate(scope)
            scope.budget.spend(2)
            return function.call(scope.budget, args, kwargs)
        if isinstance(function, Undefined):
            raise function.fail()
        raise TemplateError(f"{type_name(function)} is not a function")


class Filter(NamedTuple):
    """`value|name(...)`. `function` is None for an unknown name: an error only if reached."""

    value: Expression
    name: str
    function: Callable[..., Value] | None
    arguments: Arguments
    line: int

    def evaluate(self, scope: Scope) -> Value:
        if self.function is None:
            raise unknown(self)
        value = self.value.evaluate(scope)
        args, kwargs = self.arguments.evaluate(scope)
        return self.function(scope.budget, value, *args, **kwargs)


class Test(NamedTuple):
    """`value is name ...`, with `function` as in Filter."""

    value: Expression
    name: str
    function: Callable[..., Value] | None
    arguments: Arguments
    line: int

    def evaluate(self, scope: Scope) -> Value:
        if self.function is None:
            raise unknown(self)
        value = self.value.evaluate(scope)
        args, kwargs = self.arguments.evaluate(scope)
        return bool(self.function(scope.budget, value, *args, **kwargs))


def unknown(node: Any) -> TemplateError:
    """Return the error for a Filter or Test without a function."""
    what = type(node).__name__.lower()
    return TemplateError(f"there is no {what} named '{shorten(node.name)}'", line=node.line)


class Unary(NamedTuple):
    function: Callable[[Value], Value]  # not, -, +
    operand: Expression

    def evaluate(self, scope: Scope) -> Value:
        return self.function(self.operand.evaluate(scope))


class And(NamedTuple):
    operands: tuple[Expression, ...]

    def evaluate(self, scope: Scope) -> Value:
        value: Value = True
        for node in self.operands:
            value = node.evaluate(scope)
            if not value:
                break
        return value


class Or(NamedTuple):
    operands: tuple[Expression, ...]

    def evaluate(self, scope: Scope) -> Value:
        value: Value = False
        for node in self.operands:
            value = node.evaluate(scope)
            if value:
                break
        return value


Operator = Callable[[Any, Value, Value], Value]  # of a Budget and two operands


class Comparison(NamedTuple):
    """`a < b == c ...`: true if each neighbouring pair is."""

    first: Expression
    steps: tuple[tuple[Operator, Expression], ...]

    def evaluate(self, scope: Scope) -> Value:
        left = self.first.evaluate(scope)
        value: Value = True
        for operator, node in self.steps:
            right = node.evaluate(scope)
            value = operator(scope.budget, left, right)
            if not value:
                break
            left = right
        return value


class Arithmetic(NamedTuple):
    """`a + b - c ...`: operators of one precedence, applied from the left."""

    first: Expression
    steps: tuple[tuple[Operator, Expression], ...]

    def evaluate(self, scope: Scope) -> Value:
        value = self.first.evaluate(scope)
        for operator, node in self.steps:
            value = operator(scope.budget, value, node.evaluate(scope))
        return value


class Concatenation(NamedTuple):
    """`a ~ b ...`: the texts of all operands."""

    operands: tuple[Expression, ...]

    def evaluate(self, scope: Scope) -> Value:
        budget, texts, length = scope.budget, [], 0
        for node in self.operands:
            text = text_of(budget, node.evaluate(scope))
            length += len(text)
            texts.append(text)
        budget.room(length)
        return budget.text("".join(texts))


class Ternary(NamedTuple):
    test: Expression
    value: Expression
    otherwise: Expression | None

    def evaluate(self, scope: Scope) -> Value:
        if self.test.evaluate(scope):
            return self.value.evaluate(scope)
        if self.otherwise:
            return self.otherwise.evaluate(scope)
        return Undefined("the missing else of an inline if")
