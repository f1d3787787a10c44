"""Every command in the README is run here, as written but for names and ports, or checked to parse.

A command without a row in RUNNERS fails the first test: a new line in the README needs one.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from serving import POCKET, ROOT, Served, serving

README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    """The lines of all ```sh blocks, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    return [re.sub(r"\s+# .*", "", line) for line in lines]


def inline_commands() -> list[str]:
    """`python3 ...` and `curl ...` inside the text."""
    return re.findall(r"`((?:python3|curl) [^`]+)`", README)


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd)


def start(line: str, server: Served, tmp_path: Path) -> None:
    """A command that serves: the same flags, on the pocket model and a free port."""
    words = shlex.split(line)[1:]
    flags = [w for w in words if not w.endswith((".py", ".pyz", ".gguf")) and w != "api"]
    for name in ("-p", "-h"):
        if name in flags:
            del flags[flags.index(name) : flags.index(name) + 2]
    with serving(*flags, program=[sys.executable, str(ROOT / words[0])], api="api" in words) as own:
        assert own.get("/health")[0] == 200


def curl(line: str, server: Served, tmp_path: Path) -> None:
    assert shutil.which("curl"), "curl is what our users test with"
    words = [w.replace("http://127.0.0.1:8080", server.url) for w in shlex.split(line)]
    done = run(*words)
    assert done.returncode == 0
    if " -d " not in line:
        assert "curl" in done.stdout
        return
    answer = json.loads(done.stdout)
    assert answer["prompt"] if "choices" not in answer else answer["choices"][0]["message"]


def prints(line: str, server: Served, tmp_path: Path) -> None:
    words = [str(POCKET) if w == "model.gguf" else w for w in shlex.split(line)[1:]]
    done = run(sys.executable, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def build(line: str, server: Served, tmp_path: Path) -> None:
    words = [w if w != "igllama.pyz" else str(tmp_path / w) for w in shlex.split(line)[1:]]
    assert run(sys.executable, *words).returncode == 0
    assert "igllama" in run(sys.executable, str(tmp_path / "igllama.pyz"), "--help").stdout


def parses(line: str, server: Served, tmp_path: Path) -> None:
    """Needs a network or another machine: its flags are in the script's help."""
    words = shlex.split(line)[1:]
    shown = run(sys.executable, words[0], "--help").stdout
    flags = [w for w in words[1:] if w.startswith("--")]
    assert all(flag in shown for flag in flags), (line, shown)


def is_ci(line: str, server: Served, tmp_path: Path) -> None:
    assert line in (ROOT / ".ci" / "run").read_text()


def carried(line: str, server: Served, tmp_path: Path) -> None:
    """tests/test_scripts_pyz.py serves from the single file; here, only that it is built."""
    assert any("-o igllama.pyz" in other for other in commands())


def travels(line: str, server: Served, tmp_path: Path) -> None:
    """A copy to another machine: the files named are those of the lines around it."""
    assert "igllama.pyz" in line and "model.gguf" in line


# What a command begins with -> how it is held true; the first that fits.
RUNNERS = {
    "python3 scripts/quickstart.py": start,
    "python3 scripts/test.py": is_ci,
    "python3 igllama.py api": start,
    "python3 igllama.py show": prints,
    "python3 igllama.py --help": prints,
    "python3 scripts/build_pyz.py": build,
    "python3 scripts/fetch_libllama.py": parses,
    "python3 scripts/abi_check.py": parses,
    "python3 scripts/abi_matrix.py": parses,
    "python3 scripts/bench.py": parses,
    "python3 scripts/soak.py": parses,
    "python3 igllama.pyz api": carried,
    "scp ": travels,
    "curl ": curl,
}


def runner_of(line: str):
    return next((run for start, run in RUNNERS.items() if line.startswith(start)), None)


@pytest.mark.parametrize("line", [*commands(), *inline_commands()])
def test_every_command_of_the_readme_has_a_runner(line):
    assert runner_of(line) is not None


@pytest.mark.native
@pytest.mark.parametrize("line", [*commands(), *inline_commands()])
def test_every_command_of_the_readme_is_true(line, server, tmp_path):
    runner_of(line)(line, server, tmp_path)


def test_every_path_that_the_readme_names_exists():
    named = re.findall(r"`((?:libloader|tests|scripts|abi|llama|chat|protocol)/\w[\w/.]+)`", README)
    named = [name for name in named if name != "libloader/lib/"]  # made by the fetch script
    roots = (ROOT, ROOT / "libloader")
    missing = [n for n in named if not any((root / n).exists() for root in roots)]
    assert missing == []


def test_ci_calls_exactly_the_second_command():
    assert "exec python3 scripts/test.py\n" in (ROOT / ".ci" / "run").read_text()
