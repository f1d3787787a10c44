#!/usr/bin/env python3
"""Speed and cost as ratios of one run: the server over HTTP against the raw decode loop.

    python3 scripts/bench.py                          everything; models are made in a temp folder
    python3 scripts/bench.py --models DIR --rows streams,prefix     models kept in DIR; some rows
    python3 scripts/bench.py --quick --model-m none   a first look, in two minutes
    python3 scripts/bench.py --against http://127.0.0.1:8080      another server in its own column

Laws:
- Server and raw loop use the same library, model, flags and threads, each in a process of its own,
  and take turns repeat by repeat: what a noisy machine does to one it does to the other. A row's
  figure is the median of its repeats, of ratios wherever there is something to compare with.
- This process is the client: one lean thread over plain sockets. What it costs itself is printed.
- Lengths are fixed (ignore_eos), streams are greedy unless a row says otherwise, and everything
  runs once before it is measured, memory too. Only ratios are comparable between runs.
- A row that misses its goal says "miss"; the exit code is 0 all the same unless --strict.

The server of --against is taken as it is: start it with the same model, threads and slots. It is
driven by the rows that need no flag, file or process of the server's own.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from benching import costs, prefixes, processes, speed, table  # noqa: E402
from benching.client import CLOCK, Target  # noqa: E402
from benching.common import RowMaker, Run  # noqa: E402

TOUCHED_BYTES = 2 << 30
ROWS: dict[str, RowMaker] = {
    "streams-1-S": speed.streams(1, "S", 0.97),
    "streams-4-S": speed.streams(4, "S"),
    "streams-8-S": speed.streams(8, "S"),
    "streams-16-S": speed.streams(16, "S", 0.92),
    "streams-32-S": speed.streams(32, "S"),
    "streams-16-sampled-S": speed.streams(16, "S", **speed.SAMPLED),
    "streams-1-M": speed.streams(1, "M", 0.97),
    "streams-8-M": speed.streams(8, "M", 0.98),
    "ragged": speed.ragged,
    "idle-slots": speed.idle_slots,
    "prefix-live-S": prefixes.prefix_rows(
        "prefix-live", "S", "of a running stream", 0.05, prefixes.from_live),
    "prefix-ram-S": prefixes.prefix_rows(
        "prefix-ram", "S", "its slot was taken since", 0.05, prefixes.from_ram),
    "prefix-disk-S": prefixes.prefix_rows(
        "prefix-disk", "S", "after a restart", 0.08, prefixes.from_disk),
    "prefix-live-M": prefixes.prefix_rows(
        "prefix-live", "M", "of a running stream", 0.05, prefixes.from_live),
    "prefix-ram-M": prefixes.prefix_rows(
        "prefix-ram", "M", "its slot was taken since", 0.05, prefixes.from_ram),
    "prefix-disk-M": prefixes.prefix_rows(
        "prefix-disk", "M", "after a restart", 0.08, prefixes.from_disk),
    "shared": prefixes.shared,
    "turns": prefixes.turns,
    "turns-restart": prefixes.turns_after_restart,
    "embeddings-256": speed.embeddings(256, 8, 0.90),
    "embeddings-64": speed.embeddings(64, 128),
    "grammar": speed.grammar,
    "lookup": speed.lookup,
    "draft": speed.draft,
    "gap-S": costs.gap("S"),
    "gap-M": costs.gap("M"),
    "fairness-S": costs.fairness("S"),
    "fairness-M": costs.fairness("M"),
    "channel": costs.channel,
    "start": costs.start,
    "memory": costs.memory,
}  # fmt: skip

MADE: dict[str, tuple[str, ...]] = {  # what make_model.py is asked for
    "S": ("S",),
    "M": ("M",),
    "MW": ("M", "--walk", "1"),
    "DW": ("D", "--walk", "0.8"),
    "D": ("D",),
}


def main() -> int:
    options = read_options()
    with ExitStack() as stack:
        run = Run(
            models=find_models(options, stack),
            lib=options.lib,
            threads=options.threads,
            more_flags=tuple(shlex.split(options.flags)),
            repeats=2 if options.quick else options.repeats,
            seconds=6.0 if options.quick else options.seconds,
            quick=options.quick,
            against=other_server(options.against),
        )
        began = time.monotonic()
        facts = {"load_average_before": load_average(), "threads": threads(run)}
        print(f"load average {facts['load_average_before']}; threads: {facts['threads']}")
        processes.touch_memory(TOUCHED_BYTES >> 2 if run.quick else TOUCHED_BYTES)
        print(table.heading(run.against is not None))
        rows = []
        for item in measured(run, chosen(options.rows)):
            rows.append(item)
            print(table.line(item, run.against is not None), flush=True)
    facts.update(
        seconds=round(time.monotonic() - began, 1),
        client_share=round(CLOCK.share, 4),
        load_average_after=load_average(),
    )
    print(ending(rows, facts))
    if options.json:
        table.write_json(options.json, rows, facts)
    return 1 if options.strict and any(item.verdict == "miss" for item in rows) else 0


def measured(run: Run, names: Sequence[str]) -> Iterator[table.Row]:
    for name in names:
        yield from ROWS[name](run)


def ending(rows: Sequence[table.Row], facts: Mapping[str, Any]) -> str:
    verdicts = [item.verdict for item in rows]
    return (
        f"{len(rows)} rows, {verdicts.count('ok')} ok, {verdicts.count('miss')} missed, in "
        f"{facts['seconds']:.0f} s; the client took {facts['client_share']:.1%} of a core while it "
        f"drove loads; load average {facts['load_average_after']}"
    )


def threads(run: Run) -> str:
    models = [model for model in ("S", "M") if model in run.models]
    return ", ".join(f"{run.threads_for(model)} on {model}" for model in models)


def load_average() -> str:
    return " ".join(f"{n:.2f}" for n in os.getloadavg()) if hasattr(os, "getloadavg") else "?"


def chosen(patterns: str) -> list[str]:
    """Return the rows that any pattern means: a name, the beginning of one, or wildcards."""
    wanted = [pattern for pattern in patterns.split(",") if pattern]
    for pattern in wanted:
        if not any(matches(name, pattern) for name in ROWS):
            raise SystemExit(f"no row {pattern!r}; there are: {', '.join(ROWS)}")
    return [name for name in ROWS if any(matches(name, pattern) for pattern in wanted)]


def matches(name: str, pattern: str) -> bool:
    return fnmatch(name, pattern) or name.startswith(f"{pattern}-")


def find_models(options: argparse.Namespace, stack: ExitStack) -> dict[str, str]:
    """Return the files of the models by name; what is missing is written by make_model.py."""
    given = {"S": options.model_s, "M": options.model_m}
    if options.quick and not options.model_m:
        given["M"] = "none"
    if given["M"] != "none" and "draft" in chosen(options.rows):
        given.update(dict.fromkeys(speed.DRAFT_MODELS, ""))
    folder = options.models
    if not folder and "" in given.values():
        folder = stack.enter_context(tempfile.TemporaryDirectory())
    paths = {
        name: path or os.path.join(folder, f"{name}.gguf")
        for name, path in given.items()
        if path != "none"
    }
    for name, path in paths.items():
        if not os.path.exists(path):
            make = [sys.executable, str(ROOT / "scripts" / "make_model.py"), *MADE[name]]
            subprocess.run([*make, "-o", path], check=True)
    return paths


def other_server(url: str) -> Target | None:
    parts = urlsplit(url)
    return Target(parts.hostname or "", parts.port or 80) if url else None


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="*", help="names, beginnings or patterns, by commas")
    parser.add_argument("--models", default="", help="folder with S.gguf, M.gguf, ..., or for them")
    parser.add_argument("--model-s", default="", metavar="FILE", help="use this file as S")
    parser.add_argument("--model-m", default="", metavar="FILE", help="use this as M; none: no M")
    parser.add_argument("--lib", default=os.environ.get("IGLLAMA_LIB", ""), help="libllama")
    parser.add_argument("--threads", type=int, default=0,
                        help="of decoding; 0: all cores on M, all but one on S")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30.0,
                        help="after which a row begins no more repeats")  # fmt: skip
    parser.add_argument("--against", default="", metavar="URL", help="another server to drive")
    parser.add_argument("--flags", default="", metavar="'--kv-unified off ...'",
                        help="more flags for our server, and the raw loop's settings")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="2 short repeats, without M")
    parser.add_argument("--strict", action="store_true", help="exit code 1 if a row misses")
    parser.add_argument("--json", default="", metavar="FILE", help="write the table there")
    return parser.parse_args()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # servers end too
    sys.exit(main())
