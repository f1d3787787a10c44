"""The prefix cache: what of a prompt is known already, and the way into a slot.

Lives here: one look-up over three levels (slots of the KV cache, states in RAM, states on disk),
filling a slot from the best, evicting. Not here: the trees (prefix_forest.py), the native memory
(slot.py), the saved states (prefix_store.py), who gets a slot when (scheduler.py).

Laws:
- A prompt that is being computed right now counts as known: whoever shares it waits for it (only
  for older sequences, so nobody waits in a circle) instead of computing it again.
- What would be lost when a slot is taken over is saved first, unless somebody else has it. A saved
  state that the new one begins with goes, where that can be cut.
- Who has to go for a running sequence that moves gets the slot that it leaves: one decode later,
  for until then libllama has not made the copy.
- Cells that remember tokens which are no longer in their slot are never given to anybody else.
- A memory that cannot be cut (recurrent, hybrid) gives what fits without a cut, or nothing:
  `Slots.truncate` empties a slot that libllama would not cut. So its copies are made in time: a
  prefill pauses where somebody waits for it (`Sequence.halts`), where a prompt before it had
  parted, and before the prompt's last token, so that the same prompt finds all that it can use.
  Each pause costs a batch more and a copy of the state (Mamba, 90M parameters, 1 thread: 15 ms for
  a row of its own, 5 ms for one among others, 1.4 ms for the copy; 300 tokens take 1,500).
"""

from __future__ import annotations

import sys
from itertools import islice
from typing import NamedTuple

from libloader.core import Adapters
from libloader.engine.prefix_forest import Holder, PrefixForest
from libloader.engine.prefix_store import Loading, PrefixStore, Saved
from libloader.engine.sequence import Sequence
from libloader.engine.slot import Slot, Slots

# Fewer tokens than this are computed again rather than waited for, or saved.
MIN_WORTH_WAITING = 16
MIN_WORTH_SAVING = 32
# In a unified cache each token's attention runs over the cells of idle slots too (measured: beside
# three finished prompts of 1,000 words a stream was 4 to 5 times slower). So they may be so many,
# or this share of the tokens that the running sequences have; the others wait in the store.
MAX_IDLE_CELLS, MAX_IDLE_SHARE = 256, 0.25
MAX_SAVED_ALIKE = 8  # saved states with the same beginning that are compared, latest first
MAX_MOVED_BYTES = 256 << 20  # of a state that is in memory while it changes its slot


class Known(NamedTuple):
    """Somebody who has, or will have, the beginning of a prompt."""

    holder: Holder
    n_now: int
    n_soon: int  # more than n_now only while the holder's sequence is still prefilling

    @property
    def is_live(self) -> bool:
        return isinstance(self.holder, Slot) and self.holder.sequence is not None


class Moving(NamedTuple):
    """What had to go for a running sequence, on its way into `slot`."""

    slot: Slot
    tokens: list[int]
    state: bytes
    adapters: Adapters


class PrefixCache:
    """Knows all holders of prefixes. Engine thread only."""

    def __init__(self, slots: Slots, store: PrefixStore) -> None:
        self.slots = slots
        self.hits = {"kv": 0, "ram": 0, "disk": 0}  # tokens not computed, by level
        self._store = store
        self._tree = PrefixForest()
        self._clock = 0  # counts releases: orders idle slots by last use
        self._moving: Moving | None = None
        store.on_drop = self._tree.remove
        for saved in store:
            self._tree.insert(saved.tokens, saved)

    def lookup(self, sequence: Sequence) -> Known | None:
        """Return who knows most of the tokens but the last, whose logits are needed."""
        if not sequence.live.request.cache_prompt:
            return None
        holders = self._holders(sequence.tokens[:-1], sequence.live.adapters)
        found = (self._known(holder, n, sequence) for holder, n in holders.items())
        known = max(found, key=_worth, default=None)
        return known if known is not None and known.n_soon > 0 else None

    def _holders(self, tokens: list[int], adapters: Adapters) -> dict[Holder, int]:
        """Return who may give a beginning of `tokens`, and how many of these each shares."""
        self._store.settle()
        if not self.slots.can_cut:
            return self._whole(tokens, adapters)
        n, holders = self._tree.longest(tokens, adapters)
        return dict.fromkeys(self._candidates(holders), n)

    def _candidates(self, holders: dict[Holder, None]) -> list[Holder]:
        """Return all slots, but of the saved states only some: thousands may begin alike."""
        saved = (holder for holder in reversed(holders) if isinstance(holder, Saved))
        slots: list[Holder] = [slot for slot in self.slots.all if slot in holders]
        return [*slots, *islice(saved, MAX_SAVED_ALIKE)]

    def known(self, tokens: list[int], adapters: Adapters) -> tuple[str, int]:
        """Return the level and how many of the tokens but the last it has now. Starts nothing."""
        holders = self._holders(tokens[:-1], adapters)
        found = [self._held(holder, n) for holder, n in holders.items()]
        return max(found, key=lambda known: (known[1], known[0] == "kv"), default=("kv", 0))

    def _held(self, holder: Holder, n: int) -> tuple[str, int]:
        return "kv" if isinstance(holder, Slot) else holder.level, self._n_now(holder, n)

    def _n_now(self, holder: Holder, n: int) -> int:
        if isinstance(holder, Saved):
            return self.slots.n_to_restore(len(holder.tokens), min(n, len(holder.tokens)))
        return self.slots.n_to_give(holder, min(n, holder.n_pure))

    def _known(self, holder: Holder, n: int, asking: Sequence) -> Known:
        n_now = self._n_now(holder, n)
        owner = holder.sequence if isinstance(holder, Slot) else None
        waits = isinstance(owner, Sequence) and owner.number < asking.number
        return Known(holder, n_now, n if waits else n_now)

    def choose_slot(self, known: Known | None) -> Slot:
        """Return the idle slot to use: the one with the prefix if nothing in it is lost by that."""
        idle = self.slots.idle()
        if known is not None and isinstance(known.holder, Slot) and not known.is_live:
            continues = known.n_now == len(known.holder.tokens)
            if continues or known.holder is idle[0]:
                return known.holder
        return idle[0]

    def begin(self, sequence: Sequence, slot: Slot, known: Known | None) -> None:
        """Fill `slot`, where `sequence` sits now, with what is known, or start waiting for it."""
        sequence.leader, sequence.loading, sequence.n_shared = None, None, 0
        sequence.halts = set() if self.slots.can_cut else self._halts(sequence, known)
        holder = known.holder if known is not None else None
        if known is not None and isinstance(holder, Saved):
            # Fetched before the slot's own tokens are saved: these may push it out of the store.
            state = self._store.fetch(holder)
            sequence.loading = Loading(holder, holder.level, known.n_now, state)
        if holder is not slot:
            self._vacate(slot)
        slot.adapters = sequence.live.adapters
        if known is None or isinstance(holder, Saved):
            self._promise(sequence, slot)
        elif known.n_soon - known.n_now >= MIN_WORTH_WAITING:
            assert isinstance(holder, Slot) and isinstance(holder.sequence, Sequence)
            sequence.leader, sequence.n_shared = holder.sequence, known.n_soon
            if not self.slots.can_cut:
                sequence.leader.halts.add(known.n_soon)
        else:
            assert isinstance(holder, Slot)
            self._take_over(slot, holder, known.n_now)
            self._promise(sequence, slot)

    def still_waits(self, sequence: Sequence) -> bool:
        """Return True while the prefix is not there yet; else put it into the slot."""
        slot, leader = sequence.slot, sequence.leader
        assert slot is not None
        if leader is not None:
            n_there = len(leader.slot.tokens) if leader.slot is not None else sequence.n_shared
            # A leader that is through with its prompt may have less than it promised: it shifted.
            if n_there < sequence.n_shared and leader.n_pending > 1:
                return True
            self.begin(sequence, slot, self.lookup(sequence))
        loading = sequence.loading
        if loading is not None and loading.state.done() and self.slots.can_restore(slot):
            sequence.loading = None
            self._restore(slot, loading)
            self._promise(sequence, slot)
        return sequence.is_waiting

    def keep(self, sequence: Sequence) -> None:
        """Save what `sequence` has if it has come to a halt."""
        slot = sequence.slot
        assert slot is not None
        if len(slot.tokens) not in sequence.halts:
            return
        sequence.halts.remove(len(slot.tokens))
        # A copy that is still to be made has no size either.
        if self.slots.can_save(slot) and self.slots.state_bytes(slot) <= self._store.most_bytes:
            self._save(slot)

    def stop_waiting(self, sequence: Sequence) -> None:
        """Go on without a saved state that cannot be put back before somebody decodes."""
        slot = sequence.slot
        assert slot is not None
        if sequence.loading is not None and sequence.loading.state.done():
            sequence.loading = None
            self._promise(sequence, slot)

    def settle(self, slot: Slot) -> None:
        """Take note that nobody sits in `slot` any more: it holds what it holds."""
        self._clock += 1
        slot.last_used = self._clock
        if slot.n_pure < len(slot.tokens):
            self.slots.truncate(slot, slot.n_pure)
        self._tree.insert(slot.tokens, slot)

    def move(self, sequence: Sequence, target: Slot) -> None:
        """Seat a running sequence elsewhere, with all that it has computed."""
        source = sequence.slot
        assert source is not None and target.sequence is None
        self.bring_back()
        if self._moving is None and self._can_move(target):
            tokens, state = list(target.tokens), self.slots.state(target)
            self._moving = Moving(source, tokens, state, target.adapters)
            self._drop(target)
        elif target.tokens:
            self._vacate(target)
        self.slots.share(source, target, len(source.tokens))
        source.sequence, target.sequence, sequence.slot = None, sequence, target
        target.adapters = source.adapters
        self._tree.remove(source)
        self.slots.truncate(source, 0)
        is_pure = target.n_pure == len(target.tokens)
        known = sequence.tokens if is_pure else target.tokens[: target.n_pure]
        self._tree.insert(known, target)

    def _can_move(self, slot: Slot) -> bool:
        is_worth_it = self._is_worth_saving(slot) and not self._is_elsewhere(slot)
        return is_worth_it and self.slots.state_bytes(slot) <= MAX_MOVED_BYTES

    def bring_back(self) -> None:
        """Give who had to go for a moving sequence its slot, as soon as libllama lets us."""
        if self._moving is None:
            return
        slot, tokens, state, adapters = self._moving
        is_free = slot.sequence is None and not slot.tokens
        if is_free and not self.slots.can_restore(slot):
            return
        self._moving = None
        if not is_free:
            self._put(tokens, state, adapters)
        elif self.slots.restore(slot, tokens, state):
            slot.adapters = adapters
            self._tree.insert(slot.tokens, slot)

    def shift(self, sequence: Sequence, slot: Slot, start: int, end: int) -> None:
        """Forget [start, end) of `slot`: `sequence`, which sits there, has done so already.

        What cannot be moved up because another running sequence shares it is computed again.
        """
        for other in self.slots.idle():
            if self.slots.n_common(slot, other) > end:
                self._vacate(other)
        is_shared = any(
            self.slots.n_common(slot, other) > end for other in self.slots.all if other is not slot
        )
        if is_shared:
            self.slots.truncate(slot, start)
            self._promise(sequence, slot)
        else:
            self.slots.shift(slot, start, end)
            self._tree.insert(slot.tokens[: slot.n_pure], slot)

    def has_room(self, n_cells: int) -> bool:
        """True if `n_cells` are surely free: separate streams always have room for their own."""
        return not self.slots.unified or self.slots.n_surely_free() >= n_cells

    def n_steps_of_room(self, n_rows: int) -> int:
        """Return for how many batches of `n_rows` more cells `has_room` stays true."""
        if not self.slots.unified:
            return sys.maxsize
        return max(0, self.slots.n_surely_free() // n_rows)

    def make_room(self, n_cells: int) -> bool:
        """Evict idle slots, least recently used first, until `n_cells` are free, if that helps."""
        slots = self.slots
        if self.has_room(n_cells):
            return True
        for slot in slots.idle():
            if slots.n_free() >= n_cells:
                break
            self._vacate(slot)
        return slots.n_free() >= n_cells

    def thin_out(self) -> None:
        """Let idle slots go, least recently used first, until what they hold slows nobody down.

        Only what the store can take: a prefix that comes back is worth more than speed.
        """
        if not self.slots.unified:
            return
        seats = [slot for slot in self.slots.all if slot.sequence is not None]
        running = (slot.sequence for slot in seats)
        n_busy = sum(len(each.tokens) for each in running if isinstance(each, Sequence))
        n_most = max(MAX_IDLE_CELLS, int(n_busy * MAX_IDLE_SHARE))
        for slot in self.slots.idle():
            if self.slots.n_used() - self.slots.n_used(seats) <= n_most:
                return
            if self._store.can_hold(len(slot.tokens)):
                self._vacate(slot)

    def forget_idle(self) -> bool:
        """Evict every idle slot; False if there was nothing in them."""
        cached = [slot for slot in self.slots.idle() if slot.tokens]
        for slot in cached:
            self._vacate(slot)
        return bool(cached)

    def close(self) -> None:
        """Save what the slots hold where that outlives this process, and wait for it."""
        self._store.begin_to_close()
        if self._moving is not None:
            self._put(*self._moving[1:])
        for slot in self.slots.all if self._store.outlives_us else ():
            if slot.n_pure == len(slot.tokens):
                self._save(slot)
        self._store.close()

    def check_integrity(self) -> None:
        """Assert that whoever holds something is known. For tests."""
        self.slots.check_integrity()
        assert all(not slot.n_pure or slot in self._tree for slot in self.slots.all)
        assert all(saved in self._tree for saved in self._store)

    def _promise(self, sequence: Sequence, slot: Slot) -> None:
        self._tree.insert(sequence.tokens, slot)

    def _take_over(self, slot: Slot, source: Slot, n: int) -> None:
        if source is not slot:
            n = self.slots.share(source, slot, n)
        elif len(slot.tokens) > n:
            self._save(slot)
            n = n if self.slots.truncate(slot, n) else 0
        self.hits["kv"] += n

    def _restore(self, slot: Slot, loading: Loading) -> None:
        state, saved = loading.state.result(), loading.saved
        is_good = state is not None and self.make_room(len(saved.tokens))
        if is_good and state is not None and self.slots.restore(slot, saved.tokens, state):
            if self.slots.truncate(slot, loading.n):
                self.hits[loading.level] += loading.n
        elif state is None:
            self._store.forget(saved)

    def _vacate(self, slot: Slot) -> None:
        """Empty `slot`, saved if worth it."""
        self._save(slot)
        self._drop(slot)

    def _drop(self, slot: Slot) -> None:
        self._tree.remove(slot)
        self.slots.truncate(slot, 0)

    def _is_worth_saving(self, slot: Slot) -> bool:
        return len(slot.tokens) >= MIN_WORTH_SAVING and self.slots.can_save(slot)

    def _save(self, slot: Slot) -> None:
        if not self._is_worth_saving(slot) or not self._store.takes or self._is_elsewhere(slot):
            return
        if not self._store.fits(len(slot.tokens), self.slots.state_bytes(slot)):
            return
        tokens = list(slot.tokens)
        for shorter in self._tree.beginnings(tokens, slot.adapters) if self.slots.can_cut else ():
            if isinstance(shorter, Saved):
                self._store.forget(shorter)
        self._put(tokens, self.slots.state(slot), slot.adapters)

    def _put(self, tokens: list[int], state: bytes, adapters: Adapters) -> None:
        saved = self._store.put(tokens, state, adapters)
        if saved is not None:
            self._tree.insert(tokens, saved)

    def _is_elsewhere(self, slot: Slot) -> bool:
        """Return True if another holder can give all of `slot`; saved ones are used by that."""
        keepers = self._keepers(slot)
        for each in keepers:
            if isinstance(each, Saved):
                self._store.touch(each)
        return bool(keepers)

    def _keepers(self, slot: Slot) -> list[Holder]:
        tokens, n_tokens = slot.tokens, len(slot.tokens)
        if not self.slots.can_cut:  # a slot loses what it has as soon as somebody goes on in it
            ends = self._tree.beginnings(tokens, slot.adapters)
            return [each for each in ends if isinstance(each, Saved) and each.tokens == tokens]
        n, holders = self._tree.longest(tokens, slot.adapters)
        others = [each for each in self._candidates(holders) if each is not slot]
        return [each for each in others if len(each.tokens) >= n_tokens] if n == n_tokens else []

    # -- a memory that cannot be cut ------------------------------------------------------------

    def _whole(self, tokens: list[int], adapters: Adapters) -> dict[Holder, int]:
        """Return whose tokens all begin `tokens`, and how many of these each has or will have."""
        having: dict[Holder, int] = {}
        for n, holders, ends in self._tree.path(tokens, adapters):
            having.update((slot, n) for slot in self.slots.all if slot in holders)
            having.update((holder, n) for holder in ends if isinstance(holder, Saved))
        return {holder: n for holder, n in having.items() if len(holder.tokens) <= n}

    def _halts(self, sequence: Sequence, known: Known | None) -> set[int]:
        """Return where to pause for the sake of prompts that come later."""
        if not (sequence.live.request.cache_prompt and self._store.takes):
            return set()
        n_had = known.n_soon if known is not None else 0
        n_parted, _ = self._tree.longest(sequence.tokens[:-1], sequence.live.adapters)
        return {n for n in (n_parted, sequence.n_prompt - 1) if n - n_had >= MIN_WORTH_SAVING}


def _worth(known: Known) -> tuple[int, int, bool, int]:
    """Order by tokens; then a slot before a saved state; then an idle slot; then any fixed one."""
    holder = known.holder
    if isinstance(holder, Saved):
        return known.n_soon, -1, holder.state is not None, 0
    return known.n_soon, known.n_now, not known.is_live, -holder.seq_id
