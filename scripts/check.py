#!/usr/bin/env python3
"""Run ruff and mypy over the tree, as CI does. Needs the environment that scripts/test.py makes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# ruff reads no setup.cfg, so its options are here.
RUFF = ["--line-length", "100", "--target-version", "py39"]
CHECKS = (
    ["ruff", "check", "--quiet", "--select", "E,F,W,I,B,UP,SIM", *RUFF, "."],
    ["ruff", "format", "--quiet", "--check", *RUFF, "."],
    ["mypy", "--no-error-summary"],
)


def main() -> int:
    """Run every check, also after one has failed; return 1 if any did."""
    failed = 0
    for command in CHECKS:
        print("+", " ".join(command), flush=True)
        failed |= subprocess.run([sys.executable, "-m", *command], cwd=ROOT).returncode
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
