"""A server's life around its requests: flags to settings, signals, start, drain, what is printed.

The routes and what they do are igllama.py's. The main thread is the only one here that waits: for
the engine to load, then for signals, then for the last answers.
"""

from __future__ import annotations

import argparse
import logging
import os
import queue
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Union

from libloader import __version__, core, errors, options
from libloader.supervise import launch
from libloader.supervise.inline import InlineEngine
from libloader.supervise.supervisor import Options as SupervisorOptions
from libloader.supervise.supervisor import Supervisor
from libloader.web import sockets
from libloader.web.notify import notify
from libloader.web.server import Server
from libloader.web.settings import WebSettings

LOG = logging.getLogger("igllama")
# What old builds of libllama lack and a user would miss; the rest is ours to work around.
NOTEWORTHY = ("xtc", "dry", "top_n_sigma", "infill", "grammar_lazy", "backend_sampling")

Engine = Union[Supervisor, InlineEngine]


# ---- flags to settings ----


def addresses(flags: argparse.Namespace) -> list[str]:
    """Addresses as the web layer takes them: host:port, [v6]:port, unix:/path."""

    def one(host: str) -> str:
        if host.startswith("unix:"):
            return host
        return f"[{host}]:{flags.port}" if ":" in host else f"{host}:{flags.port}"

    return [one(host) for host in flags.host]


def web_settings(flags: argparse.Namespace) -> WebSettings:
    return WebSettings(
        api_keys=api_keys(flags),
        cors_origins=tuple(flags.cors_origin) or ("*",),
        allowed_hosts=tuple(flags.allowed_host),
        ssl_cert_file=flags.ssl_cert_file,
        ssl_key_file=flags.ssl_key_file,
        n_connections=sockets.allow_connections(WebSettings.n_connections),
    )


def api_keys(flags: argparse.Namespace) -> tuple[str, ...]:
    """Keys from the flags and the key file, one a line; `#` begins a comment line."""
    keys = list(flags.api_key)
    if flags.api_key_file:
        try:
            lines = Path(flags.api_key_file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as exc:
            raise errors.UsageError(f"--api-key-file {flags.api_key_file}: {exc}") from None
        keys += [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not keys:
            raise errors.UsageError(f"--api-key-file {flags.api_key_file} holds no key")
    return tuple(keys)


def make_engine(flags: argparse.Namespace) -> Engine:
    settings = options.engine_settings(flags)
    if flags.isolation == "none":
        return InlineEngine(settings, build_engine_here)
    test_mode = os.environ.get("IGLLAMA_TEST_MODE") == "1"
    limit_bytes = flags.memory_limit << 20
    wanted = SupervisorOptions(child_command(), memory_limit_bytes=limit_bytes, test_mode=test_mode)
    return Supervisor(settings, wanted)


def child_command() -> list[str]:
    return launch.module_command("libloader.engine_child")


def build_engine_here(*arguments: Any) -> Any:
    """engine.build.build_engine, imported late: a front with a child never loads libllama."""
    from libloader.engine import build

    return build.build_engine(*arguments)


# ---- signals, start, end ----


def listen_for_signals() -> queue.SimpleQueue[int]:
    """Signals arrive as numbers on a queue: SimpleQueue.put is safe inside a signal handler."""
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, _: signals.put(number))
    return signals


def is_hangup(number: int) -> bool:
    return number == getattr(signal, "SIGHUP", None)


def next_signal(signals: queue.SimpleQueue[int], timeout_s: float) -> int | None:
    try:
        return signals.get(timeout=timeout_s)
    except queue.Empty:
        return None


def start_engine(engine: Engine, signals: queue.SimpleQueue[int]) -> bool:
    """Load the model while signals are heard; False if one ended us. StartError if it cannot be."""
    outcome: queue.SimpleQueue[errors.IgllamaError | None] = queue.SimpleQueue()

    def start() -> None:
        try:
            engine.start()
            outcome.put(None)
        except errors.IgllamaError as exc:
            outcome.put(exc)

    threading.Thread(target=start, name="start", daemon=True).start()
    while outcome.empty():
        number = next_signal(signals, 0.05)
        if number is not None and not is_hangup(number):
            return False
    error = outcome.get()
    if error is not None:
        raise error
    return True


def run_until_signalled(
    flags: argparse.Namespace, engine: Engine, server: Server, signals: queue.SimpleQueue[int]
) -> None:
    """SIGTERM or SIGINT drains, a second one ends at once; SIGHUP reads the key file again."""
    while True:
        number = next_signal(signals, 1.0)
        if number is None:
            continue
        if is_hangup(number):
            reload_keys(flags, server)
            continue
        drain(engine, server, signals, flags.drain_timeout)
        return


def drain(
    engine: Engine, server: Server, signals: queue.SimpleQueue[int], timeout_s: float
) -> None:
    """The engine is told first: from then on /health says so, also on open connections."""
    notify("STOPPING=1", os.environ)
    drained = threading.Thread(target=engine.drain, args=(timeout_s,), daemon=True)
    drained.start()
    server.stop_accepting()
    while drained.is_alive():
        number = next_signal(signals, 0.05)
        if number is not None and not is_hangup(number):
            return


def reload_keys(flags: argparse.Namespace, server: Server) -> None:
    try:
        server.set_api_keys(api_keys(flags))
    except errors.UsageError as exc:
        LOG.error("kept the old API keys: %s", exc)


# ---- what is printed ----


def start_block(
    name: str,
    info: core.ModelInfo,
    flags: argparse.Namespace,
    urls: Sequence[str],
    advice: Mapping[str, float],
) -> str:
    """What is printed once the model is loaded: one readable block, ending in a line to paste.

    `advice`: sampling values from the model file, by request name.
    """
    url = urls[0]
    rows = (
        ("library", f"{info.library_release}  {info.library_path}"),
        ("layout", info.library_layout),
        ("backends", f"{', '.join(info.backends)}; {info.n_threads} threads"),
        ("model", f"{name}  {info.architecture}, {info.n_params / 1e6:,.1f}M parameters"),
        ("context", f"{info.n_ctx_slot} tokens in each of {info.n_slots} slots"),
        ("memory", memory_text(info, flags)),
        ("advice", advice_text(advice, flags)),
        ("lacks", ", ".join(name for name in info.missing if name in NOTEWORTHY)),
        ("listening", " ".join(urls)),
    )
    lines = [f"igllama {__version__} is ready ({info.load_ms / 1000:.1f} s)"]
    lines += [f"  {title:<10} {text}" for title, text in rows if text]
    path, body = first_request(info)
    lines += ["", f"  curl {url}{path} -d '{body}'"]
    return "\n".join(lines)


def first_request(info: core.ModelInfo) -> tuple[str, str]:
    """Path and body of something that this model can answer."""
    if info.generates:
        return "/v1/chat/completions", '{"messages":[{"role":"user","content":"Hello!"}]}'
    if info.pooling == "rank":
        return "/v1/rerank", '{"query":"Hello!","documents":["Hi!","Bye!"]}'
    return ("/embedding" if info.pooling == "none" else "/v1/embeddings"), '{"input":"Hello!"}'


def advice_text(advice: Mapping[str, float], flags: argparse.Namespace) -> str:
    values = ", ".join(f"{name} {value}" for name, value in advice.items())
    used = "used" if flags.model_sampling else "not used without --model-sampling"
    return f"{values} ({used})" if values else ""


def memory_text(info: core.ModelInfo, flags: argparse.Namespace) -> str:
    """Where memory goes, what we take beyond the model included: no hidden gigabytes."""
    parts = [
        f"model {info.size_bytes / 2**20:.0f} MiB",
        f"KV cache {info.kv_bytes / 2**20:.0f} MiB",
        f"saved prefixes up to {flags.cache_ram} MiB",
    ]
    if flags.cache_dir:
        parts.append(f"and up to {flags.cache_disk} MiB in {flags.cache_dir}")
    return ", ".join(parts)
