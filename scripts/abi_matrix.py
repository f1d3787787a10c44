#!/usr/bin/env python3
"""Run one model through many libllama builds, each in a process of its own, and print a table.

    python3 scripts/abi_matrix.py -m model.gguf 3.1.1 3.9.0 3.22.1
    python3 scripts/abi_matrix.py -m model.gguf --ci          the oldest, the newest, four between
    python3 scripts/abi_matrix.py -m model.gguf --builds DIR  every folder of builds in DIR

A build is a folder below --builds (or IGLLAMA_BUILDS; by default below the temporary folder) that
is named as npm's version of @node-llama-cpp; one that is not there is fetched and kept. Each build
must load, tokenize, decode 16 greedy tokens and give an embedding, on two threads (which stay or
start anew, llama/threads.py); the table says in which build text or vector differ from the newest
one's. Exit code 1 if a build fails or its text differs.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from libloader import errors  # noqa: E402  (the script runs from anywhere)
from libloader.abi import find, library, platforms  # noqa: E402
from libloader.core import EngineSettings, Sampling  # noqa: E402
from libloader.llama.batch import Batch  # noqa: E402
from libloader.llama.context import Context  # noqa: E402
from libloader.llama.model import Model  # noqa: E402
from libloader.llama.sampler import SamplerChain  # noqa: E402
from libloader.llama.threads import ThreadPools  # noqa: E402

# One per group of builds that need another path: before and after the vocabulary got its own
# handle, kv_self_*, enum flash attention, load modes, the newest.
CI_VERSIONS = ("3.1.1", "3.4.1", "3.9.0", "3.14.2", "3.19.1", "3.22.1")

N_GREEDY = 16
N_CTX = 512
PROMPT = "<|im_start|>user\nTell me a story.<|im_end|>\n<|im_start|>assistant\n"
EMBEDDED = "The quick brown fox"
TIMEOUT_S = 300
SAME_VECTOR = 0.9999  # cosine; less is another result, not another rounding


class Row(NamedTuple):
    """What one build did; `error` is all there is of one that failed."""

    build: str
    error: str = ""
    release: str = ""
    layout: str = ""
    functions: str = ""
    backends: tuple[str, ...] = ()
    n_prompt: int = 0
    text: str = ""
    margins: tuple[float, ...] = ()  # per token: logprob of the best minus that of the second
    vector: tuple[float, ...] = ()
    pooling: str = ""
    load_ms: float = 0.0
    threads_stay: bool = False


# --- one build, in its own process --------------------------------------------------------------


def measure(build: str, folder: str, model_path: str) -> Row:
    """Load the library in a folder, run the model through it, and return what came out."""
    started = time.monotonic()
    lib = find.find_library(folder, library.load)
    load_ms = (time.monotonic() - started) * 1000
    settings = EngineSettings(n_ctx=N_CTX, n_batch=N_CTX, n_parallel=1, n_threads=2)
    with ThreadPools(lib) as pools, Model.load(lib, model_path, settings) as model:
        prompt = model.vocab.tokenize(PROMPT, True, True)
        open_context = functools.partial(Context, model, settings, pools=pools)
        text, margins = greedy(lib, model, open_context, prompt)
        vector, pooling = embed(lib, model, open_context)
        threads_stay = pools.stay
    return Row(
        build=build,
        release=lib.release,
        layout=lib.layout,
        functions=str(lib.bracket),
        backends=lib.backends,
        n_prompt=len(prompt),
        text=text,
        margins=tuple(margins),
        vector=tuple(vector),
        pooling=pooling,
        load_ms=load_ms,
        threads_stay=threads_stay,
    )


def greedy(
    lib: library.Library,
    model: Model,
    open_context: Callable[..., Context],
    prompt: Sequence[int],
) -> tuple[str, list[float]]:
    """Return the text of the 16 likeliest next tokens, and how clear each choice was."""
    pieces, margins = [], []
    sampling = Sampling(temperature=0.0)
    with open_context() as context, SamplerChain(model, sampling, N_CTX) as chain:
        batch = Batch(lib, N_CTX, 1)
        new: Sequence[int] = prompt
        position = 0
        for _ in range(N_GREEDY):
            position = decode(context, batch, new, position)
            row = batch.n_tokens - 1
            token = chain.sample(context, row)
            _, best = context.logprobs(row, token, 2)
            margins.append(best[0][1] - best[1][1])
            pieces.append(model.vocab.piece(token, special=True))
            new = [token]
    return b"".join(pieces).decode("utf-8", "replace"), margins


def decode(context: Context, batch: Batch, tokens: Sequence[int], position: int) -> int:
    """Decode tokens of sequence 0 from a position, with logits for the last; return the next."""
    batch.clear()
    for index, token in enumerate(tokens):
        batch.add(token, position + index, 0, index == len(tokens) - 1)
    code = context.decode(batch)
    if code:
        raise errors.DecodeFailed(f"llama_decode returned {code}")
    return position + len(tokens)


def embed(
    lib: library.Library, model: Model, open_context: Callable[..., Context]
) -> tuple[list[float], str]:
    """Return the mean-pooled vector of a text, of length 1, and who pooled it."""
    by_us = lib.hazard("mean_pooling")  # this build aborts on it: average its rows here
    pooling = "none" if by_us else "mean"
    tokens = model.vocab.tokenize(EMBEDDED, True, False)
    with open_context(embeddings=True, pooling=pooling) as context:
        batch = Batch(lib, N_CTX, 1)
        for position, token in enumerate(tokens):
            batch.add(token, position, 0, True)
        code = context.decode(batch)
        if code:
            raise errors.DecodeFailed(f"llama_decode returned {code} for an embedding")
        if by_us:
            rows = [context.embeddings_row(row) for row in range(len(tokens))]
            vector = [sum(column) / len(rows) for column in zip(*rows)]
        else:
            vector = list(context.embeddings_seq(0))
    return unit(vector), "mean of rows" if by_us else "mean"


def unit(vector: Sequence[float]) -> list[float]:
    length = math.sqrt(sum(x * x for x in vector)) or 1.0
    return [x / length for x in vector]


# --- all builds ---------------------------------------------------------------------------------


def run(build: str, folder: Path, model: Path) -> Row:
    """Measure one build in a process of its own: a crash is a row, not the end."""
    command = [sys.executable, __file__, "--one", build, "--builds", str(folder), "-m", str(model)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return Row(build, error=f"still running after {TIMEOUT_S} s")
    answer = done.stdout.strip().splitlines()[-1:]
    if done.returncode or not answer:
        said = done.stderr.strip().splitlines()[-1:] or [""]
        return Row(build, error=f"{_ending(done.returncode)}: {said[0]}")
    return row_from(json.loads(answer[0]))


def row_from(values: dict[str, Any]) -> Row:
    return Row(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def fetch(version: str, builds: Path) -> Path:
    """Return the folder of a build, fetching it if it is not there."""
    folder = builds / version
    if not folder.is_dir():
        script = ROOT / "scripts" / "fetch_libllama.py"
        command = [sys.executable, str(script), "--version", version, "--into", str(folder)]
        subprocess.run([*command, "--platform", str(platforms.here())], check=True)
    return folder


# --- the table ----------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of the table and of the verdict; the last good row is the measure."""
    good = [row for row in rows if not row.error]
    reference = good[-1] if good else Row("")
    columns = (
        "npm",
        "release",
        "layout",
        "functions",
        "load",
        "threads",
        "prompt",
        "text",
        "embedding",
    )
    cells = [columns, *(_cells(row, reference) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns) - 1)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths)), line[-1]])
        for line in cells
    ]
    return [*lines, "", *verdict(rows, reference)]


def _cells(row: Row, reference: Row) -> tuple[str, ...]:
    if row.error:
        return (row.build, "failed", "", "", "", "", "", row.error, "")
    likeness = cosine(row.vector, reference.vector)
    return (
        row.build,
        row.release,
        row.layout,
        row.functions,
        f"{row.load_ms:.0f} ms",
        "stay" if row.threads_stay else "anew",
        str(row.n_prompt),
        "same" if row.text == reference.text else repr(row.text),
        f"{likeness:.6f} {row.pooling}",
    )


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b))


def verdict(rows: Sequence[Row], reference: Row) -> Iterable[str]:
    good = [row for row in rows if not row.error]
    alike = [row for row in good if row.text == reference.text]
    yield f"{len(good)} of {len(rows)} builds work; {len(alike)} of {len(good)} give the text"
    yield f"  {reference.text!r}"
    for row in good:
        if row.text != reference.text:
            yield f"{row.build} differs: {_why(row, reference)}"
        if cosine(row.vector, reference.vector) < SAME_VECTOR:
            yield f"{row.build}: its embedding differs (cosine below {SAME_VECTOR})"


def _why(row: Row, reference: Row) -> str:
    """Say at which character, and how close the call was in the two builds there."""
    common = os.path.commonprefix([row.text, reference.text])
    closest = min(range(len(row.margins)), key=lambda i: min(row.margins[i], reference.margins[i]))
    return (
        f"after {common!r}; the closest of its choices is token {closest + 1}, with "
        f"{row.margins[closest]:.4f} against {reference.margins[closest]:.4f} between best and next"
    )


def passed(rows: Sequence[Row]) -> bool:
    return bool(rows) and all(not row.error and row.text == rows[-1].text for row in rows)


# --- the command --------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if options.one:
        print(json.dumps(measure(options.one, str(options.builds), str(options.model))._asdict()))
        return 0
    versions = options.versions or (CI_VERSIONS if options.ci else _versions_in(options.builds))
    if not versions:
        print(f"{options.builds} holds no builds: name versions, or use --ci", file=sys.stderr)
        return 2
    rows = []
    for version in sorted(versions, key=_version_key):
        rows.append(run(version, fetch(version, options.builds), options.model))
        print(f"{version}: {rows[-1].error or 'ok'}", file=sys.stderr, flush=True)
    print("\n".join(table(rows)))
    return 0 if passed(rows) else 1


def _versions_in(builds: Path) -> list[str]:
    return [entry.name for entry in builds.glob("*") if entry.is_dir()]


def _version_key(version: str) -> list[tuple[int, str]]:
    return [(int(p), "") if p.isdigit() else (-1, p) for p in version.split(".")]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    usual = os.environ.get("IGLLAMA_BUILDS", os.path.join(tempfile.gettempdir(), "igllama-builds"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("versions", nargs="*", help="npm versions, or names of folders in --builds")
    parser.add_argument("-m", "--model", type=Path, default=ROOT / "tests/models/pocket.gguf")
    parser.add_argument("--builds", type=Path, default=Path(usual), help="default: %(default)s")
    parser.add_argument("--ci", action="store_true", help=", ".join(CI_VERSIONS))
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except errors.IgllamaError as error:
        sys.exit(f"{type(error).__name__}: " + "; ".join(str(error).split("\n")))
