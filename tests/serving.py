"""Starts the real server as a user would, and speaks to it with the standard library."""

from __future__ import annotations

import json
import os
import queue
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
POCKET = ROOT / "tests" / "models" / "pocket.gguf"
START_S = 60.0


class Served:
    """One running server; `url` has no slash at its end, `block` is what it printed at start."""

    def __init__(self, process: subprocess.Popen, lines: queue.Queue) -> None:
        self.process = process
        self.lines = lines
        self.block = self._read_block()
        self.url = re.search(r"listening +(\S+)", self.block).group(1).rstrip("/")
        self.port = int(self.url.rpartition(":")[2])

    def _read_block(self) -> str:
        """Read up to the pasted curl line; on an early end, fail with what the server said."""
        read: list[str] = []
        while not any("curl" in line for line in read):
            line = self.lines.get(timeout=START_S)
            assert line is not None, "the server ended: " + "".join(read)
            read.append(line)
        return "".join(read)

    def request(self, method, path, body=None, headers=()):
        """Return (status, headers, body bytes), also for 4xx and 5xx."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, dict(headers), method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()

    def get(self, path, headers=()):
        status, _, body = self.request("GET", path, None, headers)
        return status, json.loads(body)

    def post(self, path, body, headers=()):
        status, _, answer = self.request("POST", path, body, headers)
        return status, json.loads(answer)

    def chat(self, text, **fields):
        """Return the whole answer of a greedy chat request with one user message."""
        body = {"messages": [{"role": "user", "content": text}], "temperature": 0, **fields}
        status, answer = self.post("/v1/chat/completions", body)
        assert status == 200, answer
        return answer

    def stream(self, text, **fields):
        """Return the `data:` payloads of a greedy streamed chat request, [DONE] included."""
        body = {"messages": [{"role": "user", "content": text}], "temperature": 0, "stream": True}
        status, _, raw = self.request("POST", "/v1/chat/completions", {**body, **fields})
        assert status == 200, raw
        return events_of(raw)

    def stop(self) -> int:
        """SIGTERM, then the exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(30)


def events_of(raw: bytes) -> list:
    """Split a whole event stream into its payloads: dicts, and the string [DONE]."""
    blocks = [b for b in raw.decode("utf-8").split("\n\n") if b and not b.startswith(":")]
    assert all(block.startswith("data: ") for block in blocks), blocks
    return [b[6:] if b == "data: [DONE]" else json.loads(b[6:]) for b in blocks]


def text_of(events: list, index: int = 0) -> str:
    """The concatenated content of one choice of a stream."""
    choices = [c for event in events if isinstance(event, dict) for c in event["choices"]]
    return "".join(c["delta"].get("content") or "" for c in choices if c["index"] == index)


@contextmanager
def serving(*flags, model=POCKET, program=None, api=True, env=None, cwd=ROOT):
    """Run `igllama.py api MODEL -p 0 FLAGS` until it is ready; yield a Served.

    `program` stands for another file than igllama.py; with `api=False` it brings command and model.
    """
    command = [*(program or [sys.executable, str(ROOT / "igllama.py")])]
    command += ["api", str(model), "-p", "0"] if api else ["-p", "0"]
    process = subprocess.Popen(
        [*command, *map(str, flags)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
    )
    lines: queue.Queue = queue.Queue()
    reader = threading.Thread(target=pump, args=(process.stdout, lines), daemon=True)
    reader.start()
    try:
        yield Served(process, lines)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(5)
        process.stdout.close()


def pump(pipe, lines: queue.Queue) -> None:
    """Read all output as it comes, so that the server never blocks on a full pipe."""
    for line in pipe:
        lines.put(line)
    lines.put(None)
