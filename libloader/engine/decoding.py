"""One batch: filled from a plan, decoded, sampled; and what happens when native code says no.

Lives here: the way from a plan to tokens. Not here: the plan (scheduler.py), what tokens mean for a
request (the Listener: engine.py).

Laws:
- What libllama holds and what `Slots` says it holds are the same before and after each call here.
- Streams alone, with a plan that is settled, need no more than their next tokens: their rows are in
  the batch already (`repeats`); they may cruise (cruise.py).
- No sequence fails for another's sake: a refused batch is halved until the one at fault is alone.
"""

from __future__ import annotations

from typing import Callable, Protocol

from libloader.core import Event
from libloader.engine.cruise import Cruise
from libloader.engine.guessing import Guessing
from libloader.engine.ports import BatchPort, Breadcrumb, ContextPort
from libloader.engine.sampling import Due, Outcome, Sampling
from libloader.engine.scheduler import Plan, Scheduler
from libloader.engine.sequence import LiveRequest, Sequence
from libloader.engine.timings import Counters
from libloader.errors import DecodeFailed, IgllamaError

DECODED, NO_ROOM, ABORTED, REFUSED = 0, 1, 2, -1  # llama_decode; other negatives are errors
Rows = list[tuple[Sequence, int]]  # (sequence, row of the batch that has its logits)


class Listener(Protocol):
    """Whom the outcomes concern. Any of these may take sequences out of their slots."""

    def on_tokens(self, sequence: Sequence, tokens: list[int], row: int) -> None:
        """`tokens` follow; the first was sampled from `row`, each next one from the next row."""

    def on_prefill(self, sequence: Sequence, start: int, n: int) -> None:
        """Tokens [start, start + n) of `sequence` are computed, some of them of its prompt."""

    def on_failure(self, live: LiveRequest, error: IgllamaError) -> None:
        """The request cannot go on."""

    def on_no_room(self, sequence: Sequence) -> None:
        """`sequence` runs alone and there is no room for its next token."""


class Decoding:
    """Owns the batch. Engine thread only; `step` numbers the breadcrumbs."""

    def __init__(
        self,
        context: ContextPort,
        batch: BatchPort,
        scheduler: Scheduler,
        guessing: Guessing,
        counters: Counters,
        listener: Listener,
        *,
        ends: frozenset[int],
        n_vocab: int,
        n_sampling_threads: int,
        clock: Callable[[], float],
        breadcrumb: Breadcrumb,
    ) -> None:
        self.step = 0
        self._context = context
        self._batch = batch
        self._scheduler = scheduler
        self._guessing = guessing
        self._counters = counters
        self._listener = listener
        self._ends = ends  # tokens that end a text, for most requests
        self._clock = clock
        self._breadcrumb = breadcrumb
        self._in_hand: tuple[str, ...] = ()  # whose prompts are being decoded at this moment
        self._was_interrupted = False
        self._plan: Plan = []
        self._ids = ""  # of the requests in `_plan`
        self._n_streams = 0  # in `_plan`: sequences with one token
        self._n_past = 0  # behind the rows of its prompts
        self._rows: Rows = []  # of the batch as it is filled
        self._due: list[Due] = []  # in the same order
        self._is_next = False  # what the batch holds is `_plan`'s last step, and it went well
        self._sampling = Sampling(context, n_vocab, n_sampling_threads, self._mark_sampling)

    def decode(self, plan: Plan, n_guessed: int = 0) -> None:
        """Decode `plan` and sample who is due; recover if it is refused. Hot: see Engine.step.

        `n_guessed` tokens are in the drafts of its sequences.
        """
        if plan is not self._plan:
            self._look_at(plan)
        if self._is_next and not n_guessed:
            self._batch.go_on([sequence.tokens[-1] for sequence, _ in plan])
        else:
            self._fill(plan)
        self._is_next = False
        ids, n_rows = self._ids, self._batch.n_tokens
        if not self._scheduler.cache.has_room(n_rows):
            self._breadcrumb("make_room", ids, self.step)
            self._scheduler.cache.make_room(n_rows)
        started_s = self._clock()  # what it takes to save who had to go is no cost of these rows
        # Prompts may take their time; a hung step of streams shall be noticed soon.
        phase = "prefill" if n_rows > len(plan) else "decode"
        self._breadcrumb(phase, ids, self.step)
        try:
            self._context.set_adapters(plan[0][0].live.adapters)
            self._in_hand = tuple(ids.split()) if phase == "prefill" else ()
            code = self._context.decode(self._batch)
        except DecodeFailed:  # our own guards stopped it before C
            code = REFUSED
        self._in_hand = ()
        if code >= DECODED:  # libllama began; before, it only looks whether the batch is a batch
            self._scheduler.slots.note_decode()
        if code != DECODED:
            self._recover(plan, code)
            return
        n_streams = self._n_streams
        n_prompt_rows = n_rows - n_guessed - n_streams
        self._is_next = n_rows == n_streams
        self._commit(plan, n_rows)
        n_tokens = self._tell(self._sampling.sample(self._due))
        seconds = self._clock() - started_s  # libllama may compute until the first sample
        self._scheduler.pace.note(n_streams, n_prompt_rows, n_guessed, seconds, self._n_past)
        if not n_prompt_rows:
            self._guessing.note(n_streams, n_guessed, n_tokens, seconds)

    def repeats(self, plan: Plan) -> bool:
        """True if `plan` is the last step's, of streams alone, and that went well."""
        return self._is_next and plan is self._plan

    def cruise(self, cruise: Cruise) -> list[Event]:
        """Do what the last step did, which `repeats`, until `cruise` ends.

        Returns the events that are not told yet. The last step may be one that ends the cruise:
        the listener gets that as ever.
        """
        said: list[list[int]] = []
        started_s = self._clock()
        code, outcomes = self._decode_on(cruise, said)
        self._is_next = code == DECODED
        self._breadcrumb("ipc_write", "", self.step)  # who waits now, waits for the front
        events = cruise.finish()
        self._catch_up(said, self._clock() - started_s)
        if code != DECODED:
            self._recover(self._plan, code)
        elif outcomes:
            self._commit(self._plan, len(self._plan))
            self._tell(outcomes)
        return events

    def _decode_on(self, cruise: Cruise, said: list[list[int]]) -> tuple[int, list[Outcome]]:
        """Add each step's tokens to `said`; return a refusal's code, or what ends it. Hot."""
        batch, due, n_rows = self._batch, self._due, len(self._plan)
        tokens = [sequence.tokens[-1] for sequence, _ in self._plan]
        while True:
            batch.go_on(tokens)
            if n_rows > 1 or not said:  # of one request it is known for all of the cruise
                self._breadcrumb("decode", self._ids, self.step)
            if cruise.is_due:
                cruise.let_tell()
            try:
                code = self._context.decode(batch)
            except DecodeFailed:
                code = REFUSED
            if code != DECODED:
                return code, []
            sampling = self._sampling
            outcomes = sampling.sample(due) if n_rows > 1 else [sampling.sample_one(due[0])]
            tokens = [outcome[0] for outcome in outcomes if type(outcome) is list]
            if len(tokens) < n_rows or not self._ends.isdisjoint(tokens):
                return DECODED, outcomes
            said.append(tokens)
            if not cruise.say(tokens) or len(said) >= cruise.n_most:
                return DECODED, []
            self.step += 1

    def _catch_up(self, said: list[list[int]], seconds: float) -> None:
        """Note what the ordinary steps of a cruise decoded and sampled, `seconds` in all."""
        n_rows, n_steps = len(self._plan), len(said)
        for (sequence, _), tokens in zip(self._plan, zip(*said)):
            slot = sequence.slot
            assert slot is not None
            sequence.tokens += tokens
            self._scheduler.slots.append(slot, sequence.tokens[len(slot.tokens) : -1])
        self._counters.n_batches += n_steps
        for _ in range(n_steps):
            self._counters.batch_rows.add(n_rows)
        if n_steps:
            self._scheduler.pace.note(n_rows, 0, 0, seconds / n_steps)

    def _look_at(self, plan: Plan) -> None:
        """Find out what is the same in every step with this plan."""
        self._plan, self._is_next = plan, False
        self._ids = " ".join(dict.fromkeys(sequence.live.request.id for sequence, _ in plan))
        self._n_streams = sum(n == 1 for _, n in plan)
        chunks = [(len(each.slot.tokens), n) for each, n in plan if n > 1 and each.slot]
        n_rows = sum(n for _, n in chunks)
        self._n_past = sum(n_past * n for n_past, n in chunks) // n_rows if chunks else 0

    def interrupt(self, request_id: str) -> None:
        """End the decode that runs if it is of a prompt of this request; "" is any. Any thread.

        The step comes to nothing; the next one is planned without whoever has left.
        """
        if self._in_hand and (not request_id or request_id in self._in_hand):
            self._was_interrupted = True
            self._context.interrupt()

    def close(self) -> None:
        self._sampling.close()

    def _fill(self, plan: Plan) -> None:
        """Put the plan into the batch; note whose logits come out where."""
        batch = self._batch
        batch.clear()
        rows: Rows = []
        for sequence, n in plan:
            slot, tokens = sequence.slot, sequence.tokens
            assert slot is not None
            start, seq_id, last = len(slot.tokens), slot.seq_id, len(tokens) - 1
            for position in range(start, start + n):
                batch.add(tokens[position], position, seq_id, position == last)
            if start + n > last:
                rows.append((sequence, batch.n_tokens - 1))
                for position, token in enumerate(sequence.draft, last + 1):
                    batch.add(token, position, seq_id, True)
        self._rows, self._due = rows, [_due(sequence, row) for sequence, row in rows]

    def _commit(self, plan: Plan, n_rows: int) -> None:
        """Note in the mirror of the KV cache what was decoded."""
        slots = self._scheduler.slots
        for sequence, n in plan:
            slot = sequence.slot
            assert slot is not None
            start = len(slot.tokens)
            slots.append(slot, sequence.tokens[start : start + n] + sequence.draft)
            if start < sequence.n_prompt:
                self._listener.on_prefill(sequence, start, n)
        self._counters.n_batches += 1
        self._counters.batch_rows.add(n_rows)

    def _tell(self, outcomes: list[Outcome]) -> int:
        """Tell what was sampled; return the number of tokens."""
        n_tokens = 0
        for (sequence, row), outcome in zip(self._rows, outcomes):
            if sequence.slot is None:  # another choice of its request failed a moment ago
                continue
            if isinstance(outcome, IgllamaError):
                self._listener.on_failure(sequence.live, outcome)
                continue
            if sequence.draft:
                self._take_back(sequence, len(outcome) - 1)
            n_tokens += len(outcome)
            self._listener.on_tokens(sequence, outcome, row)
        return n_tokens

    def _take_back(self, sequence: Sequence, n_right: int) -> None:
        """Learn from the guesses and remove the wrong ones from the KV cache."""
        slot, guesser, n_guessed = sequence.slot, sequence.guesser, len(sequence.draft)
        assert slot is not None and guesser is not None
        sequence.draft = []
        guesser.learn(n_guessed, n_right)
        if n_right < n_guessed and not self._scheduler.slots.truncate(
            slot, len(sequence.tokens) + n_right
        ):
            self._scheduler.unsettle()

    def _mark_sampling(self, request_ids: str) -> None:
        self._breadcrumb("sample", request_ids, self.step)

    # -- when native code says no ---------------------------------------------------------------

    def _recover(self, plan: Plan, code: int) -> None:
        """Bring memory and mirror together again, then try smaller."""
        self._scheduler.unsettle()
        had_guesses = any(sequence.draft for sequence, _ in plan)
        for sequence, _ in plan:
            sequence.draft = []
            if sequence.slot is not None:
                self._scheduler.slots.truncate(sequence.slot, len(sequence.slot.tokens))
        if code == ABORTED and self._was_interrupted:
            self._was_interrupted = False
            return
        self._counters.n_refused_batches += 1
        if had_guesses or (code == NO_ROOM and self._scheduler.cache.forget_idle()):
            self.decode(plan)
        elif len(plan) > 1:
            half = len(plan) // 2
            self._decode_rest(plan[:half])
            self._decode_rest(plan[half:])
        elif code == NO_ROOM:
            self._find_room(*plan[0])
        else:
            message = f"llama_decode answered {code} to a batch of this request alone"
            self._listener.on_failure(plan[0][0].live, DecodeFailed(message))

    def _decode_rest(self, plan: Plan) -> None:
        still_seated = [item for item in plan if item[0].slot is not None]
        if still_seated:
            self.decode(still_seated)

    def _find_room(self, sequence: Sequence, n: int) -> None:
        """Decode fewer tokens of `sequence`, or let the youngest wait, or end it: it fills all."""
        if n > 1:
            self.decode([(sequence, n // 2)])
        elif len(self._scheduler.running) > 1:
            self._scheduler.preempt_youngest()
            self._counters.n_preempted += 1
        else:
            self._listener.on_no_room(sequence)


def _due(sequence: Sequence, row: int) -> Due:
    assert sequence.chain is not None, "a seated sequence has a chain"
    return Due(sequence.live.request.id, sequence.chain, row, sequence.draft)
