"""Embeddings and scores: a context of its own, made when first asked for, fed in bounded pieces.

Lives here: packing of inputs into batches, normalising, base64. Not here: how that context is made
(whoever builds the Engine gives `open_embedder`), pooling and ranking (libllama does them).

Laws:
- One input is decoded in one piece: pooling looks at one micro-batch. So n_ubatch is the limit.
- Inputs of one request and of several share a batch, each under a seq_id of its own.
- On a CPU batches of 256 rows are best: attention runs over the cells of all that share a batch.
  256 texts of 22 tokens took 5.9 s with 256 rows, 6.3 s with 512, 6.8 s with 2,048 (S, 1 thread).
- While chat is running a batch is cut to what the streams hardly feel, but never below one input.
"""

from __future__ import annotations

import base64
import math
import sys
from array import array
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from typing import NamedTuple

from libloader.core import EmbeddingEvent
from libloader.engine.ports import BatchPort, ContextPort, OpenEmbedder
from libloader.engine.sequence import LiveRequest
from libloader.errors import DecodeFailed, NanLogits

CPU_ROWS = 256  # of a batch, unless one input is longer


class Input(NamedTuple):
    """One text to embed."""

    live: LiveRequest
    number: int
    tokens: list[int]


class Embedder:
    """Owns the embedding context and the line of inputs before it. Engine thread only."""

    def __init__(self, open_embedder: OpenEmbedder, *, on_cpu: bool = True) -> None:
        self._open = open_embedder
        self._n_rows_max = CPU_ROWS if on_cpu else sys.maxsize
        self._stack = ExitStack()
        self._pair: tuple[ContextPort, BatchPort] | None = None
        self._line: deque[Input] = deque()

    def __len__(self) -> int:
        return len(self._line)

    def n_input_max(self) -> int:
        """Return how many tokens one input may have. Makes the context if there is none yet."""
        context, batch = self._native()
        return min(context.n_ubatch, context.n_ctx_seq, batch.capacity)

    def push(self, item: Input) -> None:
        self._line.append(item)

    def drop(self, live: LiveRequest) -> None:
        """Forget the inputs of `live` that are still in line."""
        self._line = deque(item for item in self._line if item.live is not live)

    def next_inputs(self, n_polite: int | None) -> list[Input]:
        """Take from the line what the next batch holds: at least one input if there is one.

        `n_polite` bounds its tokens; None: only the batch does.
        """
        if not self._line:
            return []
        context, batch = self._native()
        room = min(batch.capacity, context.n_batch, context.n_ctx, self._n_rows_max)
        if n_polite is not None:
            room = min(room, n_polite)
        taken: list[Input] = []
        adapters = self._line[0].live.adapters
        while self._line and len(taken) < context.n_seq_max:
            if self._line[0].live.adapters != adapters:
                break
            room -= len(self._line[0].tokens)
            if taken and room < 0:
                break
            taken.append(self._line.popleft())
        return taken

    def embed(self, inputs: list[Input]) -> list[EmbeddingEvent]:
        """Decode `inputs` as one batch; the context is clean afterwards, whatever happens.

        Raises DecodeFailed, or NanLogits if the model's numbers are none.
        """
        context, batch = self._native()
        batch.clear()
        for seq_id, item in enumerate(inputs):
            for position, token in enumerate(item.tokens):
                batch.add(token, position, seq_id, True)
        try:
            context.set_adapters(inputs[0].live.adapters)
            code = context.decode(batch)
            if code != 0:
                raise DecodeFailed(f"llama_decode answered {code} to an embedding batch")
            vectors = self._vectors(context, inputs)
            return [_event(item, vector) for item, vector in zip(inputs, vectors)]
        finally:
            for seq_id in range(len(inputs)):
                context.seq_rm(seq_id, 0, -1)

    def close(self) -> None:
        self._pair = None
        self._stack.close()

    def _vectors(self, context: ContextPort, inputs: list[Input]) -> Iterator[array[float]]:
        """Yield what the batch brought for each input; see core.EmbeddingEvent."""
        row = 0
        for seq_id, item in enumerate(inputs):
            if context.pooling_name == "none":
                rows = range(row, row + len(item.tokens))
                yield array("f", chain.from_iterable(map(context.embeddings_row, rows)))
                row = rows.stop
            elif context.pooling_name == "rank" or item.live.request.raw_vectors:
                yield context.embeddings_seq(seq_id)
            else:
                yield _normalised(context.embeddings_seq(seq_id))

    def _native(self) -> tuple[ContextPort, BatchPort]:
        if self._pair is None:
            self._pair = self._stack.enter_context(self._open())
        return self._pair


def _event(item: Input, vector: array[float]) -> EmbeddingEvent:
    if not all(map(math.isfinite, vector)):  # a sum would raise at inf - inf
        raise NanLogits("the model made numbers that are none of this input")
    if _BIG_ENDIAN:
        vector.byteswap()
    encoded = base64.b64encode(vector.tobytes()).decode("ascii")
    return EmbeddingEvent(item.live.request.id, item.number, encoded, len(item.tokens))


def _normalised(vector: array[float]) -> array[float]:
    """Return `vector` at length 1; zeros stay zeros."""
    norm = math.hypot(*vector)
    return array("f", [x / norm for x in vector]) if norm else vector


_BIG_ENDIAN = array("H", [1]).tobytes()[0] == 0
