"""The engine: requests in, events out, one batch per step.

Lives here: the step loop, the life of a request, and what happens when native code says no.
Not here: JSON, clients, threads, clocks (`clock` is given); who runs when (scheduler.py); what the
KV cache holds (slot.py); text (detokenizer.py); how to read a prompt (prompt_reader.py).

Laws:
- One thread calls `step`; it owns Context, Batch and sampler chains. `submit` and `cancel` may be
  called from any thread: they only leave a note, which the next step reads.
- Each submitted request ends with exactly one RequestDone or RequestFailed, unless it is cancelled:
  then nothing more is said of it.
- No request fails for another's sake. A refused batch is halved until the one at fault is alone.
- Identical requests give identical greedy text up to floating point: libllama sums a row in another
  order when the batch has another shape, so two nearly equal logits may change places.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections import deque
from typing import Any, Callable

from libloader.core import (
    ChoiceDone,
    EngineSettings,
    Event,
    ModelInfo,
    ProgressEvent,
    Request,
    RequestDone,
    RequestFailed,
    TokenEvent,
    TokensEvent,
)
from libloader.engine.embedder import Embedder, Input
from libloader.engine.ports import (
    BatchPort,
    Breadcrumb,
    ContextPort,
    ModelPort,
    OpenChain,
    OpenEmbedder,
)
from libloader.engine.prefix_store import PrefixStore
from libloader.engine.prompt_reader import PromptReader, too_long
from libloader.engine.sampling import Due, Sampling
from libloader.engine.scheduler import Plan, Scheduler
from libloader.engine.sequence import LENGTH, LiveRequest, Sequence
from libloader.engine.speculate import Lookup
from libloader.engine.timings import Average, Counters, timings_of, usage_of
from libloader.errors import (
    DecodeFailed,
    FieldInvalid,
    FieldUnsupported,
    IgllamaError,
    QueueFull,
    to_wire,
)

DEFAULT_QUEUE = 128
DECODED, NO_ROOM, REFUSED = 0, 1, -1  # llama_decode; 2 is aborted, other negatives are errors
CACHED_PIECES = 1 << 15  # tokens whose bytes are kept: a call into C costs a hundred look-ups
NO_INFO = ModelInfo()
Rows = list[tuple[Sequence, int]]  # (sequence, row of the batch that has its logits)


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
        can_generate: bool = True,
        n_sampling_threads: int = 1,
        clock: Callable[[], float] = time.monotonic,
        breadcrumb: Breadcrumb = no_breadcrumb,
        info: ModelInfo = NO_INFO,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self.info = info
        self._on_close = on_close
        self._piece = functools.lru_cache(CACHED_PIECES)(model.vocab.piece)
        self._is_eog = functools.lru_cache(CACHED_PIECES)(model.vocab.is_eog)
        self._context = context
        self._batch = batch
        self._open_chain = open_chain
        self._clock = clock
        self._breadcrumb = breadcrumb
        self._can_generate = can_generate
        self._uses_lookup = settings.lookup
        self._n_queue = settings.n_queue or DEFAULT_QUEUE
        self.n_parallel = max(1, min(settings.n_parallel, context.n_seq_max))
        self.n_ctx_slot = n_ctx_slot(context, settings)
        self._reader = PromptReader(model.vocab, self.n_ctx_slot)
        self._scheduler = Scheduler(context, self.n_parallel, store or PrefixStore(0))
        self._embedder = Embedder(open_embedder)
        self._sampling = Sampling(
            context, model.vocab.n_tokens, n_sampling_threads, self._mark_sampling
        )
        self._inbox: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._live: dict[str, LiveRequest] = {}
        self._events: list[Event] = []
        self._n_steps = 0
        self._n_arrived = 0
        self._service_s = Average()
        self.counters = Counters()

    def submit(self, request: Request) -> None:
        """Take `request` up in the next step. Any thread."""
        self._inbox.append((self._begin, request))

    def cancel(self, request_id: str) -> None:
        """Drop a request in the next step; an unknown id is ignored. Any thread."""
        self._inbox.append((self._cancel, request_id))

    @property
    def idle(self) -> bool:
        """True when a step would do nothing."""
        return not self._inbox and not self._live

    @property
    def n_running(self) -> int:
        return len(self._scheduler.running)

    @property
    def n_waiting(self) -> int:
        """Requests of which nothing has been computed yet."""
        return sum(1 for live in self._live.values() if not live.is_seated)

    @property
    def n_cells_used(self) -> int:
        """Distinct cells of the KV cache that hold a token, of live and of finished sequences."""
        return self._scheduler.slots.n_used()

    def step(self) -> list[Event]:
        """Bring everyone who runs one token further; return what happened. One thread only."""
        self._n_steps += 1
        self._read_inbox()
        self._breadcrumb("schedule", "", self._n_steps)  # KV cells move: no single request's doing
        self._end_overdue()
        self._admit()
        plan = self._scheduler.plan()
        if plan:
            self._decode(plan)
        else:
            self._scheduler.wait_for_states()
        if len(self._embedder):
            self._embed()
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Drop all requests, free what the engine opened, then call `on_close`."""
        for live in list(self._live.values()):
            self._drop(live)
        self._scheduler.cache.close()
        self._sampling.close()
        self._embedder.close()
        self._on_close()

    def figures(self) -> dict[str, float]:
        """Return the state and the totals in numbers, by name."""
        return {
            "n_running": self.n_running,
            "n_waiting": self.n_waiting,
            "n_cells_used": self.n_cells_used,
            "n_steps": self._n_steps,
            **{f"n_hits_{level}": n for level, n in self._scheduler.cache.hits.items()},
            **self.counters.figures(),
        }

    def check_integrity(self) -> None:
        """Assert what must be true between two steps. For tests."""
        self._scheduler.check_integrity()
        seated = self._scheduler.running + list(self._scheduler.waiting)
        assert all(sequence.live.request.id in self._live for sequence in seated)
        assert all(not sequence.reason for sequence in seated)
        n_open = sum(live.n_open for live in self._live.values())
        assert n_open == len(seated) + len(self._embedder)

    # -- the life of a request ------------------------------------------------------------------

    def _read_inbox(self) -> None:
        while self._inbox:
            handle, note = self._inbox.popleft()
            handle(note)

    def _begin(self, request: Request) -> None:
        assert request.id not in self._live, f"request id {request.id} is in use"
        self._breadcrumb("tokenize", request.id, self._n_steps)
        try:
            begin = _BEGIN.get(request.kind)
            if begin is None:
                raise FieldInvalid(f"unknown kind of request: {request.kind!r}")
            begin(self, request)
        except IgllamaError as error:
            self._live.pop(request.id, None)
            self._report_failure(request.id, error)

    def _begin_generate(self, request: Request) -> None:
        if not self._can_generate:
            raise FieldUnsupported("this model makes embeddings; it cannot write text")
        self._check_queue(request)
        prompts = [self._reader.read(prompt) for prompt in request.prompts]
        live = self._enter(request, prompts, len(prompts) * request.n)
        for index in range(live.n_open):
            sequence = Sequence(live, index, prompts[index // request.n], self.n_ctx_slot)
            sequence.lookup = Lookup(sequence.tokens) if self._uses_lookup else None
            sequence.number = self._n_arrived = self._n_arrived + 1
            live.sequences.append(sequence)
            self._replay(sequence)
        for sequence in live.sequences:
            if not sequence.reason:
                self._scheduler.waiting.push(sequence)
            else:
                self._end(sequence)

    def _begin_embed(self, request: Request) -> None:
        self._check_queue(request)
        limit = self._embedder.n_input_max()
        inputs = [self._reader.tokenize(prompt) for prompt in request.prompts]
        for tokens in inputs:
            if not tokens:
                raise FieldInvalid("an input is empty", param="input")
            if len(tokens) > limit:
                raise too_long(f"{len(tokens)} tokens", limit, param="input")
        live = self._enter(request, inputs, len(inputs))
        for index, tokens in enumerate(inputs):
            self._embedder.push(Input(live, index, tokens))

    def _begin_tokenize(self, request: Request) -> None:
        for index, prompt in enumerate(request.prompts):
            tokens = tuple(self._reader.tokenize(prompt))
            pieces = tuple(map(self._piece_text, tokens))
            self._events.append(TokensEvent(request.id, index, tokens, pieces, ""))
        self._finish(LiveRequest(request, self._clock()))

    def _begin_detokenize(self, request: Request) -> None:
        for index, prompt in enumerate(request.prompts):
            tokens = prompt.tokens or ()
            text = self._reader.text_of(tokens)
            self._events.append(TokensEvent(request.id, index, tokens, (), text))
        self._finish(LiveRequest(request, self._clock()))

    def _enter(self, request: Request, prompts: list[list[int]], n_open: int) -> LiveRequest:
        live = self._live[request.id] = LiveRequest(request, self._clock())
        live.n_prompt = sum(map(len, prompts))
        live.n_open = n_open
        return live

    def _replay(self, sequence: Sequence) -> None:
        """Take what was generated before a crash as generated; its text is not told again."""
        request = sequence.live.request
        if len(sequence.tokens) >= sequence.n_limit:
            sequence.reason = LENGTH
        for token in request.resume[sequence.index] if request.resume else ():
            if sequence.reason:
                break
            self._take(sequence, token)

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

    def _open_chain_for(self, sequence: Sequence) -> None:
        request = sequence.live.request
        seed = (request.sampling.seed + sequence.index) % 2**32  # choices must differ
        self._breadcrumb("grammar_init", request.id, self._n_steps)
        try:
            sequence.chain = self._open_chain(dataclasses.replace(request.sampling, seed=seed))
            sequence.chain.accept_prompt(sequence.tokens[: sequence.n_prompt])
            for token in sequence.tokens[sequence.n_prompt :]:
                sequence.chain.accept(token)
        except IgllamaError as error:
            self._fail(sequence.live, error)

    def _end(self, sequence: Sequence) -> None:
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
            self._finish(live)

    def _finish(self, live: LiveRequest) -> None:
        now_s = self._clock()
        usage, timings = usage_of(live), timings_of(live, now_s)
        self._events.append(RequestDone(live.request.id, usage, timings))
        self.counters.count_request(usage)
        if live.is_seated:
            self._service_s.add(now_s - live.seated_s)

    def _fail(self, live: LiveRequest, error: IgllamaError) -> None:
        self._drop(live)
        self._report_failure(live.request.id, error)

    def _report_failure(self, request_id: str, error: IgllamaError) -> None:
        self.counters.count_failure(error)
        self._events.append(RequestFailed(request_id, to_wire(error)))

    def _cancel(self, request_id: str) -> None:
        live = self._live.get(request_id)
        if live is not None:
            self.counters.n_cancelled += 1
            self._drop(live)

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

    def _end_overdue(self) -> None:
        now_s = self._clock()
        for live in [live for live in self._live.values() if live.deadline_s <= now_s]:
            if not live.is_seated:
                self._fail(live, self._queue_full("the request's time ran out in the queue"))
                continue
            for sequence in live.sequences:
                if not sequence.reason:
                    self._end_early(sequence)

    def _end_early(self, sequence: Sequence) -> None:
        """End a choice between two tokens: what was generated until now is its answer."""
        text = sequence.cut_short()
        if text:
            self._events.append(TokenEvent(sequence.live.request.id, sequence.index, text, ()))
        self._end(sequence)

    def _check_queue(self, request: Request) -> None:
        n_ahead = self.n_waiting - (self.n_parallel - self.n_running)
        if n_ahead >= self._n_queue and not request.resume:
            raise self._queue_full(f"{self._n_queue} requests are waiting already")

    def _queue_full(self, reason: str) -> QueueFull:
        """Retry when the line has moved on, at the speed measured of late."""
        turns = (self.n_waiting + 1) / self.n_parallel
        return QueueFull(reason, retry_after_s=max(1.0, turns * self._service_s.or_else(1.0)))

    # -- one batch ------------------------------------------------------------------------------

    def _decode(self, plan: Plan) -> None:
        """Decode `plan` and sample who is due; recover if it is refused."""
        ids = " ".join(dict.fromkeys(sequence.live.request.id for sequence, _ in plan))
        self._breadcrumb("make_room", ids, self._n_steps)
        self._scheduler.cache.make_room(sum(n + len(sequence.draft) for sequence, n in plan))
        rows = self._fill(plan)
        started_s = self._clock()
        # Prompts may take their time; a hung step of streams shall be noticed soon.
        phase = "prefill" if self._batch.n_tokens > len(plan) else "decode"
        self._breadcrumb(phase, ids, self._n_steps)
        try:
            code = self._context.decode(self._batch)
        except DecodeFailed:  # our own guards stopped it before C
            code = REFUSED
        if code != DECODED:
            self._recover(plan, code)
            return
        self._commit(plan)
        self._sample(rows)
        seconds = self._clock() - started_s  # libllama may compute until the first sample
        self._scheduler.pace.note([n for _, n in plan], seconds)

    def _fill(self, plan: Plan) -> Rows:
        """Put the plan into the batch; return whose logits come out where."""
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
        return rows

    def _commit(self, plan: Plan) -> None:
        """Note in the mirror of the KV cache what was decoded."""
        slots = self._scheduler.slots
        for sequence, n in plan:
            slot = sequence.slot
            assert slot is not None
            start = len(slot.tokens)
            slots.append(slot, sequence.tokens[start : start + n] + sequence.draft)
            if start < sequence.n_prompt:
                self._count_prompt(sequence, start, n)
        self.counters.n_batches += 1
        self.counters.batch_rows.add(self._batch.n_tokens)

    def _count_prompt(self, sequence: Sequence, start: int, n: int) -> None:
        live = sequence.live
        live.n_computed += n
        if not sequence.is_counted:
            sequence.is_counted = True
            live.n_cached += start if sequence.index % live.request.n == 0 else 0
        if start + n < sequence.n_prompt:
            progress = (sequence.n_prompt, live.n_cached, start + n)
            self._events.append(ProgressEvent(live.request.id, *progress))

    def _sample(self, rows: Rows) -> None:
        due: list[Due] = []
        for sequence, row in rows:
            assert sequence.chain is not None, "a seated sequence has a chain"
            due.append(Due(sequence.live.request.id, sequence.chain, row, sequence.draft))
        for (sequence, row), outcome in zip(rows, self._sampling.sample(due)):
            if sequence.chain is None:  # another choice of its request failed a moment ago
                continue
            if isinstance(outcome, IgllamaError):
                self._fail(sequence.live, outcome)
            else:
                self._take_back(sequence, len(outcome) - 1)
                self._deliver(sequence, outcome, row)

    def _take_back(self, sequence: Sequence, n_right: int) -> None:
        """Remove wrong guesses from the KV cache."""
        slot, lookup, n_drafted = sequence.slot, sequence.lookup, len(sequence.draft)
        if not n_drafted or slot is None or lookup is None:
            return
        sequence.draft = []
        lookup.learn(n_drafted, n_right)
        if n_right < n_drafted:
            self._scheduler.slots.truncate(slot, len(sequence.tokens) + n_right)

    def _mark_sampling(self, request_ids: str) -> None:
        self._breadcrumb("sample", request_ids, self._n_steps)

    def _deliver(self, sequence: Sequence, tokens: list[int], row: int) -> None:
        """Make an event of each token; the first was sampled from `row`, the next from the next."""
        live = sequence.live
        self._note_time(sequence)
        self._breadcrumb("detok", live.request.id, self._n_steps)
        for each_row, token in enumerate(tokens, row):
            text = self._take(sequence, token)
            chances = self._logprobs(each_row, token, live.request.top_logprobs)
            event = TokenEvent(live.request.id, sequence.index, text, (token,), chances)
            self._events.append(event)
            if sequence.reason:
                self._end(sequence)
                return

    def _note_time(self, sequence: Sequence) -> None:
        now_s, live = self._clock(), sequence.live
        if live.first_token_s == math.inf:
            live.first_token_s = now_s
            self.counters.first_token_s.add(now_s - live.submitted_s)
        if sequence.told_s <= now_s:
            self.counters.token_gap_s.add(now_s - sequence.told_s)
        sequence.told_s = now_s

    def _take(self, sequence: Sequence, token: int) -> str:
        request = sequence.live.request
        ends = self._is_eog(token) and not request.sampling.ignore_eos
        return sequence.take(token, self._piece(token, request.keep_special), ends)

    def _logprobs(self, row: int, token: int, n_top: int) -> tuple[Any, ...] | None:
        """Return core.TokenEvent's `logprobs`."""
        if n_top < 0:
            return None
        own, top = self._context.logprobs(row, token, n_top)
        alternatives = tuple((i, self._piece_text(i), logprob) for i, logprob in top)
        return ((token, self._piece_text(token), own, alternatives),)

    def _piece_text(self, token: int) -> str:
        return self._piece(token, True).decode("latin-1")

    # -- when native code says no ---------------------------------------------------------------

    def _recover(self, plan: Plan, code: int) -> None:
        """Bring memory and mirror together again, then try smaller."""
        self.counters.n_refused_batches += 1
        had_guesses = any(sequence.draft for sequence, _ in plan)
        for sequence, _ in plan:
            sequence.draft = []
            if sequence.slot is not None:
                self._scheduler.slots.truncate(sequence.slot, len(sequence.slot.tokens))
        if had_guesses or (code == NO_ROOM and self._scheduler.cache.forget_idle()):
            self._decode(plan)
        elif len(plan) > 1:
            half = len(plan) // 2
            self._decode_rest(plan[:half])
            self._decode_rest(plan[half:])
        elif code == NO_ROOM:
            self._find_room(*plan[0])
        else:
            message = f"llama_decode answered {code} to a batch of this request alone"
            self._fail(plan[0][0].live, DecodeFailed(message))

    def _decode_rest(self, plan: Plan) -> None:
        still_seated = [item for item in plan if item[0].slot is not None]
        if still_seated:
            self._decode(still_seated)

    def _find_room(self, sequence: Sequence, n: int) -> None:
        """Decode fewer tokens of `sequence`, or let the youngest wait, or end it: it fills all."""
        if n > 1:
            self._decode([(sequence, n // 2)])
        elif self.n_running > 1:
            self._scheduler.preempt_youngest()
            self.counters.n_preempted += 1
        else:
            self._end_early(sequence)

    # -- embeddings -----------------------------------------------------------------------------

    def _embed(self) -> None:
        """Decode one batch of inputs; if it is refused, each of them alone."""
        inputs = self._embedder.next_inputs(chat_is_running=self.n_running > 0)
        for item in inputs:
            self._note_begin(item.live)
        if not self._embed_together(inputs):
            for item in inputs:
                if item.live.request.id in self._live:
                    self._embed_together([item])

    def _embed_together(self, inputs: list[Input]) -> bool:
        ids = dict.fromkeys(item.live.request.id for item in inputs)
        self._breadcrumb("prefill", " ".join(ids), self._n_steps)
        try:
            events = self._embedder.embed(inputs)
        except DecodeFailed as error:
            if len(inputs) == 1:
                self._fail(inputs[0].live, error)
            return len(inputs) == 1
        for item, event in zip(inputs, events):
            self._events.append(event)
            item.live.n_computed += len(item.tokens)
            self._close_one(item.live)
        return True


_BEGIN: dict[str, Callable[[Engine, Request], None]] = {
    "generate": Engine._begin_generate,
    "embed": Engine._begin_embed,
    "tokenize": Engine._begin_tokenize,
    "detokenize": Engine._begin_detokenize,
}


def n_ctx_slot(context: ContextPort, settings: EngineSettings) -> int:
    """Return how many tokens one sequence can hold: --ctx-size, else its share of the cells."""
    share = settings.n_ctx or context.n_ctx // max(1, settings.n_parallel)
    return min(share, context.n_ctx_seq, context.n_ctx)


