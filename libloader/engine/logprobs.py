"""Log-probabilities of one row of logits, before any sampler touched it, as OpenAI means them."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Callable

Alternative = tuple[int, str, float]
# exp(-40) is 4e-18: even 1e6 such candidates change no float32 digit of the sum.
NEGLIGIBLE_BELOW_MAX = 40.0


def logprobs_of(
    logits: Sequence[float], token: int, n_top: int, text_of: Callable[[int], str]
) -> tuple[tuple[int, str, float, tuple[Alternative, ...]], ...]:
    """Return core.TokenEvent's `logprobs` for one token and its `n_top` likeliest alternatives."""
    highest = max(logits)
    floor = highest - NEGLIGIBLE_BELOW_MAX
    total = math.fsum(math.exp(x - highest) for x in logits if x > floor)
    log_total = highest + math.log(total)
    top: list[int] = heapq.nlargest(n_top, range(len(logits)), key=logits.__getitem__)
    alternatives = tuple((i, text_of(i), logits[i] - log_total) for i in top)
    return ((token, text_of(token), logits[token] - log_total, alternatives),)
