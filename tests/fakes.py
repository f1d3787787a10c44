"""A fake llama layer: no libllama, no clock, no chance; same protocols, same refusals.

The fake model's next token is a hash of the sequence's own tokens, so a sequence that ever sees a
token, a cell or a logits row of another one tells on itself. What aborts the process in libllama
(bad ids, gaps in positions, partial copies between streams, too many rows) is an AssertionError.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import threading
import zlib
from array import array
from collections.abc import Iterator, Sequence
from typing import Callable

from libloader.core import Adapters, EngineSettings, Event, Prompt, Request, Sampling
from libloader.engine.engine import Engine
from libloader.engine.guessing import Source
from libloader.engine.prefix_store import PrefixStore

BOS, EOS, IM_START, IM_END = 256, 257, 258, 259
PIECES: tuple[bytes, ...] = (
    *(bytes([value]) for value in range(256)),
    b"<s>", b"</s>", b"<|im_start|>", b"<|im_end|>",
    *(f" w{number}".encode() for number in range(40)),
    "é".encode(), "日".encode(), "🙂".encode(), "🙂".encode()[:2], "🙂".encode()[2:],
)  # fmt: skip
CONTROL = (BOS, EOS, IM_START, IM_END)


class FakeClock:
    """Monotonic seconds that only pass when told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def pass_s(self, seconds: float) -> None:
        self.now_s += seconds


class FakeVocab:
    """Bytes are tokens 0..255; four control tokens; some words and parts of characters above."""

    def __init__(self, bos: int = BOS) -> None:
        self.n_tokens = len(PIECES)
        self.bos = bos
        self.eos = EOS
        self.special_tokens = tuple(PIECES[token].decode() for token in CONTROL)
        self.eog_tokens = (EOS, IM_END)
        self.n_tokenized = 0

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        self.n_tokenized += 1
        tokens = [self.bos] if add_special and self.bos >= 0 else []
        data = text.encode()
        while data:
            token = self._control_at(data) if parse_special else None
            token = data[0] if token is None else token
            tokens.append(token)
            data = data[len(PIECES[token]) :]
        return tokens

    def piece(self, token: int, special: bool = False) -> bytes:
        assert 0 <= token < self.n_tokens, "libllama aborts here"
        return b"" if token in CONTROL and not special else PIECES[token]

    def is_eog(self, token: int) -> bool:
        return token in self.eog_tokens

    def pair(self, first: list[int], second: list[int]) -> list[int]:
        return [BOS, *first, EOS, *second, EOS]

    def _control_at(self, data: bytes) -> int | None:
        return next((token for token in CONTROL if data.startswith(PIECES[token])), None)


class FakeModel:
    def __init__(self, bos: int = BOS) -> None:
        self.vocab = FakeVocab(bos)


class FakeBatch:
    """Rows as (token, position, seq_id, wants_logits)."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.rows: list[tuple[int, int, int, bool]] = []

    @property
    def n_tokens(self) -> int:
        return len(self.rows)

    def clear(self) -> None:
        self.rows.clear()

    def add(self, token: int, position: int, seq_id: int, wants_logits: bool) -> None:
        assert len(self.rows) < self.capacity, "libllama aborts here"
        self.rows.append((token, position, seq_id, wants_logits))

    def go_on(self, tokens: Sequence[int]) -> None:
        assert len(tokens) == len(self.rows)
        rows = zip(tokens, self.rows)
        self.rows = [(token, row[1] + 1, row[2], row[3]) for token, row in rows]


UNWRITTEN = -1  # the past of a cell that a copy will fill, or that lost keys it needs


class Cell:
    """One cell of the fake KV cache: a token after its whole past, and how many use it."""

    __slots__ = ("past", "n_users")

    def __init__(self, past: int) -> None:
        self.past = past
        self.n_users = 1


@functools.cache
def after(past: int, token: int, adapters: Adapters = ()) -> int:
    """Return the hash of a past that goes on with `token`, computed with these LoRA adapters."""
    return zlib.crc32(b"%d,%d" % (past, token) + (repr(adapters).encode() if adapters else b""))


def past_of(tokens: Sequence[int], adapters: Adapters = ()) -> int:
    return functools.reduce(lambda past, token: after(past, token, adapters), tokens, 0)


class FakeContext:
    """A context whose memory is exact: cells, sharing, capacity, and what libllama refuses.

    `fault(batch)` may answer a code instead of decoding; `cost_s(n_rows)` passes on the clock.
    `can_cut=False` behaves as a recurrent model: seq_rm of a part is refused. With `n_swa`, keys
    that fell out of a window of so many tokens are gone, and whoever cuts back to where they are
    needed goes on from nonsense. Between separate streams a copy is made by the next decode, from
    what the source's buffer holds then.
    """

    def __init__(
        self, n_ctx: int = 1024, n_seq_max: int = 4, *, unified: bool = True, n_batch: int = 64,
        n_ubatch: int = 16, clock: FakeClock | None = None, can_cut: bool = True, n_swa: int = 0,
    ) -> None:  # fmt: skip
        self.n_swa = n_swa
        self.pass_cells = 1 << 30  # a pass over the weights is so dear that one is best
        self.firsts = dict.fromkeys(range(n_seq_max), 0)  # with n_swa: the oldest key that is left
        self.buffers: dict[int, list[int]] = {seq_id: [] for seq_id in range(n_seq_max)}
        self.copies: list[tuple[int, int]] = []  # (source, target) of the next decode
        self.n_ctx, self.n_seq_max, self.kv_unified = n_ctx, n_seq_max, unified
        self.pooling_name = "mean"
        self.batch_adapters: list[Adapters] = []  # beside `batches`
        self.adapters: Adapters = ()  # change what a token adds to its past
        self.n_ctx_seq = n_ctx if unified else n_ctx // n_seq_max
        self.n_batch, self.n_ubatch = n_batch, n_ubatch
        self.cells: dict[int, list[Cell]] = {seq_id: [] for seq_id in range(n_seq_max)}
        self.n_used = 0  # distinct cells, over all sequences
        self.rows: dict[int, int] = {}  # batch row -> hash of its past, where logits were wanted
        self.tokens_of: Callable[[int], int] = default_next_token
        self.fault: Callable[[FakeBatch], int | None] = lambda batch: None
        self.cost_s: Callable[[int], float] = lambda n_rows: 0.0
        self.clock = clock or FakeClock()
        self.can_cut = can_cut
        self.can_shift = can_cut
        self.gap: tuple[int, int, int] | None = None  # between seq_rm and seq_add
        self.batches: list[list[tuple[int, int, int, bool]]] = []
        self.is_interrupted = False
        self.during: Callable[[], None] = lambda: None  # called while a batch is being decoded

    @property
    def n_decoded(self) -> int:
        return sum(map(len, self.batches))

    def set_adapters(self, adapters: Adapters) -> None:
        self.adapters = adapters

    def decode(self, batch: FakeBatch) -> int:
        assert 0 < batch.n_tokens <= self.n_batch, "libllama aborts here"
        assert self.gap is None, "positions with a hole in them"
        self.clock.pass_s(self.cost_s(batch.n_tokens))
        self.rows = {}
        self.during()
        code = self.fault(batch)
        if self.is_interrupted:
            self.is_interrupted, code = False, 2
        if code is not None and code < 0:
            return code
        self._make_copies()
        if code is not None:
            return code
        if not self._has_room(batch):
            return 1
        for row, (token, position, seq_id, wants_logits) in enumerate(batch.rows):
            self._decode_row(token, position, seq_id)
            if wants_logits:
                self.rows[row] = self.cells[seq_id][-1].past
        self.batches.append(list(batch.rows))
        self.batch_adapters.append(self.adapters)
        return 0

    def interrupt(self) -> None:
        self.is_interrupted = True

    def seq_rm(self, seq_id: int, p0: int, p1: int) -> bool:
        cells = self.cells[seq_id]
        end = len(cells) if p1 < 0 else min(p1, len(cells))
        if not self.can_cut and 0 < p0 < len(cells):
            return False
        if p0 and end == len(cells) and not self.has_window(seq_id, p0):
            cells[p0 - 1] = Cell(UNWRITTEN)  # nonsense from here on
        if end < len(cells):
            assert self.can_shift and 0 <= p0 < end, "the engine only ever cuts tails"
            self.gap = (seq_id, p0, end)
            del self.buffers[seq_id][p0:end]
        for cell in cells[p0:end]:
            self._leave(cell)
        del cells[p0:end]
        self.firsts[seq_id] = self.firsts[seq_id] if cells else 0
        return True

    def has_window(self, seq_id: int, n: int) -> bool:
        return not self.n_swa or self.firsts[seq_id] <= max(0, n - self.n_swa)

    def seq_add(self, seq_id: int, p0: int, p1: int, delta: int) -> None:
        """Close the gap that seq_rm made just now. Cells keep their pasts: they remember."""
        assert self.gap == (seq_id, p0 + delta, p0), "this would leave positions wrong"
        cells = self.cells[seq_id][p0 + delta :]
        assert len(cells) == p1 - p0 and all(cell.n_users == 1 for cell in cells)
        first = self.firsts[seq_id]
        self.firsts[seq_id] = min(first, max(p0 + delta, first + delta))
        self.gap = None

    def seq_cp(self, src: int, dst: int, p0: int, p1: int) -> None:
        assert src != dst and p0 == 0 and not self.cells[dst]
        n = len(self.cells[src]) if p1 < 0 or not self.can_cut else p1
        self.firsts[dst] = self.firsts[src]
        if self.kv_unified:
            self.cells[dst] = self.cells[src][:n]
            for cell in self.cells[dst]:
                cell.n_users += 1
        else:
            assert p1 < 0, "libllama aborts: only whole streams can be copied"
            self.cells[dst] = [Cell(UNWRITTEN) for _ in self.cells[src]]
            self.copies.append((src, dst))
            self.n_used += n

    def _make_copies(self) -> None:
        for src, dst in self.copies:
            self.buffers[dst] = list(self.buffers[src])
            for cell, past in zip(self.cells[dst], self.buffers[dst]):
                cell.past = past
        self.copies = []

    def seq_pos_max(self, seq_id: int) -> int:
        return len(self.cells[seq_id]) - 1

    def state_seq_size(self, seq_id: int) -> int:
        return len(self.state_seq_get(seq_id))

    def state_seq_get(self, seq_id: int) -> bytes:
        pasts = [cell.past for cell in self.cells[seq_id]]
        return json.dumps([self.firsts[seq_id], pasts]).encode()

    def state_seq_set(self, seq_id: int, data: bytes) -> bool:
        assert not self.cells[seq_id]
        first, pasts = json.loads(data)  # garbage is an error here, a hang in some libllama builds
        n_held = self.n_used if self.kv_unified else 0
        if n_held + len(pasts) > (self.n_ctx if self.kv_unified else self.n_ctx_seq):
            return False
        self.cells[seq_id] = [Cell(past) for past in pasts]
        self.buffers[seq_id], self.firsts[seq_id] = pasts, first
        self.n_used += len(pasts)
        return True

    def logprobs(self, row: int, token: int, n_top: int) -> tuple[float, list[tuple[int, float]]]:
        """The model's choice is sure, log 1; the others follow by id, ever less likely."""
        chosen = self.tokens_of(self.rows[row])
        ranked = [chosen, *(other for other in range(len(PIECES)) if other != chosen)]
        top = [(other, -float(rank)) for rank, other in enumerate(ranked[:n_top])]
        return -float(ranked.index(token)), top

    def logprobs_of(
        self, row: int, tokens: Sequence[int], n_top: int
    ) -> tuple[list[float], list[tuple[int, float]]]:
        """Chances by a hash of the past: they are below 1 in sum, whatever the tokens."""
        past = self.rows[row]
        own = [fake_logprob(past, token) for token in tokens]
        return own, self.logprobs(row, 0, n_top)[1]

    def embeddings_seq(self, seq_id: int) -> array[float]:
        return vector_of_past(self.cells[seq_id][-1].past)

    def embeddings_row(self, row: int) -> array[float]:
        return vector_of_past(self.rows[row])

    def _has_room(self, batch: FakeBatch) -> bool:
        if self.kv_unified:
            return self.n_used + batch.n_tokens <= self.n_ctx
        held = {seq_id: len(cells) for seq_id, cells in self.cells.items()}
        for _, _, seq_id, _ in batch.rows:
            held[seq_id] += 1
        return max(held.values()) <= self.n_ctx_seq

    def _decode_row(self, token: int, position: int, seq_id: int) -> None:
        cells = self.cells[seq_id]
        assert position == len(cells), f"libllama refuses: {position} after {len(cells)} tokens"
        assert 0 <= token < len(PIECES), "libllama refuses"
        cells.append(Cell(after(cells[-1].past if cells else 0, token, self.adapters)))
        self.buffers[seq_id][position:] = [cells[-1].past]
        if self.n_swa:
            self.firsts[seq_id] = max(self.firsts[seq_id], len(cells) - self.n_swa)
        self.n_used += 1

    def _leave(self, cell: Cell) -> None:
        cell.n_users -= 1
        self.n_used -= cell.n_users == 0


def vector_of_past(past: int) -> array[float]:
    return array("f", [float(past & 0xFF), float(past >> 8 & 0xFF), 1.0])


def default_next_token(past: int) -> int:
    """Any token but control tokens; about one in forty ends the sequence."""
    return EOS if past % 40 == 0 else past % 256 if past % 3 else 260 + past % (len(PIECES) - 260)


def fake_logprob(past: int, token: int) -> float:
    """Return a log probability for `token` after `past`; over all tokens they sum up below 1."""
    return math.log((1 + after(past, token) % 1000) / 1000 / len(PIECES))


def never_ending(past: int) -> int:
    return 97 + past % 26


class FakeChain:
    """Greedy. Remembers what it accepted, and who closed it."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.accepted: list[int] = []
        self.closed = False

    def sample(self, context: FakeContext, row: int) -> int:
        assert not self.closed and row in context.rows, "libllama crashes here"
        token = context.tokens_of(context.rows[row])
        self.accepted.append(token)
        return token

    def accept(self, token: int) -> None:
        assert not self.closed
        self.accepted.append(token)

    def accept_prompt(self, tokens: Sequence[int]) -> None:
        assert not self.closed and not self.accepted

    def close(self) -> None:
        assert not self.closed, "closed twice"
        self.closed = True


class FakeCompany:
    """Lets an engine cruise for as long as `goes_on` says; keeps what it was told, and by whom."""

    def __init__(self, bench: Bench, goes_on: Callable[[float], bool] = lambda now_s: True) -> None:
        self.goes_on = goes_on
        self._bench = bench
        self.told: list[Event] = []
        self.threads: set[str] = set()

    def tell(self, events: list[Event]) -> None:
        self.told += events
        self._bench.events += events
        self.threads.add(threading.current_thread().name)


class Bench:
    """An engine on fakes and what it said: submit, step until idle, read the answers by id."""

    def __init__(
        self, context: FakeContext | None = None, *, n_parallel: int = 4, bos: int = BOS,
        open_chain: Callable[[Sampling], FakeChain] = FakeChain,
        store: PrefixStore | None = None, guesses: Source | None = None,
        can_generate: bool = True, **settings: object,
    ) -> None:  # fmt: skip
        self.clock = FakeClock()
        self.context = context or FakeContext()
        self.context.clock = self.clock
        self.model = FakeModel(bos)
        self.embedding_context = FakeContext(256, 8, n_batch=64, n_ubatch=64)
        self.trail: list[tuple[str, str, int]] = []
        self.chains: list[FakeChain] = []
        self._open_chain = open_chain
        self.engine = Engine(
            self.model,
            self.context,
            EngineSettings(n_parallel=n_parallel, **settings),
            batch=FakeBatch(self.context.n_batch),
            open_chain=self.open_chain,
            open_embedder=self.open_embedder,
            store=store,
            guesses=guesses,
            can_generate=can_generate,
            clock=self.clock,
            breadcrumb=lambda *crumb: self.trail.append(crumb),
        )
        self.events: list[Event] = []
        self.company: FakeCompany | None = None  # with one, the engine cruises

    def open_chain(self, sampling: Sampling) -> FakeChain:
        self.chains.append(self._open_chain(sampling))
        return self.chains[-1]

    @contextlib.contextmanager
    def open_embedder(self) -> Iterator[tuple[FakeContext, FakeBatch]]:
        yield self.embedding_context, FakeBatch(self.embedding_context.n_batch)

    def submit(self, name: str, prompt: object = "hello", **fields: object) -> None:
        """Submit a request; `prompt` is a text, a list of token ids, or a tuple of such."""
        prompts = prompt if isinstance(prompt, tuple) else (prompt,)
        fields.setdefault("kind", "generate")
        self.engine.submit(Request(name, prompts=tuple(map(as_prompt, prompts)), **fields))

    def step(self, n: int = 1) -> list[Event]:
        events: list[Event] = []
        for _ in range(n):
            events += self.engine.step(self.company)
            self.engine.check_integrity()
            assert self.context.n_used == self.engine.n_cells_used or not self.context.kv_unified
        self.events += events
        return events

    def run(self, max_steps: int = 2000) -> None:
        """Step until nothing is left to do."""
        for _ in range(max_steps):
            if self.engine.idle:
                return
            self.step()
        raise AssertionError("the engine does not come to an end")

    def of(self, name: str, *kinds: type) -> list[Event]:
        """Return the events of one request, of the given classes or all."""
        return [
            event
            for event in self.events
            if event.request_id == name and (not kinds or isinstance(event, kinds))
        ]


def as_prompt(prompt: object) -> Prompt:
    if isinstance(prompt, Prompt):
        return prompt
    if isinstance(prompt, str):
        return Prompt(segments=((prompt, False),))
    return Prompt(tokens=tuple(prompt))  # type: ignore[arg-type]


def could_say(
    prompt: Sequence[int],
    told: Sequence[int],
    n_ctx: int,
    next_token: Callable[[int], int] = default_next_token,
    n_keep: int = 0,
    adapters: Adapters = (),
) -> bool:
    """True if each token follows from all before it, or from what shifts left of it.

    What is left is computed afresh after a shift that met shared cells, or when a slot was lost.
    """
    window, pasts = list(prompt), {past_of(prompt, adapters)}
    n_keep = min(n_keep if n_keep >= 0 else len(prompt), n_ctx - 4)
    for token in told:
        pasts = {after(past, token, adapters) for past in pasts if next_token(past) == token}
        window.append(token)
        if not pasts:
            return False
        if len(window) == n_ctx:
            del window[n_keep : n_keep + max(1, (n_ctx - 1 - n_keep) // 2)]
        pasts.add(past_of(window, adapters))
    return True


def expected_tokens(
    prompt: Sequence[int],
    limit: int,
    next_token: Callable[[int], int] = default_next_token,
    adapters: Adapters = (),
) -> list[int]:
    """Return what the fake model says to `prompt`, to its end token or `limit` tokens."""
    past, result = past_of(prompt, adapters), []
    while len(result) < limit and (not result or result[-1] != EOS):
        result.append(next_token(past))
        past = after(past, result[-1], adapters)
    return result


class Watched(list):
    """Tokens that notice when they are looked at."""

    n_looks = 0

    def __len__(self):
        Watched.n_looks += 1
        return super().__len__()

    def __getitem__(self, at):
        Watched.n_looks += 1
        return super().__getitem__(at)
