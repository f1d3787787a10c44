"""Tokens -> nodes. Recursive descent over statements, precedence climbing over expressions.

Precedence, loosest first, as jinja2 has it:
    a if b else c | or | and | not | == != < <= > >= in not-in | + - | ~ | * / // % | ** |
    filters and tests | unary - + | .name [index] (call)

`_enter` counts how deep the parser itself is nested, so that no source can exhaust Python's
stack; `measure` then counts how deep running the nodes will be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Callable

from libloader.chat.jinja import expressions as ex
from libloader.chat.jinja import statements as st
from libloader.chat.jinja.checks import TESTS
from libloader.chat.jinja.filters import FILTERS
from libloader.chat.jinja.lexer import Token, tokenize
from libloader.chat.jinja.limits import MAX_NAMES, MAX_NESTING
from libloader.chat.jinja.measure import cost, frames
from libloader.chat.jinja.operators import ARITHMETIC, COMPARISONS, negative, positive
from libloader.chat.jinja.values import shorten
from libloader.errors import TemplateError

OR, AND, NOT, COMPARE, ADD, CONCAT, MULTIPLY, POWER = range(1, 9)
LEVELS: Mapping[str, int] = {
    "or": OR, "and": AND, "in": COMPARE, "not": COMPARE,  # not: of `not in`
    "==": COMPARE, "!=": COMPARE, "<": COMPARE, "<=": COMPARE, ">": COMPARE, ">=": COMPARE,
    "+": ADD, "-": ADD, "~": CONCAT,
    "*": MULTIPLY, "/": MULTIPLY, "//": MULTIPLY, "%": MULTIPLY, "**": POWER,
}  # fmt: skip
CONSTANTS: Mapping[str, Any] = {
    "true": True, "True": True, "false": False, "False": False, "none": None, "None": None,
}  # fmt: skip
# After a test's name these go on with the expression around it; anything else is its argument.
AFTER_TEST = frozenset(("or", "and", "else", "if", "not", "in", "is"))
NO_ARGUMENTS = ex.Arguments()
NOTHING = ex.Constant("")
COST_OF_CALL = 15  # a macro call takes as long as so many nodes
EXTRAS = ("varargs", "kwargs", "caller")
REFUSED = frozenset(("include", "import", "from", "extends", "block", "autoescape", "trans"))


def parse(source: str) -> st.Body:
    """Return the statements of a template. TemplateError names the line of what is wrong."""
    return _Parser(tokenize(source)).template()


class _Parser:
    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.position = 0
        self.depth = 0
        self.n_loops = 0  # around this place, within the macro if there is one
        self.names: set[str] = set()  # that the template assigns to
        self.used: set[str] = set()  # of EXTRAS, by the macro being read
        self.unknown: list[ex.Filter | ex.Test] = []  # sure to be reached

    # --- tokens ----------------------------------------------------------------------------------

    @property
    def token(self) -> Token:
        return self.tokens[self.position]

    def _next(self) -> Token:
        token = self.tokens[self.position]
        self.position += 1
        return token

    def _at(self, value: str) -> bool:
        token = self.token
        return token.value == value and token.kind in ("name", "operator")

    def _skip(self, value: str) -> bool:
        """Go past the name or operator `value` if it is here."""
        if self._at(value):
            self.position += 1
            return True
        return False

    def _expect(self, value: str) -> None:
        if not self._skip(value):
            raise self._error(f"expected '{value}' and found {self._found()}")

    def _name(self) -> str:
        if self.token.kind != "name":
            raise self._error(f"expected a name and found {self._found()}")
        return str(self._next().value)

    def _end_tag(self) -> None:
        if self.token.kind != "end":
            raise self._error(f"expected the end of the tag and found {self._found()}")
        self.position += 1

    def _found(self) -> str:
        kind, value = self.token.kind, self.token.value
        if kind in ("name", "operator", "string", "integer", "float"):
            return f"'{shorten(str(value))}'"
        return {"end": "the end of the tag", "eof": "the end of the template"}.get(kind, kind)

    def _error(self, reason: str, line: int = 0) -> TemplateError:
        return TemplateError(reason, line=line or self.token.line)

    @contextmanager
    def _enter(self) -> Iterator[None]:
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise self._error("the template is nested too deeply")
        yield
        self.depth -= 1

    # --- statements ------------------------------------------------------------------------------

    def template(self) -> st.Body:
        body, _ = self._body()
        if self.unknown:
            raise ex.unknown(self.unknown[0])
        frames(body)
        return body

    def _body(self, *ends: str) -> tuple[st.Body, str]:
        """Read up to a tag named in `ends`; go past that name and return it."""
        opened_at = self.tokens[self.position - 1].line
        found: list[st.Statement] = []
        self.depth += 1
        while self.token.kind != "eof":
            token = self._next()
            if token.kind == "text":
                found.append(st.Text(token.value, token.line))
            elif token.kind == "print":
                found.append(st.Output(self._tuple(), token.line))
                self._end_tag()
            elif self.token.value in ends and self.token.kind == "name":
                self.depth -= 1
                return self._finished(found), self._name()
            else:
                found.append(self._statement())
        if ends:
            raise self._error(f"expected {{% {ends[-1]} %}} for the block that begins", opened_at)
        return self._finished(found), ""

    @staticmethod
    def _finished(found: list[st.Statement]) -> st.Body:
        return st.Body(tuple(found), cost(found))

    def _block(self, end: str) -> st.Body:
        """Read the rest of an opening tag, the body, and the whole tag `end`."""
        self._end_tag()
        body, _ = self._body(end)
        self._end_tag()
        return body

    def _statement(self) -> st.Statement:
        line = self.token.line
        name = self._name()
        if name in REFUSED:
            raise self._error(f"'{name}' is not available in chat templates", line)
        if name not in STATEMENTS:
            hint = "closes nothing here" if name.startswith("end") else "is not a known tag"
            raise self._error(f"'{shorten(name)}' {hint}", line)
        if self.depth > MAX_NESTING:
            raise self._error("the template is nested too deeply", line)
        return STATEMENTS[name](self, line)

    def _if(self, line: int) -> st.Statement:
        n_unknown = len(self.unknown)
        branches: list[tuple[ex.Expression, st.Body]] = []
        tag, otherwise = "if", None
        while tag in ("if", "elif"):
            test = self._tuple()
            self._end_tag()
            body, tag = self._body("elif", "else", "endif")
            branches.append((test, body))
        if tag == "else":
            self._end_tag()
            otherwise, _ = self._body("endif")
        self._end_tag()
        del self.unknown[n_unknown:]
        return st.If(tuple(branches), otherwise, line)

    def _for(self, line: int) -> st.Statement:
        target = self._target()
        self._expect("in")
        values = self._tuple(ternary=False)
        test = self._expression() if self._skip("if") else None
        recursive = self._skip("recursive")
        self._end_tag()
        self.n_loops += 1
        body, tag = self._body("else", "endfor")
        self.n_loops -= 1
        otherwise = self._block("endfor") if tag == "else" else None
        if tag != "else":
            self._end_tag()
        test_cost = cost((test,)) if test else 0
        again = frames(test or (), body)
        return st.For(target, values, test, body, otherwise, recursive, test_cost, again, line)

    def _signal(self, line: int) -> st.Statement:
        signal = str(self.tokens[self.position - 1].value)
        if not self.n_loops:
            raise self._error(f"'{signal}' outside of a loop", line)
        self._end_tag()
        return st.Signal(signal, line)

    def _set(self, line: int) -> st.Statement:
        target = self._target(fields=True)
        if self._skip("="):
            value = self._tuple()
            self._end_tag()
            return st.Set(target, value, line)
        return st.Set(target, self._filtered_block([], "endset"), line)

    def _filter_block(self, line: int) -> st.Statement:
        filters = [self._filter(NOTHING)]
        return st.Output(self._filtered_block(filters, "endfilter"), line)

    def _filtered_block(self, filters: list[ex.Filter], end: str) -> ex.Expression:
        """Read `|filter|... %}body{% end %}`: the text of the body through all `filters`."""
        while self._skip("|"):
            filters.append(self._filter(NOTHING))
        value: ex.Expression = st.Captured(self._block(end))
        for node in filters:
            value = node._replace(value=value)
        return value

    def _do(self, line: int) -> st.Statement:
        value = self._tuple()
        self._end_tag()
        return st.Do(value, line)

    def _with(self, line: int) -> st.Statement:
        names: list[tuple[st.Target, ex.Expression]] = []
        while self.token.kind != "end":
            if names:
                self._expect(",")
            target = self._target()
            self._expect("=")
            names.append((target, self._expression()))
        return st.Inner(tuple(names), self._block("endwith"), line)

    def _generation(self, line: int) -> st.Statement:
        return st.Inner((), self._block("endgeneration"), line)

    def _macro(self, line: int) -> st.Statement:
        name = self._assigned(self._name())
        return self._macro_from(name, self._parameters(), "endmacro", line)

    def _macro_from(self, name: str, parameters: Any, end: str, line: int) -> st.Macro:
        used, self.used = self.used, set()
        n_loops, self.n_loops = self.n_loops, 0
        body = self._block(end)
        extras = tuple(extra for extra in EXTRAS if extra in self.used)
        self.used, self.n_loops = used, n_loops
        call_cost = COST_OF_CALL + cost(parameters)
        return st.Macro(name, parameters, body, extras, call_cost, frames(parameters, body), line)

    def _parameters(self) -> tuple[tuple[str, ex.Expression | None], ...]:
        self._expect("(")
        found: list[tuple[str, ex.Expression | None]] = []
        while not self._skip(")"):
            if found:
                self._expect(",")
            name = self._assigned(self._name())
            default = self._expression() if self._skip("=") else None
            if default is None and found and found[-1][1] is not None:
                raise self._error(f"parameter '{name}' needs a default, as the one before it")
            found.append((name, default))
        return tuple(found)

    def _call_block(self, line: int) -> st.Statement:
        parameters = self._parameters() if self._at("(") else ()
        call = self._postfix(self._primary())
        if not isinstance(call, ex.Call):
            raise self._error("expected a call of a macro", line)
        caller = self._macro_from("caller", parameters, "endcall", line)
        return st.CallBlock(call.function, call.arguments, caller, line)

    # --- targets of assignments ------------------------------------------------------------------

    def _target(self, fields: bool = False) -> st.Target:
        """Read `name`, `name.field` if allowed, or several of them with commas."""
        parenthesised = self._skip("(")
        found = [self._one_target(fields)]
        is_tuple = False
        while self._skip(","):
            is_tuple = True
            if self._at("in") or self._at("=") or self._at(")"):
                break
            found.append(self._one_target(fields))
        if parenthesised:
            self._expect(")")
        return st.TupleTarget(tuple(found)) if is_tuple else found[0]

    def _one_target(self, fields: bool) -> st.Target:
        if self._at("("):
            with self._enter():
                return self._target(fields)
        line = self.token.line
        name = self._name()
        if name in CONSTANTS:
            raise self._error(f"cannot assign to '{name}'", line)
        if fields and self._skip("."):
            return st.FieldTarget(name, self._name())
        return st.NameTarget(self._assigned(name))

    def _assigned(self, name: str) -> str:
        self.names.add(name)
        if len(self.names) > MAX_NAMES:
            raise self._error("the template assigns to too many names")
        return name

    # --- expressions -----------------------------------------------------------------------------

    def _tuple(self, ternary: bool = True) -> ex.Expression:
        """Read an expression, or several with commas: a tuple."""
        read = self._expression if ternary else lambda: self._binary(OR)
        first = read()
        if not self._at(","):
            return first
        items = [first]
        while self._skip(","):
            if self.token.kind == "end" or self._at(")"):
                break
            items.append(read())
        return ex.TupleLiteral(tuple(items))

    def _expression(self) -> ex.Expression:
        n_unknown = len(self.unknown)
        value = self._binary(OR)
        while self._skip("if"):
            test = self._binary(OR)
            otherwise = None
            if self._skip("else"):
                with self._enter():
                    otherwise = self._expression()
            value = ex.Ternary(test, value, otherwise)
            del self.unknown[n_unknown:]
        return value

    def _level(self) -> int:
        """Return the precedence of the binary operator here, 0 if there is none."""
        if self.token.kind not in ("name", "operator"):
            return 0
        if self.token.value == "not" and self.tokens[self.position + 1].value != "in":
            return 0
        return LEVELS.get(self.token.value, 0)

    def _binary(self, lowest: int) -> ex.Expression:
        """Read an expression of operators of precedence `lowest` or tighter."""
        with self._enter():
            if lowest <= NOT and self._skip("not"):
                left: ex.Expression = ex.Unary(_not, self._binary(NOT))
            else:
                left = self._unary()
            while True:
                level = self._level()
                if level < lowest or level == 0:
                    return left
                left = self._chain(left, level)

    def _chain(self, left: ex.Expression, level: int) -> ex.Expression:
        """Read all operators of precedence `level` that follow `left`, as one node."""
        if level in JOINING:
            operands = [left]
            while self._level() == level:
                self._next()
                operands.append(self._binary(level + 1))
            return JOINING[level](tuple(operands))
        steps: list[tuple[ex.Operator, ex.Expression]] = []
        while self._level() == level:
            operator = self._operator()
            steps.append((operator, self._binary(level + 1)))
        if level == COMPARE:
            return ex.Comparison(left, tuple(steps))
        return ex.Arithmetic(left, tuple(steps))

    def _operator(self) -> ex.Operator:
        name = str(self._next().value)
        if name == "not":
            self._expect("in")
            name = "not in"
        return COMPARISONS[name] if name in COMPARISONS else ARITHMETIC[name]

    def _unary(self) -> ex.Expression:
        return self._filters_and_tests(self._signed())

    def _signed(self) -> ex.Expression:
        for sign, function in SIGNS.items():
            if self._skip(sign):
                with self._enter():
                    return ex.Unary(function, self._signed())
        return self._postfix(self._primary())

    def _primary(self) -> ex.Expression:
        token = self._next()
        if token.kind == "name":
            return self._name_or_constant(token)
        if token.kind == "string":
            return ex.Constant(self._adjacent_strings(token))
        if token.kind in ("integer", "float"):
            return ex.Constant(token.value)
        if token.kind == "operator" and token.value in BRACKETS:
            return BRACKETS[token.value](self)
        self.position -= 1
        raise self._error(f"expected a value and found {self._found()}")

    def _name_or_constant(self, token: Token) -> ex.Expression:
        if token.value in CONSTANTS:
            return ex.Constant(CONSTANTS[token.value])
        if token.value in EXTRAS:
            self.used.add(token.value)
        return ex.Name(token.value)

    def _adjacent_strings(self, first: Token) -> str:
        pieces = [first.value]
        while self.token.kind == "string":
            pieces.append(self._next().value)
        return "".join(pieces)

    def _parenthesised(self) -> ex.Expression:
        if self._skip(")"):
            return ex.TupleLiteral(())
        value = self._tuple()
        self._expect(")")
        return value

    def _list(self) -> ex.Expression:
        items: list[ex.Expression] = []
        while not self._skip("]"):
            if items:
                self._expect(",")
                if self._skip("]"):
                    break
            items.append(self._expression())
        return ex.ListLiteral(tuple(items))

    def _dict(self) -> ex.Expression:
        pairs: list[tuple[ex.Expression, ex.Expression]] = []
        while not self._skip("}"):
            if pairs:
                self._expect(",")
                if self._skip("}"):
                    break
            key = self._expression()
            self._expect(":")
            pairs.append((key, self._expression()))
        return ex.DictLiteral(tuple(pairs))

    # --- what follows a value --------------------------------------------------------------------

    def _postfix(self, value: ex.Expression) -> ex.Expression:
        while True:
            if self._skip("."):
                value = self._dotted(value)
            elif self._skip("["):
                value = self._subscript(value)
            elif self._skip("("):
                value = ex.Call(value, self._arguments())
            else:
                return value

    def _dotted(self, value: ex.Expression) -> ex.Expression:
        if self.token.kind == "integer":
            return ex.Item(value, ex.Constant(self._next().value))
        return ex.Attribute(value, self._name())

    def _subscript(self, value: ex.Expression) -> ex.Expression:
        bounds: list[ex.Expression | None] = []
        while True:
            is_empty = self._at(":") or self._at("]")
            bounds.append(None if is_empty else self._tuple())
            if not self._skip(":"):
                break
        self._expect("]")
        if len(bounds) > 3:
            raise self._error("a slice has at most three parts")
        if len(bounds) > 1:
            return ex.Slice(value, bounds[0], bounds[1], bounds[2] if len(bounds) > 2 else None)
        if bounds[0] is None:
            raise self._error("expected an index")
        return ex.Item(value, bounds[0])

    def _arguments(self) -> ex.Arguments:
        """Read the rest of `(a, b, name=c, *d, **e)`."""
        positional: list[ex.Expression] = []
        named: dict[str, ex.Expression] = {}
        rest: dict[str, ex.Expression] = {}
        first = True
        while not self._skip(")"):
            if not first:
                self._expect(",")
                if self._skip(")"):
                    break
            first = False
            self._argument(positional, named, rest)
        if not (positional or named or rest):
            return NO_ARGUMENTS
        return ex.Arguments(tuple(positional), tuple(named.items()), rest.get("*"), rest.get("**"))

    def _argument(
        self,
        positional: list[ex.Expression],
        named: dict[str, ex.Expression],
        rest: dict[str, ex.Expression],
    ) -> None:
        if self._at("*") or self._at("**"):
            stars = str(self._next().value)
            rest[stars] = self._expression()
        elif self.token.kind == "name" and self.tokens[self.position + 1][:2] == ("operator", "="):
            name = self._name()
            self._expect("=")
            named[name] = self._expression()
        elif named or rest:
            raise self._error("a positional argument follows a named one")
        else:
            positional.append(self._expression())

    def _filters_and_tests(self, value: ex.Expression) -> ex.Expression:
        while True:
            if self._skip("|"):
                value = self._filter(value)
            elif self._skip("is"):
                value = self._test(value)
            elif self._skip("("):  # of a filter's result
                value = ex.Call(value, self._arguments())
            else:
                return value

    def _filter(self, value: ex.Expression) -> ex.Filter:
        line = self.token.line
        name = self._dotted_name()
        arguments = self._arguments() if self._skip("(") else NO_ARGUMENTS
        node = ex.Filter(value, name, FILTERS.get(name), arguments, line)
        if node.function is None:
            self.unknown.append(node)
        return node

    def _test(self, value: ex.Expression) -> ex.Expression:
        line = self.token.line
        negated = self._skip("not")
        name = self._dotted_name()
        arguments = self._test_arguments()
        node = ex.Test(value, name, TESTS.get(name), arguments, line)
        if node.function is None:
            self.unknown.append(node)
        return ex.Unary(_not, node) if negated else node

    def _dotted_name(self) -> str:
        name = self._name()
        while self._skip("."):
            name += "." + self._name()
        return name

    def _test_arguments(self) -> ex.Arguments:
        """Read `(...)` or one value without parentheses."""
        if self._skip("("):
            return self._arguments()
        token = self.token
        is_value = token.kind in ("string", "integer", "float") or (
            token.kind == "operator" and token.value in ("[", "{")
        )
        if is_value or (token.kind == "name" and token.value not in AFTER_TEST):
            return ex.Arguments((self._postfix(self._primary()),))
        return NO_ARGUMENTS


def _not(value: Any) -> bool:
    return not value


JOINING: Mapping[int, Callable[[Any], ex.Expression]] = {
    OR: ex.Or,
    AND: ex.And,
    CONCAT: ex.Concatenation,
}
SIGNS: Mapping[str, Callable[[Any], Any]] = {"-": negative, "+": positive}
BRACKETS: Mapping[str, Callable[[_Parser], ex.Expression]] = {
    "(": _Parser._parenthesised,
    "[": _Parser._list,
    "{": _Parser._dict,
}
STATEMENTS: Mapping[str, Callable[[_Parser, int], st.Statement]] = {
    "break": _Parser._signal,
    "call": _Parser._call_block,
    "continue": _Parser._signal,
    "do": _Parser._do,
    "filter": _Parser._filter_block,
    "for": _Parser._for,
    "generation": _Parser._generation,
    "if": _Parser._if,
    "macro": _Parser._macro,
    "set": _Parser._set,
    "with": _Parser._with,
}
