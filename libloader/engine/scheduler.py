"""Who runs, and what of them goes into the next batch.

Lives here: admission, the plan of a step, preemption. Not here: what is known of a prompt
(prefix_cache.py), native calls, sampling and events (engine.py).

Laws:
- Running streams come first: one token each. Prompt chunks fill what is left of one n_ubatch or
  less (pace.py), so that a long prompt never holds up a stream, or a brief prompt, for longer.
- Nobody is admitted whose worst case does not fit beside the worst cases of all who run; the newest
  waits, and nobody overtakes it. So a full cache is an exception; then the youngest goes back.
- A batch runs with one set of LoRA adapters; the sets that have work take turns (turns.py). All
  streams count when the size of a prompt chunk is chosen, for all of them wait for its batch.
- Rows of a batch are in ascending order of seq_id, and where each sequence has a KV stream of its
  own the running seq_ids are neighbours before long: libllama packs only ascending neighbours into
  one micro-batch. There a plan may take several batches (passes.py): one round of them brings each
  stream its token.

Separate KV streams or one unified cache? llama/context.py decides (`prefers_unified`); why, in ms a
step, unified / separate, 1 thread, each sequence with a past of its own:

                            4 running   8         8 on ragged ids   16 in order   16 shuffled
    S,  15M, past   32      6.8 / 10.5  12 /  17  11 /  32          23 /  33        24 /  68
    S,       past 1024      21 / 23     43 /  45  45 /  59         122 /  88       121 / 122
    S,       past 3000      36 / 53    101 / 100
    M, 0.6B, past   32      73 / 91    207 / 155  227 / 214        334 / 259       342 / 388
    M,       past  512     178 / 139   498 / 210  646 / 348       2002 / 381      1171 / 778

In a unified cache each token's attention runs over the cells of all sequences: with a model of any
size that is the dearest thing there is, as soon as there are many sequences or long pasts, and one
long prompt slows everybody down. Separate streams pay a pass over the weights for each gap among
the running seq_ids, which `_close_gap` does away with, a pass for each kind of length (passes.py),
and a copy for a shared prefix. Only where weights and cache are so small that the passes are all
that counts is the unified cache better. While 8,000 tokens are read beside four streams of S, 99 of
100 of their tokens come within 85 ms in the unified cache, within 40 with streams of their own.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future

from libloader.engine.pace import Pace, deal
from libloader.engine.passes import Rows, split
from libloader.engine.ports import ContextPort
from libloader.engine.prefix_cache import PrefixCache
from libloader.engine.prefix_store import PrefixStore
from libloader.engine.sequence import Sequence
from libloader.engine.slot import Slot, Slots
from libloader.engine.turns import Turns
from libloader.engine.waiting import Waiting

PATIENCE = 4  # steps that a gap among the running may last: somebody new may fill it
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
        self._gap_steps = 0  # for how long there has been a gap among the running
        self._round: deque[Plan] = deque()  # what is still to be decoded of the latest plan
        self._settled: list[Plan] = []

    def admit(self) -> list[Sequence]:
        """Seat whoever fits, in turn; return those who got a slot."""
        self.cache.bring_back()
        seated: list[Sequence] = []
        if self._is_full and self.running:
            return seated
        while not self._is_busy:
            sequence = self.waiting.first()
            if sequence is None or not self._fits(sequence):
                break
            self._seat(self.waiting.take_first())
            seated.append(sequence)
        return seated

    def go_on(self) -> Plan:
        """Return what the next batch decodes by the latest plan; empty if a new one is due.

        One round of a plan gives each stream a token. Where sequences have KV streams of their own
        it may take several batches (passes.py). A plan is settled, and good for more rounds, for as
        long as all who run are streams for which nothing else can be done.
        """
        if not self._round:
            if not self._settled or (not self._is_busy and self.waiting):
                return []
            self._begin_round(self._settled)
        return self._round.popleft()

    def _begin_round(self, parts: list[Plan]) -> None:
        self._round.extend(parts)
        self.pace.begin_round()

    @property
    def _is_busy(self) -> bool:
        return len(self.running) >= self._n_parallel

    def plan(self) -> Plan:
        """Plan a round and return its first batch: streams, then prompt chunks, oldest first."""
        if not self.slots.can_cut:
            for sequence in self.running:
                self.cache.keep(sequence)
        self._close_gap()
        ready = [each for each in self.running if not self._waits(each)]
        if not ready:  # then nobody decodes, which some may be waiting for
            for sequence in self.running:
                self.cache.stop_waiting(sequence)
        n_streams = sum(sequence.n_pending == 1 for sequence in ready)
        chosen = self._turns.of_one_kind(ready)
        decoding: Plan = [(sequence, 1) for sequence in chosen if sequence.n_pending == 1]
        prefilling = [sequence for sequence in chosen if sequence.n_pending > 1]
        chunks = self._chunks(prefilling, n_streams)
        kinds = [decoding + chunks] if self.slots.unified else [decoding, chunks]
        parts = [part for kind in kinds for part in self._parts(kind)]
        are_alike = len(decoding) == len(self.running) and not self._gap_steps
        self._settled = parts if are_alike and not any(map(_walks, self.running)) else []
        self._begin_round(parts)
        return self._round.popleft() if parts else []

    def _parts(self, plan: Plan) -> list[Plan]:
        """Cut what is to be decoded into batches, each in order of seq_id."""
        plan.sort(key=_by_seq_id)
        if self.slots.unified or len(plan) < 2:
            return [plan] if plan else []
        rows = [Rows(slot.seq_id, n, len(slot.tokens)) for slot, n in _seats(plan)]
        return [plan[start:end] for start, end in split(rows, self._context.pass_cells)]

    def _waits(self, sequence: Sequence) -> bool:
        return sequence.is_waiting and self.cache.still_waits(sequence)

    def unsettle(self) -> None:
        """Plan the next round anew: a slot has other tokens, or another sequence, than it had."""
        self._settled = []
        seated = ([item for item in part if item[0].slot is not None] for part in self._round)
        self._round = deque(part for part in seated if part)

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
        self.unsettle()
        self.cache.settle(slot)

    def shift(self, sequence: Sequence) -> None:
        """Make room in a full context: the older half of what is not kept goes."""
        slot = sequence.slot
        assert slot is not None and len(slot.tokens) == len(sequence.tokens) - 1
        self.unsettle()
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
        sequence.n_unread = -1
        self.unsettle()
        self.running.append(sequence)
        self.cache.begin(sequence, slot, known)
        self.cache.thin_out()

    def _close_gap(self) -> None:
        """Where gaps cost time, move an outermost sequence into one that has lasted."""
        if self.slots.unified or len(self.running) < 2:
            return
        ids = sorted(sequence.slot.seq_id for sequence in self.running if sequence.slot)
        gaps = sorted(set(range(ids[0], ids[-1])) - set(ids))
        self._gap_steps = self._gap_steps + 1 if gaps else 0
        if self._gap_steps <= PATIENCE:
            return
        edges = {ids[0]: gaps[-1], ids[-1]: gaps[0]}
        outermost = [s for s in self.running if s.slot and s.slot.seq_id in edges]
        movable = [sequence for sequence in outermost if not sequence.is_waiting]
        if movable:
            sequence = min(movable, key=lambda sequence: len(sequence.tokens))
            assert sequence.slot is not None
            self.cache.move(sequence, self.slots.all[edges[sequence.slot.seq_id]])

    def _chunks(self, prefilling: list[Sequence], n_decoding: int) -> Plan:
        if not prefilling:  # nearly every step: the look at what rows cost would be for nothing
            return []
        for sequence in prefilling:
            if sequence.n_unread < 0:
                sequence.n_unread = sequence.n_pending
        n_past = max(len(slot.tokens) for each in prefilling if (slot := each.slot))
        limits = n_decoding, self._context.n_ubatch, n_past
        n_rows, n_brief = self.pace.chunk(*limits), self.pace.brief(*limits)
        pending = [sequence.n_to_halt for sequence in prefilling]
        briefs = [sequence.n_unread <= n_brief for sequence in prefilling]
        dealt = deal(pending, briefs, n_rows, n_brief)
        return [(sequence, n) for sequence, n in zip(prefilling, dealt) if n]


def _walks(sequence: Sequence) -> bool:
    return sequence.live.choosing is not None


def _seats(plan: Plan) -> list[tuple[Slot, int]]:
    return [(sequence.slot, n) for sequence, n in plan if sequence.slot is not None]


def _by_seq_id(item: tuple[Sequence, int]) -> int:
    slot = item[0].slot
    assert slot is not None
    return slot.seq_id
