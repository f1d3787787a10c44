"""The fields of a request that say what shape its answer must have: JSON, a schema, a grammar.

Sources: OpenAI's API reference (response_format), llama-server's README (json_schema, grammar,
and `schema` inside a response_format of type json_object).
What a schema or a grammar means is not judged here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from libloader.errors import FieldInvalid
from libloader.protocol import fields
from libloader.protocol.fields import Field, boolean, mapping, one_of, string

MAX_GRAMMAR = 1 << 20
ANY_OBJECT: dict[str, Any] = {"type": "object"}


def _schema(value: Any, path: str) -> Any:
    """A schema is an object, or true or false."""
    return value if isinstance(value, bool) else mapping(value, path)


SHAPE_FIELDS = (
    Field("response_format", mapping),
    Field("json_schema", _schema),
    Field("grammar", string(MAX_GRAMMAR)),
)


@dataclass(frozen=True)
class Shape:
    """What an answer must look like: a JSON Schema or a GBNF text, as the field `param` gave it."""

    param: str
    schema: Any = None
    grammar: str = ""
    strict: bool = False  # what the schema says and no grammar can is an error


def read_shape(values: fields.Values) -> Shape | None:
    """Return what the answer must look like, None for free text."""
    given = [
        shape
        for shape in (_response_format(values["response_format"]), *_llama_server(values))
        if shape is not None
    ]
    if len(given) > 1:
        names = " and ".join(shape.param for shape in given)
        raise FieldInvalid(f"{names} exclude each other: send one of them", param=given[1].param)
    return given[0] if given else None


def _llama_server(values: fields.Values) -> tuple[Shape | None, Shape | None]:
    schema, grammar = values["json_schema"], values["grammar"]
    return (
        None if schema is None else Shape("json_schema", schema=schema),
        Shape("grammar", grammar=grammar) if grammar else None,
    )


def _response_format(value: Any) -> Shape | None:
    if value is None:
        return None
    param = "response_format"
    kind = one_of("text", "json_object", "json_schema")(value.get("type"), f"{param}.type")
    if kind == "text":
        return None
    if kind == "json_object":
        schema = value.get("schema")
        return Shape(param, ANY_OBJECT if schema is None else _schema(schema, f"{param}.schema"))
    path = f"{param}.json_schema"
    inner = mapping(value.get("json_schema"), path)
    strict = inner.get("strict")
    return Shape(
        param,
        _schema(inner.get("schema", ANY_OBJECT), f"{path}.schema"),
        strict=False if strict is None else boolean(strict, f"{path}.strict"),
    )
