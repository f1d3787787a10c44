"""Who runs, and what of them goes into the next batch.

Lives here: admission, the plan of a step, preemption. Not here: what is known of a prompt
(prefix_cache.py), native calls, sampling and events (engine.py).

Laws:
- Running streams come first: one token each. Prompt chunks fill what is left of one n_ubatch or
  less (pace.py), so that a long prompt never holds up a stream for longer than that.
- Nobody is admitted whose worst case does not fit beside the worst cases of all who run; the newest
  waits, and nobody overtakes it. So a full cache is an exception; then the youngest goes back.
- A batch runs with one set of LoRA adapters; the sets that have work take turns (turns.py). All
  streams count when the size of a prompt chunk is chosen, for all of them wait for its batch.
- Rows of a batch are in ascending order of seq_id: with one KV stream per sequence libllama packs
  only ascending neighbours into one micro-batch (measured: 64 ms instead of 11.5 ms otherwise).

Why the KV cache is unified unless the user says otherwise. Separate streams also fall from a cliff
when live seq_ids have gaps (8 sequences on even ids: 34 ms instead of 11.9 ms), which ragged load
always makes; a unified cache has no cliff, and shares prefixes without a copy (16 x 768 tokens with
one prefix: 40 ms against 52 ms). Streams win only where many long contexts share nothing.
"""

from __future__ import annotations

from concurrent.futures import Future

from libloader.engine.pace import Pace
from libloader.engine.ports import ContextPort
from libloader.engine.prefix_cache import PrefixCache
from libloader.engine.prefix_store import PrefixStore
from libloader.engine.sequence import Sequence
from libloader.engine.slot import Slots
from libloader.engine.turns import Turns
from libloader.engine.waiting import Waiting

Plan = list[tuple[Sequence, int]]  # (sequence, number of its pending tokens to decode)


class Scheduler:
    """Who sits in which slot, and who waits for one. Engine thread only."""

    def __init__(self, context: ContextPort, n_parallel: int, store: PrefixStore) -> None:
        self.slots = Slots(context)
        self.cache = PrefixCache(self.slots, store)
        self.waiting = Waiting()
        self._turns = Turns()
        self.running: list[Sequence] = []  # oldest first
        self.pace = Pace()
        self._context = context
        self._n_parallel = min(n_parallel, context.n_seq_max, context.n_batch)
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
        ready = [each for each in self.running if not self._waits(each)]
        n_streams = sum(sequence.n_pending == 1 for sequence in ready)
        chosen = self._turns.of_one_kind(ready)
        decoding: Plan = [(sequence, 1) for sequence in chosen if sequence.n_pending == 1]
        prefilling = [sequence for sequence in chosen if sequence.n_pending > 1]
        plan = decoding + self._chunks(prefilling, n_streams)
        plan.sort(key=_by_seq_id)
        return plan

    def _waits(self, sequence: Sequence) -> bool:
        return sequence.is_waiting and self.cache.still_waits(sequence)

    def polite_rows(self) -> int | None:
        """Return how many rows work beside the streams may take at once; None: nobody minds."""
        if not self.running:
            return None
        return self.pace.chunk(len(self.running), self._context.n_ubatch)

    def coming(self) -> list[Future[bytes | None]]:
        """Return the saved states that running sequences wait for."""
        return [sequence.loading.state for sequence in self.running if sequence.loading]

    def release(self, sequence: Sequence) -> None:
        """Take `sequence` out of its slot; what the slot holds stays for the next prompt."""
        slot = sequence.slot
        assert slot is not None
        self._is_full = False
        self.running.remove(sequence)
        slot.sequence = sequence.slot = sequence.leader = sequence.loading = None
        self.cache.settle(slot)

    def shift(self, sequence: Sequence) -> None:
        """Make room in a full context: the older half of what is not kept goes."""
        slot = sequence.slot
        assert slot is not None and len(slot.tokens) == len(sequence.tokens) - 1
        self.cache.shift(sequence, slot, *sequence.forget())

    def preempt_youngest(self) -> None:
        """Send the youngest running sequence back to the head of the line, its cells freed."""
        sequence = max(self.running, key=lambda running: running.number)
        self.release(sequence)
        self.cache.forget_idle()
        self.waiting.push_back_to_front(sequence)
        self._is_full = True

    def check_integrity(self) -> None:
        """Assert what must be true between two steps. For tests."""
        self.cache.check_integrity()
        seats = [sequence.slot for sequence in self.running]
        assert len(set(seats)) == len(seats) and None not in seats
        for sequence in self.running:
            slot = sequence.slot
            assert slot is not None and slot.sequence is sequence
            assert slot.tokens == sequence.tokens[: len(slot.tokens)], "a slot holds other tokens"
        for slot in self.slots.all:
            assert slot.sequence is None or slot.sequence in self.running
        assert all(sequence.slot is None for sequence in self.waiting)

    def _fits(self, sequence: Sequence) -> bool:
        if not self.slots.unified or not self.running:
            return True
        known = self.cache.lookup(sequence)
        shared = known.n_soon if known is not None and known.is_live else 0
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
        known = self.cache.lookup(sequence)
        slot = self.cache.choose_slot(known)
        slot.sequence, sequence.slot = sequence, slot
        self.running.append(sequence)
        self.cache.begin(sequence, slot, known)

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


def _by_seq_id(item: tuple[Sequence, int]) -> int:
    slot = item[0].slot
    assert slot is not None
    return slot.seq_id
