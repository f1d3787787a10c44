"""What rows of a batch cost, measured; and how many prompt rows that allows.

A whole n_ubatch of prompt takes as long as dozens of tokens of a stream: on a slow machine ten
seconds. So beside running streams a chunk of prompt is cut to about STALL times a step without it;
alone it is cut to ALONE_S, for whoever cancels or comes next waits so long. On a CPU that costs
nothing: 512 rows took 17 ms each in chunks of 16 or 64, 22 ms in one piece (0.6B model, 1 thread).

Smaller is not always faster: flash attention on a CPU works in tiles of 64 rows, and a batch of 32
rows behind 1,000 tokens took 244 ms where one of 64 took 33 ms. So each size is measured by itself,
and one that turns out slow is left for the next larger. It is not left for ever: what a size costs
is slowly forgotten while others are used, so that one bad moment of the machine does not stay.
Nothing is known at first: then a chunk is the smallest.
"""

from __future__ import annotations

from libloader.engine.timings import Average

STALL = 1.5  # with a prompt a step may take this much longer, as a multiple of one without
ALONE_S = 0.5
SIZES = tuple(16 << power for power in range(12))  # few, so that libllama meets few shapes
MEMORY = 4  # batches: a row costs more, the longer the past behind it
FORGET = 0.995  # of a size's cost remains with each batch of another size


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
            for other in self._prompt_row_s.values():
                other.value *= FORGET
            known = self._prompt_row_s.setdefault(size, Average(MEMORY))
            known.add(max(0.0, extra_s) / n_prompt_rows)
        elif not n_prompt_rows and not n_guessed:
            self._stream_step_s.add(seconds)

    def chunk(self, n_streams: int, n_ubatch: int) -> int:
        """Return how many prompt rows the next batch may have beside `n_streams` streams."""
        room = max(1, n_ubatch - n_streams)
        sizes = [size for size in SIZES if size <= room]
        if not sizes:
            return room
        if not self._prompt_row_s:
            return sizes[0]
        cost_s = {size: self._chunk_s(size) for size in sizes}
        affordable_s = STALL * self._stream_step_s.or_else(0.0) if n_streams else ALONE_S
        affordable = [size for size in sizes if cost_s[size] <= affordable_s]
        if not affordable:
            return min(sizes, key=cost_s.__getitem__)
        return room if affordable == sizes and not n_streams else max(affordable)

    def _chunk_s(self, size: int) -> float:
        """Return what a chunk takes, by the rows of this size, else of the next larger one."""
        known = self._prompt_row_s
        nearest = min((other for other in known if other >= size), default=max(known))
        return size * known[nearest].or_else(0.0)
