#!/usr/bin/env python3
"""Run everything that CI runs: style, types and the whole suite. A bare Python is enough.

    python3 scripts/test.py              all of it
    python3 scripts/test.py tests/test_engine_*.py -k stop      some tests only, as pytest takes it

The first run makes a private environment in .venv/ (from the package index) and fetches a libllama
into libloader/lib/ if none is found, and six other builds of it to prove the layouts on (kept in
the system's temporary folder); later runs need no network.

What only computes runs beside the soak; tests that start servers have the machine to themselves,
after that. What a command prints comes when it has ended.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv"
# What the checks and tests need. The program itself never imports any of it.
REQUIREMENTS = (
    "pytest>=8,<10",
    "ruff==0.17.6",
    "mypy>=1.10,<3",
    "jinja2>=3.1.6,<4",
    "h11>=0.14,<1",
    "openai>=1.40,<4",
    "setuptools>=61",
)
# Begins the names of test files that compute; all others start processes and wait for them.
COMPUTING = ("abi", "chat", "constraint", "engine", "grammar", "llama", "protocol")


def main(arguments: list[str]) -> int:
    """Return 0 if all passed. With arguments, only pytest runs, on these."""
    python = prepare()
    fetch = [sys.executable, str(ROOT / "scripts" / "fetch_libllama.py"), "--if-missing"]
    if subprocess.run(fetch, cwd=ROOT).returncode != 0:
        return 1
    if arguments:
        return run(python, "-m", "pytest", *arguments)
    failed = 0
    for lanes in stages():
        with ThreadPoolExecutor(min(len(lanes), os.cpu_count() or 1)) as pool:
            failed = max(failed, *pool.map(partial(run_all, python), lanes))
    return failed


def stages() -> Sequence[Sequence[Sequence[Sequence[str]]]]:
    """Return all that is to be run: stages one after the other, of lanes side by side."""
    patterns = [f"tests/test_{name}*.py" for name in COMPUTING]
    files = sorted(str(path.relative_to(ROOT)) for each in patterns for path in ROOT.glob(each))
    computing = (
        ("scripts/check.py",),
        ("scripts/abi_matrix.py", "--ci"),  # old and new builds of libllama
        ("-m", "pytest", *files),
    )
    soak = (("scripts/soak.py", "--minutes", "1", "--threads", "1"),)
    serving = (("-m", "pytest", *(f"--ignore-glob={pattern}" for pattern in patterns)),)
    return (computing, soak), (serving,)


def prepare() -> Path:
    """Return the private environment's Python, installing what changed since the last run."""
    python = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = ENVIRONMENT / "requirements.sha256"
    wanted = hashlib.sha256("\n".join((*REQUIREMENTS, sys.version)).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print("making the test environment in .venv/ (once)", flush=True)
    venv.create(ENVIRONMENT, with_pip=True, clear=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *REQUIREMENTS], check=True)
    stamp.write_text(wanted)
    return python


def run(python: Path, *command: str) -> int:
    print("+", *command, flush=True)
    return subprocess.run([str(python), *command], cwd=ROOT).returncode


def run_all(python: Path, commands: Sequence[Sequence[str]]) -> int:
    """Run one after the other, also after one has failed; return 1 if any did."""
    failed = 0
    for command in commands:
        words = " ".join(command if len(command) < 9 else (*command[:8], "..."))
        print("+", words, flush=True)
        ended = subprocess.run(
            [str(python), *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        failed |= ended.returncode != 0  # killed by a signal it is negative
        text = ended.stdout.decode("utf-8", "replace")
        print(f"{text}- {words}: {'failed' if ended.returncode else 'passed'}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
