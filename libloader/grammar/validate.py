"""A JSON Schema validator: judges finished documents, and knows nothing of grammars.

    problems(schema, value)     what is wrong with a value; empty = valid
    text_problems(schema, text) the same for JSON text

The vocabulary is that of draft 2020-12, with what older drafts and OpenAPI 3.0 wrote otherwise.
`format` is asserted for the formats of `formats.FORMATS`.

Laws:
- One function per keyword, in a table; each yields the sentences that are wrong.
- Linear in document times schema, but for oneOf in oneOf; MAX_VISITS bounds that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Callable, NamedTuple

from libloader.errors import GrammarInvalid
from libloader.grammar import formats
from libloader.grammar.pattern import compile_pattern
from libloader.grammar.vocabulary import Document, Place, Schema, is_integer, is_number, step

MAX_VISITS = 1_000_000
MAX_DEPTH = 250  # schemas within schemas at one time; each costs Python three frames
MAX_PROBLEMS = 20
REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


class Problem(NamedTuple):
    """`path` is a JSON pointer into the document, "" for all of it."""

    path: str
    keyword: str
    message: str

    def __str__(self) -> str:
        return f"{self.path or 'the document'}: {self.message}"


def problems(schema: Schema, value: object, *, document: Document | None = None) -> list[Problem]:
    """Return what is wrong with `value`, MAX_PROBLEMS at most."""
    return Validator(document or Document(schema)).problems(value)


def text_problems(schema: Schema, text: str, *, document: Document | None = None) -> list[Problem]:
    """Return what is wrong with a JSON text, which may not even be JSON."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        return [Problem("", "", f"this is not JSON: {error}")]
    return problems(schema, value, document=document)


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON value")


def canonical(value: Any) -> Any:
    """Return a hashable value that is equal for equal JSON: 1 is 1.0, but not true."""
    if isinstance(value, bool) or value is None:
        return (type(value).__name__, value)
    if isinstance(value, list):
        return ("list", tuple(map(canonical, value)))
    if isinstance(value, dict):
        return ("dict", frozenset((name, canonical(item)) for name, item in value.items()))
    return value


class Outcome:
    """What one schema found in one value: problems, and the members and items it spoke about."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.members: set[str] = set()
        self.items: set[int] = set()

    def absorb(self, other: Outcome) -> None:
        """Take over what a subschema said of the same value."""
        self.problems += other.problems
        if not other.problems:
            self.members |= other.members
            self.items |= other.items


class Visit(NamedTuple):
    """One schema meeting one value, as keyword functions see it."""

    validator: Validator
    schema: dict[str, Any]
    value: Any
    path: str
    place: Place
    outcome: Outcome
    depth: int
    trail: tuple[int, ...]  # schemas that led here by $ref and allOf alone

    def apply(self, *keys: str | int) -> Outcome:
        """Judge this same value by a schema inside this one."""
        inner = self.validator.document.inner(self.place, *keys)
        return self.validator.visit(inner, self.value, self.path, self.depth + 1)

    def follow(self, place: Place) -> None:
        """Judge this same value by a schema that holds as well; one that led here says no more."""
        trail = (*self.trail, id(self.schema))
        if id(place.schema) not in trail:
            found = self.validator.visit(place, self.value, self.path, self.depth + 1, trail)
            self.outcome.absorb(found)

    def child(self, key: str | int, *keys: str | int) -> None:
        """Judge a member or an item by a schema inside this one; it now counts as evaluated."""
        inner = self.validator.document.inner(self.place, *keys)
        path = step(self.path, key)
        found = self.validator.visit(inner, self.value[key], path, self.depth + 1)
        self.outcome.problems += found.problems
        if isinstance(key, str):
            self.outcome.members.add(key)
        else:
            self.outcome.items.add(key)

    def fits(self, value: object, *keys: str | int) -> bool:
        """Say whether another value is valid by a schema inside this one."""
        inner = self.validator.document.inner(self.place, *keys)
        return not self.validator.visit(inner, value, self.path, self.depth + 1).problems


class Validator:
    """Judges values by the schemas of one document."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self._n_visits = 0
        self._listed: dict[int, frozenset[Any]] = {}

    def problems(self, value: object) -> list[Problem]:
        root: Any = self.document.root
        place = self.document.place(root) if isinstance(root, dict) else Place(root, "#", "")
        return self.problems_at(place, value)

    def problems_at(self, place: Place, value: object) -> list[Problem]:
        """Return what is wrong with `value` by the schema at `place`."""
        self._n_visits = 0
        return self.visit(place, value, "", 0).problems[:MAX_PROBLEMS]

    def listed(self, values: list[Any]) -> frozenset[Any]:
        """Return the values of an `enum` of this document, to look one up."""
        if id(values) not in self._listed:
            self._listed[id(values)] = frozenset(map(canonical, values))
        return self._listed[id(values)]

    def visit(
        self, place: Place, value: object, path: str, depth: int, trail: tuple[int, ...] = ()
    ) -> Outcome:
        outcome = Outcome()
        self._n_visits += 1
        schema = place.schema
        if schema is False:
            outcome.problems.append(Problem(path, "false", "nothing is allowed here"))
        elif depth > MAX_DEPTH:
            outcome.problems.append(Problem(path, "", "nested too deep to be checked"))
        elif self._n_visits > MAX_VISITS:
            raise GrammarInvalid("checking a document by this schema takes too long")
        elif isinstance(schema, dict):
            visit = Visit(self, schema, value, path, place, outcome, depth, trail)
            for keyword, check in CHECKS.items():
                if keyword in schema:
                    for message in check(visit, schema[keyword]):
                        outcome.problems.append(Problem(path, keyword, message))
        return outcome


# Any value.

_IS_TYPE: dict[str, Callable[[object], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "number": is_number,
    "integer": is_integer,
}


def _type(visit: Visit, types: str | list[str]) -> Iterator[str]:
    names = [types] if isinstance(types, str) else list(types)
    if visit.schema.get("nullable") is True:
        names.append("null")
    if not any(_IS_TYPE[name](visit.value) for name in names):
        yield f"must be of type {' or '.join(names)}"


def _enum(visit: Visit, values: list[Any]) -> Iterator[str]:
    if canonical(visit.value) not in visit.validator.listed(values):
        yield "must be one of the listed values"


def _const(visit: Visit, value: object) -> Iterator[str]:
    if canonical(visit.value) != canonical(value):
        yield f"must be {json.dumps(value)[:80]}"


def _reference(keyword: str) -> Check:
    def check(visit: Visit, _: str) -> Iterator[str]:
        visit.follow(visit.validator.document.resolve(visit.schema, keyword))
        return iter(())

    return check


def _all_of(visit: Visit, schemas: list[Schema]) -> Iterator[str]:
    for i in range(len(schemas)):
        visit.follow(visit.validator.document.inner(visit.place, "allOf", i))
    return iter(())


def _any_of(visit: Visit, schemas: list[Schema]) -> Iterator[str]:
    found = [visit.apply("anyOf", i) for i in range(len(schemas))]
    fitting = [outcome for outcome in found if not outcome.problems]
    for outcome in fitting:
        visit.outcome.absorb(outcome)
    if not fitting:
        yield "must fit at least one option of anyOf"


def _one_of(visit: Visit, schemas: list[Schema]) -> Iterator[str]:
    found = [visit.apply("oneOf", i) for i in range(len(schemas))]
    fitting = [outcome for outcome in found if not outcome.problems]
    if len(fitting) == 1:
        visit.outcome.absorb(fitting[0])
    else:
        yield f"must fit exactly one option of oneOf, and fits {len(fitting)}"


def _not(visit: Visit, _: Schema) -> Iterator[str]:
    if not visit.apply("not").problems:
        yield "must not fit the schema under not"


def _if(visit: Visit, _: Schema) -> Iterator[str]:
    condition = visit.apply("if")
    branch = "else" if condition.problems else "then"
    if not condition.problems:
        visit.outcome.absorb(condition)
    if branch in visit.schema:
        visit.outcome.absorb(visit.apply(branch))
    return iter(())


# Numbers.


def _exact(value: float) -> Fraction:
    """Return the number as it is written in decimal: 0.3 is a multiple of 0.1."""
    return Fraction(repr(value))


def _limit(is_inside: Callable[[float, float], bool], words: str, strict: str = "") -> Check:
    def check(visit: Visit, limit: float | bool) -> Iterator[str]:
        if isinstance(limit, bool) or not is_number(visit.value):
            return  # draft 4: a flag that `minimum` or `maximum` looks at
        is_open = visit.schema.get(strict) is True
        if not is_inside(visit.value, limit) or (is_open and visit.value == limit):
            yield f"must be {words} {limit}"

    return check


def _multiple_of(visit: Visit, factor: float) -> Iterator[str]:
    if is_number(visit.value) and _exact(visit.value) % _exact(factor) != 0:
        yield f"must be a multiple of {factor}"


# Strings.


def _length(sign: int) -> Check:
    def check(visit: Visit, limit: float) -> Iterator[str]:
        if isinstance(visit.value, str) and (len(visit.value) - limit) * sign > 0:
            yield f"must have {'at most' if sign > 0 else 'at least'} {int(limit)} characters"

    return check


def _pattern(visit: Visit, pattern: str) -> Iterator[str]:
    if isinstance(visit.value, str) and not compile_pattern(pattern).search(visit.value):
        yield f"must match the pattern {pattern[:80]!r}"


def _format(visit: Visit, name: str) -> Iterator[str]:
    known = formats.FORMATS.get(name)
    if isinstance(visit.value, str) and known and not known.is_right(visit.value):
        yield f"must be a valid {name}"
    low, high = formats.INTEGER_RANGES.get(name, (visit.value, visit.value))
    if is_integer(visit.value) and not low <= visit.value <= high:
        yield f"must be a valid {name}"


# Arrays.


def _prefix_items(visit: Visit, schemas: list[Schema]) -> Iterator[str]:
    if isinstance(visit.value, list):
        for i in range(min(len(schemas), len(visit.value))):
            visit.child(i, "prefixItems", i)
    return iter(())


def _items(visit: Visit, schema: Schema | list[Schema]) -> Iterator[str]:
    if not isinstance(visit.value, list):
        return iter(())
    if isinstance(schema, list):  # before draft 2020-12: what prefixItems is now
        for i in range(len(visit.value)):
            if i < len(schema):
                visit.child(i, "items", i)
            elif "additionalItems" in visit.schema:
                visit.child(i, "additionalItems")
    else:
        for i in range(len(visit.schema.get("prefixItems", ())), len(visit.value)):
            visit.child(i, "items")
    return iter(())


def _contains(visit: Visit, _: Schema) -> Iterator[str]:
    if not isinstance(visit.value, list):
        return
    fitting = {i for i, item in enumerate(visit.value) if visit.fits(item, "contains")}
    visit.outcome.items |= fitting
    low, high = visit.schema.get("minContains", 1), visit.schema.get("maxContains")
    if len(fitting) < low:
        yield f"must contain {int(low)} items that fit contains"
    if high is not None and len(fitting) > high:
        yield f"must contain at most {int(high)} items that fit contains"


def _n_items(sign: int) -> Check:
    def check(visit: Visit, limit: float) -> Iterator[str]:
        if isinstance(visit.value, list) and (len(visit.value) - limit) * sign > 0:
            yield f"must have {'at most' if sign > 0 else 'at least'} {int(limit)} items"

    return check


def _unique_items(visit: Visit, is_wanted: bool) -> Iterator[str]:
    items = visit.value if is_wanted and isinstance(visit.value, list) else []
    if len(set(map(canonical, items))) < len(items):
        yield "must not have equal items"


def _unevaluated_items(visit: Visit, _: Schema) -> Iterator[str]:
    if isinstance(visit.value, list):
        for i in range(len(visit.value)):
            if i not in visit.outcome.items:
                visit.child(i, "unevaluatedItems")
    return iter(())


# Objects.


def _properties(visit: Visit, schemas: dict[str, Schema]) -> Iterator[str]:
    if isinstance(visit.value, dict):
        for name in visit.value:
            if name in schemas:
                visit.child(name, "properties", name)
    return iter(())


def _pattern_properties(visit: Visit, schemas: dict[str, Schema]) -> Iterator[str]:
    if isinstance(visit.value, dict):
        for pattern in schemas:
            for name in visit.value:
                if compile_pattern(pattern).search(name):
                    visit.child(name, "patternProperties", pattern)
    return iter(())


def _additional_properties(visit: Visit, _: Schema) -> Iterator[str]:
    if isinstance(visit.value, dict):
        patterns = visit.schema.get("patternProperties", ())
        for name in visit.value:
            is_declared = name in visit.schema.get("properties", ())
            if not is_declared and not any(compile_pattern(p).search(name) for p in patterns):
                visit.child(name, "additionalProperties")
    return iter(())


def _unevaluated_properties(visit: Visit, _: Schema) -> Iterator[str]:
    if isinstance(visit.value, dict):
        for name in visit.value:
            if name not in visit.outcome.members:
                visit.child(name, "unevaluatedProperties")
    return iter(())


def _property_names(visit: Visit, _: Schema) -> Iterator[str]:
    for name in visit.value if isinstance(visit.value, dict) else ():
        if not visit.fits(name, "propertyNames"):
            yield f"the name {name[:80]!r} is not allowed"


def _required(visit: Visit, names: list[str]) -> Iterator[str]:
    if isinstance(visit.value, dict):
        yield from (f"{name!r} is missing" for name in names if name not in visit.value)


def _n_properties(sign: int) -> Check:
    def check(visit: Visit, limit: float) -> Iterator[str]:
        if isinstance(visit.value, dict) and (len(visit.value) - limit) * sign > 0:
            yield f"must have {'at most' if sign > 0 else 'at least'} {int(limit)} properties"

    return check


def _dependent(keyword: str) -> Check:
    def check(visit: Visit, by_name: dict[str, Any]) -> Iterator[str]:
        for name, needed in by_name.items():
            if not isinstance(visit.value, dict) or name not in visit.value:
                continue
            if isinstance(needed, list):
                missing = [other for other in needed if other not in visit.value]
                yield from (f"{other!r} is missing, as {name!r} is there" for other in missing)
            else:
                visit.outcome.absorb(visit.apply(keyword, name))

    return check


Check = Callable[[Visit, Any], Iterator[str]]

# In the order of evaluation: what is unevaluated is known last.
CHECKS: dict[str, Check] = {
    "type": _type,
    "enum": _enum,
    "const": _const,
    **{keyword: _reference(keyword) for keyword in REFERENCES},
    "minimum": _limit(lambda v, limit: v >= limit, "at least", "exclusiveMinimum"),
    "maximum": _limit(lambda v, limit: v <= limit, "at most", "exclusiveMaximum"),
    "exclusiveMinimum": _limit(lambda v, limit: v > limit, "over"),
    "exclusiveMaximum": _limit(lambda v, limit: v < limit, "under"),
    "multipleOf": _multiple_of,
    "minLength": _length(-1),
    "maxLength": _length(1),
    "pattern": _pattern,
    "format": _format,
    "prefixItems": _prefix_items,
    "items": _items,
    "contains": _contains,
    "minItems": _n_items(-1),
    "maxItems": _n_items(1),
    "uniqueItems": _unique_items,
    "properties": _properties,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
    "propertyNames": _property_names,
    "required": _required,
    "minProperties": _n_properties(-1),
    "maxProperties": _n_properties(1),
    "dependentRequired": _dependent("dependentRequired"),
    "dependentSchemas": _dependent("dependentSchemas"),
    "dependencies": _dependent("dependencies"),
    "allOf": _all_of,
    "anyOf": _any_of,
    "oneOf": _one_of,
    "not": _not,
    "if": _if,
    "unevaluatedItems": _unevaluated_items,
    "unevaluatedProperties": _unevaluated_properties,
}
