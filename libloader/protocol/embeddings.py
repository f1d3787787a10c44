"""POST /v1/embeddings, and llama-server's own POST /embedding.

Input of both: a string, token ids, or a list of such. Vectors come from the engine as base64 of
little-endian float32, which is what OpenAI's clients ask for; `float` is decoded here.

    /v1/embeddings   OpenAI's API reference: one pooled vector of length 1 for each input
    /embedding       a list of vectors for each input: the pooled one, scaled as `embd_normalize`
                     says, or with pooling none the one of each token
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
from libloader.errors import FieldUnsupported
from libloader.protocol import fields
from libloader.protocol.fields import Field, Table, integer, one_of, string, token_ids

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


EMBEDDING_FIELDS = Table(
    Field("input", _inputs, None, ("content",)),
    Field("encoding_format", one_of("float", "base64"), "float"),
    Field("dimensions", integer(1, 1 << 20)),
    Field("model", string(1024), ""),
    Field("user", string(1024), ""),
)


NATIVE_FIELDS = Table(
    Field("content", _inputs, None, ("input",)),
    Field("embd_normalize", integer(-1, 1000), 2),
)
MUST_BE = "a string, an array of strings, or arrays of token ids"
INT16_MAX = 32760  # embd_normalize 0 scales the largest number to this
# What the other poolings are for, by name
WRONG_POOLING = {
    "none": "pooling none makes a vector of each token: POST /embedding gives those, "
    "--pooling mean, cls or last makes one of each input",
    "rank": "this server ranks documents: POST /v1/rerank, or start it with --pooling mean",
}


@dataclass(frozen=True)
class EmbeddingRequest:
    prompts: tuple[core.Prompt, ...]
    base64: bool
    dimensions: int | None
    model: str
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class NativeRequest:
    prompts: tuple[core.Prompt, ...]
    normalize: int  # -1 not at all, 0 largest to INT16_MAX, else length 1 in this p-norm
    ignored: tuple[str, ...]


def read_native(body: dict[str, Any], *, pooling: str = "", strict: bool = False) -> NativeRequest:
    """Check a body of /embedding."""
    values = NATIVE_FIELDS.read(body, strict=strict)
    if values["content"] is None:
        raise fields.invalid("content", MUST_BE)
    if pooling == "rank":
        raise FieldUnsupported(WRONG_POOLING[pooling])
    return NativeRequest(values["content"], values["embd_normalize"], values.ignored)


def native_answer(
    request: NativeRequest, vectors: Sequence[str], *, n_embd: int, pooling: str
) -> list[dict[str, Any]]:
    """The answer of /embedding, from base64 vectors in input order."""

    def rows(vector: str) -> list[list[float]]:
        values = decode(vector)
        if pooling == "none":
            return [values[at : at + n_embd] for at in range(0, len(values), n_embd)]
        return [_scaled(values, request.normalize)]

    return [{"index": i, "embedding": rows(vector)} for i, vector in enumerate(vectors)]


def _scaled(values: list[float], normalize: int) -> list[float]:
    largest = max(map(abs, values), default=0.0)
    if normalize < 0 or not largest:
        return values
    if normalize == 0:
        return [value / largest * INT16_MAX for value in values]
    # Divided first: a high power of a large number is too large for a float.
    total = math.fsum((abs(value) / largest) ** normalize for value in values)
    length = largest * total ** (1 / normalize)
    return [value / length for value in values]


def read_request(
    body: dict[str, Any], *, n_embd: int = 0, pooling: str = "", strict: bool = False
) -> EmbeddingRequest:
    """Check a request body; `dimensions` against `n_embd`, if that is known."""
    values = EMBEDDING_FIELDS.read(body, strict=strict)
    if values["input"] is None:
        raise fields.invalid("input", MUST_BE)
    if pooling in WRONG_POOLING:
        raise FieldUnsupported(WRONG_POOLING[pooling])
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
        values = _scaled(values[: request.dimensions], 2)
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
