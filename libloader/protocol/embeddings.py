"""POST /v1/embeddings: string, list of strings, token ids or list of token-id lists.

Source: OpenAI's API reference. Vectors come from the engine pooled and L2-normalised, as base64
of little-endian float32, which is what the official clients ask for; `float` is decoded here.
"""

from __future__ import annotations

import array
import base64
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from libloader import core
from libloader.protocol import fields
from libloader.protocol.fields import Field, integer, one_of, string, token_ids

MAX_INPUTS = 2048
MAX_TOKENS = 1_000_000


def _inputs(value: Any, path: str) -> tuple[core.Prompt, ...]:
    if isinstance(value, str):
        return (_text(value, path),)
    if not isinstance(value, list) or not value:
        raise fields.invalid(path, "a string, an array of strings, or arrays of token ids")
    if all(isinstance(item, int) for item in value):
        return (_tokens(value, path),)
    if len(value) > MAX_INPUTS:
        raise fields.invalid(path, f"an array of at most {MAX_INPUTS} inputs")
    return tuple(_input(item, f"{path}[{i}]") for i, item in enumerate(value))


def _input(item: Any, path: str) -> core.Prompt:
    return _text(item, path) if isinstance(item, str) else _tokens(item, path)


def _text(text: str, path: str) -> core.Prompt:
    if not text:
        raise fields.invalid(path, "a string that is not empty")
    return core.Prompt(segments=((text, False),))


def _tokens(ids: Any, path: str) -> core.Prompt:
    if not ids:
        raise fields.invalid(path, "an array of token ids that is not empty")
    return core.Prompt(tokens=token_ids(MAX_TOKENS)(ids, path), add_special=False)


EMBEDDING_FIELDS = (
    Field("input", _inputs, None, ("content",)),
    Field("encoding_format", one_of("float", "base64"), "float"),
    Field("dimensions", integer(1, 1 << 20)),
    Field("model", string(1024), ""),
    Field("user", string(1024), ""),
)


@dataclass(frozen=True)
class EmbeddingRequest:
    prompts: tuple[core.Prompt, ...]
    base64: bool
    dimensions: int | None
    model: str
    ignored: tuple[str, ...]


def read_request(
    body: dict[str, Any], *, n_embd: int = 0, strict: bool = False
) -> EmbeddingRequest:
    """Check a request body; with `n_embd`, `dimensions` is checked against it."""
    values = fields.read(body, EMBEDDING_FIELDS, strict=strict)
    if values["input"] is None:
        raise fields.invalid("input", "a string, an array of strings, or arrays of token ids")
    dimensions = values["dimensions"]
    if dimensions is not None and n_embd and dimensions > n_embd:
        raise fields.invalid("dimensions", f"an integer from 1 to {n_embd}, the model's own size")
    return EmbeddingRequest(
        prompts=values["input"],
        base64=values["encoding_format"] == "base64",
        dimensions=dimensions,
        model=values["model"],
        ignored=values.ignored,
    )


def answer(
    request: EmbeddingRequest, vectors: Sequence[str], *, model: str, n_prompt: int
) -> dict[str, Any]:
    """The answer from base64 vectors in input order."""
    return {
        "object": "list",
        "model": model,
        "data": [
            {"object": "embedding", "index": i, "embedding": _vector(request, vector)}
            for i, vector in enumerate(vectors)
        ],
        "usage": {"prompt_tokens": n_prompt, "total_tokens": n_prompt},
    }


def _vector(request: EmbeddingRequest, encoded: str) -> Any:
    if request.dimensions is None and request.base64:
        return encoded
    values = decode(encoded)
    if request.dimensions is not None and request.dimensions < len(values):
        values = _normalised(values[: request.dimensions])
    return encode(values) if request.base64 else values


def decode(encoded: str) -> list[float]:
    values = array.array("f", base64.b64decode(encoded))
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()


def encode(vector: Sequence[float]) -> str:
    values = array.array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    return base64.b64encode(values.tobytes()).decode("ascii")


def _normalised(values: list[float]) -> list[float]:
    length = math.sqrt(math.fsum(v * v for v in values))
    return [v / length for v in values] if length else values
