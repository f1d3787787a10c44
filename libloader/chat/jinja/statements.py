"""The nodes of statements; each runs itself in a Scope and writes to a Sink.

`run` returns a signal: "" to go on, BREAK or CONTINUE on its way to the loop around it.
`for` and the bodies that make a scope of their own are the places where depth and time can grow,
so they charge the Budget; a Body charges for the expressions of its own statements.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable, NamedTuple, Protocol, Union

from libloader.chat.jinja.expressions import Arguments, Expression
from libloader.chat.jinja.limits import Budget
from libloader.chat.jinja.scope import Scope, Sink
from libloader.chat.jinja.values import (
    Function,
    Namespace,
    Object,
    OwnDict,
    Undefined,
    Value,
    iterable,
    missing,
    new_list,
    shorten,
    text_of,
)
from libloader.errors import TemplateError, TemplateRaised

GO_ON, BREAK, CONTINUE = "", "break", "continue"
# What Python itself raises when a template misuses its values; AttributeError would be our bug.
ERRORS = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RuntimeError)


class Statement(Protocol):
    @property
    def line(self) -> int: ...

    def run(self, scope: Scope, out: Sink) -> str: ...


class Body(NamedTuple):
    """Statements in a row. `cost` is the number of nodes outside of inner bodies."""

    statements: tuple[Statement, ...]
    cost: int

    def run(self, scope: Scope, out: Sink) -> str:
        budget = scope.budget
        budget.spend(self.cost)
        for statement in self.statements:
            made = budget.pending
            try:
                signal = statement.run(scope, out)
            except ERRORS as error:
                raise located(error, statement.line) from None
            if budget.pending != made:
                budget.settle(made)
            if signal:
                return signal
        return GO_ON


def located(error: Exception, line: int) -> TemplateError:
    """Return `error` as a TemplateError that has a line, unless the template raised it itself."""
    if isinstance(error, TemplateError):
        told = error.line or isinstance(error, TemplateRaised)
        return error if told else TemplateError(error.reason, line=line)
    return TemplateError(shorten(str(error)) or type(error).__name__, line=line)


def capture(body: Body, scope: Scope) -> str:
    """Run `body` in a scope of its own and return what it writes."""
    sink = Sink(scope.budget)
    run_inner(body, scope.inner(), sink)
    return sink.text()


def run_inner(body: Body, scope: Scope, out: Sink) -> str:
    scopes = scope.budget.scopes
    scopes.append(scope)
    signal = body.run(scope, out)
    scopes.pop()
    return signal


class Text(NamedTuple):
    text: str
    line: int

    def run(self, scope: Scope, out: Sink) -> str:
        out.write(self.text)
        return GO_ON


class Output(NamedTuple):
    """`{{ value }}`"""

    value: Expression
    line: int

    def run(self, scope: Scope, out: Sink) -> str:
        value = self.value.evaluate(scope)
        out.write(value if type(value) is str else text_of(scope.budget, value))
        return GO_ON


class Do(NamedTuple):
    """`{% do value %}`: evaluated, not written."""

    value: Expression
    line: int

    def run(self, scope: Scope, out: Sink) -> str:
        self.value.evaluate(scope)
        return GO_ON


class If(NamedTuple):
    branches: tuple[tuple[Expression, Body], ...]
    otherwise: Body | None
    line: int

    def run(self, scope: Scope, out: Sink) -> str:
        for test, body in self.branches:
            if test.evaluate(scope):
                return body.run(scope, out)
        return self.otherwise.run(scope, out) if self.otherwise else GO_ON


class NameTarget(NamedTuple):
    name: str

    def assign(self, scope: Scope, value: Value) -> None:
        scope[self.name] = value


class FieldTarget(NamedTuple):
    """`{% set ns.field = ... %}`"""

    name: str
    field: str

    def assign(self, scope: Scope, value: Value) -> None:
        namespace = scope[self.name]
        if not isinstance(namespace, Namespace):
            raise TemplateError(f"cannot set a field of '{self.name}': it is not a namespace")
        namespace.names[self.field] = value


class TupleTarget(NamedTuple):
    """`a, b`"""

    targets: tuple[Any, ...]

    def assign(self, scope: Scope, value: Value) -> None:
        values = tuple(iterable(value)) if len(iterable(value)) == len(self.targets) else ()
        if len(values) != len(self.targets):
            raise TemplateError(f"expected {len(self.targets)} values, got {len(value)}")
        for target, each in zip(self.targets, values):
            target.assign(scope, each)


Target = Union[NameTarget, FieldTarget, TupleTarget]


class Set(NamedTuple):
    target: Target
    value: Expression
    line: int

    def run(self, scope: Scope, out: Sink) -> str:
        self.target.assign(scope, self.value.evaluate(scope))
        return GO_ON


class Captured(NamedTuple):
    """Stands in an expression for the text of a body: `{% set x|trim %}...{% endset %}`."""

    body: Body

    def evaluate(self, scope: Scope) -> Value:
        return capture(self.body, scope)


class Inner(NamedTuple):
    """A body with a scope of its own, perhaps with names: `with`, `generation`."""

    names: tuple[tuple[Target, Expression], ...]
    body: Body
    line: int

    def run(self, scope: Scope, out: Sink) -> str:
        inner = scope.inner()
        for target, value in self.names:
            target.assign(inner, value.evaluate(scope))
        return run_inner(self.body, inner, out)


class Signal(NamedTuple):
    """`{% break %}` and `{% continue %}`"""

    signal: str
    line: int

    def run(self, scope: Scope, out: Sink) -> str:
        return self.signal


# --- loops ---------------------------------------------------------------------------------------


class Loop(Object):
    """The variable `loop`. For a recursive loop, calling it runs the body over another list."""

    __slots__ = ("items", "index", "depth", "again", "changed")

    def __init__(
        self, items: Sequence[Value], depth: int, again: Callable[..., Value] | None
    ) -> None:
        self.items = items
        self.index = 0
        self.depth = depth
        self.again = again
        self.changed: Value = None  # what loop.changed() saw last, in a tuple

    def __repr__(self) -> str:
        return f"<loop {self.index + 1}/{len(self.items)}>"

    def attribute(self, name: str) -> Value:
        field = LOOP_FIELDS.get(name)
        return field(self) if field else missing(name)

    def parts(self) -> Sequence[Value]:
        return (self.items, self.changed)

    def neighbour(self, offset: int) -> Value:
        index = self.index + offset
        if 0 <= index < len(self.items):
            return self.items[index]
        return Undefined("there is no previous item" if offset < 0 else "there is no next item")

    def call(self, budget: Budget, args: list[Value], kwargs: dict[str, Value]) -> Value:
        if self.again is None:
            raise TemplateError("only a loop marked 'recursive' can be called")
        return self.again(*args, self.depth + 1, **kwargs)

    def cycle(self, budget: Budget, *values: Value) -> Value:
        if not values:
            raise TemplateError("loop.cycle needs values")
        return values[self.index % len(values)]

    def has_changed(self, budget: Budget, *values: Value) -> bool:
        budget.compare(values, self.changed)
        same = self.changed == values
        self.changed = values
        return not same


LOOP_FIELDS: dict[str, Callable[[Loop], Value]] = {
    "index": lambda loop: loop.index + 1,
    "index0": lambda loop: loop.index,
    "revindex": lambda loop: len(loop.items) - loop.index,
    "revindex0": lambda loop: len(loop.items) - loop.index - 1,
    "first": lambda loop: loop.index == 0,
    "last": lambda loop: loop.index == len(loop.items) - 1,
    "length": lambda loop: len(loop.items),
    "previtem": lambda loop: loop.neighbour(-1),
    "nextitem": lambda loop: loop.neighbour(1),
    "depth": lambda loop: loop.depth + 1,
    "depth0": lambda loop: loop.depth,
    "cycle": lambda loop: Function("cycle", loop.cycle),
    "changed": lambda loop: Function("changed", loop.has_changed),
}


class For(NamedTuple):
    target: Target
    values: Expression
    test: Expression | None
    body: Body
    otherwise: Body | None
    recursive: bool
    test_cost: int  # nodes of `test`
    frames: int  # that one more level of a recursive loop takes
    line: int

    def run(self, scope: Scope, out: Sink) -> str:
        return self._loop(scope, out, self.values.evaluate(scope), 0)

    def _loop(self, scope: Scope, out: Sink, values: Value, depth: int) -> str:
        items = self._chosen(scope, values)
        if not items:
            return run_inner(self.otherwise, scope.inner(), out) if self.otherwise else GO_ON
        again = self._again(scope) if self.recursive else None
        loop = Loop(items, depth, again)
        scopes = scope.budget.scopes
        scopes.append(scope)
        for loop.index, value in enumerate(items):
            scopes[-1] = inner = scope.inner()
            inner["loop"] = loop
            self.target.assign(inner, value)
            if self.body.run(inner, out) == BREAK:
                break
        scopes.pop()
        return GO_ON

    def _chosen(self, scope: Scope, values: Value) -> Sequence[Value]:
        """Return the items to loop over: those that pass the inline `if`."""
        if not isinstance(values, (list, tuple)):
            values = new_list(scope.budget, iterable(values))
        if self.test is None:
            return values  # type: ignore[no-any-return]
        inner, chosen = scope.inner(), []
        scope.budget.room_for_items(len(values))
        scope.budget.spend(len(values) * self.test_cost)
        for value in values:
            self.target.assign(inner, value)
            if self.test.evaluate(inner):
                chosen.append(value)
        return chosen

    def _again(self, scope: Scope) -> Callable[..., Value]:
        def again(values: Value, depth: int) -> Value:
            budget = scope.budget
            budget.enter(self.frames)
            sink = Sink(budget)
            self._loop(scope, sink, values, depth)
            budget.frames -= self.frames
            return sink.text()

        return again


# --- macros --------------------------------------------------------------------------------------


class Macro(NamedTuple):
    """`{% macro name(parameters) %}`: binds a Callee that remembers the scope it is written in."""

    name: str
    parameters: tuple[tuple[str, Expression | None], ...]
    body: Body
    extras: tuple[str, ...]  # which of varargs, kwargs and caller its body uses
    cost: int  # of a call without its body: nodes of the defaults, and the call itself
    frames: int  # that one call takes
    line: int

    def run(self, scope: Scope, out: Sink) -> str:
        scope[self.name] = Callee(self, scope)
        return GO_ON


class CallBlock(NamedTuple):
    """`{% call(x) macro(...) %}body{% endcall %}`: the macro reaches the body as caller(x)."""

    function: Expression
    arguments: Arguments
    caller: Macro
    line: int

    def run(self, scope: Scope, out: Sink) -> str:
        function = self.function.evaluate(scope)
        if not isinstance(function, Callee):
            raise TemplateError("call needs a macro")
        args, kwargs = self.arguments.evaluate(scope)
        kwargs["caller"] = Callee(self.caller, scope)
        out.write(function.call(scope.budget, args, kwargs))
        return GO_ON


class Callee(Object):
    """A macro as a value."""

    __slots__ = ("macro", "scope")

    def __init__(self, macro: Macro, scope: Scope) -> None:
        self.macro = macro
        self.scope = scope

    def __repr__(self) -> str:
        return f"<Macro {self.macro.name!r}>"

    def parts(self) -> Sequence[Value]:
        return tuple(self.scope.values())

    def attribute(self, name: str) -> Value:
        if name == "name":
            return self.macro.name
        if name == "arguments":
            return tuple(parameter for parameter, _ in self.macro.parameters)
        return missing(name)

    def call(self, budget: Budget, args: list[Value], kwargs: dict[str, Value]) -> Value:
        macro = self.macro
        budget.enter(macro.frames)
        budget.spend(macro.cost)
        sink = Sink(budget)
        run_inner(macro.body, self._bind(args, dict(kwargs)), sink)
        budget.frames -= macro.frames
        return sink.text()

    def _bind(self, args: list[Value], kwargs: dict[str, Value]) -> Scope:
        macro, scope = self.macro, self.scope.inner()
        for index, (name, default) in enumerate(macro.parameters):
            if index < len(args):
                if name in kwargs:
                    raise TemplateError(f"{macro.name}() got '{name}' twice")
                scope[name] = args[index]
            elif name in kwargs:
                scope[name] = kwargs.pop(name)
            elif default is not None:
                scope[name] = default.evaluate(scope)
            else:
                scope[name] = Undefined(f"parameter '{name}'")
        self._bind_extras(scope, args[len(macro.parameters) :], kwargs)
        return scope

    def _bind_extras(self, scope: Scope, args: list[Value], kwargs: dict[str, Value]) -> None:
        extras, name = self.macro.extras, self.macro.name
        if "caller" in extras:
            scope["caller"] = kwargs.pop("caller", Undefined("'caller'"))
        if "varargs" in extras:
            scope["varargs"] = tuple(args)
        elif args:
            raise TemplateError(f"{name}() got too many arguments")
        if "kwargs" in extras:
            scope["kwargs"] = OwnDict(kwargs)
        elif kwargs:
            raise TemplateError(f"{name}() has no parameter '{shorten(next(iter(kwargs)))}'")
