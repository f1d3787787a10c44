"""The vocabulary of JSON Schema: every keyword, what its value must be, and where schemas hide.

`Document` reads a schema once: it finds malformed keywords, unknown ones, anchors and ids, and
resolves `$ref` inside the document. Nothing is ever fetched.

Laws: a path is a JSON pointer with a # before it; the document is only read, never changed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Callable, NamedTuple, NoReturn, Union
from urllib.parse import unquote, urldefrag, urljoin

from libloader.errors import GrammarInvalid
from libloader.grammar.pattern import compile_pattern

Schema = Union[bool, dict[str, Any]]

MAX_DEPTH = 64  # subschemas within each other
MAX_JSON_DEPTH = 256
MAX_SCHEMAS = 10_000
TYPES = ("null", "boolean", "object", "array", "number", "integer", "string")


def is_number(value: object) -> bool:
    """Say whether a value is a number that a double can hold."""
    is_plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_plain and abs(value) <= sys.float_info.max  # type: ignore[arg-type]


def is_integer(value: object) -> bool:
    return is_number(value) and value == int(value)  # type: ignore[call-overload]


def _is_count(value: object) -> bool:
    return is_integer(value) and value >= 0  # type: ignore[operator]


def _is_schema(value: object) -> bool:
    return isinstance(value, (bool, dict))


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_types(value: object) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(name, str) and name in TYPES for name in names)


class Kind(NamedTuple):
    """What a keyword's value must be, in words and as a check, and the schemas inside it."""

    meaning: str
    is_right: Callable[[Any], bool]
    inside: str = ""  # one, many, map


def _map_of(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(is_right, value.values()))


ANY = Kind("any value", lambda value: True)
STRING = Kind("a string", lambda value: isinstance(value, str))
BOOLEAN = Kind("true or false", lambda value: isinstance(value, bool))
NUMBER = Kind("a number", is_number)
LIMIT = Kind("a number, or true or false", lambda v: is_number(v) or isinstance(v, bool))
POSITIVE = Kind("a number over 0", lambda value: is_number(value) and value > 0)
COUNT = Kind("a whole number from 0", _is_count)
NAMES = Kind("a list of strings", _is_names)
VALUES = Kind("a list", lambda value: isinstance(value, list))
TYPE = Kind(f"one or more of {', '.join(TYPES)}", _is_types)
SCHEMA = Kind("a schema (an object, true or false)", _is_schema, "one")
SCHEMAS = Kind(
    "a list of one or more schemas",
    lambda value: isinstance(value, list) and bool(value) and all(map(_is_schema, value)),
    "many",
)
ITEMS = Kind(
    "a schema or a list of schemas",
    lambda value: _is_schema(value) or isinstance(value, list) and all(map(_is_schema, value)),
    "many",
)
SCHEMA_MAP = Kind("an object of schemas", _map_of(_is_schema), "map")
NAMES_MAP = Kind("an object of lists of strings", _map_of(_is_names))
MIXED_MAP = Kind(
    "an object of schemas or lists of strings",
    _map_of(lambda value: _is_schema(value) or _is_names(value)),
    "map",
)

KEYWORDS: dict[str, Kind] = {
    "$ref": STRING, "$dynamicRef": STRING, "$recursiveRef": STRING,
    "$id": STRING, "id": ANY, "$anchor": STRING, "$dynamicAnchor": STRING,
    "$recursiveAnchor": BOOLEAN, "$defs": SCHEMA_MAP, "definitions": SCHEMA_MAP,
    "type": TYPE, "enum": VALUES, "const": ANY, "nullable": BOOLEAN,
    "allOf": SCHEMAS, "anyOf": SCHEMAS, "oneOf": SCHEMAS, "not": SCHEMA,
    "if": SCHEMA, "then": SCHEMA, "else": SCHEMA,
    "properties": SCHEMA_MAP, "patternProperties": SCHEMA_MAP, "additionalProperties": SCHEMA,
    "unevaluatedProperties": SCHEMA, "propertyNames": SCHEMA, "required": NAMES,
    "minProperties": COUNT, "maxProperties": COUNT,
    "dependentRequired": NAMES_MAP, "dependentSchemas": SCHEMA_MAP, "dependencies": MIXED_MAP,
    "items": ITEMS, "prefixItems": SCHEMAS, "additionalItems": SCHEMA, "unevaluatedItems": SCHEMA,
    "contains": SCHEMA, "minContains": COUNT, "maxContains": COUNT,
    "minItems": COUNT, "maxItems": COUNT, "uniqueItems": BOOLEAN,
    "minLength": COUNT, "maxLength": COUNT, "pattern": STRING, "format": STRING,
    "contentEncoding": STRING, "contentMediaType": STRING, "contentSchema": SCHEMA,
    "minimum": NUMBER, "maximum": NUMBER, "exclusiveMinimum": LIMIT, "exclusiveMaximum": LIMIT,
    "multipleOf": POSITIVE,
}  # fmt: skip

# Keywords that say something to people, not about which documents are valid.
ANNOTATIONS = frozenset(
    ["$schema", "$vocabulary", "$comment", "title", "description", "default", "examples", "example",
     "deprecated", "readOnly", "writeOnly", "discriminator", "xml", "externalDocs", "strict"]
)  # fmt: skip

NOT_ASSERTED = frozenset(["contentEncoding", "contentMediaType", "contentSchema"])


def is_annotation(keyword: str) -> bool:
    return keyword in ANNOTATIONS or keyword.startswith("x-")


def step(path: str, *keys: str | int) -> str:
    """Return the path of what lies under `keys`."""
    return path + "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in keys)


class Place(NamedTuple):
    """A schema in the document: where it is, and the URI that its references are relative to."""

    schema: Schema
    path: str
    base: str


class Document:
    """A schema document, read and judged once. Raises GrammarInvalid, naming the path."""

    def __init__(self, root: object, *, param: str = "response_format") -> None:
        self.param = param
        self.root = root
        self.ignored: list[tuple[str, str, str]] = []  # (keyword, path of its schema, why)
        self._places: dict[int, Place] = {}
        self._made: dict[tuple[object, ...], Place] = {}
        self._names: dict[str, Place] = {}  # absolute URI with or without a plain anchor
        self._dynamic: dict[str, int] = {}  # name of a $dynamicAnchor -> how many bear it
        if not _is_schema(root):
            self.fail("a schema must be an object, true or false", "#")
        self._check_json_depth()
        self._read(root, "#", "", 0)
        self._names.setdefault("", Place(root, "#", ""))  # type: ignore[arg-type]

    def resolve(self, schema: dict[str, Any], keyword: str = "$ref") -> Place:
        """Return the place that a reference in `schema` points to."""
        reference, place = schema[keyword], self.place(schema)
        if keyword == "$recursiveRef":
            return self._names.get(place.base) or self._names[""]
        uri, fragment = urldefrag(_joined(place.base, reference))
        if keyword == "$dynamicRef" and self._dynamic.get(fragment, 0) > 1:
            self.fail(f"$dynamicRef {reference!r}: {fragment!r} has several places", place.path)
        name = f"{uri}#{fragment}" if fragment else uri
        found = self._names.get(name)
        if found is None and fragment.startswith("/") and uri in self._names:
            found = self._at_pointer(self._names[uri], unquote(fragment))
        if found is None:
            self.fail(
                f"{keyword} {reference!r} is not in this schema; nothing is fetched", place.path
            )
        return found

    def place(self, schema: dict[str, Any]) -> Place:
        """Return where a schema object of this document is."""
        return self._places[id(schema)]

    def inner(self, outer: Place, *keys: str | int) -> Place:
        """Return the place of a schema inside another one."""
        schema: Any = outer.schema
        for key in keys:
            schema = schema[key]
        if isinstance(schema, dict):
            return self._places[id(schema)]
        return Place(schema, step(outer.path, *keys), outer.base)

    def made(self, schema: dict[str, Any], like: Place, key: tuple[object, ...]) -> Place:
        """Enter a schema made from parts of this document; the same for the same key."""
        key = (id(like.schema), *key)
        if key not in self._made:
            self._made[key] = Place(schema, like.path, like.base)
            self._places[id(schema)] = self._made[key]
            for child in _schemas_in(schema):
                self._places.setdefault(id(child), Place(child, like.path, like.base))
        return self._made[key]

    def without(self, place: Place, *keywords: str) -> Place:
        """Return a place's schema with some keywords left out."""
        schema = place.schema
        if isinstance(schema, bool) or not any(keyword in schema for keyword in keywords):
            return place
        rest = {keyword: value for keyword, value in schema.items() if keyword not in keywords}
        return self.made(rest, place, ("without", *keywords))

    def fail(self, problem: str, path: str) -> NoReturn:
        raise GrammarInvalid(f"schema at {path}: {problem}", param=self.param)

    def _check_json_depth(self) -> None:
        level: list[Any] = [self.root]
        for _ in range(MAX_JSON_DEPTH):
            level = (
                [
                    child
                    for node in level
                    for child in (node.values() if isinstance(node, dict) else node)
                    if isinstance(child, (dict, list))
                ]
                if not isinstance(self.root, bool)
                else []
            )
            if not level:
                return
        self.fail(f"it is nested over {MAX_JSON_DEPTH} deep", "#")

    def _read(self, schema: Any, path: str, base: str, depth: int) -> None:
        """Judge a schema and all within it, and remember the names that they bear."""
        todo = [(schema, path, base, depth)]
        while todo:
            schema, path, base, depth = todo.pop()
            if depth > MAX_DEPTH:
                self.fail(f"schemas are nested over {MAX_DEPTH} deep", path[:200] + "...")
            if not isinstance(schema, dict) or id(schema) in self._places:
                continue
            if len(self._places) >= MAX_SCHEMAS:
                self.fail(f"there are over {MAX_SCHEMAS} schemas in this document", path)
            base = self._named(schema, path, base)
            todo += [
                (child, child_path, base, depth + 1)
                for keyword in reversed(list(schema))
                for child, child_path in self._inside(schema, keyword, path)
            ]

    def _named(self, schema: dict[str, Any], path: str, base: str) -> str:
        """Enter a schema under its ids and anchors; return the base URI within it."""
        uri = schema.get("$id")
        is_root = path == "#"
        if isinstance(uri, str):
            if uri.startswith("#"):  # draft 7's way to say $anchor
                self._names[base + uri] = Place(schema, path, base)
            else:
                base = urldefrag(_joined(base, uri))[0]
        place = Place(schema, path, base)
        self._places[id(schema)] = place
        if is_root or isinstance(uri, str):
            self._names.setdefault(base, place)
        for keyword in ("$anchor", "$dynamicAnchor"):
            anchor = schema.get(keyword)
            if isinstance(anchor, str):
                self._names[f"{base}#{anchor}"] = place
                self._dynamic[anchor] = self._dynamic.get(anchor, 0) + 1
        return base

    def _inside(
        self, schema: dict[str, Any], keyword: str, path: str
    ) -> Iterator[tuple[Schema, str]]:
        """Judge one keyword and yield the schemas in its value."""
        kind = KEYWORDS.get(keyword)
        if kind is None:
            if not is_annotation(keyword):
                self.ignored.append((repr(keyword[:80]), path, "is no known keyword"))
            return
        value = schema[keyword]
        if not kind.is_right(value):
            self.fail(f"{keyword} must be {kind.meaning}", path)
        if keyword in NOT_ASSERTED:
            self.ignored.append((keyword, path, "is not asserted by JSON Schema"))
        if keyword in ("pattern", "patternProperties"):
            self._check_patterns([value] if keyword == "pattern" else list(value), path)
        if kind.inside == "map":
            yield from ((child, step(path, keyword, name)) for name, child in value.items())
        elif isinstance(value, list) and kind.inside:
            yield from ((child, step(path, keyword, i)) for i, child in enumerate(value))
        elif kind.inside:
            yield value, step(path, keyword)

    def _check_patterns(self, patterns: list[str], path: str) -> None:
        for pattern in patterns:
            try:
                compile_pattern(pattern)
            except GrammarInvalid as error:
                self.fail(error.message, path)

    def _at_pointer(self, start: Place, pointer: str) -> Place | None:
        """Follow a JSON pointer, also to where no keyword says that a schema is."""
        value: Any = start.schema
        path, base = start.path, start.base
        for key in pointer.split("/")[1:]:
            key = key.replace("~1", "/").replace("~0", "~")
            if isinstance(value, dict) and key in value:
                value = value[key]
            elif isinstance(value, list) and key.isdigit() and int(key[:9]) < len(value):
                value = value[int(key)]
            else:
                return None
            path = step(path, key)
            if isinstance(value, dict) and id(value) in self._places:
                base = self._places[id(value)].base
        if not _is_schema(value):
            return None
        self._read(value, path, base, 0)
        return self._places[id(value)] if isinstance(value, dict) else Place(value, path, base)


def _schemas_in(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the schema objects directly inside one, and inside the maps and lists in it."""
    for keyword, value in schema.items():
        kind = KEYWORDS.get(keyword, ANY)
        if kind.inside == "map":
            yield from (child for child in value.values() if isinstance(child, dict))
        elif kind.inside:
            children = value if isinstance(value, list) else [value]
            yield from (child for child in children if isinstance(child, dict))


def _joined(base: str, reference: str) -> str:
    """Resolve a URI reference; urljoin alone knows no urn: and drops a lone fragment's base."""
    if reference.startswith("#"):
        return base + reference
    try:
        return urljoin(base, reference)
    except ValueError:
        return reference
