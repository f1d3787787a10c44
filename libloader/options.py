"""The command line: one row a flag; each is also an environment variable, IGLLAMA_<LONG_NAME>.

Laws: flags are llama-server's where it has them; `-h` is the host; a wrong flag or value is one
UsageError that says what would be right. Precedence: command line, environment, default.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple, NoReturn

from libloader import core, errors


class Option(NamedTuple):
    """One flag: `convert` None is a switch; `many` may be given several times."""

    flags: str
    default: Any
    help: str
    convert: Callable[[str], Any] | None = str
    metavar: str = ""
    many: bool = False

    @property
    def dest(self) -> str:
        return self.flags.split()[0].lstrip("-").replace("-", "_")

    @property
    def variable(self) -> str:
        return "IGLLAMA_" + self.dest.upper()


def whole(low: int, high: int = 2**31 - 1) -> Callable[[str], int]:
    def convert(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError
        return value

    convert.__name__ = f"an integer from {low}" + ("" if high == 2**31 - 1 else f" to {high}")
    return convert


def seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e9:
        raise ValueError
    return value


seconds.__name__ = "a number of seconds"


def decimal(low: float, high: float) -> Callable[[str], float]:
    def convert(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise ValueError
        return value

    convert.__name__ = f"a number from {low:g} to {high:g}"
    return convert


def scaled_file(text: str) -> tuple[str, float]:
    path, _, scale = text.rpartition(":")
    value = float(scale)
    if not path or not math.isfinite(value):
        raise ValueError
    return path, value


scaled_file.__name__ = "a file, a colon and a scale"


def choice(*names: str) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text not in names:
            raise ValueError
        return text

    convert.__name__ = "one of " + ", ".join(names)
    return convert


CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
OPTIONS: dict[str, tuple[Option, ...]] = {
    "model": (
        Option("--model -m", "",
               "the GGUF file (or the first part of a split one)", metavar="FILE"),
        Option("--alias -a", "", "the model's name in answers; default: the file's name"),
        Option("--lib", "", "libllama, or the folder it is in; default: search", metavar="PATH"),
        Option("--lib-cache", "",
               "where a library inside the single file is unpacked", metavar="DIR"),
        Option("--gpu-layers -ngl --n-gpu-layers", 0,
               "layers on the GPU; -1 = all", whole(-1), "N"),
        Option("--mlock", False, "keep the model in RAM", None),
        Option("--no-mmap", False, "read the model instead of mapping it", None),
        Option(
            "--chat-template", "", "a built-in template's name, a file, or the template itself",
            metavar="NAME|FILE|TEXT",
        ),
        Option("--chat-template-file", "", "a file with a Jinja chat template", metavar="FILE"),
        Option("--tool-format", "",
               "how the model writes tool calls; default: as its template says", metavar="NAME"),
        Option("--lora", [],
               "a LoRA adapter; requests may choose among them", metavar="FILE", many=True),
        Option("--lora-scaled", [], "an adapter that changes the model more or less than by 1; "
               "numbered after those of --lora", scaled_file, "FILE:SCALE", many=True),
        Option("--lora-init-without-apply", False,
               "adapters only work for requests that ask for them", None),
        Option("--no-think", False, "ask models not to think, unless a client wants it", None),
        Option("--reasoning-budget", -1,
               "tokens that a model may think; 0 = it does not, -1 = no limit", whole(-1), "N"),
        Option("--reasoning-budget-message", "",
               "a sentence that ends thoughts that were cut short", metavar="TEXT"),
        Option("--reasoning-format", "auto",
               "none leaves thoughts in the content; auto and deepseek keep them apart",
               choice("none", "deepseek", "auto"), "HOW"),
    ),
    "context and speed": (
        Option("--ctx-size -c", 0,
               "tokens a slot holds; 0 = the model's, as memory allows", whole(0), "N"),
        Option("--batch-size -b", 2048, "tokens of one llama_decode", whole(1), "N"),
        Option("--ubatch-size -ub", 512, "tokens computed at once", whole(1), "N"),
        Option("--parallel -np", 4, "slots: requests that run at the same time", whole(1), "N"),
        Option("--threads -t", 0, "threads for decoding; 0 = one per core", whole(0), "N"),
        Option("--threads-batch -tb", 0, "threads for prompts; 0 = as --threads", whole(0), "N"),
        Option("--flash-attn -fa", "auto", "on, off or auto", choice("on", "off", "auto"), "WHEN"),
        Option("--cache-type-k -ctk", "f16", "KV cache type of K", choice(*CACHE_TYPES), "TYPE"),
        Option("--cache-type-v -ctv", "f16", "KV cache type of V", choice(*CACHE_TYPES), "TYPE"),
        Option("--kv-unified -kvu", "auto", "one KV buffer for all slots, or one for each",
               choice("on", "off", "auto"), "WHEN"),
        Option("--context-shift", False,
               "a full context loses its older half and the answer goes on", None),
        Option("--cache-ram -cram", 64, "MiB of RAM for prefixes that left the KV cache",
               whole(0), "MIB"),
        Option("--cache-dir", "", "keep prefixes here over restarts; default: nothing is written",
               metavar="DIR"),
        Option("--cache-disk", 1024, "MiB that --cache-dir may hold", whole(1), "MIB"),
        Option("--lookup", False, "guess tokens from a text's own past; not with --model-draft",
               None),
        Option("--model-draft -md", "", "a smaller model of the same words, which guesses tokens",
               metavar="FILE"),
        Option("--gpu-layers-draft -ngld --n-gpu-layers-draft", 0,
               "its layers on the GPU; -1 = all", whole(-1), "N"),
        Option("--draft-max --draft --draft-n", 16, "tokens guessed at once, at most",
               whole(1), "N"),
        Option("--draft-min --draft-n-min", 0, "tokens guessed at once, at least", whole(0), "N"),
        Option("--pooling", "", "pooling of embeddings; default: the model's, else mean",
               choice("none", "mean", "cls", "last", "rank"), "TYPE"),
    ),
    "sampling, where a request says nothing": (
        Option("--model-sampling", False, "what the model file advises, where no flag says else",
               None),
        Option("--temp --temperature", "", "temperature; 0 = always the likeliest token",
               decimal(0, 5), "T"),
        Option("--top-k", "", "choose among the N likeliest tokens; 0 = all", whole(0), "N"),
        Option("--top-p", "", "choose among the likeliest that make up P", decimal(0, 1), "P"),
        Option("--min-p", "", "leave out what is less likely than P times the best",
               decimal(0, 1), "P"),
        Option("--repeat-penalty", "", "make repeated tokens less likely; 1 = do not",
               decimal(0.01, 100), "X"),
    ),
    "server": (
        Option("--host -h", ["127.0.0.1"], "address to listen on; also ::, unix:/path", many=True),
        Option("--port -p", 8080, "port to listen on; 0 = any free one", whole(0, 65535), "N"),
        Option("--api-key", [], "a key that clients must send", metavar="KEY", many=True),
        Option("--api-key-file", "",
               "a file with one key per line; SIGHUP reads it again", metavar="FILE"),
        Option("--cors-origin", [],
               "allow this web origin only; default: any", metavar="ORIGIN", many=True),
        Option("--allowed-host", [], "a Host name that clients may use", metavar="NAME", many=True),
        Option("--ssl-cert-file", "", "TLS certificate (PEM)", metavar="FILE"),
        Option("--ssl-key-file", "", "TLS private key (PEM)", metavar="FILE"),
        Option("--timeout", 3600.0, "seconds for a whole request; 0 = no limit", seconds, "S"),
        Option("--queue", 0, "requests that may wait; 0 = 16 for each slot", whole(0), "N"),
        Option("--drain-timeout", 30.0,
               "seconds that running requests get at shutdown", seconds, "S"),
    ),
    "process": (
        Option("--isolation", "process",
               "process: the engine in a child process; none: in a thread",
               choice("process", "none"), "HOW"),
        Option("--memory-limit", 0, "MiB that the engine's process may take; 0 = no limit",
               whole(0), "MIB"),
        Option("--log-level", "warning", "debug, info, warning or error",
               choice("debug", "info", "warning", "error"), "LEVEL"),
    ),
}  # fmt: skip
# Flags whose request field has another name.
SAMPLING_NAMES = {"temp": "temperature"}
ALL_OPTIONS = tuple(option for group in OPTIONS.values() for option in group)
USAGE = "igllama api MODEL.gguf [--host HOST] [--port PORT] [--gpu-layers N] ..."


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one UsageError; -h belongs to the host."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(add_help=False, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise errors.UsageError(f"{message}; {self.prog} --help lists the options")


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> argparse.Namespace:
    """Options of `igllama api` from the command line, then the environment, then defaults."""
    parser = Parser(prog="igllama", usage=USAGE)
    parser.add_argument("file", nargs="?", default="")
    for title, rows in OPTIONS.items():
        group = parser.add_argument_group(title)
        for row in rows:
            group.add_argument(*row.flags.split(), dest=row.dest, **_how(row))
    parsed = parser.parse_args(list(arguments))
    for row in ALL_OPTIONS:
        if getattr(parsed, row.dest) is None:
            setattr(parsed, row.dest, _from_environment(row, environment))
    parsed.model = parsed.file or parsed.model
    return parsed


def _how(row: Option) -> dict[str, Any]:
    if row.convert is None:
        return {"action": "store_const", "const": True, "help": row.help}
    return {
        "action": "append" if row.many else "store",
        # llama-server once had -fa as a switch: without a value it means on.
        **({"nargs": "?", "const": "on"} if row.dest == "flash_attn" else {}),
        "type": _named(row.convert),
        "metavar": row.metavar or row.dest.upper(),
        "help": row.help,
    }


def _named(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """argparse says only `invalid <name> value`; say what would be right instead."""

    def wrapped(text: str) -> Any:
        try:
            return convert(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {convert.__name__}") from None

    return wrapped


def _from_environment(row: Option, environment: Mapping[str, str]) -> Any:
    text = environment.get(row.variable)
    if not text:
        return False if row.convert is None else row.default
    if row.convert is None:
        return text.lower() not in ("0", "false", "no", "off")
    try:
        return [row.convert(item) for item in text.split(",")] if row.many else row.convert(text)
    except ValueError:
        raise errors.UsageError(f"{row.variable}: {text!r} is not {row.convert.__name__}") from None


def sampling(options: argparse.Namespace) -> dict[str, float]:
    """The sampling values that flags gave, by the names of request fields."""
    group = next(rows for title, rows in OPTIONS.items() if title.startswith("sampling"))
    rows = [row for row in group if row.convert is not None]
    given = {row.dest: getattr(options, row.dest) for row in rows if is_set(options, row.dest)}
    return {SAMPLING_NAMES.get(dest, dest): value for dest, value in given.items()}


def is_set(options: argparse.Namespace, dest: str) -> bool:
    """Whether a flag, or its variable, says something other than the default."""
    row = next(row for row in ALL_OPTIONS if row.dest == dest)
    default = False if row.convert is None else row.default
    return bool(getattr(options, dest) != default)


def help_text(title: str) -> str:
    """What --help prints below `title`: options by group, each with its default."""
    lines = [title, "", f"usage: {USAGE}"]
    for group, rows in OPTIONS.items():
        lines += ["", f"{group}:"]
        for row in rows:
            flags = ", ".join(row.flags.split()[:2])
            value = "" if row.convert is None else " " + (row.metavar or row.dest.upper())
            default = f" ({row.default})" if row.default not in ("", [], False, 0) else ""
            lines.append(f"  {flags + value:<34} {row.help}{default}")
    lines += [
        "",
        "Each option is also an environment variable: IGLLAMA_PORT, IGLLAMA_CTX_SIZE, ...",
    ]
    return "\n".join(lines)


def engine_settings(options: argparse.Namespace) -> core.EngineSettings:
    name = Path(options.model).name
    return core.EngineSettings(
        model=options.model,
        lib=options.lib,
        lib_cache=options.lib_cache,
        alias=options.alias or (name[:-5] if name.endswith(".gguf") else name),
        n_gpu_layers=options.gpu_layers,
        n_ctx=options.ctx_size,
        n_batch=options.batch_size,
        n_ubatch=options.ubatch_size,
        n_parallel=options.parallel,
        n_threads=options.threads,
        n_threads_batch=options.threads_batch,
        flash_attn=options.flash_attn,
        cache_type_k=options.cache_type_k,
        cache_type_v=options.cache_type_v,
        use_mmap=not options.no_mmap,
        use_mlock=options.mlock,
        pooling=options.pooling,
        kv_unified={"on": True, "off": False}.get(options.kv_unified),
        context_shift=options.context_shift,
        cache_ram_mib=options.cache_ram,
        cache_dir=options.cache_dir,
        cache_disk_mib=options.cache_disk,
        lookup=options.lookup,
        model_draft=options.model_draft,
        n_gpu_layers_draft=options.gpu_layers_draft,
        draft_min=options.draft_min,
        draft_max=options.draft_max,
        n_queue=options.queue or 16 * options.parallel,
        lora=(*((path, 1.0) for path in options.lora), *options.lora_scaled),
        lora_init_without_apply=options.lora_init_without_apply,
        log_level=options.log_level,
    )
