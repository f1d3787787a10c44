"""Threads that stay: without a threadpool, ggml starts n - 1 threads for each graph and ends them.

That is dear where a step is short, and the system deals new threads out to the cores each time
(tok/s over HTTP with a pool / without, 2 threads, 2 cores: pocket model 1.4 to 4.7, 15M 1.1, 0.6B
1.06).

Laws:
- ggml_threadpool_params has no version. So the library's own ggml_threadpool_params_init fills a
  marked buffer: unless exactly the bytes have changed that ours would have, there is no pool.
- A pool computes one graph at a time: whoever gives one to several contexts uses these from one
  thread.
- A pool is freed after every context that has it.

    ggml_threadpool_params  0..512    cpumask, a bool for each CPU; all false: any
                            512..526  i32 n_threads, i32 prio, u32 poll, bool strict_cpu, paused
"""

from __future__ import annotations

import ctypes
import logging
import struct
from typing import Any, Callable

N_CPUS = 512  # GGML_MAX_N_THREADS
FIELDS = struct.Struct(f"={N_CPUS}xiiI??")
PRIORITY, POLL = 0, 50  # what init sets: a normal priority; some ms of polling before a sleep
ROOM_BYTES = 4096  # for a larger struct of a newer build to show itself in
MARK = 0xA5
ALIGNMENT = 4

logger = logging.getLogger("igllama")


class ThreadPools:
    """The pools of one engine's contexts, one for each number of threads. Engine thread only.

    In builds that cannot have any, `attach` does nothing: ggml does without.
    """

    def __init__(self, lib: Any) -> None:
        self._lib = lib
        self._pools: dict[int, int] = {}
        self._new = _function(lib, "ggml_threadpool_new", ctypes.c_void_p)
        self._free = _function(lib, "ggml_threadpool_free", None)

    def attach(self, context: Any, n_threads: int, n_threads_batch: int) -> None:
        """Let `context`, a pointer, compute with threads that stay, if it has any but its own."""
        n_most = max(n_threads, n_threads_batch)
        if not 1 < n_most <= N_CPUS or self._new is None or self._free is None:
            return
        pool, pool_batch = self._pool(n_threads), self._pool(n_threads_batch)
        if pool and pool_batch:
            self._lib.llama_attach_threadpool(context, pool, pool_batch)

    @property
    def stay(self) -> bool:
        """True if any context has got a pool."""
        return bool(self._pools)

    def close(self) -> None:
        """Free all; their contexts must be closed."""
        while self._pools and self._free is not None:
            self._free(self._pools.popitem()[1])

    def __enter__(self) -> ThreadPools:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pool(self, n_threads: int) -> int:
        if n_threads not in self._pools:
            params = wishes(self._lib.ggml_threadpool_params_init, n_threads)
            pool = self._new(params) if params is not None and self._new is not None else None
            if not pool:
                logger.info("this libllama starts its threads anew for each step")
                return 0
            self._pools[n_threads] = pool
        return self._pools[n_threads]


def wishes(init: Callable[[Any, int], None], n_threads: int) -> Any:
    """Return ggml_threadpool_params for a pool of so many; None if they may be laid out otherwise.

    `init` is ggml_threadpool_params_init.
    """
    buffer = ctypes.create_string_buffer(bytes([MARK]) * ROOM_BYTES, ROOM_BYTES)
    init(buffer, n_threads)
    expected = FIELDS.pack(n_threads, PRIORITY, POLL, False, False)
    n_bytes = -(-len(expected) // ALIGNMENT) * ALIGNMENT
    fits = buffer.raw.startswith(expected)
    untouched = set(buffer.raw[n_bytes:]) == {MARK}
    return buffer if fits and untouched else None


def _function(lib: Any, name: str, result: Any) -> Callable[[Any], Any] | None:
    """Return a function of the CPU backend, which may be a library that only ggml has open."""
    if not lib.has("threadpool"):
        return None
    for number in range(lib.ggml_backend_reg_count()):
        registry = lib.ggml_backend_reg_get(number)
        address = lib.ggml_backend_reg_get_proc_address(registry, name.encode())
        if address:
            return ctypes.CFUNCTYPE(result, ctypes.c_void_p)(address)
    return None
