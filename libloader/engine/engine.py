"""The engine: requests in, events out, one batch per step.

Lives here: the step and the life of a request. Not here: JSON, clients, threads, clocks (`clock` is
given); how a request begins (intake.py); who runs when (scheduler.py); what is known of a prompt
(prefix_cache.py); the batch (decoding.py); text (detokenizer.py).

Laws:
- One thread calls `step`; it owns Context, Batch and sampler chains. `submit` and `cancel` may be
  called from any thread: they only leave a note, which the next step reads.
- Each submitted request ends with exactly one RequestDone or RequestFailed, unless it is cancelled:
  then nothing more is said of it.
- No request fails for another's sake.
- Identical requests give identical greedy text up to floating point: libllama sums a row in another
  order when the batch has another shape, so two nearly equal logits may change places.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import deque
from concurrent.futures import FIRST_COMPLETED, wait
from typing import Any, Callable

from libloader.core import (
    LINES,
    ChoiceDone,
    EngineSettings,
    Event,
    ModelInfo,
    ProgressEvent,
    Prompt,
    Request,
    RequestDone,
    RequestFailed,
    Thinking,
    TokenEvent,
    line_of,
)
from libloader.engine.choosing import Choosing, Walk
from libloader.engine.cruise import Company, Cruise, Teller
from libloader.engine.decoding import Decoding
from libloader.engine.embedder import Embedder, Input
from libloader.engine.guessing import Guessing, Lookups, Source
from libloader.engine.intake import Intake
from libloader.engine.ports import (
    BatchPort,
    Breadcrumb,
    ChainPort,
    ContextPort,
    ModelPort,
    OpenChain,
    OpenEmbedder,
)
from libloader.engine.prefix_store import PrefixStore
from libloader.engine.prompt_reader import PromptReader, too_long
from libloader.engine.reading import ReadingDesk, carry_on, is_long
from libloader.engine.scheduler import Plan, Scheduler
from libloader.engine.sequence import STOP, LiveRequest, Sequence
from libloader.engine.thinking import ThinkingChain
from libloader.engine.timings import Average, Counters, timings_of, usage_of
from libloader.engine.words import Words
from libloader.errors import (
    DecodeFailed,
    IgllamaError,
    NanLogits,
    QueueFull,
    to_wire,
)

DEFAULT_QUEUE = 128
MOMENT_S = 0.05  # how long a cancel may go unnoticed while nothing can be decoded
NO_INFO = ModelInfo()


def no_breadcrumb(phase: str, request_id: str, step: int) -> None:
    """Leave no trace: for tests and for --isolation none."""


class Engine:
    """Continuous batching over one context."""

    def __init__(
        self,
        model: ModelPort,
        context: ContextPort,
        settings: EngineSettings,
        *,
        batch: BatchPort,
        open_chain: OpenChain,
        open_embedder: OpenEmbedder,
        store: PrefixStore | None = None,
        guesses: Source | None = None,
        can_generate: bool = True,
        n_sampling_threads: int = 1,
        clock: Callable[[], float] = time.monotonic,
        breadcrumb: Breadcrumb = no_breadcrumb,
        info: ModelInfo = NO_INFO,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self.info = info
        self._on_close = on_close
        self._words = Words(model.vocab, special=False), Words(model.vocab, special=True)
        self._context = context
        self._open_chain = open_chain
        self._clock = clock
        self._breadcrumb = breadcrumb
        self._n_queue = settings.n_queue or DEFAULT_QUEUE
        self.n_parallel = max(1, min(settings.n_parallel, context.n_seq_max))
        self.n_ctx_slot = n_ctx_slot(context, settings)
        self._reader = PromptReader(model.vocab, self.n_ctx_slot)
        self._scheduler = Scheduler(context, self.n_parallel, store or PrefixStore(0))
        self._desk = ReadingDesk(clock)
        own = Lookups() if settings.lookup else None
        n_rows = min(context.n_ubatch, batch.capacity)
        lengths = settings.draft_min, settings.draft_max
        self._guessing = Guessing(guesses or own, n_rows, lengths, self._mark_draft)
        self._embedder = Embedder(open_embedder, on_cpu=settings.n_gpu_layers == 0)
        self._intake = self._new_intake(settings, can_generate)
        self._inbox: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._live: dict[str, LiveRequest] = {}
        self._events: list[Event] = []
        self._next_deadline_s = math.inf  # no request that is known of runs out before
        self._service_s = {line: Average() for line in LINES}  # from the first work to the end
        self.counters = Counters()
        self._teller = Teller(self._words, self.counters.token_gap_s)
        self._decoding = Decoding(
            context,
            batch,
            self._scheduler,
            self._guessing,
            self.counters,
            listener=self,
            ends=frozenset(model.vocab.eog_tokens),
            n_vocab=model.vocab.n_tokens,
            n_sampling_threads=n_sampling_threads,
            clock=clock,
            breadcrumb=self._mark,
        )

    def _new_intake(self, settings: EngineSettings, can_generate: bool) -> Intake:
        # A sequence that may shift and has no limit ends when it has run through what the model
        # was trained on: one that never says its end token must not run for ever.
        longest = max(self.info.n_ctx_train, self.n_ctx_slot)
        return Intake(
            self,
            self._reader,
            settings,
            self._scheduler,
            self._embedder,
            self._guessing,
            n_ctx=self.n_ctx_slot,
            shifts=longest if settings.context_shift else 0,
            can_generate=can_generate,
            piece_text=self._piece_text,
        )

    def submit(self, request: Request) -> None:
        """Take `request` up in the next step. Any thread."""
        self._inbox.append((self._begin, request))

    def cancel(self, request_id: str) -> None:
        """Drop a request in the next step; an unknown id is ignored. Any thread."""
        self._inbox.append((self._cancel, request_id))

    def interrupt(self, request_id: str = "") -> None:
        """Cut short the step that runs if it computes this request's prompt. Any thread.

        For a `cancel`, or a `close`, that is about to follow; without one it is only a waste.
        """
        self._decoding.interrupt(request_id)

    @property
    def idle(self) -> bool:
        """True when a step would do nothing."""
        return not self._inbox and not self._live and not self._desk.readings

    @property
    def n_running(self) -> int:
        return len(self._scheduler.running)

    @property
    def n_waiting(self) -> int:
        """Requests of which nothing has been computed yet."""
        return sum(not live.is_seated for live in self._live.values()) + len(self._desk)

    @property
    def n_cells_used(self) -> int:
        """Distinct cells of the KV cache that hold a token, of live and of finished sequences."""
        return self._scheduler.slots.n_used()

    def step(self, company: Company | None = None) -> list[Event]:
        """Bring everyone who runs one token further; return what happened. One thread only.

        With `company` it may be many tokens, and some of what happened is told meanwhile. Hot, and
        cold: see cruise.py.
        """
        self._decoding.step += 1
        if self._inbox:
            self._read_inbox()
        if self._desk.readings:
            self._take_readings()
        if self._clock() >= self._next_deadline_s:
            self._end_overdue()
        plan = self._scheduler.go_on() or self._new_plan()
        if company is not None and (n_most := self._n_to_cruise(plan)):
            self._cruise(plan, company, n_most)
        elif plan:
            # What is guessed wrong must be taken back.
            n_guessed = self._guessing.prepare(plan) if self._scheduler.slots.can_cut else 0
            self._decoding.decode(plan, n_guessed)
        if len(self._embedder):
            self._embed()
        elif not plan:
            self._wait_for_others()
        events, self._events = self._events, []
        return events

    def _new_plan(self) -> Plan:
        """Seat whoever has room, and say what the batch is made of."""
        # KV cells may move: no single request's doing.
        self._mark("schedule", "", self._decoding.step)
        self._admit()
        return self._scheduler.plan()

    def _n_to_cruise(self, plan: Plan) -> int:
        """Return how many steps of `plan` can be made before one that must be looked at."""
        if not self._decoding.repeats(plan) or self._desk.readings or len(self._embedder):
            return 0
        if not all([sequence.is_plain for sequence, _ in plan]):
            return 0
        n_room = self._scheduler.cache.n_steps_of_room(len(plan))
        return min(n_room, *[sequence.n_limit - len(sequence.tokens) - 1 for sequence, _ in plan])

    def _cruise(self, plan: Plan, company: Company, n_most: int) -> None:
        sequences = [sequence for sequence, _ in plan]
        teller, until_s = self._teller, self._next_deadline_s
        cruise = Cruise(sequences, company, teller, self._clock, n_most, until_s)
        self._events[:0] = self._decoding.cruise(cruise)

    def close(self) -> None:
        """Drop all requests, free what the engine opened, then call `on_close`."""
        for live in list(self._live.values()):
            self._drop(live)
        self._desk.close()
        self._mark("save", "", self._decoding.step)  # may take its time: supervise/watchdog.py
        self._scheduler.cache.close()
        self._mark("close", "", self._decoding.step)
        self._teller.close()
        self._decoding.close()
        self._embedder.close()
        self._guessing.close()
        self._on_close()

    def figures(self) -> dict[str, float]:
        """Return the state and the totals in numbers, by name."""
        return {
            "n_running": self.n_running,
            "n_waiting": self.n_waiting,
            "n_cells_used": self.n_cells_used,
            "n_steps": self._decoding.step,
            **self._speeds(),
            **{f"n_hits_{level}": n for level, n in self._scheduler.cache.hits.items()},
            **self.counters.figures(),
        }

    def _speeds(self) -> dict[str, float]:
        known = [(line, mean.or_else(-1.0)) for line, mean in self._service_s.items()]
        return {f"service_s_{line}": seconds for line, seconds in known if seconds >= 0.0}

    def check_integrity(self) -> None:
        """Assert what must be true between two steps. For tests."""
        self._scheduler.check_integrity()
        seated = self._scheduler.running + list(self._scheduler.waiting)
        assert all(sequence.live.request.id in self._live for sequence in seated)
        assert all(not sequence.reason for sequence in seated)
        n_open = sum(live.n_open for live in self._live.values())
        assert n_open == len(seated) + len(self._embedder)

    def _mark(self, phase: str, request_ids: str, step: int) -> None:
        """Leave a breadcrumb. Whom the other thread works for comes first.

        A crash does not tell in which thread it was. So whoever is being read is suspected, alone,
        and tried again alone; if it was none of them, they will not be there the next time.
        """
        if self._desk.readings:
            phase, request_ids = ("prefill" if phase == "prefill" else "decode"), self._desk.ids
        self._breadcrumb(phase, request_ids, step)

    def _wait_for_others(self, most_s: float | None = MOMENT_S) -> None:
        """With nothing to decode, sleep until a prompt has been read or a state loaded."""
        coming = self._scheduler.coming() + self._desk.results
        if self._desk:
            self._breadcrumb("tokenize", self._desk.ids, self._decoding.step)
        if coming:
            wait(coming, most_s, FIRST_COMPLETED)

    # -- the life of a request ------------------------------------------------------------------

    def _read_inbox(self) -> None:
        while self._inbox:
            handle, note = self._inbox.popleft()
            handle(note)

    def _begin(self, request: Request) -> None:
        assert request.id not in self._live, f"request id {request.id} is in use"
        self._mark("tokenize", request.id, self._decoding.step)
        live = LiveRequest(request, self._clock())
        try:
            steps = self._intake.begin(live)
            job = next(steps)
            if is_long(request):
                self._desk.push(live, steps, job)
                self._heed_deadline(live)
            else:
                carry_on(steps, job())
        except IgllamaError as error:
            self._refuse(request.id, error)

    def _take_readings(self) -> None:
        if self._desk.is_overdue:
            self._wait_for_others(None)
        for live, steps, result in self._desk.done():
            try:
                carry_on(steps, result.result())
            except IgllamaError as error:
                self._refuse(live.request.id, error)

    def _refuse(self, request_id: str, error: IgllamaError) -> None:
        self._live.pop(request_id, None)
        self._report_failure(request_id, error)

    def enter(self, live: LiveRequest) -> None:
        self._live[live.request.id] = live
        self._heed_deadline(live)

    def _heed_deadline(self, live: LiveRequest) -> None:
        self._next_deadline_s = min(self._next_deadline_s, live.deadline_s)

    def say(self, event: Event) -> None:
        self._events.append(event)

    def _admit(self) -> None:
        for sequence in self._scheduler.admit():
            live = sequence.live
            self._note_begin(live)
            if sequence.chain is None and sequence.slot is not None:
                self._open_chain_for(sequence)

    def _note_begin(self, live: LiveRequest) -> None:
        if not live.is_seated:
            live.seated_s = self._clock()
            self.counters.queue_s.add(live.seated_s - live.submitted_s)

    def _mark_draft(self, request_ids: str) -> None:
        self._mark("draft", request_ids, self._decoding.step)

    def _open_chain_for(self, sequence: Sequence) -> None:
        request = sequence.live.request
        sampling = dataclasses.replace(
            request.sampling,
            seed=(request.sampling.seed + sequence.index) % 2**32,  # choices must differ
            shows_special=request.keep_special,
        )
        self._mark("grammar_init", request.id, self._decoding.step)
        try:
            sequence.chain = self._with_budget(self._open_chain(sampling), request.thinking)
            sequence.chain.accept_prompt(sequence.prompt)
            for token in sequence.resumed[: sequence.n_completion]:
                sequence.chain.accept(token)
        except IgllamaError as error:
            self.on_failure(sequence.live, error)

    def _with_budget(self, chain: ChainPort, thinking: Thinking | None) -> ChainPort:
        if thinking is None:
            return chain
        closing = Prompt(segments=((thinking.closing, True),), add_special=False)
        return ThinkingChain(chain, thinking, self._reader.tokenize(closing), self._bytes_of)

    def end(self, sequence: Sequence) -> None:
        """End one choice, and its request if it was the last."""
        live = sequence.live
        self._unseat(sequence)
        stop = sequence.detokenizer.stop
        self._events.append(ChoiceDone(live.request.id, sequence.index, sequence.reason, stop))
        self._close_one(live)

    def _close_one(self, live: LiveRequest) -> None:
        live.n_open -= 1
        if live.n_open == 0:
            del self._live[live.request.id]
            self.finish(live)

    def finish(self, live: LiveRequest) -> None:
        now_s = self._clock()
        usage, timings = usage_of(live), timings_of(live, now_s)
        self._events.append(RequestDone(live.request.id, usage, timings))
        self.counters.count_request(usage)
        began_s = live.seated_s if live.is_seated else live.submitted_s
        self._service_s[line_of(live.request.kind)].add(now_s - began_s)

    def _report_failure(self, request_id: str, error: IgllamaError) -> None:
        self.counters.count_failure(error)
        self._events.append(RequestFailed(request_id, to_wire(error)))

    def _cancel(self, request_id: str) -> None:
        live = self._live.get(request_id)
        if live is not None:
            self.counters.n_cancelled += 1
            self._drop(live)
        elif request_id in self._desk:
            self.counters.n_cancelled += 1
            self._desk.drop(request_id)

    def _drop(self, live: LiveRequest) -> None:
        """Remove every trace of `live`, except that its slots keep their tokens for others."""
        del self._live[live.request.id]
        self._embedder.drop(live)
        for sequence in live.sequences:
            self._unseat(sequence)

    def _unseat(self, sequence: Sequence) -> None:
        """Take `sequence` from wherever it is: its slot, the line, or nowhere any more."""
        if sequence.slot is not None:
            self._scheduler.release(sequence)
        elif sequence in self._scheduler.waiting:
            self._scheduler.waiting.remove(sequence)
        if sequence.chain is not None:
            sequence.chain.close()
            sequence.chain = None
        if sequence.guesser is not None:
            sequence.guesser.close()

    def _end_overdue(self) -> None:
        now_s = self._clock()
        for live in [live for live in self._desk.lives() if live.deadline_s <= now_s]:
            self._desk.drop(live.request.id)
            error = self._too_late(live, "while its prompt was read")
            self._report_failure(live.request.id, error)
        for live in [live for live in self._live.values() if live.deadline_s <= now_s]:
            where = _where_all_is_lost(live)
            if where:
                self.on_failure(live, self._too_late(live, where))
                continue
            for sequence in live.sequences:
                if not sequence.reason:
                    self._end_early(sequence)
        known = (*self._desk.lives(), *self._live.values())
        self._next_deadline_s = min((live.deadline_s for live in known), default=math.inf)

    def _too_late(self, live: LiveRequest, where: str) -> QueueFull:
        line = line_of(live.request.kind)
        return self._queue_full(line, f"the request's time ran out {where}")

    def check_queue(self, request: Request) -> None:
        line = line_of(request.kind)
        n_free = self.n_parallel - (self.n_running if line == "slot" else 0)
        if self._n_in_line(line) - n_free >= self._n_queue and not request.resume:
            raise self._queue_full(line, f"{self._n_queue} requests are waiting already")

    def _n_in_line(self, line: str) -> int:
        """Requests of which nothing has been computed yet, of one kind of work."""
        lives = (*self._desk.lives(), *self._live.values())
        return sum(not each.is_seated and line_of(each.request.kind) == line for each in lives)

    def _queue_full(self, line: str, reason: str) -> QueueFull:
        """Retry when the line has moved on, at the speed measured of late."""
        turns = (self._n_in_line(line) + 1) / self.n_parallel
        service_s = self._service_s[line].or_else(1.0)
        return QueueFull(reason, retry_after_s=max(1.0, turns * service_s))

    # -- what a batch brought (decoding.Listener) -------------------------------------------------

    def on_tokens(self, sequence: Sequence, tokens: list[int], row: int) -> None:
        """Make an event of each token, up to the one that ends the choice."""
        live = sequence.live
        self._note_token(sequence)
        if live.choosing is not None:
            self._walk_on(sequence, live.choosing, tokens, row)
            return
        request = live.request
        wants_logprobs = request.top_logprobs >= 0
        try:
            for each_row, token in enumerate(tokens, row):
                text = self.take(sequence, token)
                chances = self._logprobs(request, each_row, token) if wants_logprobs else None
                event = TokenEvent(request.id, sequence.index, text, (token,), chances)
                self._events.append(event)
                if sequence.reason:
                    break
        except IgllamaError as error:
            self.on_failure(live, error)
            return
        if sequence.reason:
            self.end(sequence)
        elif sequence.is_full:
            self._scheduler.shift(sequence)
            self.counters.n_context_shifts += 1

    def on_prefill(self, sequence: Sequence, start: int, n: int) -> None:
        """Count what was computed and what was not; tell how far a longer prompt has come."""
        live = sequence.live
        live.n_computed += n
        if not sequence.is_counted:
            sequence.is_counted = True
            live.n_cached += start if sequence.index % live.request.n == 0 else 0
        if start + n < sequence.n_prompt:
            progress = (sequence.n_prompt, live.n_cached, start + n)
            self._events.append(ProgressEvent(live.request.id, *progress))

    def on_failure(self, live: LiveRequest, error: IgllamaError) -> None:
        """End a request with `error`."""
        self._drop(live)
        self._report_failure(live.request.id, error)

    def on_no_room(self, sequence: Sequence) -> None:
        """End a choice that alone fills all there is."""
        if sequence.live.choosing is not None:
            self.on_failure(sequence.live, too_long("too many tokens", self.n_ctx_slot))
        else:
            self._end_early(sequence)

    def _walk_on(self, sequence: Sequence, choosing: Choosing, tokens: list[int], row: int) -> None:
        """Read the nodes that these rows belong to; the last walk of all brings the answer."""
        live, walk = sequence.live, sequence.chain
        assert isinstance(walk, Walk)
        try:
            choosing.read(walk.passed(len(tokens)), self._context, row, self._piece_text)
            sequence.tokens += [token for token in tokens if token >= 0]
            if not walk.is_over:
                return
            if live.n_open == 1:
                self._events += choosing.events()
        except IgllamaError as error:
            self.on_failure(live, error)
            return
        self._end_walk(sequence)

    def _end_walk(self, sequence: Sequence) -> None:
        """The slot keeps the prompt alone: who comes next shares that, not this label."""
        slots, slot = self._scheduler.slots, sequence.slot
        sequence.reason = STOP
        if slot is not None and slots.can_cut and len(slot.tokens) > sequence.n_prompt:
            slots.truncate(slot, sequence.n_prompt)
        self._unseat(sequence)
        self._close_one(sequence.live)

    def _end_early(self, sequence: Sequence) -> None:
        """End a choice between two tokens: what was generated until now is its answer."""
        text = sequence.cut_short()
        if text:
            self._events.append(TokenEvent(sequence.live.request.id, sequence.index, text, ()))
        self.end(sequence)

    def _note_token(self, sequence: Sequence) -> None:
        now_s, live = self._clock(), sequence.live
        if live.first_token_s == math.inf:
            live.first_token_s = now_s
            self.counters.first_token_s.add(now_s - live.submitted_s)
        if sequence.told_s <= now_s:
            self.counters.token_gap_s.add(now_s - sequence.told_s)
        sequence.told_s = now_s

    def take(self, sequence: Sequence, token: int) -> str:
        request = sequence.live.request
        words = self._words[request.keep_special]
        if token not in words:
            self._mark("detok", request.id, self._decoding.step)
        word = words[token]
        ends = word.is_eog and not request.sampling.ignore_eos
        return sequence.take(token, word.piece, ends)

    def _ends(self, request: Request, token: int) -> bool:
        return self._words[True][token].is_eog and not request.sampling.ignore_eos

    def _logprobs(self, request: Request, row: int, token: int) -> tuple[Any, ...] | None:
        """Return core.TokenEvent's `logprobs`; the token that ends a choice is no part of them."""
        if self._ends(request, token):
            return None
        own, top = self._context.logprobs(row, token, request.top_logprobs)
        alternatives = tuple((i, self._piece_text(i), logprob) for i, logprob in top)
        return ((token, self._piece_text(token), own, alternatives),)

    def _piece_text(self, token: int) -> str:
        return self._bytes_of(token, True).decode("latin-1")

    def _bytes_of(self, token: int, special: bool) -> bytes:
        return self._words[special][token].piece

    # -- embeddings -----------------------------------------------------------------------------

    def _embed(self) -> None:
        """Decode one batch of inputs; if it is refused, each of them alone."""
        inputs = self._embedder.next_inputs(self._scheduler.polite_rows())
        for item in inputs:
            self._note_begin(item.live)
        if not self._embed_together(inputs):
            for item in inputs:
                if item.live.request.id in self._live:
                    self._embed_together([item])

    def _embed_together(self, inputs: list[Input]) -> bool:
        ids = dict.fromkeys(item.live.request.id for item in inputs)
        self._mark("prefill", " ".join(ids), self._decoding.step)
        try:
            events = self._embedder.embed(inputs)
        except (DecodeFailed, NanLogits) as error:
            if len(inputs) == 1:
                self.on_failure(inputs[0].live, error)
            return len(inputs) == 1
        for item, event in zip(inputs, events):
            self._events.append(event)
            item.live.n_computed += len(item.tokens)
            self._close_one(item.live)
        return True


def _where_all_is_lost(live: LiveRequest) -> str:
    """Say where a request is of which no part would be an answer; "" if a part would be."""
    if not live.is_seated:
        return "in the queue"
    if live.choosing is not None:
        return "among the choices"
    return "" if live.sequences else "among the inputs"


def n_ctx_slot(context: ContextPort, settings: EngineSettings) -> int:
    """Return how many tokens one sequence can hold: --ctx-size, else its share of the cells."""
    share = settings.n_ctx or context.n_ctx // max(1, settings.n_parallel)
    return min(share, context.n_ctx_seq, context.n_ctx)
