"""Loaded by every Python process of a server that is started with this folder on PYTHONPATH.

Wraps what front and engine child do for their pipe and adds up the time that takes; each process
writes its sums to the folder named by IGLLAMA_BENCH_COUNTERS, twice a second.

    child   supervise.child.EngineChild._emit        a step's events -> a frame -> written
    front   FrameDecoder.feed, read_child_message    bytes -> frames -> checked events
            supervise.policy.Policy.handle           the ledger: who gets what (not the pipe)

The cost of waiting is left out by counting the thread's CPU time, which also holds the system's
part of reading and writing.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

from libloader.supervise import channel, child, policy

WRITE_EVERY_S = 0.5
SUMS: dict[str, list[float]] = {}  # what -> [calls, CPU seconds]


def timed(name, function):
    sums = SUMS.setdefault(name, [0, 0.0])

    def wrapped(*arguments):
        began = time.thread_time()
        try:
            return function(*arguments)
        finally:
            sums[0] += 1
            sums[1] += time.thread_time() - began

    return wrapped


def write_sums() -> None:
    path = Path(os.environ["IGLLAMA_BENCH_COUNTERS"]) / f"{os.getpid()}.json"
    while True:
        time.sleep(WRITE_EVERY_S)
        path.with_suffix(".new").write_text(json.dumps(SUMS))
        path.with_suffix(".new").replace(path)


child.EngineChild._emit = timed("child", child.EngineChild._emit)
channel.FrameDecoder.feed = timed("feed", channel.FrameDecoder.feed)
channel.read_child_message = timed("check", channel.read_child_message)
policy.Policy.handle = timed("policy", policy.Policy.handle)
threading.Thread(target=write_sums, daemon=True).start()
