#!/usr/bin/env python3
"""igllama: an OpenAI-compatible server for GGUF models on any prebuilt libllama.

    python3 igllama.py api model.gguf          serve a model on 127.0.0.1:8080
    python3 igllama.py show model.gguf         say what a GGUF file is, without libllama
    python3 igllama.py --help                  every option (-h is the host)

This file is the front door: routes, handlers, commands, main. Everything else is in libloader/:

    errors core options   the error tree; plain values that every layer may hold; the flags
    abi/ llama/        find and prove a libllama; owners of its models, contexts, batches, samplers
    engine/            continuous batching: scheduler, slots, prefix cache, detokenizer
    supervise/         the engine's child process: start, watch, replay, restart
    chat/ grammar/     messages -> prompt, model text -> message; schemas -> grammars
    constraint         what must be in an answer -> its grammar
    answers            the engine's events -> a plain or streamed answer
    service            the process: settings, signals, start, drain, what is printed
    engine_child       the engine's process, whole
    protocol/          the JSON of each API dialect, without sockets
    web/               the hardened http.server: limits, strict parsing, streams

One request: web parses and checks it, a handler here turns its JSON into a core.Request by way of
protocol and chat, and the supervisor sends it to the engine child. Events come back on one thread,
which renders each stream's chunk and sends it without ever blocking (`answers.Streamed.deliver`).

Exit codes: 0 ended as asked (SIGTERM, SIGINT), 1 could not start, 2 wrong flags or values.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import random
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Callable, NamedTuple

from libloader import __version__, core, errors, options, service
from libloader.answers import Checks, Collected, Streamed
from libloader.chat import budget
from libloader.chat import template as chat_template
from libloader.chat.answer import AnswerReader, answer_reader, keeps_special
from libloader.chat.message import MessageReader
from libloader.chat.template import RenderedPrompt
from libloader.constraint import FREE, Constraint, constraint
from libloader.llama import gguf
from libloader.protocol import (
    chat,
    choices,
    dry_run,
    embeddings,
    fields,
    metrics,
    models,
    rerank,
    sampling,
    strict_json,
)
from libloader.supervise import heap
from libloader.web import log, sockets
from libloader.web.notify import notify
from libloader.web.problems import HttpProblem, Reply, internal_error, reply_of
from libloader.web.server import Exchange, Server

NO_ADVICE = sampling.Defaults()
HTTP_STACK_BYTES = 4 << 20  # of each connection's thread; only touched pages count


# ---- errors: the only place that knows HTTP numbers for our own error classes ----

STATUS_OF: dict[type[BaseException], tuple[int, str, str]] = {
    # class                   status  OpenAI's type            code
    errors.BodyInvalid:       (400, "invalid_request_error", "invalid_json"),
    errors.FieldInvalid:      (400, "invalid_request_error", "invalid_value"),
    errors.FieldUnsupported:  (400, "invalid_request_error", "unsupported_value"),
    errors.PromptTooLong:     (400, "invalid_request_error", "context_length_exceeded"),
    errors.ModelNotFound:     (404, "invalid_request_error", "model_not_found"),
    errors.TemplateError:     (400, "invalid_request_error", "template_error"),
    errors.TemplateRaised:    (400, "invalid_request_error", "template_raised"),
    errors.GrammarInvalid:    (400, "invalid_request_error", "invalid_grammar"),
    errors.RequestPoisoned:   (422, "invalid_request_error", "engine_crash_repeat"),
    errors.EngineUnavailable: (503, "server_error", "engine_unavailable"),
    errors.EngineCrashed:     (500, "server_error", "engine_crash"),
    errors.ServerDraining:    (503, "server_error", "server_shutdown"),
    errors.QueueFull:         (429, "rate_limit_exceeded", "queue_full"),
    errors.DecodeFailed:      (500, "server_error", "decode_failed"),
    errors.NanLogits:         (500, "server_error", "nan_logits"),
    errors.CapabilityMissing: (501, "server_error", "not_supported_by_library"),
}  # fmt: skip


def describe_error(exc: BaseException) -> Reply:
    """Return the answer for an error: OpenAI's shape, never a traceback."""
    if isinstance(exc, HttpProblem):
        return reply_of(exc)
    row = next((STATUS_OF[cls] for cls in type(exc).__mro__ if cls in STATUS_OF), None)
    if row is None or not isinstance(exc, errors.IgllamaError):
        return internal_error()
    status, kind, code = row
    headers: tuple[tuple[str, str], ...] = ()
    if exc.retry_after_s is not None:
        headers = (("Retry-After", str(max(1, math.ceil(exc.retry_after_s)))),)
    error = {"message": exc.message, "type": kind, "param": exc.param, "code": code}
    return Reply(status, {"error": error}, headers)


# ---- the application: what the handlers share ----


class App:
    """The engine, the chat template and names. Handlers run in many threads and only read it."""

    def __init__(
        self,
        flags: argparse.Namespace,
        engine: service.Engine,
        defaults: sampling.Defaults = NO_ADVICE,
    ) -> None:
        self.flags = flags
        self.engine = engine
        self.name = options.engine_settings(flags).alias
        self.created = int(time.time())
        self.random = random.SystemRandom()
        self.defaults = defaults
        self.server: Server | None = None  # set once; for its figures
        self._templates: dict[str, chat_template.ChatTemplate] = {}
        self._template_lock = threading.Lock()

    def info(self) -> core.ModelInfo:
        """What the loaded engine says of itself; EngineUnavailable until it is loaded."""
        status = self.engine.status()
        if status.info is None:
            raise errors.EngineUnavailable(
                f"the model is loading ({status.progress:.0%}); GET /health says when it is ready",
                retry_after_s=max(1.0, status.retry_after_s),
            )
        return status.info

    def template(self, *, with_tools: bool = False) -> chat_template.ChatTemplate:
        """The chat template, parsed and probed once, at the first use after loading."""
        info = self.info()
        source = (with_tools and info.tool_template) or info.chat_template
        with self._template_lock:
            if source not in self._templates:
                self._templates[source] = select_template(self.flags, info, source)
            return self._templates[source]


def select_template(
    flags: argparse.Namespace, info: core.ModelInfo, source: str
) -> chat_template.ChatTemplate:
    return chat_template.select_template(
        flags.chat_template_file or flags.chat_template,
        source,
        bos_token=info.bos_token,
        eos_token=info.eos_token,
        special_tokens=info.special_tokens,
        tool_format=flags.tool_format,
    )


# ---- handlers: (app, exchange); an error raised here becomes its JSON answer ----


class ChatWork(NamedTuple):
    """One chat request, ready for the engine, and what it takes to read its answer."""

    call: chat.ChatRequest
    template: chat_template.ChatTemplate
    request: core.Request
    constraint: Constraint
    new_reader: Callable[[], MessageReader]  # one for each choice


def chat_completions(app: App, exchange: Exchange) -> None:
    call = read_chat(app, exchange)
    work = chat_work(app, exchange, call)
    if call.generation.dry_run:
        settings, warnings = chat_settings(app, work), work.constraint.warnings
        run_dry(app, exchange, work.request, call.generation, settings, warnings)
    elif call.generation.stream:
        stream_chat(app, exchange, work)
    else:
        answer_chat(app, exchange, work)


def read_chat(app: App, exchange: Exchange) -> chat.ChatRequest:
    body = strict_json.parse_object(exchange.body)
    return chat.read_request(
        body,
        seed_source=app.random,
        strict=is_strict(exchange),
        defaults=app.defaults.sampling,
    )


def chat_work(app: App, exchange: Exchange, call: chat.ChatRequest) -> ChatWork:
    template = app.template(with_tools=bool(call.use.tools))
    wanted = call.generation
    prompt = render_chat(app, template, call)
    split = splits_reasoning(app, call)
    if call.labels:
        prompt, limits = before_content(template, call, prompt), FREE
    else:
        limits = constraint(template, prompt, call.use, call.shape, split_reasoning=split)
    message = app.flags.reasoning_budget_message
    thinking = budget.thinking(template, prompt, thinking_budget(app, call), message)
    request = core.Request(
        id="chatcmpl-" + uuid.uuid4().hex,
        kind="choose" if call.labels else "generate",
        prompts=(core.Prompt(segments=prompt.segments, add_special=prompt.add_special),),
        n=wanted.n,
        sampling=dataclasses.replace(wanted.sampling, grammar=limits.grammar),
        max_tokens=wanted.max_tokens,
        stop=wanted.stop,
        top_logprobs=call.top_logprobs,
        cache_prompt=wanted.cache_prompt,
        lora=wanted.lora,
        n_keep=wanted.n_keep,
        deadline_s=wanted.deadline_s or app.flags.timeout,
        fair_key=exchange.api_key,
        keep_special=keeps_special(template, with_tools=bool(call.use.tools)),
        labels=call.labels,
        thinking=thinking if split or not limits.grammar else None,
        streamed=wanted.stream,
    )

    def new_reader() -> MessageReader:
        if call.labels:
            return MessageReader(AnswerReader())  # a label is content, whatever it looks like
        reader = answer_reader(template, prompt, tools=call.use.tools, split_reasoning=split)
        return MessageReader(reader, legacy=call.use.is_legacy)

    return ChatWork(call, template, request, limits, new_reader)


def render_chat(
    app: App, template: chat_template.ChatTemplate, call: chat.ChatRequest
) -> RenderedPrompt:
    return template.render(
        call.messages,
        tools=call.use.tools or None,
        add_generation_prompt=call.add_generation_prompt,
        continue_final_message=call.continue_final_message,
        kwargs=template_kwargs(app, call),
    )


def before_content(
    template: chat_template.ChatTemplate, call: chat.ChatRequest, prompt: RenderedPrompt
) -> RenderedPrompt:
    """Labels are read where the content begins: behind what the format has before that."""
    start = template.format.content
    if not start or call.continue_final_message or not call.add_generation_prompt:
        return prompt
    return prompt._replace(segments=(*prompt.segments, (start, True)), text=prompt.text + start)


def template_kwargs(app: App, call: chat.ChatRequest) -> dict[str, Any]:
    thinks = not app.flags.no_think and thinking_budget(app, call) != 0
    thinking = {} if thinks else {"enable_thinking": False}
    # No thought may come before a label.
    instead = {"enable_thinking": False} if call.labels else {}
    return {**thinking, **call.template_kwargs, **instead}


def thinking_budget(app: App, call: chat.ChatRequest) -> int:
    return app.flags.reasoning_budget if call.thinking_budget is None else call.thinking_budget


def apply_template(app: App, exchange: Exchange) -> None:
    """llama-server's: the prompt that a chat request would get, and nothing is run."""
    call = read_chat(app, exchange)
    template = app.template(with_tools=bool(call.use.tools))
    prompt = render_chat(app, template, call)
    exchange.reply_json({"prompt": prompt.text}, headers=ignored_headers(call.generation.ignored))


def splits_reasoning(app: App, call: chat.ChatRequest) -> bool:
    """A grammar of the client's own describes the whole answer: nothing is taken out of that."""
    if call.shape is not None and call.shape.grammar:
        return False
    return (call.reasoning_format or app.flags.reasoning_format) != "none"


def answer_chat(app: App, exchange: Exchange, work: ChatWork) -> None:
    request = work.request
    collected = Collected(request.n)
    submit(app, exchange, request, collected.deliver)
    last = collected.wait()
    readers = [work.new_reader() for _ in range(request.n)]
    checks = checks_of(work)
    found = [collected.choice(i, reader, checks) for i, reader in enumerate(readers)]
    problems = [p for one in found for p in checks.of(one.message, one.finish_reason)]
    body = chat.completion(
        id=request.id, created=int(time.time()), model=app.name, choices=found,
        usage=last.usage, timings=last.timings,
        n_reasoning=sum(reader.n_reasoning_tokens for reader in readers),
        warnings=(*checks.warnings, *problems),
    )  # fmt: skip
    exchange.reply_json(body, headers=ignored_headers(work.call.generation.ignored))


def checks_of(work: ChatWork) -> Checks:
    """What is said of the finished messages of a chat request."""
    limits, labels = work.constraint, work.request.labels

    def extra(done: core.ChoiceDone) -> dict[str, Any]:
        return choices.probabilities(labels, done.label_logprobs) if labels else {}

    return Checks(limits.problems if limits.needs_check else None, extra, limits.warnings)


def stream_chat(app: App, exchange: Exchange, work: ChatWork) -> None:
    request, wanted = work.request, work.call.generation
    chunks = chat.Chunks(
        id=request.id, created=int(time.time()), model=app.name,
        include_usage=wanted.include_usage,
    )  # fmt: skip
    readers = [work.new_reader() for _ in range(request.n)]
    streamed = Streamed(exchange, chunks, readers, describe_error, checks_of(work))
    submit(app, exchange, request, streamed.deliver)
    streamed.run(ignored_headers(wanted.ignored))


def submit(
    app: App, exchange: Exchange, request: core.Request, deliver: Callable[[core.Event], None]
) -> None:
    """Hand a request to the engine; it is cancelled when its client hangs up.

    In this order: a client that is gone already must cancel what the engine knows of.
    """
    if request.kind in core.WRITING and not app.info().generates:
        raise errors.FieldUnsupported(
            "this model makes embeddings, it cannot write text: POST /v1/embeddings", param="model"
        )
    app.engine.submit(request, deliver)
    exchange.on_gone(lambda: app.engine.cancel(request.id))


def run_dry(
    app: App,
    exchange: Exchange,
    request: core.Request,
    wanted: sampling.Generation,
    settings: Mapping[str, dry_run.Setting],
    warnings: Sequence[str] = (),
) -> None:
    """Answer any generating request by what it would meet and run with."""
    collected = Collected(request.n * len(request.prompts))
    asked = dataclasses.replace(request, id="dry-" + uuid.uuid4().hex, kind="dry_run")
    submit(app, exchange, asked, collected.deliver)
    collected.wait()
    body = dry_run.answer(
        request, wanted, collected.dry_runs, model=app.name, settings=settings,
        origins=app.defaults.origins, warnings=warnings,
    )  # fmt: skip
    exchange.reply_json(body, headers=ignored_headers(wanted.ignored))


def chat_settings(app: App, work: ChatWork) -> dict[str, dry_run.Setting]:
    """The rows of a dry run that are not every endpoint's: each value, and where it is from."""
    call, request, template = work.call, work.request, work.template
    thinks, format_asked = template_kwargs(app, call).get("enable_thinking"), call.reasoning_format
    given = call.generation.given
    given_thinks = given if call.labels or "enable_thinking" in call.template_kwargs else ()
    rows = (
        # name, value, fields of the request, flag, where from if neither is given
        ("max_tokens", request.max_tokens, ("max_completion_tokens",), "", "default"),
        ("timeout", request.deadline_s, ("timeout",), "timeout", "default"),
        ("top_logprobs", request.top_logprobs, ("logprobs", "n_probs"), "", "default"),
        ("choices", request.labels, ("choices",), "", "default"),
        ("n_keep", request.n_keep, ("n_keep",), "", "default"),
        ("lora", request.lora, ("lora",), "lora", "default"),
        ("chat_template", template.origin, (), "chat_template", "model"),
        ("enable_thinking", thinks, given_thinks, "no_think", "model"),
        ("thinking_budget", thinking_budget(app, call), ("thinking_budget_tokens",),
         "reasoning_budget", "default"),
        ("reasoning_format", format_asked or app.flags.reasoning_format, ("reasoning_format",),
         "reasoning_format", "default"),
        ("tool_format", template.format.name, (), "tool_format", "model"),
        ("n_ctx_slot", app.info().n_ctx_slot, (), "ctx_size", "model"),
    )  # fmt: skip
    return {
        name: dry_run.Setting(value, "request" if set(by) & set(given) else origin)
        for name, value, by, flag, otherwise in rows
        for origin in ("flag" if flag and options.is_set(app.flags, flag) else otherwise,)
    }


def create_embeddings(app: App, exchange: Exchange) -> None:
    body, info = strict_json.parse_object(exchange.body), app.info()
    strict = is_strict(exchange)
    call = embeddings.read_request(body, n_embd=info.n_embd, pooling=info.pooling, strict=strict)
    vectors, n_prompt = embed(app, exchange, call.prompts)
    answer = embeddings.answer(call, vectors, model=app.name, n_prompt=n_prompt)
    exchange.reply_json(answer, headers=ignored_headers(call.ignored))


def create_native_embeddings(app: App, exchange: Exchange) -> None:
    """llama-server's own endpoint: the only one with a vector for each token."""
    body, info = strict_json.parse_object(exchange.body), app.info()
    call = embeddings.read_native(body, pooling=info.pooling, strict=is_strict(exchange))
    vectors, _ = embed(app, exchange, call.prompts, raw_vectors=True)
    answer = embeddings.native_answer(call, vectors, n_embd=info.n_embd, pooling=info.pooling)
    exchange.reply_json(answer, headers=ignored_headers(call.ignored))


def rerank_documents(app: App, exchange: Exchange) -> None:
    body, info = strict_json.parse_object(exchange.body), app.info()
    call = rerank.read_request(body, pooling=info.pooling, strict=is_strict(exchange))
    scores, n_prompt = embed(app, exchange, rerank.prompts(call, info.rerank_template))
    answer = rerank.answer(call, scores, model=app.name, n_prompt=n_prompt)
    exchange.reply_json(answer, headers=ignored_headers(call.ignored))


def embed(
    app: App, exchange: Exchange, prompts: tuple[core.Prompt, ...], *, raw_vectors: bool = False
) -> tuple[list[str], int]:
    """Let the engine embed or rank `prompts`; return base64 vectors and the number of tokens."""
    request = core.Request(
        id="embd-" + uuid.uuid4().hex,
        kind="embed",
        prompts=prompts,
        raw_vectors=raw_vectors,
        deadline_s=app.flags.timeout,
        fair_key=exchange.api_key,
    )
    collected = Collected(len(prompts))
    submit(app, exchange, request, collected.deliver)
    n_prompt = collected.wait().usage.n_prompt
    return collected.vectors, n_prompt


def get_health(app: App, exchange: Exchange) -> None:
    status = app.engine.status()
    ok, body = models.health(status)
    headers = () if ok else (("Retry-After", str(models.retry_after(status))),)
    exchange.reply_json(body, status=200 if ok else 503, headers=headers)


def get_metrics(app: App, exchange: Exchange) -> None:
    """Answered whatever the engine does, for that is when somebody looks."""
    server = app.server
    assert server is not None, "a request without a server"
    counts = metrics.WebCounts(server.answers(), server.refusals(), server.figures())
    exchange.reply_text(
        metrics.page(app.engine.status(), counts), content_type=metrics.CONTENT_TYPE
    )


def list_models(app: App, exchange: Exchange) -> None:
    exchange.reply_json(models.model_list(app.name, app.created, app.engine.status().info))


def get_model(app: App, exchange: Exchange) -> None:
    wanted, info = exchange.path_params["id"], app.engine.status().info
    exchange.reply_json(models.find_model(wanted, app.name, app.created, info))


def list_adapters(app: App, exchange: Exchange) -> None:
    exchange.reply_json(models.adapter_list(app.info()))


def get_help(app: App, exchange: Exchange) -> None:
    """Help for a person with curl: lines that paste as they are."""
    host = exchange.headers.get("host") or "127.0.0.1:8080"
    exchange.reply_text(HELP.format(version=__version__, name=app.name, url=f"http://{host}"))


def is_strict(exchange: Exchange) -> bool:
    """RFC 7240: `Prefer: handling=strict` makes unknown fields an error."""
    return "handling=strict" in (exchange.headers.get("prefer") or "").replace(" ", "").lower()


def ignored_headers(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    return (("X-Igllama-Ignored", fields.ignored_header(names)),) if names else ()


HELP = """igllama {version} serves {name}

A chat answer:
  curl {url}/v1/chat/completions -d '{{"messages":[{{"role":"user","content":"Hello!"}}]}}'
The same as a stream:
  curl -N {url}/v1/chat/completions \\
    -d '{{"messages":[{{"role":"user","content":"Hello!"}}],"stream":true}}'
One of a few answers, with the probability of each:
  curl {url}/v1/chat/completions \\
    -d '{{"messages":[{{"role":"user","content":"Is fire hot?"}}],"choices":["yes","no"]}}'
Embeddings:
  curl {url}/v1/embeddings -d '{{"input":"Hello!"}}'
What is served, and how it is:
  curl {url}/v1/models
  curl {url}/health

Python: OpenAI(base_url="{url}/v1", api_key="none")
"""

Handler = Callable[[App, Exchange], None]
RERANK_PATHS = ("/v1/rerank", "/v1/reranking", "/rerank", "/reranking")
ROUTES: dict[tuple[str, str], Handler] = {
    ("GET", "/"): get_help,
    ("GET", "/health"): get_health,
    ("GET", "/metrics"): get_metrics,
    ("GET", "/v1/models"): list_models,
    ("GET", "/v1/models/{id}"): get_model,
    ("GET", "/lora-adapters"): list_adapters,
    ("POST", "/v1/chat/completions"): chat_completions,
    ("POST", "/apply-template"): apply_template,
    ("POST", "/v1/embeddings"): create_embeddings,
    ("POST", "/embeddings"): create_native_embeddings,
    ("POST", "/embedding"): create_native_embeddings,
    **{("POST", path): rerank_documents for path in RERANK_PATHS},
}

# What the engine is asked for by these, as far as that is known before a body is read.
KINDS: dict[Handler, str] = {
    chat_completions: "generate",
    create_embeddings: "embed",
    create_native_embeddings: "embed",
    rerank_documents: "embed",
}


def kind_of(handler: Handler, body: bytes) -> str:
    """Return the kind of request that this will be, "" if of none. Cheap: it reads no JSON."""
    kind = KINDS.get(handler, "")
    return "dry_run" if kind == "generate" and b'"dry_run"' in body else kind


# ---- commands ----


def serve(arguments: Sequence[str]) -> int:
    """`igllama api`: bind, start the engine, say where, wait for a signal."""
    flags = options.parse(arguments, os.environ)
    if not flags.model:
        raise errors.UsageError(f"no model given; type: {options.USAGE}\n(--help lists the flags)")
    heap.share()
    logs = log.start_logging(sys.stderr, flags.log_level.upper())
    file = gguf.read(flags.model)  # broken: one clear line before anything else happens
    advice = gguf.recommended_sampling(file)
    signals = service.listen_for_signals()
    app = App(flags, service.make_engine(flags), sampling_defaults(flags, advice))
    threading.stack_size(HTTP_STACK_BYTES)
    listening = sockets.inherited_sockets(os.environ) or service.addresses(flags)
    server = Server(listening, bind_routes(app), service.web_settings(flags), describe_error)
    app.server = server
    try:
        server.start()
        if service.start_engine(app.engine, signals):
            app.template()  # a broken one is said now, not to the first client
            block = service.start_block(app.name, app.info(), flags, server.urls, advice)
            print(block, flush=True)
            notify("READY=1", os.environ)
            service.run_until_signalled(flags, app.engine, server, signals)
        return 0
    finally:
        app.engine.stop()
        server.close(1.0)
        logs.stop()


def sampling_defaults(flags: argparse.Namespace, advice: Mapping[str, float]) -> sampling.Defaults:
    """What holds where a request says nothing; the model file's advice only when asked for."""
    return sampling.defaults_of(advice if flags.model_sampling else {}, options.sampling(flags))


def bind_routes(app: App) -> dict[tuple[str, str], Callable[[Exchange], None]]:
    """Give each handler its app. Who sends work to a full or closed engine is told at once."""

    def bound(handler: Handler) -> Callable[[Exchange], None]:
        def run(exchange: Exchange) -> None:
            if exchange.method == "POST":
                kind = kind_of(handler, exchange.body)
                app.engine.check_open(kind, exchange.api_key)
            handler(app, exchange)

        return run

    return {route: bound(handler) for route, handler in ROUTES.items()}


def show(arguments: Sequence[str]) -> int:
    """`igllama show`: what a GGUF file is, from its header alone."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise errors.UsageError("type: igllama show MODEL.gguf")
    print("\n".join(gguf.describe(gguf.read(arguments[0]))))
    return 0


def print_help(arguments: Sequence[str]) -> int:
    print(options.help_text(__doc__.split("\n\nThis file")[0]))
    return 0


def print_version(arguments: Sequence[str]) -> int:
    print(f"igllama {__version__}")
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "api": serve,
    "show": show,
    "--help": print_help,
    "help": print_help,
    "--version": print_version,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0, 1 (could not start) or 2 (wrong usage)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if "--help" in arguments[:2]:
        return print_help(arguments)
    name = arguments[0] if arguments else ""
    try:
        if name not in COMMANDS:
            known = ", ".join(n for n in COMMANDS if n.isalpha())
            raise errors.UsageError(
                f"{name or 'no command'!r} is not one of: {known}; type: {options.USAGE}"
            )
        return COMMANDS[name](arguments[1:])
    except errors.UsageError as exc:
        print(f"igllama: {exc}", file=sys.stderr)
        return 2
    except errors.IgllamaError as exc:
        print(f"igllama: {exc}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
