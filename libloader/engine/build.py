"""From settings to an engine that is ready: library, model, context, batch, in this order.

Lives here: which native parts an engine consists of, and what it says of itself. Not here: how any
of them works. The only module of this layer that makes native objects.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, Callable

from libloader import digests
from libloader.abi import find, library
from libloader.core import EngineSettings, ModelInfo, Sampling
from libloader.engine.draft import DraftModel
from libloader.engine.engine import Engine, n_ctx_slot, no_breadcrumb
from libloader.engine.intake import default_adapters
from libloader.engine.ports import Breadcrumb
from libloader.engine.prefix_file import Folder
from libloader.engine.prefix_store import PrefixStore
from libloader.errors import ModelLoadFailed
from libloader.llama import lora
from libloader.llama.batch import Batch
from libloader.llama.context import Context, default_pooling, pooled_tokens
from libloader.llama.model import Model
from libloader.llama.sampler import SamplerChain
from libloader.llama.threads import ThreadPools
from libloader.llama.vocab import why_apart

NO_SHIFT = (
    "{}: the memory of this model, in this libllama, cannot be shifted; start without "
    "--context-shift"
)
GREEDY = Sampling(temperature=0.0)
EMBEDDING_SEQUENCES = 32  # inputs that share one batch
N_SAMPLES, SAMPLE_BYTES = 64, 1 << 16  # of a file, for its fingerprint; a small one is read whole


def build_engine(
    settings: EngineSettings,
    progress: Callable[[float], None] = lambda done: None,
    breadcrumb: Breadcrumb = no_breadcrumb,
) -> Engine:
    """Load `settings.model` and return its engine; the caller closes it. Raises a StartError."""
    started_s = time.monotonic()
    lib = find.find_library(settings.lib, library.load, lib_cache=settings.lib_cache)
    with contextlib.ExitStack() as stack:
        pools = stack.enter_context(ThreadPools(lib))
        model = stack.enter_context(Model.load(lib, settings.model, settings, progress))
        if model.is_encoder_decoder:
            raise ModelLoadFailed(f"{settings.model}: encoder-decoder models are not supported")
        model.adapters += [lora.load(model, path) for path, _ in settings.lora]
        context = stack.enter_context(Context(model, settings, pools=pools))
        if settings.context_shift and not context.can_shift:
            raise ModelLoadFailed(NO_SHIFT.format(settings.model))
        info = describe(lib, model, context, settings)
        info = dataclasses.replace(info, load_ms=(time.monotonic() - started_s) * 1e3)
        guesses = stack.enter_context(_draft_model(model, settings, info.n_ctx_slot, pools))
        return Engine(
            model,
            context,
            settings,
            batch=Batch(lib, context.n_batch, context.n_seq_max),
            open_chain=functools.partial(_open_chain, model, info.n_ctx_slot),
            open_embedder=functools.partial(_embedding_context, lib, model, settings, pools),
            store=_open_store(settings, lib, context),
            guesses=guesses,
            can_generate=model.generates,
            n_sampling_threads=context.n_threads,
            breadcrumb=breadcrumb,
            info=info,
            on_close=stack.pop_all().close,
        )


def describe(lib: Any, model: Model, context: Context, settings: EngineSettings) -> ModelInfo:
    """Return what the loaded parts say of themselves."""
    vocab, scales = model.vocab, dict(default_adapters(settings))
    return ModelInfo(
        alias=settings.alias,
        path=settings.model,
        description=model.description,
        architecture=model.architecture,
        size_bytes=model.size_bytes,
        n_params=model.n_params,
        n_vocab=vocab.n_tokens,
        n_embd=model.n_embd,
        generates=model.generates,
        pooling=default_pooling(model, settings),
        rerank_template=model.file.text("tokenizer.chat_template.rerank"),
        n_ctx_train=model.n_ctx_train,
        n_ctx=context.n_ctx,
        n_ctx_slot=_n_ctx_slot(model, context, settings),
        n_slots=min(settings.n_parallel, context.n_seq_max),
        n_batch=context.n_batch,
        n_ubatch=context.n_ubatch,
        n_threads=context.n_threads,
        n_threads_batch=context.n_threads_batch,
        kv_bytes=context.kv_bytes,
        bos_token=_text(model, vocab.bos),
        eos_token=_text(model, vocab.eos),
        special_tokens=vocab.special_tokens,
        adapters=tuple((path, scales.get(i, 0.0)) for i, (path, _) in enumerate(settings.lora)),
        chat_template=model.chat_template,
        tool_template=model.tool_template,
        library_path=lib.path,
        library_release=lib.release,
        library_layout=lib.layout,
        backends=lib.backends,
        missing=lib.missing,
    )


def _n_ctx_slot(model: Model, context: Context, settings: EngineSettings) -> int:
    """Return what one request may have: without text to write, the embedding context decides."""
    return n_ctx_slot(context, settings) if model.generates else pooled_tokens(model, settings)


def _open_store(settings: EngineSettings, lib: Any, context: Context) -> PrefixStore:
    folder = None
    if settings.cache_dir:
        adapters = [_content_hash(path) for path, _ in settings.lora]
        folder = Folder(settings.cache_dir, _binding(settings, lib, context), adapters)
    return PrefixStore(settings.cache_ram_mib << 20, folder, settings.cache_disk_mib << 20)


def _binding(settings: EngineSettings, lib: Any, context: Context) -> bytes:
    """Return a hash of all that a saved state's bytes depend on.

    The library goes in by content: it is small, and one that is unpacked anew is no other.
    """
    file = context.model.file
    facts = (
        *(_fingerprint(part.path) for part in (file, *file.parts)),
        *(_content_hash(lib.path).hex(), lib.release, lib.layout, *lib.backends),
        *(settings.cache_type_k, settings.cache_type_v, settings.flash_attn),
        *(str(settings.n_gpu_layers), str(context.kv_unified), sys.byteorder),
    )
    return digests.blake2b("\0".join(facts).encode(), digest_size=32).digest()


def _content_hash(path: str) -> bytes:
    digest = digests.blake2b(digest_size=32)
    with open(path, "rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            digest.update(piece)
    return digest.digest()


def _fingerprint(path: str) -> str:
    """Return a hash that is another for another file: gigabytes take too long to read.

    Samples alone miss a few changed bytes, as in a finetune of some layers. So the time of the last
    change goes in, which writing in place moves, and the inode, which a file put in its place with
    its time kept (cp -p, rsync -t) does not share. A mere copy is another file by that, and its
    prefixes are computed again: slower once, where a state of other weights would be wrong.
    """
    with open(path, "rb") as file:
        about = os.fstat(file.fileno())
        facts = (about.st_size, about.st_mtime_ns, about.st_ino)
        digest = digests.blake2b(repr(facts).encode())
        for number in range(N_SAMPLES):
            file.seek(about.st_size * number // N_SAMPLES)
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _text(model: Model, token: int) -> str:
    return model.vocab.piece(token, True).decode("utf-8", "replace") if token >= 0 else ""


def _open_chain(model: Model, n_ctx: int, sampling: Sampling) -> SamplerChain:
    return SamplerChain(model, sampling, n_ctx)


@contextlib.contextmanager
def _draft_model(
    model: Model, settings: EngineSettings, n_ctx: int, pools: ThreadPools
) -> Iterator[DraftModel | None]:
    """The small model that guesses for `model`, if one is wanted."""
    if not settings.model_draft:
        yield None
        return
    wishes = dataclasses.replace(
        settings,
        model=settings.model_draft,
        n_gpu_layers=settings.n_gpu_layers_draft,
        n_ctx=n_ctx,
        lora=(),
    )
    with Model.load(model.lib, settings.model_draft, wishes) as small:
        difference = why_apart(model.vocab, small.vocab)
        if difference or not small.generates:
            reason = difference or "it cannot write text"
            raise ModelLoadFailed(f"{settings.model_draft} cannot draft for this model: {reason}")
        with Context(small, wishes, pools=pools) as context:
            yield DraftModel(
                context,
                Batch(model.lib, context.n_batch, context.n_seq_max),
                SamplerChain(small, GREEDY, n_ctx),
                n_vocab=min(model.vocab.n_tokens, small.vocab.n_tokens),
                clock=time.monotonic,
            )


@contextlib.contextmanager
def _embedding_context(
    lib: Any, model: Model, settings: EngineSettings, pools: ThreadPools
) -> Iterator[tuple[Context, Batch]]:
    """A second context of one full batch, its cells shared by all inputs in it."""
    n_batch = pooled_tokens(model, settings)
    wishes = dataclasses.replace(
        settings,
        n_parallel=EMBEDDING_SEQUENCES,
        n_ctx=-(-n_batch // EMBEDDING_SEQUENCES),
        n_batch=n_batch,
        kv_unified=True,
    )
    with Context(model, wishes, embeddings=True, pools=pools) as context:
        yield context, Batch(lib, n_batch, context.n_seq_max)
