"""GET /metrics: counts and gauges in Prometheus' text format (version 0.0.4).

Names begin with `igllama_`; what llama-server has too is told under its `llamacpp:` name as well,
so that its dashboards work. What the engine has not said yet (it loads, or is down) is left out.
Counts of the engine begin anew when it is restarted, as Prometheus expects of counters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from libloader import core

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metric(NamedTuple):
    """One figure of `EngineStatus.counters`, and what it is called."""

    figure: str
    name: str
    kind: str  # counter or gauge
    help: str


METRICS = tuple(
    Metric(*row)
    for row in (
        ("n_running", "igllama_requests_running", "gauge", "Sequences that have a slot."),
        ("n_waiting", "igllama_requests_waiting", "gauge", "Sequences that wait for a slot."),
        ("n_cells_used", "igllama_kv_cells_used", "gauge", "Cells of the KV cache in use."),
        ("n_steps", "igllama_steps_total", "counter", "Steps of the engine."),
        ("n_batches", "igllama_batches_total", "counter", "Batches that were decoded."),
        ("n_refused_batches", "igllama_batches_refused_total", "counter",
         "Batches that libllama refused: for want of room in the KV cache, or with an error."),
        ("n_preempted", "igllama_preempted_total", "counter", "Sequences sent back to wait."),
        ("n_requests", "igllama_engine_requests_total", "counter", "Requests that were finished."),
        ("n_cancelled", "igllama_cancelled_total", "counter", "Requests whose client went away."),
        ("n_prompt_tokens", "igllama_prompt_tokens_total", "counter", "Tokens of all prompts."),
        ("n_cached_tokens", "igllama_prompt_tokens_cached_total", "counter",
         "Of these, tokens whose KV cache was there already."),
        ("n_completion_tokens", "igllama_completion_tokens_total", "counter", "Tokens generated."),
        ("replayed", "igllama_engine_replayed_total", "counter",
         "Requests continued in a new engine after a crash."),
        ("blamed", "igllama_engine_blamed_total", "counter", "Requests failed by a crash."),
    )
)  # fmt: skip
# Figures whose names end in what becomes a label: (beginning, name, label, help).
LABELLED = (
    ("n_hits_", "igllama_cache_tokens_total", "level",
     "Tokens that a choice took from the prefix cache, by where they were."),
    ("failed_", "igllama_engine_failed_total", "error", "Requests that failed in the engine."),
    ("restarts_", "igllama_engine_restarts_total", "reason", "Engines that were replaced."),
)  # fmt: skip
HISTOGRAMS = (
    ("queue_s", "igllama_queue_seconds", "From submit to the first work on a request."),
    ("first_token_s", "igllama_time_to_first_token_seconds", "From submit to the first token."),
    ("token_gap_s", "igllama_token_gap_seconds", "Between two tokens of a choice."),
    ("batch_rows", "igllama_batch_rows", "Tokens in a batch."),
)
# llama-server's names for what is the same here.
LLAMACPP = tuple(
    Metric(*row)
    for row in (
        ("n_running", "llamacpp:requests_processing", "gauge", "Requests in work."),
        ("n_waiting", "llamacpp:requests_deferred", "gauge", "Requests that wait."),
        ("n_computed_tokens", "llamacpp:prompt_tokens_total", "counter",
         "Prompt tokens that were computed."),
        ("n_completion_tokens", "llamacpp:tokens_predicted_total", "counter", "Tokens generated."),
        ("n_batches", "llamacpp:n_decode_total", "counter", "Calls of llama_decode."),
    )
)  # fmt: skip
STATES = ("loading", "ok", "restarting", "stalled", "failed", "draining")
_BOUND = re.compile(r"_le_([0-9.e+-]+)$")


class WebCounts(NamedTuple):
    """What the HTTP layer has counted."""

    answers: Mapping[tuple[str, int], int] = {}  # by route and status
    refusals: Mapping[str, int] = {}  # by the code of the error
    figures: Mapping[str, int] = {}


def page(status: core.EngineStatus, web: WebCounts) -> str:
    figures = dict(status.counters)
    if "n_prompt_tokens" in figures:
        figures["n_computed_tokens"] = figures["n_prompt_tokens"] - figures["n_cached_tokens"]
    lines = [*_engine_state(status), *_web(web)]
    for metric in (*METRICS, *LLAMACPP):
        if metric.figure in figures:
            lines += _family(metric.name, metric.kind, metric.help, [("", figures[metric.figure])])
    for beginning, name, label, text in LABELLED:
        samples = [
            (_labels({label: key[len(beginning) :]}), value)
            for key, value in sorted(figures.items())
            if key.startswith(beginning)
        ]
        lines += _family(name, "counter", text, samples)
    for figure, name, text in HISTOGRAMS:
        lines += _histogram(figure, name, text, figures)
    return "\n".join(lines) + "\n"


def _engine_state(status: core.EngineStatus) -> list[str]:
    states = [(_labels({"state": name}), float(name == status.state)) for name in STATES]
    lines = _family("igllama_engine_state", "gauge", "1 for the state of the engine.", states)
    slots = [("", float(status.info.n_slots))] if status.info else []
    return lines + _family("igllama_slots", "gauge", "Requests that can run at once.", slots)


def _web(web: WebCounts) -> list[str]:
    answers = [
        (_labels({"route": route or "none", "status": str(status)}), float(count))
        for (route, status), count in sorted(web.answers.items())
    ]
    refusals = [
        (_labels({"reason": reason}), float(n)) for reason, n in sorted(web.refusals.items())
    ]
    counts = [
        (_labels({"what": name}), float(n))
        for name, n in sorted(web.figures.items())
        if not name.startswith(("n_", "status_"))
    ]
    open_now = [("", float(web.figures["n_connections"]))] if web.figures else []
    return [
        *_family("igllama_http_requests_total", "counter", "Answers sent.", answers),
        *_family("igllama_http_rejected_total", "counter", "Requests ended by an error.", refusals),
        *_family("igllama_http_events_total", "counter", "What happened on the line.", counts),
        *_family("igllama_http_connections", "gauge", "Connections that are open.", open_now),
    ]


def _histogram(figure: str, name: str, text: str, figures: Mapping[str, float]) -> list[str]:
    if f"{figure}_count" not in figures:
        return []
    total = figures[f"{figure}_count"]
    bounds = [(_BOUND.search(key), n) for key, n in figures.items() if key.startswith(figure)]
    known = sorted((float(match.group(1)), n) for match, n in bounds if match)
    lines = [f"# HELP {name} {text}", f"# TYPE {name} histogram"]
    lines += [f'{name}_bucket{{le="{bound:g}"}} {_number(n)}' for bound, n in known]
    lines.append(f'{name}_bucket{{le="+Inf"}} {_number(total)}')
    lines.append(f"{name}_sum {_number(figures[f'{figure}_sum'])}")
    lines.append(f"{name}_count {_number(total)}")
    return lines


def _family(name: str, kind: str, text: str, samples: Iterable[tuple[str, float]]) -> list[str]:
    """Return the lines of one metric; none without samples."""
    lines = [f"{name}{labels} {_number(value)}" for labels, value in samples]
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *lines] if lines else []


def _labels(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in labels.items()) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
