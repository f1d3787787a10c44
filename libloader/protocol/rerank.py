"""POST /v1/rerank: how well does each document answer the query?

Two shapes, told apart by the name of the documents:

    documents   Jina's and Cohere's: {"results": [{"index", "relevance_score", "document"?}], ...}
    texts       Text Embeddings Inference's: [{"index", "score", "text"?}, ...]

Both are sorted, best first. A score is what the model's classifier says: its scale is the model's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from libloader import core
from libloader.errors import FieldUnsupported
from libloader.protocol import embeddings, fields
from libloader.protocol.fields import Field, Table, boolean, integer, string

MAX_DOCUMENTS = 2048
MUST_BE = f"an array of 1 to {MAX_DOCUMENTS} strings or objects with a `text`"
PLACEHOLDER = re.compile("({query}|{document})")  # in a model's own template
NOT_RANKING = (
    "this model does not rank: it needs a model with a classifier, and pooling rank from its file "
    "or by --pooling rank"
)


def _text(value: Any, path: str) -> str:
    if isinstance(value, dict):
        value, path = value.get("text"), f"{path}.text"
    checked: str = string()(value, path)
    return checked


def _documents(value: Any, path: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_DOCUMENTS:
        raise fields.invalid(path, MUST_BE)
    return tuple(_text(item, f"{path}[{i}]") for i, item in enumerate(value))


RERANK_FIELDS = Table(
    Field("query", _text),
    Field("documents", _documents),
    Field("texts", _documents),
    Field("top_n", integer(1), None),
    Field("return_documents", boolean, False, ("return_text",)),
    Field("model", string(1024), ""),
    Field("user", string(1024), ""),
)


@dataclass(frozen=True)
class RerankRequest:
    query: str
    documents: tuple[str, ...]
    top_n: int
    returns_documents: bool
    is_tei: bool  # asked with `texts`, to be answered likewise
    model: str
    ignored: tuple[str, ...]


def read_request(
    body: dict[str, Any], *, pooling: str = "rank", strict: bool = False
) -> RerankRequest:
    """Check a request body."""
    values = RERANK_FIELDS.read(body, strict=strict)
    if not values["query"]:
        raise fields.invalid("query", "a string that is not empty")
    documents = values["documents"] or values["texts"]
    if documents is None:
        raise fields.invalid("documents", MUST_BE)
    if pooling != "rank":
        raise FieldUnsupported(NOT_RANKING)
    return RerankRequest(
        query=values["query"],
        documents=documents,
        top_n=values["top_n"] or len(documents),
        returns_documents=values["return_documents"],
        is_tei=values["documents"] is None,
        model=values["model"],
        ignored=values.ignored,
    )


def prompts(request: RerankRequest, template: str) -> tuple[core.Prompt, ...]:
    """One prompt for each document: by the model's own template, else as a pair."""
    return tuple(_prompt(request.query, document, template) for document in request.documents)


def _prompt(query: str, document: str, template: str) -> core.Prompt:
    if not template:
        return core.Prompt(segments=((query, False), (document, False)), is_pair=True)
    filled = {"{query}": query, "{document}": document}
    parts = [part for part in PLACEHOLDER.split(template) if part]
    segments = tuple((filled.get(part, part), part not in filled) for part in parts)
    return core.Prompt(segments=segments, add_special=False)


def answer(
    request: RerankRequest, vectors: Sequence[str], *, model: str, n_prompt: int
) -> dict[str, Any] | list[dict[str, Any]]:
    """The answer from the engine's scores, in the order of the documents."""
    scores = [embeddings.decode(vector)[0] for vector in vectors]
    ranked = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[: request.top_n]
    if request.is_tei:
        return [_tei_result(request, i, scores[i]) for i in ranked]
    return {
        "object": "list",
        "model": model,
        "results": [_result(request, i, scores[i]) for i in ranked],
        "usage": {"prompt_tokens": n_prompt, "total_tokens": n_prompt},
    }


def _result(request: RerankRequest, index: int, score: float) -> dict[str, Any]:
    text = {"document": {"text": request.documents[index]}} if request.returns_documents else {}
    return {"index": index, "relevance_score": score, **text}


def _tei_result(request: RerankRequest, index: int, score: float) -> dict[str, Any]:
    text = {"text": request.documents[index]} if request.returns_documents else {}
    return {"index": index, "score": score, **text}
