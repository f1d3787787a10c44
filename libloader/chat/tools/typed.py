"""Values from text, where a format writes strings bare: what `5` is, the function's schema says.

Laws: what the schema allows as it stands is never turned into something else; text that fits no
type stays text, for nothing a model wrote is lost.
"""

from __future__ import annotations

import ast
import json
from typing import Any

MAX_DEPTH = 20  # of references and unions
_KIND_OF = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    list: "array",
}
_KIND_OF.update({dict: "object", type(None): "null"})
_NOTHING: dict[str, Any] = {"array": [], "object": {}}


class Typed:
    """A schema inside `root`, the schema that its references point into."""

    def __init__(self, schema: Any, root: Any = None) -> None:
        self._root = schema if root is None else root
        self._branches = list(_branches(schema, self._root, 0))

    def property(self, name: str) -> Typed:
        found = (each.get("properties") for each in self._branches)
        return self._inner(
            [each[name] for each in found if isinstance(each, dict) and name in each]
        )

    def items(self) -> Typed:
        return self._inner([each["items"] for each in self._branches if "items" in each])

    def _inner(self, schemas: list[Any]) -> Typed:
        return Typed({"anyOf": schemas} if schemas else {}, self._root)

    def kinds(self) -> set[str]:
        """Return the JSON types that the schema allows; none if it does not say."""
        return {kind for branch in self._branches for kind in _kinds(branch)}

    def value(self, text: str) -> Any:
        """Return the value that `text` is."""
        kinds = self.kinds()
        if kinds == {"string"}:
            return text
        found, value = _literal(text, python=bool(kinds))
        if found and (not kinds or _kind(value, kinds) in kinds):
            return value
        if not text.strip() and len(kinds) == 1 and kinds <= set(_NOTHING):
            return type(_NOTHING[min(kinds)])()
        return value if found and "string" not in kinds else text


def _branches(schema: Any, root: Any, depth: int) -> Any:
    """The objects that a schema is a union of, references followed."""
    if not isinstance(schema, dict) or depth > MAX_DEPTH:
        return
    yield schema
    for word in ("anyOf", "oneOf", "allOf"):
        for each in schema.get(word) or () if isinstance(schema.get(word), list) else ():
            yield from _branches(each, root, depth + 1)
    if isinstance(schema.get("$ref"), str):
        yield from _branches(_referred(schema["$ref"], root), root, depth + 1)


def _referred(reference: str, root: Any) -> Any:
    """Return what `#/$defs/name` and the like point to."""
    found = root
    for part in reference.split("/")[1:] if reference.startswith("#") else ():
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _kinds(branch: dict[str, Any]) -> list[str]:
    kinds = branch.get("type")
    if isinstance(kinds, str):
        return [kinds]
    if isinstance(kinds, list):
        return [kind for kind in kinds if isinstance(kind, str)]
    values = [branch["const"]] if "const" in branch else branch.get("enum")
    return [_KIND_OF.get(type(value), "string") for value in values or ()]


def _kind(value: Any, kinds: set[str]) -> str:
    kind = _KIND_OF.get(type(value), "string")
    return "number" if kind == "integer" and "integer" not in kinds else kind


def _literal(text: str, *, python: bool) -> tuple[bool, Any]:
    """Return whether `text` is JSON, or with `python` a Python literal, and its value.

    Nothing is ever evaluated. Templates print True and None for earlier calls, so models do too.
    """
    try:
        return True, json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        value = ast.literal_eval(text.strip()) if python else None
        json.dumps(value)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return False, None
    return python and not isinstance(value, str), value
