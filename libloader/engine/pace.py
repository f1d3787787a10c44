"""How many prompt tokens may join a batch of running streams before these feel it.

Lives here: measuring, and one rule. A whole n_ubatch of prompt takes as long as dozens of tokens
of a stream, so beside running streams a chunk is cut to about STALL times a step without it.
Nothing is known at first; then, and where nobody is streaming, a chunk is a whole n_ubatch.
"""

from __future__ import annotations

from libloader.engine.timings import Average

STALL = 2.0  # with a prompt a step may take this much longer, as a multiple of one without
MIN_CHUNK = 16  # fewer rows cost nearly as much as 16: the weights are read all the same


class Pace:
    """Learns from each step what rows cost."""

    def __init__(self) -> None:
        self._stream_step_s = Average()
        self._prompt_row_s = Average()

    def note(self, chunks: list[int], seconds: float) -> None:
        """Learn from one batch: tokens that each sequence had in it, 1 for a running stream."""
        n_streams = chunks.count(1)
        n_prompt_rows = sum(chunks) - n_streams
        if not n_prompt_rows:
            self._stream_step_s.add(seconds)
        elif n_prompt_rows >= MIN_CHUNK:
            base_s = self._stream_step_s.or_else(0.0) if n_streams else 0.0
            self._prompt_row_s.add(max(0.0, seconds - base_s) / n_prompt_rows)

    def chunk(self, n_streams: int, n_ubatch: int) -> int:
        """Return how many prompt rows the next batch may have beside `n_streams` streams.

        Powers of two, so that libllama meets few shapes of batches.
        """
        room = max(1, n_ubatch - n_streams)
        row_s = self._prompt_row_s.or_else(0.0)
        if not n_streams or row_s <= 0.0:
            return room
        affordable = STALL * self._stream_step_s.or_else(0.0) / row_s
        chunk = MIN_CHUNK
        while chunk * 2 <= affordable and chunk < room:
            chunk *= 2
        return min(chunk, room)
