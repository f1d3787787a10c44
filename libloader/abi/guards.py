"""The one place where our calls meet C: what would abort, hang or corrupt is stopped here.

A C++ exception or a failed assertion inside libllama ends the process; so every input that a build
is known to die of is checked before the call. Each guard takes the bare callable and returns one
with the same arguments. Guards raise DecodeFailed for a batch that our own engine built wrongly,
FieldInvalid for token ids (those come from clients), CapabilityMissing for what this build cannot.
Left to the layer above, with the reason: a grammar's place in the chain (`llama.sampler`).
"""

from __future__ import annotations

import ctypes
import math
import threading
from typing import Any, Callable, NamedTuple

from libloader import errors
from libloader.abi import structs

Call = Callable[..., Any]

Types = dict[str, type[ctypes.Structure]]

POOLING_MEAN = 1
GRAMMAR_TRIAL_TOKENS = 256
OLDEST_SEQUENCE_LIMIT = 64  # builds without llama_max_parallel_sequences
# Samplers that pick a token; without one in the chain llama_sampler_sample aborts in every build.
SELECTING = (b"greedy", b"dist", b"mirostat", b"mirostat-v2", b"adaptive-p")


class ContextFacts(NamedTuple):
    """What the guards have to know of a live context."""

    model: int
    n_vocab: int
    n_batch: int
    n_sequences: int  # seq_ids are 0..n_sequences-1
    own_streams: bool  # each sequence has a KV stream of its own
    has_encoder: bool


class Guards:
    """Wraps the callables of one library. `hazard` tells what is wrong with its build."""

    def __init__(self, calls: dict[str, Call], hazard: Callable[[str], bool], types: Types) -> None:
        self._calls = dict(calls)
        self._hazard = hazard
        self._types = types
        self._contexts: dict[int, ContextFacts] = {}
        self._vocab_sizes: dict[int, int] = {}
        self._selecting: set[int] = set()
        self._decode_lock: threading.Lock | None = None
        if hazard("decode_lock"):
            self._decode_lock = threading.Lock()

    def guarded(self) -> dict[str, Call]:
        """Return the guarded callables by name, for those that the library has."""
        wraps: dict[str, Call] = {
            "llama_model_get_vocab": self._model_get_vocab,
            "llama_init_from_model": self._init_from_model,
            "llama_free": self._free,
            "llama_decode": self._decode,
            "llama_encode": self._encode,
            "llama_token_to_piece": self._token_to_piece,
            "llama_detokenize": self._detokenize,
            "llama_memory_seq_rm": self._seq_rm,
            "llama_memory_seq_cp": self._seq_cp,
            "llama_sampler_chain_add": self._chain_add,
            "llama_sampler_clone": self._sampler_clone,
            "llama_sampler_free": self._sampler_free,
            "llama_sampler_sample": self._sampler_sample,
            "llama_sampler_init_grammar": self._init_grammar,
        }
        wraps.update({name: self._token_checked(name) for name in _TAKES_TOKEN})
        wraps.update({name: self._sequence_checked(name) for name in _TAKES_SEQUENCE})
        return {name: wrap for name, wrap in wraps.items() if name in self._calls}

    # --- models and contexts ---

    def _model_get_vocab(self, model: int) -> int:
        vocab: int = self._calls["llama_model_get_vocab"](model)
        self._vocab_sizes[vocab] = self._calls["llama_vocab_n_tokens"](vocab)
        return vocab

    def _init_from_model(self, model: int, params: structs.Params) -> int | None:
        self._check_params(params)
        ctx: int | None = self._calls["llama_init_from_model"](model, params)
        if ctx:
            self._contexts[ctx] = self._facts(model, ctx, params)
        return ctx

    def _check_params(self, params: structs.Params) -> None:
        n_seq_max, limit = params.get("n_seq_max"), self._sequence_limit()
        if n_seq_max > limit:
            raise errors.ModelLoadFailed(f"this libllama runs at most {limit} sequences at once")
        if self._hazard("outputs_per_batch") and n_seq_max > params.get("n_batch"):
            raise errors.ModelLoadFailed(f"n_batch must be at least the {n_seq_max} sequences")
        if params.get("pooling_type") == POOLING_MEAN and self._hazard("mean_pooling"):
            raise errors.CapabilityMissing("this libllama build aborts on mean pooling")

    def _facts(self, model: int, ctx: int, params: structs.Params) -> ContextFacts:
        unified = params.get("kv_unified")
        own_streams = unified is False and params.get("n_seq_max") > 1
        n_sequences = params.get("n_seq_max") if unified is False else self._sequence_limit()
        return ContextFacts(
            model=model,
            n_vocab=self._vocab_sizes[self._model_get_vocab(model)],
            n_batch=self._calls["llama_n_batch"](ctx),
            n_sequences=n_sequences,
            own_streams=own_streams,
            has_encoder=self._calls["llama_model_has_encoder"](model),
        )

    def _sequence_limit(self) -> int:
        limit = self._calls.get("llama_max_parallel_sequences")
        return int(limit()) if limit else OLDEST_SEQUENCE_LIMIT

    def _free(self, ctx: int) -> None:
        self._contexts.pop(ctx, None)
        self._calls["llama_free"](ctx)

    # --- batches ---

    def _decode(self, ctx: int, batch: Any) -> int:
        """Hot: once per step; the checks cost about 0.2 us per row."""
        check_batch(batch, self._contexts[ctx])
        if self._decode_lock is None:
            result: int = self._calls["llama_decode"](ctx, batch)
        else:
            with self._decode_lock:
                result = self._calls["llama_decode"](ctx, batch)
        return 1 if result == -3 and self._hazard("kv_full_minus_3") else result

    def _encode(self, ctx: int, batch: Any) -> int:
        facts = self._contexts[ctx]
        if not facts.has_encoder:
            raise errors.CapabilityMissing("this model has no encoder")
        check_batch(batch, facts)
        result: int = self._calls["llama_encode"](ctx, batch)
        return result

    # --- tokens ---

    def _check_token(self, vocab: int, token: int) -> None:
        n_vocab = self._vocab_sizes.get(vocab)
        if n_vocab is None:
            n_vocab = self._vocab_sizes[vocab] = self._calls["llama_vocab_n_tokens"](vocab)
        if not 0 <= token < n_vocab:
            raise errors.FieldInvalid(f"token {token} is not in the vocabulary (0..{n_vocab - 1})")

    def _token_to_piece(self, vocab: int, token: int, *rest: Any) -> int:
        self._check_token(vocab, token)
        result: int = self._calls["llama_token_to_piece"](vocab, token, *rest)
        return result

    def _token_checked(self, name: str) -> Call:
        call = self._calls.get(name)

        def checked(vocab: int, token: int) -> Any:
            self._check_token(vocab, token)
            return call(vocab, token) if call else None

        return checked

    def _detokenize(self, vocab: int, tokens: Any, n_tokens: int, *rest: Any) -> int:
        for token in tokens[:n_tokens]:
            self._check_token(vocab, token)
        result: int = self._calls["llama_detokenize"](vocab, tokens, n_tokens, *rest)
        return result

    # --- sequences of the cache ---

    def _check_sequences(self, ctx: int, *seq_ids: int) -> ContextFacts:
        facts = self._contexts[ctx]
        for seq_id in seq_ids:
            if not 0 <= seq_id < facts.n_sequences:
                raise errors.DecodeFailed(f"seq_id {seq_id} is not in 0..{facts.n_sequences - 1}")
        return facts

    def _sequence_checked(self, name: str) -> Call:
        call = self._calls.get(name)

        def checked(ctx: int, seq_id: int, *rest: Any) -> Any:
            self._check_sequences(ctx, seq_id)
            return call(ctx, seq_id, *rest) if call else None

        return checked

    def _seq_rm(self, ctx: int, seq_id: int, p0: int, p1: int) -> bool:
        """Remove [p0, p1) of one sequence; seq_id -1 means all (b6122 aborts on it: one by one)."""
        remove = self._calls["llama_memory_seq_rm"]
        if seq_id != -1:
            self._check_sequences(ctx, seq_id)
            return bool(remove(ctx, seq_id, p0, p1))
        return all([remove(ctx, each, p0, p1) for each in range(self._contexts[ctx].n_sequences)])

    def _seq_cp(self, ctx: int, source: int, target: int, p0: int, p1: int) -> None:
        facts = self._check_sequences(ctx, source, target)
        if facts.own_streams and (p0 > 0 or p1 >= 0):
            raise errors.DecodeFailed("with own KV streams only whole sequences can be copied")
        self._calls["llama_memory_seq_cp"](ctx, source, target, p0, p1)

    # --- samplers ---

    def _chain_add(self, chain: int, sampler: int) -> None:
        if self._calls["llama_sampler_name"](sampler) in SELECTING:
            self._selecting.add(chain)
        self._calls["llama_sampler_chain_add"](chain, sampler)

    def _sampler_clone(self, chain: int) -> int:
        clone: int = self._calls["llama_sampler_clone"](chain)
        if chain in self._selecting:
            self._selecting.add(clone)
        return clone

    def _sampler_free(self, chain: int) -> None:
        self._selecting.discard(chain)
        self._calls["llama_sampler_free"](chain)

    def _sampler_sample(self, chain: int, ctx: int, row: int) -> int:
        """Hot: once per token."""
        if chain not in self._selecting:
            raise errors.DecodeFailed("a sampler chain must end in a sampler that picks a token")
        if not self._calls["llama_get_logits_ith"](ctx, row):
            raise errors.DecodeFailed(f"row {row} of the last batch has no logits")
        token: int = self._calls["llama_sampler_sample"](chain, ctx, row)
        return token

    def _init_grammar(self, vocab: int, grammar: bytes, root: bytes) -> int | None:
        """Return None for a grammar that does not parse, in every build."""
        create = self._calls["llama_sampler_init_grammar"]
        if self._hazard("grammar_silent") and not self._parses(vocab, grammar, root):
            return None
        return create(vocab, grammar, root) or None

    def _parses(self, vocab: int, grammar: bytes, root: bytes) -> bool:
        """Try a grammar in a build whose sampler ignores one that it could not parse.

        One more rule, which wants a control character first, is made the root: if all of it parsed,
        hardly a token is allowed; if not, every token is.
        """
        rule = b'\nigllama-guard ::= "\\x01" ' + root + b"\n"
        sampler = self._calls["llama_sampler_init_grammar"](vocab, grammar + rule, b"igllama-guard")
        if not sampler:
            return False
        n_tokens = min(self._calls["llama_vocab_n_tokens"](vocab), GRAMMAR_TRIAL_TOKENS)
        logits = applied(self._calls["llama_sampler_apply"], sampler, self._types, n_tokens)
        self._calls["llama_sampler_free"](sampler)
        return -math.inf in logits


def applied(apply: Call, sampler: int, types: Types, n_tokens: int) -> list[float]:
    """Return what a sampler makes of logits that are all zero, for the first tokens."""
    candidates = (types["llama_token_data"] * n_tokens)()
    for token, candidate in enumerate(candidates):
        candidate.id = token
    array = types["llama_token_data_array"]()
    array.data, array.size, array.selected = ctypes.addressof(candidates), n_tokens, -1
    apply(sampler, ctypes.byref(array))
    return [candidate.logit for candidate in candidates[: array.size]]


_TAKES_TOKEN = (
    "llama_vocab_get_text",
    "llama_vocab_get_score",
    "llama_vocab_get_attr",
    "llama_vocab_is_eog",
    "llama_vocab_is_control",
)
_TAKES_SEQUENCE = (
    "llama_memory_seq_keep",
    "llama_memory_seq_add",
    "llama_memory_seq_pos_min",
    "llama_memory_seq_pos_max",
    "llama_state_seq_get_size",
    "llama_get_embeddings_seq",
)


def check_batch(batch: Any, facts: ContextFacts) -> None:
    """Raise DecodeFailed for a batch that some build is known to abort on."""
    n_tokens = batch.n_tokens
    if not 0 < n_tokens <= facts.n_batch:
        raise errors.DecodeFailed(f"a batch of {n_tokens} tokens, n_batch is {facts.n_batch}")
    if batch.token:
        tokens = batch.token[:n_tokens]
        if min(tokens) < 0 or max(tokens) >= facts.n_vocab:
            raise errors.DecodeFailed(f"a token is not in the vocabulary (0..{facts.n_vocab - 1})")
    if batch.seq_id:
        _check_rows(batch, n_tokens, facts.n_sequences)


def _check_rows(batch: Any, n_tokens: int, n_sequences: int) -> None:
    counts = batch.n_seq_id[:n_tokens]
    if min(counts) < 1:
        raise errors.DecodeFailed("a token of the batch belongs to no sequence")
    for row, pointer in enumerate(batch.seq_id[:n_tokens]):
        for seq_id in pointer[: counts[row]]:
            if not 0 <= seq_id < n_sequences:
                raise errors.DecodeFailed(f"seq_id {seq_id} is not in 0..{n_sequences - 1}")
