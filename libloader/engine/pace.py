"""What rows of a batch cost, measured; and how many prompt rows that allows.

A whole n_ubatch of prompt takes as long as dozens of tokens of a stream. So beside running streams
a chunk of prompt is cut to about STALL times a step without it. Smaller is not always faster:
flash attention on a CPU works in tiles of 64 rows, and a batch of 32 rows behind 1,000 tokens took
244 ms where one of 64 took 33 ms. So each size is measured by itself, and one that turns out slow
is left for the next larger. Nothing is known at first; then, and where nobody is streaming, a
chunk is a whole n_ubatch.
"""

from __future__ import annotations

from libloader.engine.timings import Average

STALL = 2.0  # with a prompt a step may take this much longer, as a multiple of one without
SIZES = tuple(16 << power for power in range(12))  # few, so that libllama meets few shapes


class Pace:
    """Learns from each batch."""

    def __init__(self) -> None:
        self._stream_step_s = Average()
        self._prompt_row_s: dict[int, Average] = {}  # by size

    def note(self, chunks: list[int], n_guessed: int, seconds: float) -> None:
        """Learn from one batch: tokens of each sequence, 1 for a running stream; guessed rows."""
        n_streams = chunks.count(1)
        n_prompt_rows = sum(chunks) - n_streams
        if n_prompt_rows >= SIZES[0]:
            size = max(size for size in SIZES if size <= n_prompt_rows)
            extra_s = seconds - (self._stream_step_s.or_else(0.0) if n_streams else 0.0)
            known = self._prompt_row_s.setdefault(size, Average())
            known.add(max(0.0, extra_s) / n_prompt_rows)
        elif not n_prompt_rows and not n_guessed:
            self._stream_step_s.add(seconds)

    def chunk(self, n_streams: int, n_ubatch: int) -> int:
        """Return how many prompt rows the next batch may have beside `n_streams` streams."""
        room = max(1, n_ubatch - n_streams)
        sizes = [size for size in SIZES if size <= room]
        if not n_streams or not sizes or not self._prompt_row_s:
            return room
        cost_s = {size: self._chunk_s(size) for size in sizes}
        affordable_s = STALL * self._stream_step_s.or_else(0.0)
        affordable = [size for size in sizes if cost_s[size] <= affordable_s]
        return max(affordable) if affordable else min(sizes, key=cost_s.__getitem__)

    def _chunk_s(self, size: int) -> float:
        """Return what a chunk takes, by the rows of this size, else of the next larger one."""
        known = self._prompt_row_s
        nearest = min((other for other in known if other >= size), default=max(known))
        return size * known[nearest].or_else(0.0)
