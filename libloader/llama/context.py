"""A llama_context: decode, the KV cache of its sequences, logits, embeddings, saved states.

Laws:
- Sizes and rows are checked here, ids by `abi.guards`, before C gets them: most builds abort on bad
  ones.
- One thread at a time; reading logits and sampling different rows may run in several threads
  between two decodes.
- What libllama made of the wished sizes is read back, never assumed: it rounds some.

How KV cells are shared between sequences (`kv_unified`):

    true, and every build before b5913   one buffer of n_ctx cells for all sequences; a part of one
                                         sequence can be copied to another for nothing
    false                                each sequence owns n_ctx / n_seq_max cells; only whole
                                         sequences are copied (seq_cp hides that)
"""

from __future__ import annotations

import ctypes
import math
from array import array
from collections.abc import Sequence
from typing import Any

from libloader.core import Adapters, EngineSettings
from libloader.errors import DecodeFailed, ModelLoadFailed
from libloader.llama import ggml_types, machine
from libloader.llama.batch import Batch
from libloader.llama.candidates import LogprobReader
from libloader.llama.handle import Handle, require_in_range
from libloader.llama.interrupt import Interrupt
from libloader.llama.model import Model
from libloader.llama.threads import ThreadPools

# llama.h's enum llama_pooling_type
POOLING = {"none": 0, "mean": 1, "cls": 2, "last": 3, "rank": 4}
POOLING_NAMES = {number: name for name, number in POOLING.items()}
FLASH_ATTN = {"auto": -1, "off": 0, "on": 1}
WHOLE_TYPES = ("f32", "f16", "bf16")  # cache types that are not quantised

STATE_BYTES = 4  # of a number in a recurrent state, which is F32 whatever the cache's types are
KV_PADDING = 256  # newer builds round a sequence's cells up to this
N_CTX_UNKNOWN = 4096  # per slot, where neither file nor machine says anything
SCORE_BYTES = 8  # of one head between two tokens, before and after the softmax
SMALL_MODEL = 100_000_000  # parameters, below which a pass over the weights is next to nothing
SMALL_CACHE = 2  # times the weights: above it each sequence has a KV stream of its own
MEMORY_SHARE = 2  # a default KV cache takes at most one of so many parts of the free memory


class Context(Handle):
    """Owner of a llama_context; close it before its model (closing the model does so).

    `embeddings` makes a context for pooled vectors instead of text: every prompt must then fit one
    micro-batch, so n_ubatch becomes n_batch. `pools` must outlive the context.
    """

    def __init__(
        self,
        model: Model,
        settings: EngineSettings,
        *,
        embeddings: bool = False,
        pooling: str = "",
        pools: ThreadPools | None = None,
    ) -> None:
        self._lib, self.model = model.lib, model
        self.settings = settings
        wishes = _wishes(model, settings, embeddings, pooling)
        params = self._lib.context_params()
        unset = {name for name, value in wishes.items() if not params.set(name, value)}
        pointer = self._lib.llama_init_from_model(model.pointer, params)
        if not pointer:
            raise ModelLoadFailed(_why_refused(wishes))
        super().__init__("context", pointer, self._lib.llama_free, parent=model)
        self._lib.check_context(pointer, params)
        if pools is not None:
            pools.attach(pointer, wishes["n_threads"], wishes["n_threads_batch"])
        self.n_seq_max: int = wishes["n_seq_max"]
        self.kv_unified = bool(wishes["kv_unified"]) or "kv_unified" in unset
        self.embeddings = embeddings
        self._read_back()
        self._adapters: Adapters = ()
        self._n_rows = 0  # of the last batch that was decoded
        self._interrupt = Interrupt(self._lib, pointer)
        self._logprobs: LogprobReader | None = None
        # Where an empty sequence's last position is 0, as one token's is, we note ourselves which
        # sequences have their first position.
        self._begun: set[int] | None = set() if self._lib.hazard("pos_max_zero") else None

    def _read_back(self) -> None:
        lib, pointer = self._lib, self.pointer
        self.n_ctx: int = lib.llama_n_ctx(pointer)
        self.n_batch: int = lib.llama_n_batch(pointer)
        self.n_ubatch: int = lib.llama_n_ubatch(pointer)
        self.n_threads: int = lib.llama_n_threads(pointer)
        self.n_threads_batch: int = lib.llama_n_threads_batch(pointer)
        self.pooling: int = lib.llama_pooling_type(pointer)
        self.n_swa: int = self.model.n_swa
        self._n_embedding = _n_embedding(lib, self.model, self.pooling)
        if self.kv_unified:
            self.n_ctx_seq = self.n_ctx
        elif lib.has("n_ctx_seq"):
            self.n_ctx_seq = lib.llama_n_ctx_seq(pointer)
        else:
            self.n_ctx_seq = self.n_ctx // self.n_seq_max

    @property
    def pooling_name(self) -> str:
        """One of POOLING; "" where libllama itself chose none of them."""
        return POOLING_NAMES.get(self.pooling, "")

    @property
    def kv_bytes(self) -> int:
        """Size of the KV cache and of all states: an upper bound, as what the Model says is."""
        n_states = self.n_seq_max * self.model.state_elements()
        return self.n_ctx * kv_bytes_per_token(self.model, self.settings) + n_states * STATE_BYTES

    @property
    def pass_cells(self) -> int:
        """Cells of the KV cache that have as many bytes as the weights: both must be read."""
        return self.model.size_bytes // max(1, kv_bytes_per_token(self.model, self.settings))

    # Decoding

    def set_adapters(self, adapters: Adapters) -> None:
        """Let further batches run with these LoRA adapters of the model, and no other ones."""
        if adapters == self._adapters:
            return
        n = len(adapters)
        pointers = (ctypes.c_void_p * n)(*(self.model.adapters[number] for number, _ in adapters))
        scales = (ctypes.c_float * n)(*(scale for _, scale in adapters))
        code = self._lib.llama_set_adapters_lora(self.pointer, pointers, n, scales)
        if code != 0:
            raise DecodeFailed(f"libllama answered {code} to LoRA adapters")
        self._adapters = adapters

    def decode(self, batch: Batch) -> int:
        """Decode all rows and return libllama's code.

        0 done; 1 no room in the KV cache, nothing changed; 2 aborted; negative: refused or failed,
        and part of the batch may be in the cache (see `seq_pos_max`).
        """
        limit = self.n_ubatch if self.embeddings else self.n_batch
        if batch.n_tokens > limit:
            raise DecodeFailed(f"a batch of {batch.n_tokens} rows, the context takes {limit}")
        code: int = self._lib.llama_decode(self.pointer, batch.view())
        if self._interrupt.is_set:
            self._interrupt.clear()
        self._n_rows = batch.n_tokens if code == 0 else 0
        if self._begun is not None and code == 0:
            self._begun |= batch.seq_ids_at_start()
        return code

    def interrupt(self) -> None:
        """Let the decode that is running now answer 2 soon, where the build can. Any thread.

        If none is running, the next one is aborted: whoever calls this must be able to try again.
        """
        self._interrupt.set()

    # The KV cache. Positions are [p0, p1); p0 < 0 means 0, p1 < 0 the end.

    def seq_rm(self, seq_id: int, p0: int, p1: int) -> bool:
        """Forget positions of a sequence; False if the model cannot forget a part (recurrent)."""
        require_in_range("seq_id", seq_id, self.n_seq_max)
        done = bool(self._lib.llama_memory_seq_rm(self.pointer, seq_id, p0, p1))
        if self._begun is not None and done and p0 <= 0 and p1 != 0:
            self._begun.discard(seq_id)
        return done

    def seq_cp(self, src: int, dst: int, p0: int, p1: int) -> None:
        """Copy positions of `src` to `dst`, which must not have them yet."""
        require_in_range("seq_id", src, self.n_seq_max)
        require_in_range("seq_id", dst, self.n_seq_max)
        if self.kv_unified:
            self._lib.llama_memory_seq_cp(self.pointer, src, dst, p0, p1)
        else:
            self._copy_stream(src, dst, p0, p1)
        if self._begun is not None and src in self._begun and p0 <= 0:
            self._begun.add(dst)

    @property
    def can_cut(self) -> bool:
        """False where `seq_rm` only takes whole sequences: this is known before it is tried."""
        return not self.model.has_state

    @property
    def can_shift(self) -> bool:
        """True where `seq_add` works: not every memory can give a token another position.

        libllama says so of recurrent ones too, but it takes no tokens out of their middle.
        """
        can_move = self._lib.has("can_shift") and self._lib.llama_memory_can_shift(self.pointer)
        return self.can_cut and bool(can_move)

    def seq_add(self, seq_id: int, p0: int, p1: int, delta: int) -> None:
        """Move the positions [p0, p1) by `delta`; libllama turns the keys with the next decode."""
        require_in_range("seq_id", seq_id, self.n_seq_max)
        self._lib.llama_memory_seq_add(self.pointer, seq_id, p0, p1, delta)

    def _copy_stream(self, src: int, dst: int, p0: int, p1: int) -> None:
        """Copy between sequences that own their cells: whole, then cut; parts abort from b6122."""
        if p0 > 0:
            raise DecodeFailed("without a unified KV cache a copy must start at position 0")
        self._lib.llama_memory_seq_cp(self.pointer, src, dst, -1, -1)
        if p1 >= 0:
            self._lib.llama_memory_seq_rm(self.pointer, dst, p1, -1)

    def seq_pos_max(self, seq_id: int) -> int:
        """Return the last position of a sequence, -1 if it is empty (in every build)."""
        require_in_range("seq_id", seq_id, self.n_seq_max)
        last = int(self._lib.llama_memory_seq_pos_max(self.pointer, seq_id))
        is_empty = last == 0 and self._begun is not None and seq_id not in self._begun
        return -1 if is_empty else last

    def has_window(self, seq_id: int, n: int) -> bool:
        """True if a sequence may go on from its first `n` positions, the later ones cut off.

        Where attention looks through a sliding window, libllama gives away the cells of keys that
        fell out of it, and a saved state is without them. Builds that cannot tell keep them all.
        """
        require_in_range("seq_id", seq_id, self.n_seq_max)
        if not self.n_swa or not self._lib.has("seq_pos_min"):
            return True
        first = int(self._lib.llama_memory_seq_pos_min(self.pointer, seq_id))
        return first <= max(0, n - self.n_swa)

    def clear(self) -> None:
        """Forget all sequences."""
        self._lib.llama_memory_clear(self.pointer, True)
        if self._begun is not None:
            self._begun.clear()

    # Results of the last decode

    def logits_pointer(self, row: int) -> Any:
        """Return a pointer to n_vocab floats, valid until the next decode."""
        require_in_range("row", row, self._n_rows)
        pointer = self._lib.llama_get_logits_ith(self.pointer, row)
        if not pointer:
            raise DecodeFailed(f"row {row} of the last batch has no logits")
        return pointer

    def logits_row(self, row: int) -> array[float]:
        """Return a copy of the n_vocab logits of one row of the last batch."""
        return _floats(self.logits_pointer(row), self.model.vocab.n_tokens)

    def logprobs(self, row: int, token: int, n_top: int) -> tuple[float, list[tuple[int, float]]]:
        """Return the log probability of `token` in `row`, and (id, logprob) of the `n_top` best.

        The model's own, before any sampler; `n_top` is at most 20. Some ms on a large vocabulary.
        """
        own, top = self.logprobs_of(row, (token,), n_top)
        return own[0], top

    def logprobs_of(
        self, row: int, tokens: Sequence[int], n_top: int
    ) -> tuple[list[float], list[tuple[int, float]]]:
        """As `logprobs`, of several tokens: hardly more work than of one."""
        if self._logprobs is None:
            self._logprobs = LogprobReader(self._lib, self.model.vocab.n_tokens, self)
        return self._logprobs.read(self.logits_pointer(row), tokens, n_top)

    def embeddings_seq(self, seq_id: int) -> array[float]:
        """Return a copy of the pooled vector of a sequence, not normalised; n_embd floats.

        With rank pooling these are the classifier's scores instead.
        """
        require_in_range("seq_id", seq_id, self.n_seq_max)
        return self._embedding(self._lib.llama_get_embeddings_seq(self.pointer, seq_id))

    def embeddings_row(self, row: int) -> array[float]:
        """Return a copy of the vector of one row of the last batch (pooling none)."""
        require_in_range("row", row, self._n_rows)
        return self._embedding(self._lib.llama_get_embeddings_ith(self.pointer, row))

    def _embedding(self, pointer: Any) -> array[float]:
        if not pointer:
            raise DecodeFailed("libllama made no embedding for this input")
        return _floats(pointer, self._n_embedding)

    # Saved states

    def state_seq_size(self, seq_id: int) -> int:
        """Return how many bytes `state_seq_get` gives."""
        require_in_range("seq_id", seq_id, self.n_seq_max)
        return int(self._lib.llama_state_seq_get_size(self.pointer, seq_id))

    def state_seq_get(self, seq_id: int) -> bytes:
        """Return the KV cache of one sequence; only the same build and model can take it back."""
        n_bytes = self.state_seq_size(seq_id)
        state = _blank_bytes(n_bytes)
        n_written = self._lib.llama_state_seq_get_data(
            self.pointer, _address(state), n_bytes, seq_id
        )
        return state[:n_written]  # all of it, as a rule: then this is no copy

    def state_seq_set(self, seq_id: int, data: bytes) -> bool:
        """Put back what `state_seq_get` gave; False, and an empty sequence, if libllama refuses.

        Give it no bytes whose origin is not proved, by a hash that was stored with the build and
        the model: to b5640 garbage hangs or takes gigabytes.
        """
        require_in_range("seq_id", seq_id, self.n_seq_max)
        self.seq_rm(seq_id, -1, -1)
        n_read = self._lib.llama_state_seq_set_data(self.pointer, _address(data), len(data), seq_id)
        if not n_read:
            self.seq_rm(seq_id, -1, -1)
            return False
        if self._begun is not None:
            self._begun.add(seq_id)
        return True


def _blank_bytes(n: int) -> bytes:
    """Return `n` bytes for libllama to fill, as CPython allows while nobody else has seen them.

    A buffer of ctypes would have to be copied: a state is many megabytes.
    """
    make = ctypes.pythonapi.PyBytes_FromStringAndSize
    make.restype, make.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_ssize_t)
    blank: bytes = make(None, n)
    return blank


def _address(data: bytes) -> Any:
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p)


def kv_bytes_per_token(model: Model, settings: EngineSettings) -> int:
    """Return what one cell of the KV cache takes, over all layers."""
    n_key, n_value = model.kv_elements_per_token()
    pairs = ((n_key, settings.cache_type_k), (n_value, settings.cache_type_v))
    return sum(ggml_types.size_bytes(_cache_type(name), n) or 0 for n, name in pairs)


def prefers_unified(model: Model, settings: EngineSettings, cache_bytes: int) -> bool:
    """Return what the user wants of the KV cache, else what is faster; see engine/scheduler.py.

    On a GPU flash attention skips the cells of other sequences, and passes are cheap. They are
    cheap on a small model too, but not beside a cache that is larger than that.
    """
    if settings.kv_unified is not None:
        return settings.kv_unified
    if settings.n_parallel == 1 or settings.n_gpu_layers != 0:
        return True
    return model.n_params < SMALL_MODEL and cache_bytes <= SMALL_CACHE * model.size_bytes


def default_n_ctx(model: Model, settings: EngineSettings) -> int:
    """Return the context of one slot where the user gave none: the model's, if memory allows."""
    wished = model.n_ctx_train or N_CTX_UNKNOWN
    per_token = kv_bytes_per_token(model, settings) * max(1, settings.n_parallel)
    free = machine.available_memory_bytes()
    if not free or not per_token:
        return min(wished, N_CTX_UNKNOWN) if per_token else wished
    # Mapped weights lie in the page cache, which counts as free: they must stay there.
    room = max(free - model.size_bytes, free // 8) // MEMORY_SHARE
    fitting = room // per_token // KV_PADDING * KV_PADDING
    return min(wished, max(fitting, KV_PADDING))


def default_pooling(model: Model, settings: EngineSettings) -> str:
    """Return how embeddings are pooled: as asked, else the model's own, else mean if it works."""
    own = POOLING_NAMES.get(model.pooling, "none")
    name = settings.pooling or own
    if name == "rank" and not model.has_classifier:
        raise ModelLoadFailed(
            f"{model.file.path}: pooling rank needs a classifier, which this model lacks"
        )
    if settings.pooling or own != "none":
        return name
    return "last" if model.lib.hazard("mean_pooling") else "mean"


def pooled_tokens(model: Model, settings: EngineSettings) -> int:
    """Return how many tokens one input of a pooled context may have: it is one micro-batch.

    A model that writes text gets --batch-size; one that only embeds all that it was trained on, as
    far as memory allows for attention between all of them. Beyond its training some abort.
    """
    trained = model.n_ctx_train or settings.n_batch
    if model.generates:
        return min(settings.n_batch, trained)
    n_heads = max(1, model.file.of_architecture("attention.head_count"))
    room = machine.available_memory_bytes() // MEMORY_SHARE
    fitting = math.isqrt(room // (SCORE_BYTES * n_heads))
    return min(trained, max(settings.n_batch, fitting))


def _wishes(
    model: Model, settings: EngineSettings, embeddings: bool, pooling: str
) -> dict[str, Any]:
    """Return what is asked of llama_context_params, by the newest names of its fields."""
    n_seq_max = settings.n_parallel
    n_ctx_seq = settings.n_ctx or default_n_ctx(model, settings)
    # n_seq_max > n_batch aborts from b9460
    n_batch = max(1, n_seq_max, min(settings.n_batch, n_ctx_seq * n_seq_max))
    n_threads = settings.n_threads or machine.default_threads()
    cache_bytes = n_ctx_seq * n_seq_max * kv_bytes_per_token(model, settings)
    unified = prefers_unified(model, settings, cache_bytes)
    if not unified:  # libllama would do it, and warn of it
        n_ctx_seq = -(-n_ctx_seq // KV_PADDING) * KV_PADDING
    wishes: dict[str, Any] = {
        "n_ctx": n_ctx_seq * n_seq_max,
        "n_batch": n_batch,
        "n_ubatch": n_batch if embeddings else min(settings.n_ubatch, n_batch),
        "n_seq_max": n_seq_max,
        "n_threads": n_threads,
        "n_threads_batch": settings.n_threads_batch or n_threads,
        "type_k": _cache_type(settings.cache_type_k),
        "type_v": _cache_type(settings.cache_type_v),
        "flash_attn_type": _flash_attn(settings),
        "kv_unified": unified,
        "embeddings": embeddings,
        "no_perf": True,
    }
    if embeddings:
        wishes["pooling_type"] = POOLING[pooling or default_pooling(model, settings)]
    return wishes


def _cache_type(name: str) -> int:
    if name not in ggml_types.CACHE_TYPES:
        known = ", ".join(ggml_types.CACHE_TYPES)
        raise ModelLoadFailed(f"cache type {name!r} is unknown; known are {known}")
    return ggml_types.CACHE_TYPES[name]


def _flash_attn(settings: EngineSettings) -> int:
    """Return a llama_flash_attn_type; a quantised V cache needs flash attention in every build."""
    if settings.cache_type_v in WHOLE_TYPES:
        # On a CPU the flash kernel is slow for the few rows of a decode step: with 3,000 tokens
        # of past, 1 row took 30 ms against 12 without, 16 rows 357 against 24 (v0.5.0, 15M model).
        on_cpu = settings.flash_attn == "auto" and settings.n_gpu_layers == 0
        return FLASH_ATTN["off" if on_cpu else settings.flash_attn]
    if settings.flash_attn == "off":
        raise ModelLoadFailed(
            f"cache type {settings.cache_type_v} for V needs flash attention: "
            "leave out --flash-attn off, or use f16"
        )
    return FLASH_ATTN["on"]


def _n_embedding(lib: Any, model: Model, pooling: int) -> int:
    """Return how many numbers libllama gives for one input."""
    if pooling == POOLING["rank"]:
        return max(1, lib.llama_model_n_cls_out(model.pointer)) if lib.has("classifier") else 1
    return int(lib.llama_model_n_embd_out(model.pointer) if lib.has("n_embd_out") else model.n_embd)


def _why_refused(wishes: dict[str, Any]) -> str:
    return (
        f"libllama cannot make a context of {wishes['n_ctx']:,} cells for "
        f"{wishes['n_seq_max']} slots: try a smaller --ctx-size, fewer slots (--parallel), or "
        "other cache types"
    )


def _floats(pointer: Any, count: int) -> array[float]:
    numbers = array("f")
    numbers.frombytes(ctypes.string_at(pointer, count * numbers.itemsize))
    return numbers
