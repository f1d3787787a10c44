"""Who runs, where, and what of them goes into the next batch.

Lives here: admission, the choice of a slot, sharing of prefixes, the plan of a step, preemption.
Not here: native calls (slot.py makes those on the memory), sampling and events (engine.py).

Laws:
- Running streams come first: one token each. Prompt chunks fill what is left of one n_ubatch or
  less (pace.py), so that a long prompt never holds up a stream for longer than that.
- Nobody is admitted whose worst case does not fit beside the worst cases of all who run; the newest
  waits, and nobody overtakes it. So a full cache is an exception; then the youngest goes back.
- A prefix that another sequence is computing right now is waited for, not computed again. One only
  waits for older sequences, so nobody waits in a circle.
- Rows of a batch are in ascending order of seq_id: with one KV stream per sequence libllama packs
  only ascending neighbours into one micro-batch (measured: 64 ms instead of 11.5 ms otherwise).
"""

from __future__ import annotations

from typing import NamedTuple

from libloader.engine.pace import Pace
from libloader.engine.ports import ContextPort
from libloader.engine.prefix_cache import PrefixTree
from libloader.engine.sequence import Sequence
from libloader.engine.slot import Slot, Slots
from libloader.engine.waiting import Waiting

# Waiting for another's prefill costs up to a step; fewer tokens than this are computed instead.
MIN_WORTH_WAITING = 16

Plan = list[tuple[Sequence, int]]  # (sequence, number of its pending tokens to decode)


class Known(NamedTuple):
    """A slot that has, or will have, the beginning of a prompt."""

    slot: Slot
    n_now: int
    n_soon: int  # more than n_now only while the slot's sequence is still prefilling


class Scheduler:
    """Slots, who sits in them, and who waits. Engine thread only."""

    def __init__(self, context: ContextPort, n_parallel: int) -> None:
        self.slots = Slots(context)
        self.waiting = Waiting()
        self.running: list[Sequence] = []  # oldest first
        self.pace = Pace()
        self._context = context
        self._n_parallel = min(n_parallel, context.n_seq_max, context.n_batch)
        self._tree: PrefixTree[Slot] = PrefixTree()
        self._clock = 0  # counts releases: orders idle slots by last use
        self._is_full = False  # somebody was preempted and nobody has ended since

    def admit(self) -> list[Sequence]:
        """Seat whoever fits, in turn; return those who got a slot."""
        seated: list[Sequence] = []
        if self._is_full and self.running:
            return seated
        while len(self.running) < self._n_parallel:
            sequence = self.waiting.first()
            if sequence is None or not self._fits(sequence):
                break
            self._seat(self.waiting.take_first())
            seated.append(sequence)
        return seated

    def plan(self) -> Plan:
        """Return what the next batch decodes: streams first, then prompt chunks, oldest first."""
        decoding: Plan = []
        prefilling: list[Sequence] = []
        for sequence in self.running:
            if sequence.leader is not None and self._still_follows(sequence):
                continue
            if sequence.n_pending == 1:
                decoding.append((sequence, 1))
            else:
                prefilling.append(sequence)
        plan = decoding + self._chunks(prefilling, len(decoding))
        plan.sort(key=_by_seq_id)
        return plan

    def make_room(self, n_rows: int) -> bool:
        """Evict idle prefixes, least recently used first, until `n_rows` cells are free.

        False if they are not free even then. Separate streams always have room for their own.
        """
        slots = self.slots
        if not slots.unified or self._surely_free() >= n_rows:
            return True
        for slot in slots.idle():
            if slots.n_free() >= n_rows:
                break
            self._forget(slot)
        return slots.n_free() >= n_rows

    def forget_idle(self) -> bool:
        """Evict every idle prefix; False if there was none."""
        cached = [slot for slot in self.slots.idle() if slot.tokens]
        for slot in cached:
            self._forget(slot)
        return bool(cached)

    def release(self, sequence: Sequence) -> None:
        """Take `sequence` out of its slot; what the slot holds stays for the next prompt."""
        slot = sequence.slot
        assert slot is not None
        self._is_full = False
        self.running.remove(sequence)
        self._clock += 1
        slot.sequence, slot.last_used = None, self._clock
        sequence.slot = sequence.leader = None
        self._tree.insert(slot.tokens, slot)

    def preempt_youngest(self) -> Sequence:
        """Send the youngest running sequence back to the head of the line, its cells freed."""
        sequence = max(self.running, key=lambda running: running.number)
        slot = sequence.slot
        assert slot is not None
        self.release(sequence)
        self._forget(slot)
        self.waiting.push_back_to_front(sequence)
        self._is_full = True
        return sequence

    def check_integrity(self) -> None:
        """Assert what must be true between two steps. For tests."""
        self.slots.check_integrity()
        seats = [sequence.slot for sequence in self.running]
        assert len(set(seats)) == len(seats) and None not in seats
        for sequence in self.running:
            slot = sequence.slot
            assert slot is not None and slot.sequence is sequence
            assert slot.tokens == sequence.tokens[: len(slot.tokens)], "a slot holds other tokens"
        for slot in self.slots.all:
            assert slot.sequence is None or slot.sequence in self.running
            assert not slot.tokens or slot in self._tree
        assert all(sequence.slot is None for sequence in self.waiting)

    def _fits(self, sequence: Sequence) -> bool:
        if not self.slots.unified or not self.running:
            return True
        known = self._lookup(sequence)
        shared = known.n_soon if known is not None and known.slot.sequence is not None else 0
        return self._committed() + sequence.n_limit - shared <= self._context.n_ctx

    def _committed(self) -> int:
        """Return the cells that all running sequences hold and may still come to need."""
        seats = [slot for slot in self.slots.all if slot.sequence is not None]
        n_more = sum(
            sequence.n_limit - max(sequence.n_shared, len(sequence.slot.tokens))
            for sequence in self.running
            if sequence.slot is not None
        )
        return self.slots.n_used(seats) + n_more

    def _seat(self, sequence: Sequence) -> None:
        known = self._lookup(sequence)
        slot = self._choose_slot(known)
        slot.sequence, sequence.slot = sequence, slot
        self.running.append(sequence)
        self._begin(sequence, known)

    def _choose_slot(self, known: Known | None) -> Slot:
        """Return the idle slot to use: the one with the prefix if nothing in it is lost by that."""
        idle = self.slots.idle()
        if known is not None and known.slot.sequence is None:
            continues = known.n_now == len(known.slot.tokens)
            if continues or known.slot is idle[0]:
                return known.slot
        return idle[0]

    def _begin(self, sequence: Sequence, known: Known | None) -> None:
        """Fill the slot of `sequence` with the prefix that is known, or wait for it."""
        slot = sequence.slot
        assert slot is not None
        sequence.leader, sequence.n_shared = None, 0
        if known is None:
            self.slots.truncate(slot, 0)
        elif known.slot is slot:
            self.slots.truncate(slot, known.n_now)
        elif known.n_soon - known.n_now >= MIN_WORTH_WAITING:
            self.slots.truncate(slot, 0)
            leader = known.slot.sequence
            assert isinstance(leader, Sequence)
            sequence.leader, sequence.n_shared = leader, known.n_soon
            self._tree.remove(slot)  # who computes nothing yet promises nothing
            return
        else:
            self.slots.share(known.slot, slot, known.n_now)
        self._tree.insert(sequence.tokens, slot)  # a promise as long as it prefills

    def _still_follows(self, sequence: Sequence) -> bool:
        """Return True while the leader computes; else share what there is and stop following."""
        leader = sequence.leader
        assert leader is not None
        if leader.slot is not None and len(leader.slot.tokens) < sequence.n_shared:
            return True
        self._begin(sequence, self._lookup(sequence))
        return sequence.leader is not None

    def _lookup(self, sequence: Sequence) -> Known | None:
        """Return who knows most of `sequence`'s tokens but the last, whose logits are needed."""
        if not sequence.live.request.cache_prompt:
            return None
        n, holders = self._tree.longest(sequence.tokens[:-1])
        found = [_known(slot, n, sequence) for slot in holders]
        best = max(found, key=_worth, default=None)
        return best if best is not None and best.n_soon > 0 else None

    def _chunks(self, prefilling: list[Sequence], n_decoding: int) -> Plan:
        left = self.pace.chunk(n_decoding, self._context.n_ubatch)
        chunks: Plan = []
        for sequence in prefilling:
            if left <= 0:
                break
            chunk = min(sequence.n_pending, left)
            chunks.append((sequence, chunk))
            left -= chunk
        return chunks

    def _forget(self, slot: Slot) -> None:
        assert slot.sequence is None
        self._tree.remove(slot)
        self.slots.truncate(slot, 0)

    def _surely_free(self) -> int:
        """Return a lower bound of the free cells: shared ones are counted more than once."""
        return self._context.n_ctx - sum(len(slot.tokens) for slot in self.slots.all)


def _known(slot: Slot, n: int, asking: Sequence) -> Known:
    n_now = min(n, len(slot.tokens))
    owner = slot.sequence
    waits = isinstance(owner, Sequence) and owner.number < asking.number
    return Known(slot, n_now, n if waits else n_now)


def _worth(known: Known) -> tuple[int, int, bool, int]:
    return known.n_soon, known.n_now, known.slot.sequence is None, -known.slot.seq_id


def _by_seq_id(item: tuple[Sequence, int]) -> int:
    slot = item[0].slot
    assert slot is not None
    return slot.seq_id
