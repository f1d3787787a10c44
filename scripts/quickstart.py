#!/usr/bin/env python3
"""From a fresh clone to a chat answer: fetch libllama if none is found, then serve a small model.

    python3 scripts/quickstart.py                the model that lies in the repository
    python3 scripts/quickstart.py model.gguf     one of yours
    python3 scripts/quickstart.py --port 9000    all that `igllama.py api` takes is passed on

The first run needs npm and a network, or a library that you brought (scripts/fetch_libllama.py
--from FILE); later runs need neither. The server prints its address and curl lines to paste.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
POCKET_MODEL = ROOT / "tests" / "models" / "pocket.gguf"


def main(arguments: Sequence[str]) -> int:
    if not _names_a_library(arguments):
        fetched = subprocess.run([*_script("scripts/fetch_libllama.py"), "--if-missing"])
        if fetched.returncode:
            return fetched.returncode
    return _become(serve_command(arguments))


def serve_command(arguments: Sequence[str]) -> list[str]:
    """Return the command that serves: with the pocket model unless `arguments` name another."""
    own = any(argument.endswith(".gguf") or _is_model_flag(argument) for argument in arguments)
    model = [] if own else [str(POCKET_MODEL)]
    return [*_script("igllama.py"), "api", *model, *arguments]


def _is_model_flag(argument: str) -> bool:
    return argument.split("=")[0] in ("-m", "--model")


def _names_a_library(arguments: Sequence[str]) -> bool:
    return any(argument.split("=")[0] == "--lib" for argument in arguments)


def _script(name: str) -> list[str]:
    return [sys.executable, str(ROOT / name)]


def _become(command: list[str]) -> int:
    """Replace this process, so that signals and exit codes are the server's own."""
    sys.stdout.flush()
    if os.name == "nt":  # there, exec returns to the shell at once
        return subprocess.run(command).returncode
    os.execv(command[0], command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
