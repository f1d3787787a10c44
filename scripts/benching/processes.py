"""The processes of one measurement: our server, the raw loop, and what they take of the machine.

Lives here: starting, stopping, asking /proc. Not here: what is measured.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from benching import arithmetic
from benching.client import Target
from libloader.llama import machine

ROOT = Path(__file__).resolve().parents[2]
RAW_LOOP = Path(__file__).resolve().parent / "rawloop.py"
START_S, STOP_S = 120.0, 60.0
LISTENING = re.compile(r"listening +http://([\d.]+):(\d+)")


@contextmanager
def our_server(
    flags: Sequence[str],
    environment: Mapping[str, str] | None = None,
    log: IO[str] | None = None,
) -> Iterator[Target]:
    """Start `igllama api` with these flags on a free port; yield once it is ready."""
    with _running([*flags, "-p", "0"], environment, log) as process:
        assert process.stdout is not None
        yield _when_ready(process.stdout, process.pid)


@contextmanager
def starting(flags: Sequence[str]) -> Iterator[int]:
    """Start `igllama api` and yield its process id at once."""
    with _running(flags) as process:
        yield process.pid


@contextmanager
def _running(
    flags: Sequence[str],
    environment: Mapping[str, str] | None = None,
    log: IO[str] | None = None,
) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, str(ROOT / "igllama.py"), "api", *flags],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env={**os.environ, **(environment or {})},
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def touch_memory(n_bytes: int) -> None:
    """Use so much memory once, or a quarter of what is free, and give it back.

    A virtual machine may get each page from its host when it is first touched: 3 ms/MB were
    measured, which is no cost of whoever happens to be the first.
    """
    n_bytes = min(n_bytes, machine.available_memory_bytes() // 4)
    if n_bytes > 0:
        with mmap.mmap(-1, n_bytes) as memory:
            memory[:: mmap.PAGESIZE] = bytes(-(-n_bytes // mmap.PAGESIZE))


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _when_ready(output: IO[str], pid: int) -> Target:
    said: list[str] = []
    for line in output:
        said.append(line)
        listening = LISTENING.search(line)
        if listening:
            host, port = listening.groups()
            return Target(host, int(port), pid, "".join(said))
    raise SystemExit("the server did not start: " + "".join(said))


class RawLoop:
    """The raw loop as its user sees it: ask, get the answer."""

    def __init__(self, flags: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(RAW_LOOP), *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, do: str, **fields: Any) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps({"do": do, **fields}) + "\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise SystemExit(f"the raw loop ended with exit code {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        with self._process:  # closes the pipes, which ends it, and waits
            pass


@contextmanager
def raw_loop(flags: Sequence[str]) -> Iterator[RawLoop]:
    raw = RawLoop(flags)
    try:
        raw.ask("distinct", texts=[])  # answered once the model is there: nothing runs beside that
        yield raw
    finally:
        raw.close()


# ---- what /proc says; Linux only ----


def family(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            children.setdefault(_parent(entry), []).append(int(entry.name))
    found, i = [pid], 0
    while i < len(found):
        found += children.get(found[i], [])
        i += 1
    return found


def _parent(entry: Path) -> int:
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):  # it has ended meanwhile
        return 0


def memory_of(pid: int, model: str) -> arithmetic.Memory:
    """Return the proportional share of a process, and how much of that maps `model`."""
    pss = model_pages = 0
    is_model = False
    wanted = os.path.realpath(model)
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, rest = line.partition(":")
        if "-" in name and " " in name:  # a mapping's head: range, rights, ..., path
            is_model = line.endswith(wanted)
        elif name == "Pss":
            n_bytes = int(rest.split()[0]) << 10
            pss += n_bytes
            model_pages += n_bytes if is_model else 0
    return arithmetic.Memory(pss, model_pages)


class CpuClock:
    """CPU time of processes since it was made; 0.0 where /proc does not tell."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self._began_s = self._read_s()

    def elapsed_s(self) -> float:
        return self._read_s() - self._began_s

    def _read_s(self) -> float:
        files = [
            path for pid in self._pids for path in Path(f"/proc/{pid}/task").glob("*/schedstat")
        ]
        return sum(int(path.read_text().split()[0]) for path in files) / 1e9


def wait_until(what: Any, patience_s: float = START_S) -> float:
    """Call `what` until it returns True; return the seconds that took."""
    began = time.perf_counter()
    while time.perf_counter() - began < patience_s:
        if what():
            return time.perf_counter() - began
        time.sleep(0.002)
    raise SystemExit("waited in vain")
