"""Which rows share a llama_decode, where each sequence has a KV stream of its own.

libllama makes one pass over the weights for neighbouring seq_ids with as many rows each, and in it
lets every row look at as many cells as the longest past among them has. So one long past makes
all others dear (ms, 1 thread; four streams with 30 tokens, and one token more):

                         the four   the one    all in one decode
    0.6B, one has 1000      44         27           180
          one has 3000      47         48           230
    15M,  one has 4000       6         12            44

And rows of a prompt are passes of their own in any case: nothing is lost by decoding them apart.

Lives here: the cheapest way to cut the rows of a step into decodes. Costs are counted in cells that
one row looks at: a pass over the weights is worth as many as have its bytes (`pass_cells`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Rows(NamedTuple):
    """What one sequence brings to a step."""

    seq_id: int
    n_rows: int
    n_past: int


def split(rows: Sequence[Rows], pass_cells: int) -> list[tuple[int, int]]:
    """Cut `rows`, in order of seq_id, into [start, end) that are decoded one after the other."""
    best: list[tuple[int, int]] = [(0, 0)]  # for the first n: (cost, where the last cut is)
    for end in range(1, len(rows) + 1):
        costs = ((best[i][0] + _cost(rows[i:end], pass_cells), i) for i in range(end))
        best.append(min(costs, key=lambda pair: pair[0]))  # of equal ones that with fewer cuts
    cuts: list[tuple[int, int]] = []
    end = len(rows)
    while end:
        cuts.append((best[end][1], end))
        end = best[end][1]
    return cuts[::-1]


def _cost(rows: Sequence[Rows], pass_cells: int) -> int:
    n_gaps = sum(b.seq_id - a.seq_id > 1 for a, b in zip(rows, rows[1:]))
    n_passes = len({each.n_rows for each in rows}) + n_gaps
    n_cells = max(each.n_past + each.n_rows for each in rows)
    return n_passes * pass_cells + n_cells * sum(each.n_rows for each in rows)
