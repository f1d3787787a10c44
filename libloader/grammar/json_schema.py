"""JSON Schema to GBNF: a grammar whose every document is valid.

    to_grammar(schema)   one schema; its rule is `root`
    embed(schemas)       several, each under a rule name of its own, for a larger grammar
    json_object()        any JSON object

A schema becomes rules, one per set of schemas that hold at the same time (`choices`): what they
leave of each type is written as an expression (`containers` for objects and arrays). What cannot be
written is named in `warnings`, and `needs_check` says that the finished text must pass `validate`.
Generation is narrower than validity: members come in declared order, numbers and free values have
bounds that end.

Laws:
- A schema is a 400 with its path, or gives a grammar that libllama reads safely (`gbnf.check`).
- No recursion over the schema: rules wait in a queue.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Callable, NamedTuple

from libloader.errors import GrammarInvalid
from libloader.grammar import choices, expr, gbnf, numbers
from libloader.grammar.choices import Parts, schema_of
from libloader.grammar.containers import array_node, object_node
from libloader.grammar.expr import NEVER, Node, Ref, Text, alt, repeat, seq
from libloader.grammar.formats import FORMATS, INTEGER_RANGES, UNCHECKED
from libloader.grammar.pattern import Inexpressible, compile_pattern, within_lengths
from libloader.grammar.strings import (
    CHAR_NAME,
    MAX_COUNT,
    SPACE,
    STRING_NAME,
    StringWriter,
    common_rules,
    literal,
    other_than,
)
from libloader.grammar.vocabulary import Document, Place, Schema, is_number

MAX_GRAMMAR_BYTES = 4 * gbnf.MAX_TEXT_BYTES  # ours is regular text; it grows with the schema
MAX_KNOWN_BYTES = 128 << 10  # of schemas whose grammar is remembered
MAX_LISTED = 400  # multiples within limits that are written one by one
MAX_STEP = 32  # divisors that a machine over digits tests
FREE_DEPTH = 6  # objects and lists within each other, where a schema says nothing
OBJECT_DEPTH = 16  # the same for json_object()
NOT_ENFORCED = "cannot be enforced while generating; the finished text is checked"
ESCAPED_NAME = 40  # characters of a property that its rule's name shows


class Grammar(NamedTuple):
    """`warnings` are sentences; with `needs_check`, the text must pass `validate` as well."""

    text: str
    warnings: tuple[str, ...] = ()
    needs_check: bool = False


def to_grammar(schema: Schema, *, strict: bool = False, param: str = "response_format") -> Grammar:
    """Return a grammar for the documents of a schema.

    Raises GrammarInvalid, naming the path, for what is no schema, has no document, or is too
    large; with `strict` also for a keyword that the grammar cannot express.
    """
    return _compiled({gbnf.ROOT: schema}, strict, param, is_whole=True)


def embed(schemas: Mapping[str, Schema], *, strict: bool = False, param: str = "tools") -> Grammar:
    """Return rules under the names of `schemas`, to be joined with a text that has a root.

    Other rules have names that begin with one of these, or are the same in every grammar, such as
    `strings.common_rules`; a larger grammar keeps clear of them by names that begin with `format-`.
    """
    return _compiled(schemas, strict, param, is_whole=False)


def json_object() -> Grammar:
    """Return the grammar of any JSON object; its nesting is bounded, so that it ends."""
    rules = {gbnf.ROOT: Ref(_free_name("object", OBJECT_DEPTH)), **common_rules()}
    rules.update(_free_rules(OBJECT_DEPTH))
    return Grammar(expr.write(expr.prune(rules, (gbnf.ROOT,))))


def _compiled(schemas: Mapping[str, Schema], strict: bool, param: str, is_whole: bool) -> Grammar:
    """Compile schemas, or know the grammar from an equal request before."""
    try:
        text = json.dumps(schemas)
    except (RecursionError, TypeError, ValueError):  # the compiler says what is wrong
        text = ""
    if not text or len(text) > MAX_KNOWN_BYTES:
        return _compile(schemas, strict, param, is_whole)
    return _compile_text(text, strict, param, is_whole)


@functools.lru_cache(maxsize=gbnf.N_KNOWN)
def _compile_text(text: str, strict: bool, param: str, is_whole: bool) -> Grammar:
    return _compile(json.loads(text), strict, param, is_whole)


def _compile(schemas: Mapping[str, Schema], strict: bool, param: str, is_whole: bool) -> Grammar:
    rules: dict[str, Node] = {**common_rules(), **_free_rules(FREE_DEPTH)}
    writer = StringWriter(rules, next(iter(schemas)))
    warnings: dict[str, None] = {}
    needs_check = False
    for name, schema in schemas.items():
        assert name not in rules, f"{name} is the name of a rule that every grammar has"
        compiler = Compiler(Document(schema, param=param), rules, writer, strict)
        compiler.run(name)
        warnings.update(compiler.warnings)
        needs_check |= compiler.needs_check
    pruned = expr.prune(rules, tuple(schemas))
    for name in schemas:
        if name not in pruned:
            where = "" if name == gbnf.ROOT else f" of {name}"
            raise GrammarInvalid(f"no JSON value fits the schema{where}", param=param)
    text = expr.write(pruned)
    whole = text if is_whole else f"{gbnf.ROOT} ::= {' | '.join(schemas)}\n{text}"
    gbnf.check(whole, max_bytes=MAX_GRAMMAR_BYTES, param=param)
    return Grammar(text, tuple(warnings), needs_check)


def _free_name(kind: str, depth: int) -> str:
    return f"any-{kind}-{depth}"


def _free_rules(depth: int) -> dict[str, Node]:
    """Return rules for any value: `any-value-N` holds at most N objects and lists in a row."""
    rules: dict[str, Node] = {}
    scalar = alt(Ref(STRING_NAME), numbers.NUMBER, Text("true"), Text("false"), Text("null"))
    rules[_free_name("value", 0)] = scalar
    for n in range(1, depth + 1):
        value = Ref(_free_name("value", n - 1))
        member = seq(Ref(STRING_NAME), SPACE, ":", SPACE, value)
        for kind, item, ends in (("object", member, "{}"), ("array", value, "[]")):
            more = repeat(seq(",", SPACE, item), 0, None)
            some = expr.optional(seq(item, more, SPACE))
            rules[_free_name(kind, n)] = seq(ends[0], SPACE, some, ends[1])
        kinds = (Ref(_free_name(kind, n)) for kind in ("object", "array"))
        rules[_free_name("value", n)] = alt(Ref(_free_name("value", 0)), *kinds)
    return rules


class Compiler:
    """Turns the schemas of one document into rules; `run` fills in what was asked for."""

    def __init__(
        self, document: Document, rules: dict[str, Node], writer: StringWriter, strict: bool
    ) -> None:
        self.document, self.writer = document, writer
        self.warnings: dict[str, None] = {}
        self.needs_check = False
        self._rules, self._strict = rules, strict
        self._names: dict[tuple[int, ...], str] = {}
        self._queue: list[tuple[str, Parts]] = []
        self._numbers: dict[str, int] = {}  # of rules that would bear the same name
        self._prefix = ""

    def run(self, name: str) -> None:
        """Write the rule `name` for the document, and all rules that it needs."""
        self._prefix = name
        for keyword, path, why in self.document.ignored:
            self._note(keyword, path, f"{why}; it is ignored")
        root = self.document.root
        place = self.document.place(root) if isinstance(root, dict) else None
        self._rules[name] = Ref(_free_name("value", FREE_DEPTH)) if root is True else NEVER
        if place is not None:
            self._claim((place,), name)
        while self._queue:
            own, parts = self._queue.pop(0)
            self._rules[own] = self._node(parts, own)

    def rule(self, parts: Parts, hint: str) -> Node:
        """Return a reference to the rule for `parts`, which is written later."""
        if any(place.schema is False for place in parts):
            return NEVER
        parts = tuple(
            choices.target(self.document, place) for place in parts if place.schema is not True
        )
        if any(isinstance(place.schema, bool) for place in parts):  # behind a reference
            return self.rule(parts, hint)
        if not parts:
            return Ref(_free_name("value", FREE_DEPTH))
        known = self._names.get(_identity(parts))
        return Ref(known or self._claim(parts, self._fresh_name(hint)))

    def report(self, keyword: str, path: str) -> None:
        """Note that the grammar does not express a keyword; an error if it has to."""
        self._note(keyword, path, NOT_ENFORCED)
        self.needs_check = True

    def note_format(self, name: str, path: str) -> None:
        self._note(f"format {name[:80]!r}", path, "is not known; it is ignored")

    def _note(self, keyword: str, path: str, problem: str) -> None:
        if self._strict:
            self.document.fail(f"{keyword} {problem.partition(';')[0]}, as strict demands", path)
        self.warnings[f"{keyword} at {path} {problem}"] = None

    def _claim(self, parts: Parts, name: str) -> str:
        if len(self._rules) > gbnf.MAX_RULES:
            self.document.fail(f"it needs over {gbnf.MAX_RULES} rules", "#")
        self._names[_identity(parts)] = name
        self._rules[name] = NEVER
        self._queue.append((name, parts))
        return name

    def _fresh_name(self, hint: str) -> str:
        """Return an unused rule name that shows where in the schema it comes from."""
        last = hint.removeprefix(self._prefix)
        plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in last)
        name = f"{self._prefix}-{plain.strip('-')[-ESCAPED_NAME:]}".rstrip("-")
        while name in self._rules:
            base = name.rstrip("0123456789").rstrip("-")
            self._numbers[base] = self._numbers.get(base, 1) + 1
            name = f"{base}-{self._numbers[base]}"
        return name

    def _node(self, parts: Parts, hint: str) -> Node:
        flat = choices.flatten(self.document, parts)
        if flat is None:
            return NEVER
        if not flat:
            return Ref(_free_name("value", FREE_DEPTH))
        values = choices.listed_values(self.document, flat)
        if values is not None:
            return alt(*(literal(value) for value in values))
        branches = choices.split(self.document, flat, self.report)
        if branches is not None:
            return alt(*(self.rule(branch, hint) for branch in branches))
        return alt(*(_TYPES[name](self, flat, hint) for name in choices.types_of(flat)))


def _identity(parts: Parts) -> tuple[int, ...]:
    return tuple(sorted({id(place.schema) for place in parts}))


# One function per type: (compiler, flattened parts, hint) -> what these parts leave of it.


def _null(compiler: Compiler, parts: Parts, hint: str) -> Node:
    return NEVER if None in choices.excluded_values(parts) else Text("null")


def _boolean(compiler: Compiler, parts: Parts, hint: str) -> Node:
    excluded = [v for v in choices.excluded_values(parts) if isinstance(v, bool)]
    return alt(*(literal(value) for value in (True, False) if value not in excluded))


def _object(compiler: Compiler, parts: Parts, hint: str) -> Node:
    _report_excluded(compiler, parts, dict)
    if not _keywords(parts) - {"type", "not"}:
        return Ref(_free_name("object", FREE_DEPTH))
    return object_node(compiler, parts, hint)


def _array(compiler: Compiler, parts: Parts, hint: str) -> Node:
    _report_excluded(compiler, parts, list)
    if not _keywords(parts) - {"type", "not"}:
        return Ref(_free_name("array", FREE_DEPTH))
    return array_node(compiler, parts, hint)


def _keywords(parts: Parts) -> set[str]:
    return {keyword for place in parts for keyword in schema_of(place)}


def _report_excluded(compiler: Compiler, parts: Parts, kind: type) -> None:
    if any(isinstance(value, kind) for value in choices.excluded_values(parts)):
        _report(compiler, parts, "not")


def _report(compiler: Compiler, parts: Parts, keyword: str) -> None:
    for place in parts:
        if keyword in schema_of(place):
            compiler.report(keyword, place.path)


def _integer(compiler: Compiler, parts: Parts, hint: str) -> Node:
    return _numeric(compiler, parts, hint, is_whole=True)


def _number(compiler: Compiler, parts: Parts, hint: str) -> Node:
    return _numeric(compiler, parts, hint, is_whole=False)


def _numeric(compiler: Compiler, parts: Parts, hint: str, is_whole: bool) -> Node:
    if any(is_number(value) for value in choices.excluded_values(parts)):
        _report(compiler, parts, "not")
    bounds = choices.bounds_of(parts)
    for place in parts:
        name = schema_of(place).get("format")
        if name in INTEGER_RANGES:
            is_whole = True
            bounds.above(INTEGER_RANGES[name][0], False)
            bounds.below(INTEGER_RANGES[name][1], False)
    schemas = [schema_of(place) for place in parts]
    steps = [Decimal(repr(s["multipleOf"])) for s in schemas if "multipleOf" in s]
    if not is_whole and not all(step == int(step) for step in steps):
        return _fractional(compiler, parts, bounds, steps)
    if not is_whole and not steps:
        return _plain_number(compiler, parts, bounds)
    whole = [int(step) for step in steps if step == int(step)]
    if any(step != int(step) and 1 % step for step in steps):
        _report(compiler, parts, "multipleOf")
    return _whole(compiler, parts, hint, bounds, whole)


def _fractional(
    compiler: Compiler, parts: Parts, bounds: choices.Bounds, steps: list[Decimal]
) -> Node:
    node = numbers.fraction_steps(steps[0])
    if node is None or len(steps) > 1 or bounds.low is not None or bounds.high is not None:
        _report(compiler, parts, "multipleOf")
        return _plain_number(compiler, parts, bounds)
    return node


def _plain_number(compiler: Compiler, parts: Parts, bounds: choices.Bounds) -> Node:
    if bounds.low is None and bounds.high is None:
        return numbers.NUMBER
    node = numbers.decimals(
        bounds.low, bounds.high, open_low=bounds.low_open, open_high=bounds.high_open
    )
    if node == NEVER and not choices.is_empty(bounds):  # too fine, or too far, for plain digits
        _report_limits(compiler, parts)
        return numbers.NUMBER
    return node


def _report_limits(compiler: Compiler, parts: Parts) -> None:
    for keyword in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        _report(compiler, parts, keyword)


def _whole(
    compiler: Compiler, parts: Parts, hint: str, bounds: choices.Bounds, steps: list[int]
) -> Node:
    low, high = choices.whole_bounds(bounds)
    step = 1
    for other in steps:
        step = step * other // math.gcd(step, other)
    if step == 1:
        return _in_range(compiler, parts, low, high)
    if low is not None and high is not None and (high - low) // step < MAX_LISTED:
        first = -(-low // step) * step
        return alt(*(Text(str(value)) for value in range(first, high + 1, step)))
    is_open = high is None and (low is None or 0 <= low <= step)
    if is_open and step <= MAX_STEP:
        machine = compiler.writer.machine(step, is_signed=low is None)
        return expr.alt(Text("0"), machine) if not low else machine
    _report(compiler, parts, "multipleOf")
    return _in_range(compiler, parts, low, high)


def _in_range(compiler: Compiler, parts: Parts, low: int | None, high: int | None) -> Node:
    if low is None and high is None:
        return numbers.INTEGER
    node = numbers.integers(low, high)
    if node == NEVER and (low is None or high is None or low <= high):
        _report_limits(compiler, parts)
        return numbers.INTEGER
    return node


def _string(compiler: Compiler, parts: Parts, hint: str) -> Node:
    lows = [int(schema_of(p)["minLength"]) for p in parts if "minLength" in schema_of(p)]
    highs = [int(schema_of(p)["maxLength"]) for p in parts if "maxLength" in schema_of(p)]
    low, high = max(lows, default=0), min(highs) if highs else None
    if low > MAX_COUNT:
        compiler.document.fail(f"minLength is over {MAX_COUNT}", parts[0].path)
    if high is not None and high > MAX_COUNT:
        _report(compiler, parts, "maxLength")
        high = None
    excluded = [v for v in choices.excluded_values(parts) if isinstance(v, str)]
    shape = _shape(compiler, parts, low, high)
    if shape is not None:
        if any(_may_match(parts, value) for value in excluded):
            _report(compiler, parts, "not")
        return compiler.writer.quoted(shape)
    if high is not None and high < low:
        return NEVER
    if not excluded:
        is_free = not low and high is None
        characters = compiler.writer.counted(Ref(CHAR_NAME), low, high)
        return Ref(STRING_NAME) if is_free else seq('"', characters, '"')
    if any(low <= len(v) and (high is None or len(v) <= high) for v in excluded):
        if not low and high is None:
            return seq('"', other_than(excluded), '"')
        _report(compiler, parts, "not")
    return seq('"', compiler.writer.counted(Ref(CHAR_NAME), low, high), '"')


def _shape(compiler: Compiler, parts: Parts, low: int, high: int | None) -> Node | None:
    """Return the first pattern or format that a grammar can hold; the others are reported."""
    shape: Node | None = None
    for keyword, expression_of in (("pattern", _pattern_of), ("format", _format_of)):
        for place in parts:
            if keyword not in schema_of(place):
                continue
            node = expression_of(compiler, place)
            if shape is None:
                shape = node
            elif node is not None and node != shape:
                compiler.report(keyword, place.path)
    if shape is None:
        return None
    try:
        return within_lengths(shape, low, high)
    except Inexpressible:
        for keyword in ("minLength", "maxLength"):
            _report(compiler, parts, keyword)
        return shape


def _pattern_of(compiler: Compiler, place: Place) -> Node | None:
    pattern = compile_pattern(schema_of(place)["pattern"])
    try:
        return pattern.expression()
    except Inexpressible:
        compiler.report("pattern", place.path)
        return None


def _format_of(compiler: Compiler, place: Place) -> Node | None:
    name = schema_of(place)["format"]
    known = FORMATS.get(name)
    if known is not None and known.pattern:
        return compile_pattern(f"^(?:{known.pattern})$").expression()
    if known is not None:
        compiler.report("format", place.path)
    elif name not in UNCHECKED and name not in INTEGER_RANGES:
        compiler.note_format(name, place.path)
    return None


def _may_match(parts: Parts, value: str) -> bool:
    for schema in map(schema_of, parts):
        if "pattern" in schema and not compile_pattern(schema["pattern"]).search(value):
            return False
        known = FORMATS.get(schema.get("format", ""))
        if known is not None and not known.is_right(value):
            return False
    return True


_TYPES: dict[str, Callable[[Compiler, Parts, str], Node]] = {
    "null": _null,
    "boolean": _boolean,
    "object": _object,
    "array": _array,
    "number": _number,
    "integer": _integer,
    "string": _string,
}
