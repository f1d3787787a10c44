"""Sampler chains: how the next token of one sequence is chosen from its logits.

A sampler is a row of SAMPLERS and row order is chain order, llama-server's default: biases,
repetition, truncation, temperature, and last the one that picks. The grammar is no row: it would
have to run first, over the whole vocabulary, for each token. Instead

    pick a token without it  ->  does the grammar allow this one?  ->  yes: done
                                         no: pick again, among what it allows (gate.py)

Laws:
- A chain ends in exactly one sampler that picks; without one libllama aborts.
- The grammar never accepts a token that it was not asked about: a forbidden one aborts in C.
- Chains of different sequences may sample in different threads at once, between two decodes: all
  work on the vocabulary is one C call, without the GIL. One chain is one thread's at a time.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple

from libloader.core import Sampling
from libloader.errors import FieldInvalid, FieldUnsupported, NanLogits
from libloader.llama.context import Context
from libloader.llama.gate import Gate
from libloader.llama.handle import Handle
from libloader.llama.model import Model
from libloader.llama.vocab import Vocab

MIROSTAT_M = 100  # tokens that estimate the distribution; llama.cpp's and the paper's value
LAST_SEED = 0xFFFFFFFE  # 0xFFFFFFFF is LLAMA_DEFAULT_SEED and means: draw one


class Setup:
    """What the rows of SAMPLERS make their arguments from. Arrays in it must outlive the call."""

    def __init__(self, lib: Any, vocab: Vocab, sampling: Sampling, n_ctx: int) -> None:
        self.p, self.n_ctx = sampling, n_ctx
        self.vocab, self.n_vocab = vocab.pointer, vocab.n_tokens
        self.seed = min(sampling.seed, LAST_SEED)
        biases = _biases(vocab, sampling)
        self.biases = (lib.LogitBias * len(biases))(*biases)
        texts = [text.encode("utf-8", "replace") for text in sampling.dry_sequence_breakers]
        self.breakers = (ctypes.c_char_p * len(texts))(*texts)

    def last_n(self, n_tokens: int) -> int:
        """Return how many last tokens are looked at; -1 means all of the context."""
        return self.n_ctx if n_tokens < 0 else min(n_tokens, self.n_ctx)


class Row(NamedTuple):
    """One sampler: its C constructor, the arguments it gets, and when it is in the chain.

    `param` is the request field to name when this build lacks `capability`. A sampler that
    `remembers` chooses by the tokens it has accepted; `window` is how many of a prompt it uses.
    One with a `hazard` is only there for the builds that `abi.hazards` lists under it.
    """

    constructor: str
    arguments: Callable[[Setup], tuple[Any, ...]]
    used_when: Callable[[Sampling], bool]
    capability: str = ""
    param: str = ""
    remembers: bool = False
    window: Callable[[Setup], int] = lambda s: 0
    hazard: str = ""


def _draws(p: Sampling) -> bool:
    return p.temperature > 0


def _truncates(p: Sampling) -> bool:
    return _draws(p) and p.mirostat == 0


def _penalises(p: Sampling) -> bool:
    changes = p.repeat_penalty != 1 or p.frequency_penalty != 0 or p.presence_penalty != 0
    return changes and p.repeat_last_n != 0


SAMPLERS: tuple[Row, ...] = (
    Row(
        "llama_sampler_init_logit_bias",
        lambda s: (s.n_vocab, len(s.biases), s.biases),
        lambda p: bool(p.logit_bias) or p.ignore_eos,
    ),
    Row(
        "llama_sampler_init_penalties",
        lambda s: (
            s.n_vocab, s.last_n(s.p.repeat_last_n), s.p.repeat_penalty, s.p.frequency_penalty,
            s.p.presence_penalty,
        ),
        _penalises,
        capability="penalties",
        param="repeat_penalty",
        remembers=True,
        window=lambda s: s.last_n(s.p.repeat_last_n),
    ),
    Row(
        "llama_sampler_init_dry",
        lambda s: (
            s.vocab, s.p.dry_multiplier, s.p.dry_base, min(s.p.dry_allowed_length, s.n_ctx),
            s.last_n(s.p.dry_penalty_last_n), s.breakers, len(s.breakers),
        ),
        lambda p: p.dry_multiplier > 0 and p.dry_penalty_last_n != 0,
        capability="dry",
        param="dry_multiplier",
        remembers=True,
        window=lambda s: s.last_n(s.p.dry_penalty_last_n),
    ),
    Row(
        "llama_sampler_init_top_n_sigma",
        lambda s: (s.p.top_n_sigma,),
        lambda p: _truncates(p) and p.top_n_sigma > 0,
        capability="top_n_sigma",
        param="top_n_sigma",
    ),
    Row(
        "llama_sampler_init_top_k",
        lambda s: (min(s.p.top_k, s.n_vocab),),
        lambda p: _truncates(p) and p.top_k > 0,
    ),
    Row(
        "llama_sampler_init_typical",
        lambda s: (s.p.typical_p, s.p.min_keep),
        lambda p: _truncates(p) and p.typical_p < 1,
    ),
    Row(
        "llama_sampler_init_top_p",
        lambda s: (s.p.top_p, s.p.min_keep),
        lambda p: _truncates(p) and p.top_p < 1,
    ),
    Row(
        "llama_sampler_init_min_p",
        lambda s: (s.p.min_p, s.p.min_keep),
        lambda p: _truncates(p) and p.min_p > 0,
    ),
    Row(
        "llama_sampler_init_xtc",
        lambda s: (s.p.xtc_probability, s.p.xtc_threshold, s.p.min_keep, s.seed),
        lambda p: _truncates(p) and p.xtc_probability > 0,
        capability="xtc",
        param="xtc_probability",
    ),
    Row(
        "llama_sampler_init_temp_ext",
        lambda s: (s.p.temperature, s.p.dynatemp_range, s.p.dynatemp_exponent),
        _draws,
    ),
    Row(
        "llama_sampler_init_mirostat",
        lambda s: (s.n_vocab, s.seed, s.p.mirostat_tau, s.p.mirostat_eta, MIROSTAT_M),
        lambda p: _draws(p) and p.mirostat == 1,
        remembers=True,
    ),
    Row(
        "llama_sampler_init_mirostat_v2",
        lambda s: (s.seed, s.p.mirostat_tau, s.p.mirostat_eta),
        lambda p: _draws(p) and p.mirostat == 2,
        remembers=True,
    ),
    Row(  # a plain softmax, see candidates.init_softmax
        "llama_sampler_init_top_p",
        lambda s: (0.5, s.n_vocab),
        _truncates,
        hazard="dist_reads_p",
    ),
    Row("llama_sampler_init_dist", lambda s: (s.seed,), _truncates),
    Row("llama_sampler_init_greedy", lambda s: (), lambda p: not _draws(p)),
)  # fmt: skip


class SamplerChain(Handle):
    """Owner of a llama_sampler chain and of its grammar: the sampling state of one sequence.

    `n_ctx` bounds the windows of the repetition samplers. Raises FieldUnsupported for a sampler
    that this libllama lacks, FieldInvalid for a bias on no token, GrammarInvalid.
    """

    def __init__(self, model: Model, sampling: Sampling, n_ctx: int) -> None:
        self._lib, self._model, self._sampling = model.lib, model, sampling
        rows = _rows(self._lib, sampling)
        setup = Setup(self._lib, model.vocab, sampling, n_ctx)
        self._gate = Gate(model, sampling) if sampling.grammar else None
        pointer = self._lib.llama_sampler_chain_init(self._lib.chain_params())
        super().__init__("sampler chain", pointer, self._lib.llama_sampler_free, parent=model)
        for row in rows:
            sampler = getattr(self._lib, row.constructor)(*row.arguments(setup))
            self._lib.llama_sampler_chain_add(pointer, sampler)
        self._remembers = any(row.remembers for row in rows)
        self._n_history = max(row.window(setup) for row in rows)

    def sample(self, context: Context, row: int) -> int:
        """Choose and accept the token that follows `row` of the last batch of `context`.

        Raises NanLogits if the model computed no numbers, GrammarInvalid if the grammar allows
        none of the vocabulary.
        """
        logits = context.logits_pointer(row)
        if math.isnan(logits[0]):
            raise NanLogits("the model produced no numbers (NaN) for the next token")
        if self._gate is None:
            token = self._lib.llama_sampler_sample(self.pointer, context.pointer, row)
        else:
            token = self._sample_by_grammar(context, row, logits, self._gate)
        if token < 0 or not math.isfinite(logits[token]):
            raise NanLogits("the model produced no finite number for the token it prefers")
        return int(token)

    def accept(self, token: int) -> None:
        """Take a token that was chosen elsewhere; GrammarInvalid if the grammar forbids it."""
        self._model.vocab.require(token)
        if self._gate is not None:
            self._gate.accept(token)
        self._lib.llama_sampler_accept(self.pointer, token)

    def accept_prompt(self, tokens: Sequence[int]) -> None:
        """Let the repetition samplers see the end of the prompt; a grammar does not."""
        for token in tokens[-self._n_history :] if self._n_history else ():
            self._model.vocab.require(token)
            self._lib.llama_sampler_accept(self.pointer, token)

    def reset(self) -> None:
        """Start anew, as for another completion with the same sampling."""
        self._lib.llama_sampler_reset(self.pointer)
        if self._gate is not None:
            self._gate.reset()

    def close(self) -> None:
        if self._gate is not None:
            self._gate.close()
        super().close()

    def _sample_by_grammar(self, context: Context, row: int, logits: Any, gate: Gate) -> int:
        lib = self._lib
        before = lib.llama_sampler_clone(self.pointer) if self._remembers else None
        token: int = lib.llama_sampler_sample(self.pointer, context.pointer, row)
        if gate.allows(token):
            if before:
                lib.llama_sampler_free(before)
        else:
            if before:  # the chain has accepted the refused token: go back to before
                lib.llama_sampler_free(self._pointer)
                self._pointer = before
            token = gate.choose(self.pointer, logits)
            lib.llama_sampler_accept(self.pointer, token)
        gate.step(token)
        return token


def _biases(vocab: Vocab, sampling: Sampling) -> list[tuple[int, float]]:
    """Return (token, bias) pairs that are safe for C; `ignore_eos` forbids all endings."""
    biases = dict(sampling.logit_bias)
    for token, bias in biases.items():
        if not 0 <= token < vocab.n_tokens:
            raise FieldInvalid(
                f"logit_bias names token {token}; the vocabulary has {vocab.n_tokens} tokens",
                param="logit_bias",
            )
        if math.isnan(bias) or bias == math.inf:
            raise FieldInvalid(f"logit_bias of token {token} is {bias}", param="logit_bias")
    if sampling.ignore_eos:
        biases.update(dict.fromkeys(vocab.eog_tokens, -math.inf))
    if list(biases.values()).count(-math.inf) == vocab.n_tokens:
        raise FieldInvalid("logit_bias forbids every token there is", param="logit_bias")
    return list(biases.items())


def _rows(lib: Any, sampling: Sampling) -> list[Row]:
    """Return a chain's samplers; FieldUnsupported, with the field, if this build lacks one."""
    rows = [row for row in SAMPLERS if row.used_when(sampling)]
    for row in rows:
        if row.capability and not lib.has(row.capability):
            raise FieldUnsupported(
                f"{row.param}: this libllama ({lib.release}) has no such sampler",
                param=row.param,
            )
    return [row for row in rows if not row.hazard or lib.hazard(row.hazard)]
