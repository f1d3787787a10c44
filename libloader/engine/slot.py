"""Slots: the seq_ids of one KV cache, and an exact mirror of what each of them holds there.

Lives here: every change of the native memory (seq_rm, seq_cp, seq_add), the count of used cells.
Not here: which slot a sequence gets (scheduler.py), what is decoded (engine.py).

Laws:
- `slot.tokens[i]` is the token at position i of seq_id in the native memory, always, also after a
  failed decode. `check_integrity` compares both.
- In a unified cache a cell that several slots share is counted once. Cells are told apart by
  spans: (origin, end) says that the cells from the last span's end to `end` were computed under
  `origin`; whoever shares or cuts a slot closes its open span, so that no two different cells ever
  have the same origin and position.

- Cells that were computed behind tokens which are no longer there (`pure_end`) serve nobody but the
  sequence that sits in the slot.
- A copy between sequences with KV streams of their own is made by libllama's next decode. Until
  then its source must not get a saved state (the copy would be of that) and its target neither
  (the copy would come over it), and what its target will hold cannot be saved.
- Where attention has a sliding window, a slot is only cut to where all keys in reach are left.

    slot 0   [ origin 1 ........... 700 ][ origin 3, its open tail ... 812 ]
    slot 1   [ origin 1 ........... 700 ][ origin 2 ... 731 ]      cells used: 812 + 31
"""

from __future__ import annotations

import sys

from libloader.core import Adapters
from libloader.engine.ports import ContextPort

WHOLE = -1  # llama.h: a p1 below 0 means "to the end"


class Slot:
    """One seq_id: the tokens in its KV cache and the sequence that sits in it, if any."""

    __slots__ = (
        "seq_id", "tokens", "sequence", "last_used", "spans", "origin", "pure_end", "adapters",
    )  # fmt: skip

    def __init__(self, seq_id: int) -> None:
        self.seq_id = seq_id
        self.tokens: list[int] = []
        self.sequence: object | None = None  # who sits here; only its identity matters
        self.last_used = 0  # step number
        self.spans: list[tuple[int, int]] = []
        self.origin = 0  # of the open tail; 0 = none opened yet
        self.adapters: Adapters = ()  # with which `tokens` were computed
        self.pure_end = sys.maxsize  # cells from here on remember tokens that were shifted out

    @property
    def n_pure(self) -> int:
        """Return how many leading tokens are in the cache as if only these had been decoded."""
        return min(len(self.tokens), self.pure_end)

    def closed_end(self) -> int:
        return self.spans[-1][1] if self.spans else 0


class Slots:
    """All slots of one context. Engine thread only."""

    def __init__(self, context: ContextPort) -> None:
        self._context = context
        self.unified = context.kv_unified
        self.all = [Slot(seq_id) for seq_id in range(context.n_seq_max)]
        self.can_cut = context.can_cut  # and only until libllama refuses
        self._sources: set[int] = set()  # seq_ids of copies that the next decode makes
        self._targets: set[int] = set()
        self._origins = 0

    def idle(self) -> list[Slot]:
        """Return the slots in which nobody sits, least recently used first, empty ones before."""
        free = [slot for slot in self.all if slot.sequence is None]
        return sorted(free, key=lambda slot: (bool(slot.tokens), slot.last_used, slot.seq_id))

    def n_used(self, slots: list[Slot] | None = None) -> int:
        """Return the number of distinct cells that `slots` (all by default) occupy."""
        ends: dict[int, tuple[int, int]] = {}
        for slot in self.all if slots is None else slots:
            start = 0
            for origin, end in self._spans_of(slot):
                ends[origin] = max(ends.get(origin, (0, 0)), (end, start))
                start = end
        return sum(end - start for end, start in ends.values())

    def n_free(self) -> int:
        return self._context.n_ctx - self.n_used()

    def n_surely_free(self) -> int:
        """Return a lower bound of `n_free` that costs less: shared cells are counted often."""
        return self._context.n_ctx - sum(len(slot.tokens) for slot in self.all)

    def append(self, slot: Slot, tokens: list[int]) -> None:
        """Note that `tokens` were decoded at the end of `slot`. Hot."""
        if not slot.origin:
            self._open(slot)
        slot.tokens += tokens

    def truncate(self, slot: Slot, n: int) -> bool:
        """Keep the first `n` tokens. False, and an empty slot, where they cannot be had alone.

        Also takes away what a failed decode may have left beyond the tokens we know of.
        """
        if n <= 0:
            self._empty(slot)
            return n == 0
        if not self._context.has_window(slot.seq_id, n):
            self._empty(slot)
            return False
        if not self._context.seq_rm(slot.seq_id, n, WHOLE) or self._lost(slot, n):
            self.can_cut = False
            self._empty(slot)
            return False
        if n <= slot.pure_end:
            slot.pure_end = sys.maxsize
        if n >= slot.closed_end():  # nobody shares the open tail
            del slot.tokens[n:]
            return True
        self._close_at(slot, n)
        del slot.tokens[n:]
        return True

    def n_common(self, a: Slot, b: Slot) -> int:
        """Return how many leading tokens of two slots lie in the same cells."""
        if not self.unified:
            return 0
        n = 0
        for (origin, end), (other_origin, other_end) in zip(self._spans_of(a), self._spans_of(b)):
            if origin != other_origin:
                break
            n = min(end, other_end)
            if end != other_end:
                break
        return n

    def shift(self, slot: Slot, start: int, end: int) -> None:
        """Forget the tokens [start, end); what follows them moves up, remembering them.

        Its cells must be nobody else's: a cell has one position for all who share it.
        """
        self._context.seq_rm(slot.seq_id, start, end)
        self._context.seq_add(slot.seq_id, end, len(slot.tokens), start - end)
        self._close_at(slot, start)
        self._open(slot)
        del slot.tokens[start:end]
        slot.pure_end = min(slot.pure_end, start)

    def share(self, source: Slot, target: Slot, n: int) -> int:
        """Give `target` the first `n` tokens of `source`; return how many it has now."""
        assert source is not target and n <= len(source.tokens)
        self._empty(target)
        if not n:
            return 0
        # Separate streams can only be copied whole (abi.md, from b6122); the tail is cut after.
        self._context.seq_cp(source.seq_id, target.seq_id, 0, n if self.unified else WHOLE)
        if not self.unified:
            self._sources.add(source.seq_id)
            self._targets.add(target.seq_id)
        self._close(source)
        target.tokens, target.spans = list(source.tokens), list(source.spans)
        target.pure_end = source.pure_end
        self.truncate(target, n)
        return len(target.tokens)

    def note_decode(self) -> None:
        """Take note that libllama has begun a decode: copies are made."""
        if self._targets:
            self._sources.clear()
            self._targets.clear()

    def can_save(self, slot: Slot) -> bool:
        return slot.seq_id not in self._targets

    def can_restore(self, slot: Slot) -> bool:
        return slot.seq_id not in self._targets and slot.seq_id not in self._sources

    def n_to_give(self, slot: Slot, n: int) -> int:
        """Return how many of the first `n` tokens of `slot` another one, or a new one, can have."""
        is_whole = n >= len(slot.tokens)
        if is_whole or (self.can_cut and self._context.has_window(slot.seq_id, n)):
            return n
        return 0

    def n_to_restore(self, n_saved: int, n: int) -> int:
        """Return the same of a saved state of `n_saved` tokens: it lacks what no window reached."""
        n_swa = self._context.n_swa
        is_whole = n >= n_saved
        return n if is_whole or (self.can_cut and (not n_swa or n_saved <= n_swa)) else 0

    def state(self, slot: Slot) -> bytes:
        """Return a copy of what `slot` holds, for `restore`."""
        assert self.can_save(slot), "what the slot holds is still to be copied"
        return self._context.state_seq_get(slot.seq_id)

    def state_bytes(self, slot: Slot) -> int:
        """Return how large `state` would be."""
        return self._context.state_seq_size(slot.seq_id)

    def restore(self, slot: Slot, tokens: list[int], state: bytes) -> bool:
        """Fill an empty slot with a saved state; False, and an empty slot, if libllama refuses."""
        assert not slot.tokens and self.can_restore(slot)
        is_back = self._context.state_seq_set(slot.seq_id, state)
        if not is_back or self._lost(slot, len(tokens)):
            self._empty(slot)
            return False
        self.append(slot, tokens)
        return True

    def check_integrity(self) -> None:
        """Assert that the mirror is true. For tests, after every step."""
        for slot in self.all:
            n_held = self._context.seq_pos_max(slot.seq_id) + 1
            assert n_held == len(slot.tokens), f"slot {slot.seq_id}: {n_held} held"
            ends = [end for _, end in self._spans_of(slot)]
            assert ends == sorted(set(ends)) and (ends[-1] if ends else 0) == len(slot.tokens)
        assert not self.unified or self.n_used() <= self._context.n_ctx

    def _spans_of(self, slot: Slot) -> list[tuple[int, int]]:
        n = len(slot.tokens)
        return slot.spans if n == slot.closed_end() else [*slot.spans, (slot.origin, n)]

    def _close(self, slot: Slot) -> None:
        slot.spans = list(self._spans_of(slot))
        slot.origin = 0

    def _close_at(self, slot: Slot, n: int) -> None:
        """Close the spans of the first `n` tokens; the others have none then."""
        self._close(slot)
        while slot.spans and (slot.spans[-2][1] if len(slot.spans) > 1 else 0) >= n:
            slot.spans.pop()
        if slot.spans:
            slot.spans[-1] = (slot.spans[-1][0], min(n, slot.spans[-1][1]))

    def _open(self, slot: Slot) -> None:
        self._origins += 1
        slot.origin = self._origins

    def _empty(self, slot: Slot) -> None:
        self._context.seq_rm(slot.seq_id, 0, WHOLE)
        slot.tokens, slot.spans, slot.origin, slot.pure_end = [], [], 0, sys.maxsize

    def _lost(self, slot: Slot, n: int) -> bool:
        return self._context.seq_pos_max(slot.seq_id) != n - 1
