"""Schemas that hold at the same time, and the choices among them.

A value under a schema is under all that `$ref` and `allOf` lead to: together they are *parts*, a
tuple of places. Where parts contain a choice (`anyOf`, `if`, ...), `split` gives the branches: each
is again a tuple of parts, with that choice made. What cannot be split is reported and left out,
which only ever allows more.

Laws: the set of schema objects that parts are made of is finite (made ones are remembered by what
they were made of), so that recursion over parts ends, however the schema refers to itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any, Callable

from libloader.grammar.validate import REFERENCES, Validator, canonical
from libloader.grammar.vocabulary import KEYWORDS, TYPES, Document, Place

Parts = tuple[Place, ...]
Report = Callable[[str, str], None]  # (keyword, path): not expressed in the grammar

MAX_CHAIN = 64  # references that lead to references
MAX_PAIRS = 1_000  # options of oneOf compared with each other
MAX_TRIGGERS = 4
_LEADING = (*REFERENCES, "allOf")
_SILENT = {"$id", "id", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$defs", "definitions"}
_SILENT |= {"then", "else", "contentEncoding", "contentMediaType", "contentSchema", "nullable"}


def schema_of(place: Place) -> dict[str, Any]:
    """Return the keywords of a part; only objects are parts once `flatten` has run."""
    assert isinstance(place.schema, dict), "true and false are no parts"
    return place.schema


def flatten(document: Document, parts: Iterable[Place]) -> Parts | None:
    """Return the parts with all that they refer to; None if one of them is false.

    Their order is the order of the text: it becomes the order of properties.
    """
    found: dict[int, Place] = {}
    is_possible = True

    def visit(place: Place, depth: int) -> None:
        nonlocal is_possible
        schema = place.schema
        if isinstance(schema, bool):
            is_possible = is_possible and schema
            return
        if depth > MAX_CHAIN:
            document.fail(f"references lead on over {MAX_CHAIN} times", place.path)
        own = document.without(place, *_LEADING)
        if id(schema) in seen:
            return
        seen.add(id(schema))
        for keyword in schema:
            if keyword in REFERENCES:
                visit(document.resolve(schema, keyword), depth + 1)
            elif keyword == "allOf":
                for i in range(len(schema[keyword])):
                    visit(document.inner(place, keyword, i), depth + 1)
            elif keyword in KEYWORDS and keyword not in _SILENT:
                found.setdefault(id(own.schema), own)

    seen: set[int] = set()
    for part in parts:
        visit(part, 0)
    return tuple(found.values()) if is_possible else None


def target(document: Document, place: Place) -> Place:
    """Follow a schema that is a reference and nothing else to what it refers to."""
    for _ in range(MAX_CHAIN):
        schema = place.schema if isinstance(place.schema, dict) else {}
        said = [k for k in schema if k in KEYWORDS and k not in _SILENT]
        if len(said) != 1 or said[0] not in REFERENCES:
            break
        place = document.resolve(schema_of(place), said[0])
    return place


def split(document: Document, parts: Parts, report: Report) -> list[Parts] | None:
    """Return the branches of the first choice in flattened parts; None if there is none."""
    for i, place in enumerate(parts):
        for keyword, branches_of in CHOICES.items():
            if keyword not in schema_of(place):
                continue
            others = parts[:i] + (document.without(place, keyword),) + parts[i + 1 :]
            branches = branches_of(document, place, others, report)
            if branches is not None:
                return [others + tuple(branch) for branch in branches]
    return None


Branches = list[list[Place]]


def _made(document: Document, place: Place, key: object, **keywords: Any) -> Place:
    """Make a schema of parts of `place`; a keyword's trailing underscore is not part of it."""
    schema = {keyword.rstrip("_"): value for keyword, value in keywords.items()}
    return document.made(schema, place, ("made", key))


def _any_of(document: Document, place: Place, _: Parts, report: Report) -> Branches:
    return [[document.inner(place, "anyOf", i)] for i in range(len(schema_of(place)["anyOf"]))]


def _one_of(document: Document, place: Place, others: Parts, report: Report) -> Branches:
    options = [document.inner(place, "oneOf", i) for i in range(len(schema_of(place)["oneOf"]))]
    if not _are_exclusive(document, options, others):
        report("oneOf", place.path)
    return [[option] for option in options]


def _are_exclusive(document: Document, options: list[Place], others: Parts) -> bool:
    if len(options) ** 2 > MAX_PAIRS * 2:
        return False
    flat = [flatten(document, (*others, option)) for option in options]
    return all(
        are_disjoint(document, one, other) for i, one in enumerate(flat) for other in flat[:i]
    )


def _if(document: Document, place: Place, _: Parts, report: Report) -> Branches:
    condition = document.inner(place, "if")
    yes, no = [condition], [_made(document, place, "if", not_=condition.schema)]
    if "then" in schema_of(place):
        yes.append(document.inner(place, "then"))
    if "else" in schema_of(place):
        no.append(document.inner(place, "else"))
    return [yes, no] if len(yes) + len(no) > 2 else [[]]


def _dependent(keyword: str) -> Callable[[Document, Place, Parts, Report], Branches | None]:
    def branches(document: Document, place: Place, _: Parts, report: Report) -> Branches | None:
        """Without the first trigger, or with it and what it needs; later triggers stay."""
        by_name = schema_of(place)[keyword]
        if not by_name:
            return [[]]
        if len(by_name) > MAX_TRIGGERS:
            report(keyword, place.path)
            return [[]]
        name, needed = next(iter(by_name.items()))
        later = {other: by_name[other] for other in by_name if other != name}
        rest = [_made(document, place, (keyword, "later"), **{keyword: later})] if later else []
        key = (keyword, name)
        without = _made(document, place, (*key, "no"), type_="object", properties={name: False})
        required = [name, *needed] if isinstance(needed, list) else [name]
        having = [_made(document, place, (*key, "yes"), type_="object", required=required)]
        if not isinstance(needed, list):
            having.append(document.inner(place, keyword, name))
        return [[without, *rest], [*having, *rest]]

    return branches


def _not(document: Document, place: Place, _: Parts, report: Report) -> Branches | None:
    """Turn a negation inside out; what is left of it is excluded values (see `excluded`)."""
    inner = document.inner(place, "not")
    flat = flatten(document, [inner])
    if flat is None:
        return [[]]
    if not flat:
        return []
    if len(flat) > 1:
        return [branch for part in flat for branch in _not_part(document, place, part, report)]
    if set(schema_of(flat[0])) & {"enum", "const"}:
        return None if inner.schema is flat[0].schema else [[_negated(document, flat[0])]]
    return _not_part(document, place, flat[0], report)


def _negated(document: Document, part: Place) -> Place:
    return _made(document, part, "not", not_=part.schema)


def _not_part(document: Document, place: Place, part: Place, report: Report) -> Branches:
    schema = schema_of(part)
    keywords = {keyword for keyword in schema if keyword in KEYWORDS and keyword not in _SILENT}
    if keywords == {"not"}:
        return [[document.inner(part, "not")]]
    if keywords == {"anyOf"}:
        options = [document.inner(part, "anyOf", i) for i in range(len(schema["anyOf"]))]
        nots = [_negation_of(document, part, option, i) for i, option in enumerate(options)]
        return [nots]
    if keywords == {"type"}:
        return [[_made(document, part, "not type", type_=_other_types(schema["type"]))]]
    if keywords & {"properties", "required"} and keywords <= {"properties", "required", "type"}:
        return list(_not_object(document, part))
    if keywords & {"enum", "const"}:
        return [[_negated(document, part)]]
    report("not", place.path)
    return [[]]


def _negation_of(document: Document, part: Place, option: Place, number: int) -> Place:
    return _made(document, part, ("not option", number), not_=option.schema)


def _other_types(types: str | list[str]) -> list[str]:
    names = {types} if isinstance(types, str) else set(types)
    if names & {"number", "integer"}:  # a fraction alone cannot be asked for
        names |= {"number", "integer"}
    return [name for name in TYPES if name not in names] or ["null"]


def _not_object(document: Document, part: Place) -> Iterator[list[Place]]:
    """An object is not so if a required property is missing, or one is there and not so."""
    schema = schema_of(part)
    for name in schema.get("required", ()):
        yield [_made(document, part, ("no", name), type_="object", properties={name: False})]
    for name, inner in schema.get("properties", {}).items():
        opposite = _made(document, part, ("not", name), not_=inner).schema
        made = _made(
            document, part, ("with", name),
            type_="object", properties={name: opposite}, required=[name],
        )  # fmt: skip
        yield [made]
    if "type" in schema:
        yield [_made(document, part, "not type", type_=_other_types(schema["type"]))]


CHOICES: dict[str, Callable[[Document, Place, Parts, Report], Branches | None]] = {
    "not": _not,
    "anyOf": _any_of,
    "oneOf": _one_of,
    "if": _if,
    "dependentRequired": _dependent("dependentRequired"),
    "dependentSchemas": _dependent("dependentSchemas"),
    "dependencies": _dependent("dependencies"),
}


# What flattened parts say together.

_INFERRED = {
    "object": ("properties", "required", "additionalProperties", "patternProperties",
               "propertyNames", "minProperties", "maxProperties", "unevaluatedProperties"),
    "array": ("items", "prefixItems", "contains", "minItems", "maxItems", "uniqueItems",
              "additionalItems", "unevaluatedItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}  # fmt: skip


def types_of(parts: Parts) -> list[str]:
    """Return the types that all parts allow; unsaid, those that their keywords are about.

    `[]` means none, `TYPES` (as a list) means that nothing was said at all.
    """
    allowed: list[str] | None = None
    for place in parts:
        schema = schema_of(place)
        if "type" in schema:
            names = _with_number(schema["type"], schema.get("nullable") is True)
            allowed = names if allowed is None else [name for name in allowed if name in names]
    if allowed is None:
        keywords = {keyword for place in parts for keyword in schema_of(place)}
        allowed = [name for name, words in _INFERRED.items() if keywords.intersection(words)]
        return allowed or [name for name in TYPES if name != "integer"]
    return [name for name in allowed if name != "integer" or "number" not in allowed]


def _with_number(types: str | list[str], is_nullable: bool) -> list[str]:
    names = [types] if isinstance(types, str) else list(types)
    names += ["integer"] * ("number" in names) + ["null"] * is_nullable
    return list(dict.fromkeys(names))


def listed_values(document: Document, parts: Parts) -> list[Any] | None:
    """Return the values that `enum` and `const` leave after all else was asked; None = free."""
    schemas = [schema_of(place) for place in parts]
    lists = [s["enum"] for s in schemas if "enum" in s]
    lists += [[s["const"]] for s in schemas if "const" in s]
    if not lists:
        return None
    in_all = frozenset.intersection(*(frozenset(map(canonical, values)) for values in lists))
    others = [document.without(place, "enum", "const") for place in parts]
    validator = Validator(document)
    return [
        value
        for value in min(lists, key=len)
        if canonical(value) in in_all
        and not any(validator.problems_at(place, value) for place in others if place.schema)
    ]


def excluded_values(parts: Parts) -> list[Any]:
    """Return the values that `not` with `enum` or `const` forbids."""
    negated = [schema_of(place)["not"] for place in parts if "not" in schema_of(place)]
    return [v for n in negated for v in (n["enum"] if "enum" in n else [n["const"]])]


def are_disjoint(
    document: Document, one: Parts | None, other: Parts | None, depth: int = 2
) -> bool:
    """Say whether surely nothing written for one is valid for the other, nor the other way."""
    if one is None or other is None:
        return True
    values = [listed_values(document, parts) for parts in (one, other)]
    for listed, parts in zip(values, (other, one)):
        if listed is not None and not any("not" in schema_of(p) for p in parts):
            validator = Validator(document)
            fits = [v for v in listed if not any(validator.problems_at(p, v) for p in parts)]
            return not fits
    if any(set(schema_of(p)) & set(CHOICES) for p in (*one, *other)):
        return False
    common = _common_types(one, other) | _common_types(other, one)
    if not common:
        return True
    if common == {"object"} and depth:
        return _differ(document, one, other, depth)
    return common <= {"number", "integer"} and _are_apart(bounds_of(one), bounds_of(other))


def _common_types(one: Parts, other: Parts) -> set[str]:
    """Return the types that are written for `one` and valid for `other`.

    The latter are those that it declares: what is only inferred binds what we write, no more.
    """
    declared = [p for p in other if "type" in schema_of(p)]
    valid = types_of(tuple(declared)) if declared else list(TYPES)
    return set(_expanded(types_of(one))) & set(_expanded(valid))


def _expanded(types: list[str]) -> list[str]:
    return [*types, "integer"] if "number" in types else types


def _differ(document: Document, one: Parts, other: Parts, depth: int) -> bool:
    names = [name for parts in (one, other) for p in parts for name in _names(p)]
    for name in dict.fromkeys(names):
        if name in required_of(one) or name in required_of(other):
            inner = [property_parts(document, parts, name) for parts in (one, other)]
            flat = [flatten(document, parts) for parts in inner if parts is not None]
            if len(flat) == 2 and are_disjoint(document, flat[0], flat[1], depth - 1):
                return True
    return _lacks(one, other) and _lacks(other, one)


def _names(place: Place) -> list[str]:
    return [*schema_of(place).get("properties", ()), *schema_of(place).get("required", ())]


def _lacks(one: Parts, other: Parts) -> bool:
    """Say whether what is written for `one` lacks a name that `other` requires, or has one that
    it forbids. Undeclared names are not written, unless asked for."""
    declared = {name for p in one for name in _names(p)}
    is_tight = all(schema_of(p).get(k, False) is False for p in one for k in _OPENING)
    if is_tight and any(name not in declared for name in required_of(other)):
        return True
    return any(
        schema_of(p).get("additionalProperties") is False
        and not schema_of(p).get("patternProperties")
        and any(name not in schema_of(p).get("properties", ()) for name in required_of(one))
        for p in other
    )


_OPENING = ("additionalProperties", "patternProperties", "unevaluatedProperties")


def required_of(parts: Parts) -> dict[str, None]:
    """Return the required names, in order, as a dict."""
    return dict.fromkeys(name for p in parts for name in schema_of(p).get("required", ()))


def property_parts(document: Document, parts: Parts, name: str) -> Parts | None:
    """Return what `properties` say of a name; None if they say nothing."""
    found = tuple(
        document.inner(p, "properties", name)
        for p in parts
        if name in schema_of(p).get("properties", ())
    )
    return found or None


class Bounds:
    """The tightest limits of some parts on a number; None = open, `*_open` = limit excluded."""

    def __init__(self) -> None:
        self.low: Decimal | None = None
        self.high: Decimal | None = None
        self.low_open = self.high_open = False

    def above(self, limit: float, is_open: bool) -> None:
        value = Decimal(repr(limit))
        if self.low is None or (value, is_open) > (self.low, self.low_open):
            self.low, self.low_open = value, is_open

    def below(self, limit: float, is_open: bool) -> None:
        value = Decimal(repr(limit))
        if self.high is None or (-value, is_open) > (-self.high, self.high_open):
            self.high, self.high_open = value, is_open


def bounds_of(parts: Parts) -> Bounds:
    bounds = Bounds()
    sides = (("minimum", "exclusiveMinimum", bounds.above),
             ("maximum", "exclusiveMaximum", bounds.below))  # fmt: skip
    for schema in map(schema_of, parts):
        for limit, exclusive, narrow in sides:
            if limit in schema:
                narrow(schema[limit], schema.get(exclusive) is True)
            if not isinstance(schema.get(exclusive, True), bool):
                narrow(schema[exclusive], True)
    return bounds


def is_empty(bounds: Bounds) -> bool:
    return _are_apart(bounds, bounds)


def whole_bounds(bounds: Bounds) -> tuple[int | None, int | None]:
    """Return the least and the greatest whole number within limits; None = open."""
    low = None if bounds.low is None else math.ceil(bounds.low)
    high = None if bounds.high is None else math.floor(bounds.high)
    if low is not None and bounds.low_open and low == bounds.low:
        low += 1
    if high is not None and bounds.high_open and high == bounds.high:
        high -= 1
    return low, high


def _are_apart(one: Bounds, other: Bounds) -> bool:
    for low, high in ((one, other), (other, one)):
        if low.low is not None and high.high is not None:
            is_open = low.low_open or high.high_open
            if low.low > high.high or (low.low == high.high and is_open):
                return True
    return False
