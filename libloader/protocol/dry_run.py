"""`"dry_run": true` in a generating request: what it would meet and what it would run with.

Nothing is generated; the engine only counts tokens and looks into its prefix cache.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from libloader import core
from libloader.protocol.sampling import Generation

CACHE_LEVELS = ("kv", "ram", "disk")
NO_CLIENTS = ("grammar", "shows_special")  # of core.Sampling: made by us, not chosen


class Setting(NamedTuple):
    """A value in force. `origin` is request, flag, model or default."""

    value: Any
    origin: str


def answer(
    request: core.Request,
    wanted: Generation,
    found: Sequence[core.DryRunEvent],
    *,
    model: str,
    settings: Mapping[str, Setting],
    origins: Mapping[str, str],
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """`request` is what would have run; `settings` are the rows that an endpoint adds.

    `origins` are those of sampling.Defaults.
    """
    prompts = [_prompt(request, event) for event in found]
    rows = {**sampling_settings(wanted, origins), **settings}
    return {
        "object": "dry_run",
        "model": model,
        **(prompts[0] if len(prompts) == 1 else {"prompts": prompts}),
        "parameters": {n: {"value": row.value, "from": row.origin} for n, row in rows.items()},
        "grammar": request.sampling.grammar or None,
        "warnings": list(warnings),
        "ignored": list(wanted.ignored),
    }


def _prompt(request: core.Request, event: core.DryRunEvent) -> dict[str, Any]:
    prompt = request.prompts[event.index]
    text = "".join(part for part, _ in prompt.segments)
    cached = {**dict.fromkeys(CACHE_LEVELS, 0), **dict(event.cached)}
    return {
        "prompt": text if prompt.tokens is None else list(prompt.tokens),
        "prompt_tokens": event.n_prompt,
        "cached_tokens": cached,
        "n_ctx_slot": event.n_ctx,
        "fits": event.n_prompt < event.n_ctx,
        "max_tokens": event.n_max,
    }


def sampling_settings(wanted: Generation, origins: Mapping[str, str]) -> dict[str, Setting]:
    """Return the rows that every generating endpoint has."""
    sampling = dataclasses.asdict(wanted.sampling)
    chosen = {name: value for name, value in sampling.items() if name not in NO_CLIENTS}
    chosen["logit_bias"] = [
        [i, b if math.isfinite(b) else False] for i, b in sampling["logit_bias"]
    ]
    if "seed" not in wanted.given:
        chosen["seed"] = -1  # each request draws another
    chosen |= {"n": wanted.n, "stop": wanted.stop, "cache_prompt": wanted.cache_prompt}
    return {
        name: Setting(value, "request" if name in wanted.given else origins.get(name, "default"))
        for name, value in chosen.items()
    }
