"""llama_token_data_array: tokens with their logits, as samplers take them when called one by one.

    [ id | logit | p ][ id | logit | p ] ...      four bytes each; samplers reorder and cut it

Filling is two strided copies, about 2 ms for 150,000 tokens, with the GIL: only what cannot go
through llama_sampler_sample does it, that is a grammar's second choice and log probabilities.
"""

from __future__ import annotations

import ctypes
import functools
import math
from array import array
from collections.abc import Iterable
from typing import Any

from libloader.errors import NanLogits
from libloader.llama.handle import Handle

N_TOP = 20  # alternatives per token that a request may ask for


class Candidates:
    """An array of at most `room` tokens; belongs to Python, nothing to close."""

    def __init__(self, lib: Any, room: int) -> None:
        self._lib, self._room = lib, room
        self._storage = (ctypes.c_float * (3 * room))()
        raw: Any = memoryview(self._storage).cast("B")  # typeshed knows no memoryview of floats
        self._floats, self._ids = raw.cast("f"), raw.cast("i")
        self._array = lib.TokenDataArray()
        self._array.data = ctypes.addressof(self._storage)
        self.pointer = ctypes.byref(self._array)

    def fill(self, logits: Any) -> None:
        """Take tokens 0..room-1 with the logits that a `Context.logits_pointer` shows."""
        size = ctypes.c_float * self._room
        view = memoryview(ctypes.cast(logits, ctypes.POINTER(size)).contents)
        self._ids[0::3] = _numbers(self._room)
        self._floats[1::3] = view.cast("B").cast("f")
        self._restart(self._room)

    def fill_some(self, tokens: array[int], logits: array[float]) -> None:
        """Take these tokens, each with its logit."""
        end = 3 * len(tokens)
        self._ids[0:end:3] = memoryview(tokens)
        self._floats[1:end:3] = memoryview(logits)
        self._restart(len(tokens))

    def forbid(self, tokens: Iterable[int]) -> None:
        """Give tokens the logit -inf; only while the array is in the order of `fill`."""
        for token in tokens:
            self._floats[3 * token + 1] = -math.inf

    def fill_one(self, token: int) -> None:
        """Take one token, with logit 0. Hot."""
        self._ids[0], self._floats[1], self._floats[2] = token, 0.0, 0.0
        self._restart(1)

    def _restart(self, n_tokens: int) -> None:
        self._array.size, self._array.selected, self._array.sorted = n_tokens, -1, False

    def logits(self) -> list[float]:
        """Return the logits in the order of the array."""
        return list(self._floats[1 : 3 * self._array.size : 3])

    def apply(self, sampler: Any) -> None:
        self._lib.llama_sampler_apply(sampler, self.pointer)

    def choose(self, sampler: Any) -> int:
        """Run a sampler or chain that picks, and return the token."""
        self.apply(sampler)
        index = self._array.selected
        if not 0 <= index < self._array.size:
            raise NanLogits("the sampler chain picked no token")
        token: int = self._ids[3 * index]
        return token

    @property
    def size(self) -> int:
        return int(self._array.size)

    def entry(self, index: int) -> tuple[int, float, float]:
        """Return (token, logit, p) of one place."""
        at = 3 * index
        return self._ids[at], self._floats[at + 1], self._floats[at + 2]


@functools.lru_cache(maxsize=1)
def _numbers(end: int) -> memoryview:
    """Return 0..end-1. Made once: counting to 150,000 takes longer than a token."""
    return memoryview(array("i", range(end)))


def init_softmax(lib: Any, n_vocab: int) -> Any:
    """Return a sampler that computes every p and changes nothing else.

    It is top-p that must keep the whole vocabulary: llama_sampler_init_softmax is gone from b6338.
    """
    return lib.llama_sampler_init_top_p(0.5, n_vocab)


class LogprobReader(Handle):
    """Computes log probabilities from logits: the softmax and the sorting happen in C.

    Not thread-safe: one context's engine thread.
    """

    def __init__(self, lib: Any, n_vocab: int, parent: Handle) -> None:
        old = lib.hazard("dist_reads_p")
        softmax = init_softmax(lib, n_vocab) if old else lib.llama_sampler_init_dist(0)
        super().__init__("logprob reader", softmax, self._free_both, parent)
        self._lib = lib
        self._top_k = lib.llama_sampler_init_top_k(min(N_TOP, n_vocab))
        self._candidates = Candidates(lib, n_vocab)

    def _free_both(self, softmax: Any) -> None:
        self._lib.llama_sampler_free(self._top_k)
        self._lib.llama_sampler_free(softmax)

    def read(
        self, logits: Any, tokens: Iterable[int], n_top: int
    ) -> tuple[list[float], list[tuple[int, float]]]:
        """Return the log probability of each token, and (id, logprob) of the likeliest, best first.

        These are the model's own, before any sampler: log p = logit - log(sum of e^logits), and
        the sum is known from the likeliest token, whose p is never too small for a float.
        """
        candidates = self._candidates
        candidates.fill(logits)
        candidates.apply(self.pointer)
        candidates.apply(self._top_k)
        entries = [candidates.entry(index) for index in range(candidates.size)]
        _, highest, p = entries[0]
        if not (math.isfinite(highest) and p > 0):
            raise NanLogits("the model produced no finite numbers for the next token")
        log_sum = highest - math.log(p)
        top = [(each, logit - log_sum) for each, logit, _ in entries[:n_top]]
        return [logits[token] - log_sum for token in tokens], top
