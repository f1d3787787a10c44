"""POST /v1/chat/completions: its request fields, its answer and its stream of chunks.

Sources: OpenAI's API reference (chat, streaming), llama-server's README for the extra fields.
No sockets and no clock: `created` and ids come from the caller.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from libloader import core
from libloader.errors import FieldUnsupported
from libloader.protocol import choices, fields, sampling, shape, tools
from libloader.protocol.fields import Field, boolean, integer, list_of, mapping, one_of, string

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_role = one_of(*ROLES)
MAX_MESSAGES = 10_000
MAX_PARTS = 1_000

CHAT_FIELDS = (
    Field("messages", list_of(mapping, MAX_MESSAGES, 1)),
    Field("logprobs", boolean, False),
    Field("top_logprobs", integer(0, 20)),
    Field("n_probs", integer(0, 20), 0),
    Field("chat_template_kwargs", mapping),
    Field("add_generation_prompt", boolean, True),
    Field("continue_final_message", boolean, False),
    Field("enable_thinking", boolean),
    Field("reasoning_effort", string(64)),
    Field(
        "thinking_budget_tokens",
        integer(-1, sampling.MAX_INT),
        None,
        ("reasoning_budget_tokens", "reasoning_budget", "thinking_budget"),
    ),
    Field("reasoning_format", one_of("none", "deepseek", "auto")),
)
ALL_FIELDS = fields.Table(
    *CHAT_FIELDS,
    *tools.TOOL_FIELDS,
    *shape.SHAPE_FIELDS,
    *choices.CHOICES_FIELDS,
    *sampling.SAMPLING_FIELDS,
    *sampling.GENERATION_FIELDS,
)
# Fields of OpenAI that would change what the answer means: refused, not ignored.
REFUSED = ("audio", "chat_template")


@dataclass(frozen=True)
class ChatRequest:
    """A checked chat request: what goes to the template, and what goes to the engine."""

    messages: tuple[dict[str, Any], ...]
    generation: sampling.Generation
    template_kwargs: dict[str, Any]
    use: tools.ToolUse = field(default_factory=tools.ToolUse)
    shape: shape.Shape | None = None
    labels: tuple[str, ...] = ()  # if any, the answer is one of these
    thinking_budget: int | None = None  # tokens; -1 = no limit, None = the server's
    reasoning_format: str = ""  # none, deepseek or auto; "" = the server's
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    top_logprobs: int = -1  # -1: the answer carries no logprobs


def read_request(
    body: dict[str, Any],
    *,
    seed_source: random.Random,
    strict: bool = False,
    defaults: core.Sampling | None = None,
) -> ChatRequest:
    """Check a request body; FieldInvalid or FieldUnsupported name the field and the remedy."""
    sampling.refuse_unbuilt(body, REFUSED)
    values = ALL_FIELDS.read({k: v for k, v in body.items() if k not in REFUSED}, strict=strict)
    if values["messages"] is None:
        raise fields.invalid("messages", "an array of messages, each with role and content")
    generation = sampling.read_generation(
        values, seed_source=seed_source, defaults=defaults or core.Sampling()
    )
    use, wanted_shape = tools.read_tools(values), shape.read_shape(values)
    labels = choices.read_choices(values, use, wanted_shape)
    if labels:
        ignored = (*generation.ignored, *choices.without_effect(values))
        generation = dataclasses.replace(generation, ignored=ignored)
    return ChatRequest(
        messages=tuple(_message(m, f"messages[{i}]") for i, m in enumerate(values["messages"])),
        generation=generation,
        template_kwargs=_template_kwargs(values),
        use=use,
        shape=wanted_shape,
        labels=labels,
        thinking_budget=_thinking_budget(values),
        reasoning_format=values["reasoning_format"] or "",
        add_generation_prompt=values["add_generation_prompt"],
        continue_final_message=values["continue_final_message"],
        top_logprobs=_top_logprobs(values),
    )


def _message(message: dict[str, Any], path: str) -> dict[str, Any]:
    """Check the parts of a message that every template relies on; the rest is the template's."""
    role = message.get("role")
    if role is None:
        raise fields.invalid(f"{path}.role", "given: one of " + ", ".join(ROLES))
    _role(role, f"{path}.role")
    content = message.get("content")
    if content is None and role in ("system", "developer", "user"):
        raise fields.invalid(f"{path}.content", "a string or an array of text parts")
    checked = dict(message)
    if content is not None:
        checked["content"] = _content(content, f"{path}.content")
    if message.get("tool_calls") is not None:
        checked["tool_calls"] = _tool_calls(message["tool_calls"], f"{path}.tool_calls")
    return checked


def _content(content: Any, path: str) -> Any:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise fields.invalid(path, "a string or an array of text parts")
    parts = list_of(mapping, MAX_PARTS)(content, path)
    return [_text_part(part, f"{path}[{i}]") for i, part in enumerate(parts)]


def _text_part(part: dict[str, Any], path: str) -> dict[str, Any]:
    if part.get("type") != "text":
        raise FieldUnsupported(
            f'{path}.type must be "text": this server takes no images, audio or files',
            param=f"{path}.type",
        )
    return {**part, "text": string()(part.get("text"), f"{path}.text")}


def _tool_calls(calls: Any, path: str) -> list[dict[str, Any]]:
    result = []
    for i, call in enumerate(list_of(mapping, tools.MAX_TOOLS)(calls, path)):
        function = mapping(call.get("function"), f"{path}[{i}].function")
        string(1024, 1)(function.get("name"), f"{path}[{i}].function.name")
        if not isinstance(function.get("arguments", ""), (str, dict)):
            raise fields.invalid(f"{path}[{i}].function.arguments", "a JSON string or an object")
        result.append(call)
    return result


def _template_kwargs(values: fields.Values) -> dict[str, Any]:
    kwargs = dict(values["chat_template_kwargs"] or {})
    for name in ("enable_thinking", "reasoning_effort"):
        if values[name] is not None:
            kwargs[name] = values[name]
    if "chat_template" in kwargs:
        raise FieldUnsupported(
            "a chat template is chosen at start, with --chat-template",
            param="chat_template_kwargs.chat_template",
        )
    return kwargs


def _thinking_budget(values: fields.Values) -> int | None:
    """A field of the request, or of chat_template_kwargs, where some templates look for it."""
    if values["thinking_budget_tokens"] is not None:
        return int(values["thinking_budget_tokens"])
    given = (values["chat_template_kwargs"] or {}).get("thinking_budget")
    path = "chat_template_kwargs.thinking_budget"
    return None if given is None else int(integer(-1, sampling.MAX_INT)(given, path))


def _top_logprobs(values: fields.Values) -> int:
    """OpenAI's two fields, or llama-server's one. The numbers are the model's own, before any
    sampler or grammar: so does llama-server, and so the chance of a forced token is told truly.
    """
    if values["n_probs"] and not values["logprobs"]:
        return int(values["n_probs"])
    if values["top_logprobs"] is not None and not values["logprobs"]:
        raise fields.invalid("top_logprobs", 'sent together with "logprobs": true')
    return (values["top_logprobs"] or 0) if values["logprobs"] else -1


# ---- answers ----


def usage_dict(usage: core.Usage, n_reasoning: int = 0) -> dict[str, Any]:
    """OpenAI's `usage`; `n_reasoning` of the completion's tokens were reasoning."""
    return {
        "prompt_tokens": usage.n_prompt,
        "completion_tokens": usage.n_completion,
        "total_tokens": usage.n_prompt + usage.n_completion,
        "prompt_tokens_details": {"cached_tokens": usage.n_cached},
        "completion_tokens_details": {"reasoning_tokens": n_reasoning},
    }


def logprobs_dict(entries: Sequence[Any]) -> dict[str, Any]:
    """OpenAI's `logprobs` object from core.TokenEvent.logprobs entries."""
    return {"content": [_logprob(entry) for entry in entries], "refusal": None}


def _logprob(entry: Any) -> dict[str, Any]:
    token, piece, logprob, top = entry
    return {
        **_alternative((token, piece, logprob)),
        "top_logprobs": [_alternative(other) for other in top],
    }


def _alternative(entry: Any) -> dict[str, Any]:
    token, piece, logprob = entry
    raw = piece.encode("latin-1")
    return {
        "id": token,
        "token": raw.decode("utf-8", "replace"),
        "bytes": list(raw),
        "logprob": logprob,
    }


@dataclass(frozen=True)
class Choice:
    """One finished choice of a plain answer; `extra` are fields beside OpenAI's."""

    message: dict[str, Any]
    finish_reason: str
    logprobs: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def completion(
    *,
    id: str,
    created: int,
    model: str,
    choices: Sequence[Choice],
    usage: core.Usage,
    timings: dict[str, float],
    n_reasoning: int = 0,
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """The plain answer; `warnings` only if there are any."""
    return {
        "id": id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [_choice(i, choice) for i, choice in enumerate(choices)],
        "usage": usage_dict(usage, n_reasoning),
        "timings": timings,
        **({"warnings": list(warnings)} if warnings else {}),
    }


def _choice(index: int, choice: Choice) -> dict[str, Any]:
    return {
        "index": index,
        "message": choice.message,
        "logprobs": choice.logprobs,
        "finish_reason": choice.finish_reason,
        **choice.extra,
    }


_quoted = json.JSONEncoder(ensure_ascii=False).encode  # made once: `json.dumps` makes one each time


def dumps(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _with_warnings(chunk: bytes, warnings: Sequence[str]) -> bytes:
    if not warnings:
        return chunk
    return b"%b,%b" % (chunk[:-1], dumps({"warnings": list(warnings)})[1:])


class Chunks:
    """The chunks of one stream as JSON bytes; id, created and model are rendered only once.

    Hot: `text` runs once per token on the thread that serves all streams.
    """

    def __init__(self, *, id: str, created: int, model: str, include_usage: bool) -> None:
        head = {"id": id, "object": "chat.completion.chunk", "created": created, "model": model}
        self._head = dumps(head)[:-1]
        # With include_usage, every chunk but the last says "usage":null (OpenAI's reference).
        self._tail = b'],"usage":null}' if include_usage else b"]}"
        self.include_usage = include_usage

    def first(self, index: int, warnings: Sequence[str] = ()) -> bytes:
        """The chunk that begins a choice; `warnings` only if there are any."""
        return _with_warnings(self.delta(index, {"role": "assistant", "content": ""}), warnings)

    def last(
        self, index: int, reason: str, extra: dict[str, Any], warnings: Sequence[str] = ()
    ) -> bytes:
        """The chunk that ends a choice; `extra` are fields beside OpenAI's."""
        choice = {"index": index, "delta": {}, "finish_reason": reason, **extra}
        return _with_warnings(self._of(choice), warnings)

    def text(self, index: int, text: str, logprobs: dict[str, Any] | None = None) -> bytes:
        content = _quoted(text).encode()
        extra = b',"logprobs":%b' % dumps(logprobs) if logprobs is not None else b""
        return b'%b,"choices":[{"index":%d,"delta":{"content":%b}%b,"finish_reason":null}%b' % (
            self._head,
            index,
            content,
            extra,
            self._tail,
        )

    def delta(
        self,
        index: int,
        delta: dict[str, Any],
        finish_reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> bytes:
        extra = {} if logprobs is None else {"logprobs": logprobs}
        return self._of({"index": index, "delta": delta, **extra, "finish_reason": finish_reason})

    def _of(self, choice: dict[str, Any]) -> bytes:
        return b'%b,"choices":[%b%b' % (self._head, dumps(choice), self._tail)

    def usage(self, usage: core.Usage, timings: dict[str, float], n_reasoning: int = 0) -> bytes:
        counts = dumps({"usage": usage_dict(usage, n_reasoning), "timings": timings})[1:-1]
        return b'%b,"choices":[],%b}' % (self._head, counts)
