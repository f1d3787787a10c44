"""A grammar at the door of a sampler chain: which tokens may pass, and the second choice.

When the chain's own pick is refused, it picks again among the allowed tokens alone; the outcome has
the distribution of a chain behind a mask over the whole vocabulary. There are two ways to it:

    few are allowed    down the tree of tokens, asking only about those whose beginning is allowed;
                       a comma, a digit, a key: 0.1 ms where 150,000 tokens would take 10
    many are allowed   ask about all: inside a string, where a pick is hardly ever refused

Laws:
- The grammar never accepts a token that it was not asked about: a forbidden one aborts in C.
- It is asked about tokens in one C call, without the GIL, as many at once as possible.
"""

from __future__ import annotations

import math
from array import array
from typing import Any

from libloader.core import Sampling
from libloader.errors import GrammarInvalid, NanLogits
from libloader.llama.candidates import Candidates
from libloader.llama.handle import Handle
from libloader.llama.model import Model
from libloader.llama.wholetext import WholeText

GRAMMAR_ROOT = b"root"
FEW = 1 << 14  # tokens asked about on the way down the tree, before all are


class Gate(Handle):
    """Owner of a grammar sampler: which tokens may follow, by a GBNF text checked before."""

    def __init__(self, model: Model, sampling: Sampling) -> None:
        lib, raw = model.lib, sampling.grammar.encode("utf-8", "replace")
        if b"\0" in raw:
            raise GrammarInvalid("the grammar contains a NUL character", param="grammar")
        pointer = lib.llama_sampler_init_grammar(model.vocab.pointer, raw, GRAMMAR_ROOT)
        if not pointer:
            raise GrammarInvalid("libllama cannot parse this grammar", param="grammar")
        super().__init__("grammar", pointer, lib.llama_sampler_free, parent=model)
        self._lib, self._vocab = lib, model.vocab
        self._greedy = lib.llama_sampler_init_greedy()
        self._one = Candidates(lib, 1)
        self._shows_special = sampling.shows_special
        self._text = WholeText(model.vocab, sampling.shows_special)

    def close(self) -> None:
        if not self.closed:
            self._lib.llama_sampler_free(self._greedy)
        super().close()

    def reset(self) -> None:
        self._lib.llama_sampler_reset(self.pointer)
        self._text.reset()

    def allows(self, token: int) -> bool:
        """Say whether `token` may follow. Hot: once per token."""
        if not self._text.allows(token):
            return False
        self._one.fill_one(token)
        self._one.apply(self.pointer)
        return self._one.entry(0)[1] > -math.inf

    def accept(self, token: int) -> None:
        """Step over `token`; GrammarInvalid if it is forbidden."""
        if not self.allows(token):
            raise GrammarInvalid(f"the grammar does not allow token {token} here", param="grammar")
        self.step(token)

    def step(self, token: int) -> None:
        """Step over a token that `allows` has allowed: a forbidden one aborts the process."""
        self._lib.llama_sampler_accept(self.pointer, token)
        self._text.accept(token)

    def choose(self, chain: Any, logits: Any) -> int:
        """Let `chain` pick among the allowed tokens; neither of the two accepts the pick.

        Where the chain's own rules leave nothing, such as ignore_eos where only the end is allowed,
        the grammar wins. GrammarInvalid if it allows none of the vocabulary.
        """
        few = self.few()
        if few is None:
            return self._choose_among_all(chain, logits)
        if not few:
            raise GrammarInvalid("no token fits the grammar here", param="grammar")
        if len(few) == 1:
            return few[0]
        numbers = array("f", [logits[token] for token in few])
        candidates = Candidates(self._lib, len(few))
        candidates.fill_some(few, numbers)
        try:
            return candidates.choose(chain)
        except NanLogits:  # by the chain's rules there is none left
            return max(zip(numbers, few))[1]

    def few(self) -> array[int] | None:
        """Return all tokens that may follow; None if finding out would take long."""
        tree, found, n_asked = self._vocab.tree, array("i"), 0
        level = tree.silent + (tree.inside if self._text.is_inside else tree.roots)
        if self._shows_special:
            level.extend(self._vocab.hidden_tokens)
        while level:
            passing = self._passing(level)
            found.extend(passing)
            level = array("i")
            for token in passing:
                level += tree.children(token)
            n_asked += len(level)
            if n_asked > FEW:
                return None
        return array("i", sorted(found))

    def _passing(self, tokens: array[int]) -> list[int]:
        candidates = Candidates(self._lib, len(tokens))
        candidates.fill_some(tokens, array("f", bytes(4 * len(tokens))))
        candidates.apply(self.pointer)
        doubtful = self._vocab.tree.broken
        always = not self._text.is_inside
        return [
            token
            for token, logit in zip(tokens, candidates.logits())
            if logit == 0.0 and ((always and token not in doubtful) or self._text.allows(token))
        ]

    def _choose_among_all(self, chain: Any, logits: Any) -> int:
        candidates = Candidates(self._lib, self._vocab.n_tokens)
        candidates.fill(logits)
        best = self._mask(candidates)
        token = candidates.choose(chain)
        return token if self.allows(token) else best

    def _mask(self, candidates: Candidates) -> int:
        """Set the logits of forbidden tokens to -inf and return the best allowed one."""
        tree = self._vocab.tree
        for tokens in (
            tree.inside,
            tree.wrong,
            () if self._shows_special else self._vocab.hidden_tokens,
        ):
            candidates.forbid(tokens)
        candidates.apply(self.pointer)
        refused: set[int] = set()
        while True:  # few rounds: broken text that is not forbidden yet is rare
            best = candidates.choose(self._greedy)
            if self.allows(best):
                return best
            if best in refused:
                raise GrammarInvalid("no token fits the grammar here", param="grammar")
            refused.add(best)
            candidates.forbid([best])
