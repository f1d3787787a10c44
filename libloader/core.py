"""Plain values that every layer may hold, and that cross the pipe between front and engine.

Laws:
- Only numbers, strings, tuples and these classes: each value survives JSON (`to_wire`).
- Nothing here knows HTTP, ctypes, clocks or threads.

Vocabulary: a *request* makes one *sequence* per choice; a sequence sits in a *slot* (one seq_id of
the KV cache); slots feed a *batch* (one llama_decode): that is a *step*. Choices are numbered over
all prompts of a request: index = prompt number * n + choice number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, Union

T = TypeVar("T")
LINES = ("slot", "embed", "read")  # what a request may wait for; see line_of
# LoRA adapters that a model runs with: (number in the order of loading, scale), no scale 0.
Adapters = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Prompt:
    """Text in segments of (text, parse_special), or token ids; exactly one of the two is set.

    In a segment with parse_special, strings such as `<|im_end|>` become control tokens; in one
    without, they stay text: what a user typed never turns into a control token.
    """

    segments: tuple[tuple[str, bool], ...] = ()
    tokens: tuple[int, ...] | None = None
    add_special: bool = True  # add BOS/EOS where the vocabulary says so
    is_pair: bool = False  # the two segments are a question and a text, for a model that ranks


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters, named and defaulted as llama-server's; row order is chain order."""

    seed: int = 0  # 0..2**32-1; the front draws one when the client gives none
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    repeat_last_n: int = 64
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    min_keep: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, bias); -inf forbids
    grammar: str = ""  # GBNF, checked by libloader.grammar; "" = free
    ignore_eos: bool = False
    shows_special: bool = False  # a grammar's text may come from control tokens; see keep_special


@dataclass(frozen=True)
class Thinking:
    """How long a model may think: after `n_max` tokens of thoughts, `closing` is written for it."""

    n_max: int
    begin: str  # of a think block
    end: str
    closing: str
    opened: bool = False  # the prompt ends inside the block
    again: bool = False  # blocks may begin anywhere, and their tokens add up


@dataclass(frozen=True)
class Request:
    """One piece of work for the engine.

    `kind` is generate, choose (one of `labels`), dry_run, embed, tokenize or detokenize.
    """

    id: str
    kind: str
    prompts: tuple[Prompt, ...]
    n: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = -1  # per choice; -1 = to the end of the context
    stop: tuple[str, ...] = ()
    top_logprobs: int = -1  # -1 = none wanted; 0..20 = the token's own and so many alternatives
    cache_prompt: bool = True
    n_keep: int = 0  # with context_shift: prompt tokens behind BOS that stay; -1 = all
    deadline_s: float = 0.0  # seconds from submit, over queue, prefill and decode; 0 = none
    fair_key: str = ""  # who asks: round-robin between these
    keep_special: bool = False  # put control tokens' text into the answer
    labels: tuple[str, ...] = ()  # of a choose request: what the answer may be
    lora: Adapters | None = None  # scales by adapter; None = those of the command line
    raw_vectors: bool = False  # embeddings as the model made them, not brought to length 1
    thinking: Thinking | None = None  # None = as long as the model likes
    streamed: bool = True  # False: nobody looks at its tokens before the last one is there
    # Replay after an engine crash: per choice, the completion tokens whose text was delivered.
    resume: tuple[tuple[int, ...], ...] = ()


WRITING = ("generate", "choose")  # kinds of request that need a model which continues text


def line_of(kind: str) -> str:
    """Return which of LINES a kind of request waits in: for a slot, for the embedder, or for
    neither, because its prompt is only read."""
    return "slot" if kind in WRITING else "embed" if kind == "embed" else "read"


class Usage(NamedTuple):
    """Token counts of one request over all its choices; n_cached of n_prompt were not computed."""

    n_prompt: int = 0
    n_cached: int = 0
    n_completion: int = 0


class TokenEvent(NamedTuple):
    """New tokens of one choice. `text` may be "" while a stop string or a character is undecided.

    Every sampled token appears in `tokens` of exactly one event, also when its text is held back.
    `logprobs` holds (token id, its bytes as latin-1 text, logprob, ((id, bytes, logprob), ...)).
    """

    request_id: str
    index: int  # type: ignore[assignment]  # hides tuple.index, on purpose
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[Any, ...] | None = None


class ChoiceDone(NamedTuple):
    """The end of one choice. `reason` is stop or length; `stop` the string that hit, if any.

    `label_logprobs` are a choose request's: how likely the model writes each of its labels.
    """

    request_id: str
    index: int  # type: ignore[assignment]  # hides tuple.index, on purpose
    reason: str
    stop: str | None = None
    label_logprobs: tuple[float, ...] = ()


class EmbeddingEvent(NamedTuple):
    """One input's vector: little-endian float32 in base64, as the wire wants it.

    Pooled and of length 1; but as they are the scores of a model that ranks (pooling rank), and the
    vectors of all tokens in a row (pooling none).
    """

    request_id: str
    index: int  # type: ignore[assignment]  # hides tuple.index, on purpose
    vector: str
    n_tokens: int


class TokensEvent(NamedTuple):
    """Answer to tokenize (`tokens`; `pieces`, bytes as latin-1 text) or detokenize (`text`)."""

    request_id: str
    index: int  # type: ignore[assignment]  # hides tuple.index, on purpose
    tokens: tuple[int, ...]
    pieces: tuple[str, ...]
    text: str


class DryRunEvent(NamedTuple):
    """What a prompt would meet. `cached` has (level, tokens known there): kv, ram or disk."""

    request_id: str
    index: int  # type: ignore[assignment]  # hides tuple.index, on purpose
    n_prompt: int
    n_ctx: int  # tokens that one sequence can hold
    n_max: int  # tokens that the answer may have, as the request and the context allow
    cached: tuple[tuple[str, int], ...]


class ProgressEvent(NamedTuple):
    """Prefill progress of one request: n_done of n_prompt tokens are in the KV cache."""

    request_id: str
    n_prompt: int
    n_cached: int
    n_done: int


class RequestDone(NamedTuple):
    """The last event of a request that ended well. `timings` in llama-server's names, ms."""

    request_id: str
    usage: Usage
    timings: dict[str, float]


class RequestFailed(NamedTuple):
    """The last event of a request that did not; `error` is errors.to_wire's value."""

    request_id: str
    error: dict[str, Any]


Event = Union[
    TokenEvent,
    ChoiceDone,
    EmbeddingEvent,
    TokensEvent,
    DryRunEvent,
    ProgressEvent,
    RequestDone,
    RequestFailed,
]

LAST_EVENTS = (RequestDone, RequestFailed)

# Tags of events on the pipe; an event travels as [tag, field, field, ...].
EVENT_TAGS: dict[str, type[Any]] = {
    "t": TokenEvent,
    "c": ChoiceDone,
    "e": EmbeddingEvent,
    "k": TokensEvent,
    "y": DryRunEvent,
    "p": ProgressEvent,
    "d": RequestDone,
    "f": RequestFailed,
}
_TAG_OF = {cls: tag for tag, cls in EVENT_TAGS.items()}


@dataclass(frozen=True)
class EngineSettings:
    """What the engine child is started with; names are llama-server's flags or llama.h's fields."""

    model: str = ""
    lib: str = ""  # file or folder given by the user; "" = search
    lib_cache: str = ""  # where a library inside the single file is unpacked; "" = the usual place
    alias: str = ""
    n_gpu_layers: int = 0  # -1 = all
    n_ctx: int = 0  # per slot; 0 = the model's, capped by memory
    n_batch: int = 2048
    n_ubatch: int = 512
    n_parallel: int = 4
    n_threads: int = 0  # 0 = one per core
    n_threads_batch: int = 0  # 0 = n_threads
    flash_attn: str = "auto"  # on, off, auto
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    use_mmap: bool = True
    use_mlock: bool = False
    kv_unified: bool | None = None  # None = decided by the engine
    pooling: str = ""  # none, mean, cls, last, rank; "" = the model's, else mean
    n_queue: int = 0  # waiting requests at most; 0 = the default
    cache_ram_mib: int = 64  # prefixes that left the KV cache; 0 = none are kept
    cache_dir: str = ""  # where prefixes outlive a restart; "" = nothing is written
    cache_disk_mib: int = 1024  # in cache_dir at most
    context_shift: bool = False  # a full context loses its older half, and the text goes on
    lookup: bool = False  # guess tokens from the sequence's own past
    model_draft: str = ""  # a smaller model that guesses; "" = none
    n_gpu_layers_draft: int = 0
    draft_min: int = 0  # tokens of one draft; a shorter one is not made
    draft_max: int = 16
    lora: tuple[tuple[str, float], ...] = ()  # adapter files and their scales
    lora_init_without_apply: bool = False  # scales are 0 unless a request says otherwise
    log_level: str = "warning"


@dataclass(frozen=True)
class ModelInfo:
    """What a loaded engine says of itself; sent once it is ready."""

    alias: str = ""
    path: str = ""
    description: str = ""  # e.g. "llama 15M F16"
    architecture: str = ""
    size_bytes: int = 0
    n_params: int = 0
    n_vocab: int = 0
    n_embd: int = 0
    generates: bool = True  # False: it only makes embeddings
    pooling: str = ""  # of its embeddings: none, mean, cls, last or rank
    rerank_template: str = ""  # how it wants {query} and {document} put together
    n_ctx_train: int = 0
    n_ctx: int = 0  # cells of the KV cache over all slots
    n_ctx_slot: int = 0  # tokens that one sequence can hold
    n_slots: int = 0
    n_batch: int = 0
    n_ubatch: int = 0
    n_threads: int = 0
    n_threads_batch: int = 0
    kv_bytes: int = 0
    bos_token: str = ""
    eos_token: str = ""
    special_tokens: tuple[str, ...] = ()  # text of every control token
    chat_template: str = ""
    tool_template: str = ""  # the one for requests with tools, where the file has another
    adapters: tuple[tuple[str, float], ...] = ()  # LoRA files and the scales they run with
    library_path: str = ""
    library_release: str = ""
    library_layout: str = ""
    backends: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()  # capabilities that this libllama build lacks
    load_ms: float = 0.0


@dataclass(frozen=True)
class EngineStatus:
    """The engine as the front sees it at one moment.

    `state` is loading, ok, restarting, stalled, failed or draining. `progress` is 0.0..1.0 while
    loading. `last_exit` is a signal's name, an exit code as text, or "" if it never ended.
    """

    state: str = "loading"
    progress: float = 0.0
    restarts: int = 0
    last_exit: str = ""
    n_running: int = 0
    n_waiting: int = 0
    heartbeat_age_s: float = 0.0
    retry_after_s: float = 0.0
    info: ModelInfo | None = None
    detail: str = ""
    counters: dict[str, float] = field(default_factory=dict)


def to_wire(value: Any) -> dict[str, Any]:
    """Return what of a dataclass value of this module differs from the defaults, for JSON."""
    cls = type(value)
    items = ((name, getattr(value, name), default) for name, default in _fields(cls).items())
    wired = {name: item for name, item, default in items if item != default}
    for name in _NESTED.get(cls, ()):
        if name in wired:
            wired[name] = _unbuild(wired[name])
    return wired


def from_wire(cls: type[T], data: dict[str, Any]) -> T:
    """Rebuild a dataclass of this module from `to_wire`'s values after a trip through JSON.

    Unknown keys are ignored, so that an older front may talk to a newer child in tests.
    """
    known = _fields(cls)
    values = {name: _frozen(item) for name, item in data.items() if name in known}
    nested = _NESTED.get(cls, {})
    for name, inner in nested.items():
        if values.get(name) is not None:
            values[name] = _rebuild(inner, data[name])
    return cls(**values)


_FIELDS: dict[type[Any], dict[str, Any]] = {}


def _fields(cls: type[Any]) -> dict[str, Any]:
    """Return the default of each field, MISSING where it has none. Any thread."""
    if cls not in _FIELDS:
        _FIELDS[cls] = {
            f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
            for f in dataclasses.fields(cls)
        }
    return _FIELDS[cls]


def event_to_wire(event: Event) -> list[Any]:
    return [_TAG_OF[type(event)], *event]


def event_from_wire(data: Sequence[Any]) -> Event:
    """Rebuild an event; lists inside it become tuples. KeyError or TypeError if malformed."""
    cls = EVENT_TAGS[data[0]]
    event: Event = cls(*(_frozen(item) for item in data[1:]))
    if isinstance(event, RequestDone):
        return event._replace(usage=Usage(*event.usage))
    return event


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def _unbuild(value: Any) -> Any:
    return tuple(map(to_wire, value)) if isinstance(value, tuple) else to_wire(value)


def _rebuild(inner: type[Any], data: Any) -> Any:
    if isinstance(data, (list, tuple)):
        return tuple(from_wire(inner, item) for item in data)
    return from_wire(inner, data)


_NESTED: dict[type[Any], dict[str, type[Any]]] = {
    Request: {"prompts": Prompt, "sampling": Sampling, "thinking": Thinking},
    EngineStatus: {"info": ModelInfo},
}
