"""GET /v1/models, /v1/models/{id} and /health: what is served, and how it is."""

from __future__ import annotations

import math
from typing import Any

from libloader import core
from libloader.errors import ModelNotFound

# EngineStatus.state -> what /health calls it; only "ok" is answered with success.
HEALTH_WORDS = {"loading": "loading model"}


def model_dict(name: str, created: int, info: core.ModelInfo | None) -> dict[str, Any]:
    """OpenAI's model object, with llama-server's `meta` once the model is loaded."""
    entry: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "igllama",
    }
    if info is not None:
        entry["meta"] = {
            "n_vocab": info.n_vocab,
            "n_ctx_train": info.n_ctx_train,
            "n_ctx": info.n_ctx_slot,
            "n_embd": info.n_embd,
            "n_params": info.n_params,
            "size": info.size_bytes,
        }
    return entry


def model_list(name: str, created: int, info: core.ModelInfo | None) -> dict[str, Any]:
    return {"object": "list", "data": [model_dict(name, created, info)]}


def find_model(wanted: str, name: str, created: int, info: core.ModelInfo | None) -> dict[str, Any]:
    if wanted != name:
        raise ModelNotFound(f"no model {wanted!r} is served here; there is {name!r}", param="model")
    return model_dict(name, created, info)


def adapter_list(info: core.ModelInfo) -> list[dict[str, Any]]:
    """GET /lora-adapters, as llama-server has it: the ids that requests use in `lora`."""
    return [{"id": i, "path": p, "scale": scale} for i, (p, scale) in enumerate(info.adapters)]


def health(status: core.EngineStatus) -> tuple[bool, dict[str, Any]]:
    """Return (ok, body). The body names no path, prompt or version: /health needs no API key."""
    ok = status.state == "ok"
    body: dict[str, Any] = {"status": HEALTH_WORDS.get(status.state, status.state)}
    if ok:
        body["model"] = "loaded"
    elif status.state == "loading":
        body.update(model="loading", progress=round(status.progress, 3))
    body.update(
        running=status.n_running,
        waiting=status.n_waiting,
        restarts=status.restarts,
        last_exit=status.last_exit or None,
    )
    return ok, body


def retry_after(status: core.EngineStatus) -> int:
    """Whole seconds for a Retry-After header, at least 1."""
    return max(1, math.ceil(status.retry_after_s))
