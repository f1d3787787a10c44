"""The rows of one llama_decode.

    row     0      1      2      ...          one token each, at `position` of sequence `seq_id`
    logits  wanted for rows that are sampled or pooled; only those have logits afterwards

The arrays belong to Python and live as long as the Batch: llama_batch is only a view of them, so
there is nothing to free.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from libloader.errors import DecodeFailed
from libloader.llama.handle import require_in_range


class Batch:
    """At most `capacity` rows, for sequences 0..n_seq_max-1. Engine thread only."""

    def __init__(self, lib: Any, capacity: int, n_seq_max: int) -> None:
        self.capacity, self.n_seq_max, self.n_tokens = capacity, n_seq_max, 0
        self._token = (ctypes.c_int32 * capacity)()
        self._position = (ctypes.c_int32 * capacity)()
        self._n_seq_id = (ctypes.c_int32 * capacity)(*[1] * capacity)
        self._seq_id = (ctypes.c_int32 * capacity)()
        self._seq_id_rows = _pointers_into(self._seq_id)
        self._wants_logits = (ctypes.c_int8 * capacity)()
        self._view = lib.Batch(
            n_tokens=0,
            token=self._token,
            pos=self._position,
            n_seq_id=self._n_seq_id,
            seq_id=self._seq_id_rows,
            logits=self._wants_logits,
        )

    def clear(self) -> None:
        self.n_tokens = 0

    def add(self, token: int, position: int, seq_id: int, wants_logits: bool) -> None:
        """Append one row. Hot: runs once per token; keep it free of allocation and logging."""
        row = self.n_tokens
        if row >= self.capacity:
            raise DecodeFailed(f"the batch is full: it holds {self.capacity} rows")
        require_in_range("seq_id", seq_id, self.n_seq_max)
        if position < 0:
            raise DecodeFailed(f"position {position} is negative")
        self._token[row] = token
        self._position[row] = position
        self._seq_id[row] = seq_id
        self._wants_logits[row] = wants_logits
        self.n_tokens = row + 1

    def go_on(self, tokens: Sequence[int]) -> None:
        """Make of the rows those that follow: other tokens, one position further each. Hot."""
        row_tokens, positions = self._token, self._position
        for row, token in enumerate(tokens):
            row_tokens[row] = token
            positions[row] += 1

    def view(self) -> Any:
        """Return the rows as a llama_batch; `abi.guards` checks its tokens on the way to C."""
        self._view.n_tokens = self.n_tokens
        return self._view

    def seq_ids_at_start(self) -> frozenset[int]:
        """Return the sequences that get their position 0 from this batch."""
        pairs = zip(self._seq_id[: self.n_tokens], self._position[: self.n_tokens])
        return frozenset(seq_id for seq_id, position in pairs if position == 0)


def _pointers_into(numbers: Any) -> Any:
    """Return an array with a pointer to each element: llama_batch takes seq_ids as lists."""
    pointer = ctypes.POINTER(ctypes.c_int32)
    start, step = ctypes.addressof(numbers), ctypes.sizeof(ctypes.c_int32)
    return (pointer * len(numbers))(
        *(ctypes.cast(start + row * step, pointer) for row in range(len(numbers)))
    )
