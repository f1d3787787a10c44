"""Threads that stay: a pool is made only where its struct is proved, and changes no number."""

from __future__ import annotations

import ctypes
import logging
import os
import struct
import sys

import gguf_files as files
import pytest

from libloader.core import EngineSettings
from libloader.llama import threads
from libloader.llama.batch import Batch
from libloader.llama.context import Context
from libloader.llama.model import Model
from libloader.llama.threads import ThreadPools, wishes

SETTINGS = EngineSettings(n_ctx=64, n_batch=64, n_parallel=1, n_threads=2)


def init_like(*, n_cpus=512, fields="iiI??", poll=50, extra=b""):
    """Return a ggml_threadpool_params_init of a build that lays the struct out like this."""

    def init(buffer, n_threads):
        values = (n_threads, 0, poll, False, False)[: len(fields)]
        ctypes.memmove(buffer, bytes(n_cpus) + struct.pack(f"={fields}", *values) + extra, n_cpus
                       + struct.calcsize(f"={fields}") + len(extra))  # fmt: skip

    return init


def test_a_struct_that_looks_like_ours_is_filled_and_used():
    assert wishes(init_like(), 7).raw[512:516] == struct.pack("=i", 7)
    assert wishes(init_like(extra=b"\0\0"), 7) is not None  # what the compiler fills up with


@pytest.mark.parametrize(
    "other",
    [
        {"n_cpus": 1024},
        {"n_cpus": 256},
        {"poll": 0},
        {"fields": "iiI?"},
        {"fields": "qiI??"},
        {"extra": b"\0\0\0"},
        {"extra": bytes(8)},
    ],
)
def test_any_other_struct_is_not(other):
    assert wishes(init_like(**other), 7) is None


class Library:
    """One whose functions note what they get; `init` as in `wishes`."""

    def __init__(self, init, has=True):
        self.ggml_threadpool_params_init = init
        self.attached = []
        self._has = has

    def has(self, capability):
        assert capability == "threadpool"
        return self._has

    def ggml_backend_reg_count(self):
        return 0

    def llama_attach_threadpool(self, *arguments):
        self.attached.append(arguments)


def pools_of(library, monkeypatch):
    made, freed = [], []

    def function(lib, name, result):
        if not lib.has("threadpool"):
            return None
        if name == "ggml_threadpool_free":
            return freed.append
        return lambda params: made.append(params) or len(made)

    monkeypatch.setattr(threads, "_function", function)
    return ThreadPools(library), made, freed


def test_contexts_share_a_pool_of_as_many_threads(monkeypatch):
    library = Library(init_like())
    pools, made, freed = pools_of(library, monkeypatch)
    with pools:
        pools.attach("first", 2, 4)
        pools.attach("second", 4, 4)
        pools.attach("alone", 1, 1)
        pools.attach("giant", 513, 513)
        assert library.attached == [("first", 1, 2), ("second", 2, 2)]
        assert pools.stay and len(made) == 2
    assert sorted(freed) == [1, 2] and not pools.stay


@pytest.mark.parametrize("library", [Library(init_like(n_cpus=1024)), Library(None, has=False)])
def test_where_there_is_no_pool_ggml_does_without(library, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "igllama")
    pools, made, _ = pools_of(library, monkeypatch)
    pools.attach("first", 2, 2)
    assert not made and not library.attached and not pools.stay


def logits(context, tokens):
    batch = Batch(context.model.lib, 64, 1)
    for position, token in enumerate(tokens):
        batch.add(token, position, 0, position == len(tokens) - 1)
    assert context.decode(batch) == 0
    return list(context.logits_row(len(tokens) - 1))


@pytest.mark.native
def test_a_pool_changes_no_number(native_library, tmp_path):
    path = files.write(tmp_path / "tiny.gguf", files.tiny_llama())
    with ThreadPools(native_library) as pools, Model.load(native_library, path, SETTINGS) as model:
        alone = Context(model, SETTINGS)
        pooled = [Context(model, SETTINGS, pools=pools) for _ in range(2)]
        assert pools.stay or not native_library.has("threadpool") or pools._new is None
        expected = logits(alone, [1, 2, 3])
        assert [logits(context, [1, 2, 3]) for context in pooled] == [expected, expected]


@pytest.mark.native
def test_a_decode_on_threads_that_stay_can_be_interrupted(native_library, tmp_path):
    path = files.write(tmp_path / "tiny.gguf", files.tiny_llama())
    with ThreadPools(native_library) as pools, Model.load(native_library, path, SETTINGS) as model:
        context = Context(model, SETTINGS, pools=pools)
        expected = logits(context, [1, 2, 3])
        if not context._interrupt.works:
            pytest.skip("this libllama cannot be interrupted")
        for _ in range(20):
            context.clear()
            context.interrupt()
            batch = Batch(native_library, 64, 1)
            batch.add(1, 0, 0, True)
            assert context.decode(batch) == 2
            context.clear()
            assert logits(context, [1, 2, 3]) == expected


@pytest.mark.native
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_threads_stay_between_two_steps_and_go_with_the_pool(native_library, tmp_path):
    if not native_library.has("threadpool"):
        pytest.skip("this libllama has no pools")

    def n_threads():
        return len(os.listdir("/proc/self/task"))

    path = files.write(tmp_path / "tiny.gguf", files.tiny_llama())
    before = n_threads()
    with ThreadPools(native_library) as pools, Model.load(native_library, path, SETTINGS) as model:
        if pools._new is None:
            pytest.skip("the backend of this libllama gives no pools away")
        context = Context(model, SETTINGS, pools=pools)
        logits(context, [1, 2, 3])
        assert n_threads() == before + 1
    assert n_threads() == before
