"""How each kind of request begins: from its prompts to sequences in line, to inputs, to an answer.

Each kind is a generator: it refuses what can be refused at once, yields the reading of its prompts
as a job, which may be done beside the step loop (reading.py), and goes on with what was read.

Not here: what becomes of a request after that (engine.py), how a prompt is read (prompt_reader.py).
"""

from __future__ import annotations

from typing import Callable, Protocol

from libloader.core import (
    Adapters,
    DryRunEvent,
    EngineSettings,
    Event,
    Prompt,
    Request,
    TokensEvent,
)
from libloader.engine.choosing import Choosing, Foresight
from libloader.engine.embedder import Embedder, Input
from libloader.engine.guessing import Guessing
from libloader.engine.prompt_reader import PromptReader, too_long
from libloader.engine.reading import Steps, in_slices
from libloader.engine.scheduler import Scheduler
from libloader.engine.sequence import LENGTH, LiveRequest, Sequence, answer_limit
from libloader.errors import FieldInvalid, FieldUnsupported, PromptTooLong


class Host(Protocol):
    """What the engine does for a request that begins."""

    def check_queue(self, request: Request) -> None:
        """Raise QueueFull where one more may not wait."""

    def enter(self, live: LiveRequest) -> None:
        """From now on the request lives."""

    def take(self, sequence: Sequence, token: int) -> str:
        """Take `token` as generated; return the text that it makes certain."""

    def end(self, sequence: Sequence) -> None:
        """The choice ends, with its `reason`."""

    def say(self, event: Event) -> None: ...

    def finish(self, live: LiveRequest) -> None:
        """The request is answered."""


class Intake:
    """Engine thread only, but for the jobs that `begin` yields."""

    def __init__(
        self,
        host: Host,
        reader: PromptReader,
        settings: EngineSettings,
        scheduler: Scheduler,
        embedder: Embedder,
        guessing: Guessing,
        *,
        n_ctx: int,
        shifts: int,
        can_generate: bool,
        piece_text: Callable[[int], str],
    ) -> None:
        self._host = host
        self._reader = reader
        self._scheduler = scheduler
        self._embedder = embedder
        self._guessing = guessing
        self._n_ctx = n_ctx
        self._shifts = shifts
        self._can_generate = can_generate
        self._piece_text = piece_text
        self._n_adapters = len(settings.lora)
        self._adapters = default_adapters(settings)
        self._n_arrived = 0

    def begin(self, live: LiveRequest) -> Steps:
        """Return the steps of the request's kind."""
        begin = _BEGIN.get(live.request.kind)
        if begin is None:
            raise FieldInvalid(f"unknown kind of request: {live.request.kind!r}")
        return begin(self, live)

    def _begin_generate(self, live: LiveRequest) -> Steps:
        request = live.request
        if not self._can_generate:
            raise FieldUnsupported("this model makes embeddings; it cannot write text")
        self._host.check_queue(request)
        prompts = yield lambda: list(map(self._reader.read, request.prompts))
        self._enter(live, prompts, len(prompts) * request.n)
        for index in range(live.n_open):
            prompt = prompts[index // request.n]
            sequence = Sequence(live, index, prompt, self._n_ctx, self._shifts)
            self._keep(sequence)
            self._guessing.open(sequence)
            sequence.number = self._n_arrived = self._n_arrived + 1
            live.sequences.append(sequence)
            self._replay(sequence)
        for sequence in live.sequences:
            if not sequence.reason:
                self._scheduler.waiting.push(sequence)
            else:
                self._host.end(sequence)

    def _begin_choose(self, live: LiveRequest) -> Steps:
        """Read the prompt once, and behind it what tells the labels apart; see choosing.py."""
        request = live.request
        if not self._can_generate:
            raise FieldUnsupported("this model makes embeddings; it cannot write text")
        self._host.check_queue(request)
        prompt, spellings = yield lambda: (
            self._reader.read(request.prompts[0]),
            list(map(self._reader.spellings, request.labels)),
        )
        choosing = Choosing(request, spellings)
        longest = len(prompt) + max(len(walk.nodes) for walk in choosing.walks)
        if longest > self._n_ctx:
            raise too_long(f"{longest} tokens with its longest choice", self._n_ctx)
        self._enter(live, [prompt], len(choosing.walks))
        live.choosing = choosing
        for index, walk in enumerate(choosing.walks):
            sequence = Sequence(live, index, prompt, len(prompt) + len(walk.nodes))
            sequence.chain, sequence.guesser = walk, Foresight(walk)
            sequence.is_counted = index > 0
            sequence.number = self._n_arrived = self._n_arrived + 1
            live.sequences.append(sequence)
            self._scheduler.waiting.push(sequence)

    def _begin_dry_run(self, live: LiveRequest) -> Steps:
        request = live.request
        live.adapters = self._adapters_of(request)
        prompts = yield lambda: list(map(self._reader.count, request.prompts))
        for index, tokens in enumerate(prompts):
            known = ("kv", 0)
            if request.cache_prompt:
                known = self._scheduler.cache.known(tokens, live.adapters)
            n_max = answer_limit(request.max_tokens, len(tokens), self._n_ctx, self._shifts)
            sizes = (len(tokens), self._n_ctx, n_max)
            self._host.say(DryRunEvent(request.id, index, *sizes, (known,)))
        self._host.finish(live)

    def _begin_embed(self, live: LiveRequest) -> Steps:
        self._host.check_queue(live.request)
        limit = self._embedder.n_input_max()
        prompts = live.request.prompts
        inputs = yield lambda: [self._reader.tokenize(prompt, "input") for prompt in prompts]
        for tokens in inputs:
            if not tokens:
                raise FieldInvalid("an input is empty", param="input")
            if len(tokens) > limit:
                size = (
                    f"an input has {len(tokens)} tokens, this server embeds at most {limit} at once"
                )
                raise PromptTooLong(f"{size}; shorten it or see --batch-size", param="input")
        self._enter(live, inputs, len(inputs))
        for index, tokens in enumerate(inputs):
            self._embedder.push(Input(live, index, tokens))

    def _begin_tokenize(self, live: LiveRequest) -> Steps:
        answers = yield lambda: list(map(self._tokens_and_pieces, live.request.prompts))
        for index, (tokens, pieces) in enumerate(answers):
            self._host.say(TokensEvent(live.request.id, index, tokens, pieces, ""))
        self._host.finish(live)

    def _tokens_and_pieces(self, prompt: Prompt) -> tuple[tuple[int, ...], tuple[str, ...]]:
        tokens = tuple(self._reader.tokenize(prompt))
        return tokens, in_slices(self._piece_text, tokens)

    def _begin_detokenize(self, live: LiveRequest) -> Steps:
        prompts = [prompt.tokens or () for prompt in live.request.prompts]
        texts = yield lambda: list(map(self._reader.text_of, prompts))
        for index, (tokens, text) in enumerate(zip(prompts, texts)):
            self._host.say(TokensEvent(live.request.id, index, tokens, (), text))
        self._host.finish(live)

    def _enter(self, live: LiveRequest, prompts: list[list[int]], n_open: int) -> None:
        live.adapters = self._adapters_of(live.request)
        live.n_prompt = sum(map(len, prompts))
        live.n_open = n_open
        self._host.enter(live)

    def _keep(self, sequence: Sequence) -> None:
        """Protect the request's `n_keep` tokens, and BOS, from being shifted out."""
        n = sequence.live.request.n_keep
        sequence.keep(n + (sequence.prompt[0] == self._reader.bos) if n >= 0 else n)

    def _adapters_of(self, request: Request) -> Adapters:
        """Return what `request` is computed with: what it asks for, else the command line's."""
        wanted = self._adapters if request.lora is None else request.lora
        for number, _ in wanted:
            if not 0 <= number < self._n_adapters:
                raise FieldInvalid(
                    f"lora names adapter {number}, this server has {self._n_adapters}: "
                    "GET /lora-adapters lists them",
                    param="lora",
                )
        return tuple(sorted((number, scale) for number, scale in wanted if scale))

    def _replay(self, sequence: Sequence) -> None:
        """Take what was generated before a crash as generated; its text is not told again.

        Shifts happen at the same tokens as before; what is left is then computed afresh, without
        a memory of what was shifted out, so the text may go on otherwise than it would have.
        """
        if sequence.is_full:
            sequence.reason = LENGTH
        for token in sequence.resumed:
            if sequence.reason:
                return
            self._host.take(sequence, token)
            if sequence.is_full and not sequence.reason:
                sequence.forget()


_BEGIN: dict[str, Callable[[Intake, LiveRequest], Steps]] = {
    "generate": Intake._begin_generate,
    "choose": Intake._begin_choose,
    "dry_run": Intake._begin_dry_run,
    "embed": Intake._begin_embed,
    "tokenize": Intake._begin_tokenize,
    "detokenize": Intake._begin_detokenize,
}


def default_adapters(settings: EngineSettings) -> Adapters:
    """Return what a request runs with that says nothing of adapters."""
    if settings.lora_init_without_apply:
        return ()
    return tuple((number, scale) for number, (_, scale) in enumerate(settings.lora))
