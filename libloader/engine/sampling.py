"""Choosing the next token of every row that has logits: one after another, or in threads.

Lives here: when threads pay and how rows are dealt out. Not here: how a token is chosen
(llama.sampler), what becomes of it (engine.py).

Sampling scans the vocabulary: 0.05 ms a row at 32k entries, 0.3 ms at 152k, and it runs in C
without the GIL. Handing rows to threads costs some 0.1 ms a step. So threads are used where the
scan is long enough; the tokens are the same either way, for each chain has its own state. A greedy
chain is one sampler long, one pass over the logits: 0.17 ms of a step of 27 at 152k entries.

Newer builds can sample inside the compute graph (llama_set_sampler). Left out: it drew other tokens
from the same seed, takes one row of a sequence at a time, so no guesses, and knows no grammar. On a
CPU there is little to win: 69.1 ms a token against 67.9 here when greedy, 48.5 against 46.1 with
top-k 40, 44.8 against 51.6 with the default chain (152k entries, one thread, a busy machine).
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, NamedTuple, Union

from libloader.engine.ports import ChainPort, ContextPort
from libloader.errors import IgllamaError

WORTH_THREADS = 500_000  # entries to scan in one step, over all rows
MAX_THREADS = 4


class Due(NamedTuple):
    """A row of the last batch whose next token is wanted, and rows after it that were guessed.

    row          last token   draft[0]   draft[1]  ...     what was decoded
    its sample   draft[0]?    draft[1]?  any               until a guess turns out wrong
    """

    request_id: str
    chain: ChainPort
    row: int
    draft: Many[int] = ()


Outcome = Union[list[int], IgllamaError]  # tokens, one more than guesses were right; or why none


class Sampling:
    """Samples rows of one context; `mark` gets the ids of the requests that are in hand."""

    def __init__(
        self, context: ContextPort, n_vocab: int, n_threads: int, mark: Callable[[str], None]
    ) -> None:
        self._context = context
        self._n_vocab = n_vocab
        self._n_threads = min(n_threads, MAX_THREADS)
        self._mark = mark
        self._pool: ThreadPoolExecutor | None = None

    def sample(self, due: Many[Due]) -> list[Outcome]:
        """Return the outcome for each, in order. Hot."""
        n_groups = min(self._n_threads, len(due))
        if n_groups < 2 or len(due) * self._n_vocab < WORTH_THREADS:
            outcomes: list[Outcome] = []
            for item in due:
                self._mark(item.request_id)
                outcomes.append(self.sample_one(item))
            return outcomes
        self._mark(" ".join(dict.fromkeys(item.request_id for item in due)))
        # The first look at the logits waits for the computation and puts the rows in order: that
        # must be over before other threads look.
        first = self.sample_one(due[0])
        groups = [due[start::n_groups] for start in range(1, 1 + n_groups)]
        rest: list[Outcome] = [[]] * len(due)
        for start, outcomes in enumerate(self._in_threads(groups), 1):
            rest[start::n_groups] = outcomes
        return [first, *rest[1:]]

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _in_threads(self, groups: list[Many[Due]]) -> list[list[Outcome]]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._n_threads - 1, "sampler")
        others = [self._pool.submit(self._sample_group, group) for group in groups[1:]]
        return [self._sample_group(groups[0]), *(other.result() for other in others)]

    def _sample_group(self, group: Many[Due]) -> list[Outcome]:
        return [self.sample_one(item) for item in group]

    def sample_one(self, item: Due) -> Outcome:
        """Return the outcome of one row, unmarked."""
        tokens: list[int] = []
        try:
            if not item.draft:
                return [item.chain.sample(self._context, item.row)]
            for row, guess in enumerate((*item.draft, None), item.row):
                tokens.append(item.chain.sample(self._context, row))
                if tokens[-1] != guess:
                    break
        except IgllamaError as error:
            return error
        return tokens
