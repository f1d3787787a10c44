"""One choice of a request, from its prompt to its last token, and the request that it belongs to.

Lives here: what a sequence knows of itself, when it ends and why. Not here: when it runs
(scheduler.py), who samples for it (engine.py).

    tokens   [ prompt ............. | resumed | sampled ... | last ]
    slot     [ in the KV cache ............................ ]          n_pending = 1: it decodes
    slot     [ in the KV cache ]                                       n_pending > 1: it prefills

With `shifts`, a sequence that fills its context forgets the older half of what follows the kept
beginning, and goes on; `tokens` is what is left. Text, penalties, a grammar and the guesser go on
as if nothing had happened: they have seen every token.

    tokens   [ kept | forgotten ............ | stays ............. | last ]
    tokens   [ kept | stays ............. | last ]
"""

from __future__ import annotations

import math

from libloader.core import Adapters, Request
from libloader.engine.choosing import Choosing
from libloader.engine.detokenizer import Detokenizer
from libloader.engine.ports import ChainPort
from libloader.engine.prefix_store import Loading
from libloader.engine.slot import Slot
from libloader.engine.speculate import Guesser

STOP, LENGTH = "stop", "length"
LEAST_FORGETTABLE = 4  # tokens of a context that no request can keep


class Sequence:
    """One choice. `reason` is "" while it lives, else stop or length."""

    __slots__ = (
        "live", "index", "tokens", "n_prompt", "n_limit", "slot", "chain", "detokenizer",
        "reason", "leader", "loading", "n_shared", "number", "is_counted",
        "guesser", "draft", "told_s", "prompt", "shifts", "n_shifts", "n_unread", "halts",
        "_n_ctx", "_n_keep", "_n_wanted", "_n_forgotten",
    )  # fmt: skip

    def __init__(
        self, live: LiveRequest, index: int, prompt: list[int], n_ctx: int, shifts: int = 0
    ) -> None:
        request = live.request
        self.live = live
        self.index = index
        self.prompt = prompt  # as it came
        self.tokens = list(prompt)
        self.n_prompt = len(prompt)  # tokens of the prompt in `tokens`
        self.shifts = shifts  # 0: it ends with its context; else how long it may get without limit
        self.n_shifts = 0
        self._n_ctx = n_ctx
        self._n_wanted = request.max_tokens if request.max_tokens >= 0 else shifts or n_ctx
        self._n_forgotten = 0  # sampled tokens that are no longer in `tokens`
        self._n_keep = 0  # leading tokens that are never forgotten
        # The last token is sampled but need not be decoded: n_limit counts it all the same.
        self.n_limit = min(n_ctx, len(prompt) + self._n_wanted)
        self.slot: Slot | None = None
        self.chain: ChainPort | None = None
        self.detokenizer = Detokenizer(live.request.stop)
        self.reason = ""
        self.leader: Sequence | None = None  # whose prefill this one waits to share
        self.loading: Loading | None = None  # the saved state that this one waits for
        self.n_shared = 0  # tokens to be had from `leader`
        self.n_unread = -1  # tokens to compute when it begins in its slot; -1: it has not begun
        # Lengths at which its prefill pauses for a copy: of a memory that can only be copied whole.
        self.halts: set[int] = set()
        self.number = 0  # order of arrival, over all requests
        self.guesser: Guesser | None = None  # of the next tokens, if that is wanted
        self.draft: list[int] = []  # what is guessed to follow `tokens`, in the batch of this step
        self.told_s = math.inf  # when its last token was
        self.is_counted = False  # what it found in the KV cache is in the request's n_cached

    @property
    def is_waiting(self) -> bool:
        """True while its prefix is on the way: computed by another, or read from a saved state."""
        return self.leader is not None or self.loading is not None

    @property
    def n_pending(self) -> int:
        """Tokens that are not in the KV cache yet."""
        return len(self.tokens) - (len(self.slot.tokens) if self.slot else 0)

    @property
    def n_to_halt(self) -> int:
        """Pending tokens up to the next halt."""
        n = len(self.slot.tokens) if self.slot else 0
        return min((halt for halt in self.halts if halt > n), default=len(self.tokens)) - n

    @property
    def n_completion(self) -> int:
        return len(self.tokens) - self.n_prompt + self._n_forgotten

    @property
    def is_plain(self) -> bool:
        """True if its tokens need no more than to be told, until one ends it."""
        request = self.live.request
        is_watched = bool(request.stop) or request.top_logprobs >= 0 or self.guesser is not None
        return not is_watched and self.live.choosing is None

    @property
    def resumed(self) -> tuple[int, ...]:
        """Its tokens that the client has from an engine before this one."""
        resume = self.live.request.resume
        return resume[self.index] if self.index < len(resume) else ()

    @property
    def is_full(self) -> bool:
        """True when a living sequence cannot go on without forgetting."""
        return len(self.tokens) >= self.n_limit

    def take(self, token: int, piece: bytes, ends: bool) -> str:
        """Append a sampled token; return the text that it makes certain. Hot.

        `ends` says that this token ends the generation; its piece is not part of the text.
        """
        self.tokens.append(token)
        if self.guesser is not None:
            self.guesser.push(token)
        if ends:
            self.reason = STOP
            return self.detokenizer.flush()
        text = self.detokenizer.push(piece)
        if self.detokenizer.stop is not None:
            self.reason = STOP
        elif self.is_full and not self._goes_on:
            text += self.cut_short()
        return text

    def keep(self, n: int) -> None:
        """Never forget the first `n` tokens; -1: none of the prompt."""
        self._n_keep = min(n if n >= 0 else len(self.prompt), self._n_ctx - LEAST_FORGETTABLE)

    def forget(self) -> tuple[int, int]:
        """Make room: forget half of what is decoded behind the kept; return [start, end) of it."""
        start = max(0, self._n_keep)
        n = max(1, (len(self.tokens) - 1 - start) // 2)
        n_of_prompt = max(0, min(start + n, self.n_prompt) - start)
        self.n_prompt -= n_of_prompt
        self._n_forgotten += n - n_of_prompt
        del self.tokens[start : start + n]
        self.n_shifts += 1
        self.n_limit = min(self._n_ctx, len(self.tokens) + self._n_wanted - self.n_completion)
        return start, start + n

    @property
    def _goes_on(self) -> bool:
        return self.shifts > 0 and self.n_completion < self._n_wanted

    def cut_short(self) -> str:
        """End it here, for want of room or time; return the text that was held back."""
        self.reason = LENGTH
        return self.detokenizer.flush()


def answer_limit(max_tokens: int, n_prompt: int, n_ctx: int, shifts: int) -> int:
    """Return how many tokens may follow a prompt, as a Sequence made with these would have it."""
    room = max(0, n_ctx - n_prompt)
    if room and shifts:
        return max_tokens if max_tokens >= 0 else shifts
    return room if max_tokens < 0 else min(room, max_tokens)


class LiveRequest:
    """One request inside the engine: its choices, its clock, its counts."""

    __slots__ = (
        "request", "sequences", "n_open", "submitted_s", "deadline_s", "seated_s",
        "adapters", "first_token_s", "n_prompt", "n_cached", "n_computed", "choosing",
    )  # fmt: skip

    def __init__(self, request: Request, now_s: float, adapters: Adapters = ()) -> None:
        self.request = request
        self.sequences: list[Sequence] = []
        self.adapters = adapters  # what all its choices are computed with
        self.n_open = 0  # choices that have not ended
        self.submitted_s = now_s
        self.deadline_s = now_s + request.deadline_s if request.deadline_s > 0 else math.inf
        self.seated_s = math.inf
        self.first_token_s = math.inf
        self.n_prompt = 0  # each prompt counted once, whatever n is
        self.n_cached = 0  # of n_prompt, not computed
        self.n_computed = 0  # prompt tokens decoded, over all choices
        self.choosing: Choosing | None = None  # what the sequences of a choose request find out

    @property
    def is_seated(self) -> bool:
        """True once anything of it has begun to be computed."""
        return self.seated_s != math.inf

    @property
    def n_completion(self) -> int:
        if self.choosing is not None:
            return self.choosing.n_completion
        return sum(sequence.n_completion for sequence in self.sequences)
