#!/usr/bin/env python3
"""What the library can do alone: decode loops over libloader.llama, without engine or HTTP.

A process of its own with the flags of `igllama api`, so that library, model, threads, batch and KV
cache are the server's. It reads one JSON request a line and answers each with one line.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Callable

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from benching import arithmetic  # noqa: E402
from libloader import core, options  # noqa: E402
from libloader.abi import find, library  # noqa: E402
from libloader.llama.batch import Batch  # noqa: E402
from libloader.llama.context import Context  # noqa: E402
from libloader.llama.model import Model  # noqa: E402
from libloader.llama.sampler import SamplerChain  # noqa: E402
from libloader.llama.threads import ThreadPools  # noqa: E402
from libloader.protocol import chat  # noqa: E402

FIRST_TOKEN = 300  # any ordinary token: what it says does not matter to the time
EMBEDDING_SEQUENCES = 32  # that share one batch of embeddings


class RawLoop:
    """A model and its contexts; each method answers one request."""

    def __init__(self, flags: Sequence[str], stack: ExitStack) -> None:
        self._settings = options.engine_settings(options.parse(flags, {}))
        self._lib = find.find_library(self._settings.lib, library.load)
        self._stack = stack
        self._pools = stack.enter_context(ThreadPools(self._lib))
        model = Model.load(self._lib, self._settings.model, self._settings, lambda done: None)
        self._model = stack.enter_context(model)
        self._context: Context | None = None
        self._embedding_context: Context | None = None

    def decode(self, n_streams: int, n_prompt: int, n_tokens: int, body: Any) -> dict[str, float]:
        """Prefill and generate as a server must: the first token comes out of the prefill."""
        context = self._generating()
        sampling = chat.read_request(body, seed_source=random.Random(1)).generation.sampling
        chains = [SamplerChain(self._model, sampling, context.n_ctx_seq) for _ in range(n_streams)]
        batch = Batch(self._lib, context.n_batch, context.n_seq_max)
        started_s = time.perf_counter()
        tokens = self._prefill(context, batch, chains, n_prompt)
        prefilled_s = time.perf_counter()
        for position in range(n_prompt, n_prompt + n_tokens - 1):
            batch.clear()
            for seq_id, token in enumerate(tokens):
                batch.add(token, position, seq_id, True)
            must_decode(context, batch)
            tokens = [chain.sample(context, row) for row, chain in enumerate(chains)]
        ended_s = time.perf_counter()
        for chain in chains:
            chain.close()
        context.clear()
        return {"prefill_s": prefilled_s - started_s, "decode_s": ended_s - prefilled_s}

    def prefill(self, n: int) -> dict[str, list[float]]:
        """Seconds of each n_ubatch of one prompt of `n` tokens."""
        context = self._generating()
        batch, seconds = Batch(self._lib, context.n_batch, context.n_seq_max), []
        for start in range(0, n, context.n_ubatch):
            begun_s = time.perf_counter()
            batch.clear()
            for position in range(start, min(n, start + context.n_ubatch)):
                batch.add(FIRST_TOKEN + position % 97, position, 0, False)
            must_decode(context, batch)
            self._lib.llama_synchronize(context.pointer)
            seconds.append(time.perf_counter() - begun_s)
        context.clear()
        return {"chunk_s": seconds}

    def embed(self, texts: list[str]) -> dict[str, float]:
        """Tokenize, pack into full batches, decode, copy the vectors out."""
        context = self._embedding()
        batch = Batch(self._lib, context.n_batch, context.n_seq_max)
        started_s = time.perf_counter()
        for group in packed(map(self._tokens, texts), context.n_batch, context.n_seq_max):
            batch.clear()
            for seq_id, tokens in enumerate(group):
                for position, token in enumerate(tokens):
                    batch.add(token, position, seq_id, True)
            must_decode(context, batch)
            for seq_id in range(len(group)):
                context.embeddings_seq(seq_id)
            context.clear()
        return {"seconds": time.perf_counter() - started_s}

    def distinct(self, texts: list[str]) -> dict[str, int]:
        """How many tokens of all `texts` must be computed if no prefix is computed twice."""
        return {"n": arithmetic.n_distinct(map(self._tokens, texts))}

    def vocabulary(self) -> dict[str, int]:
        """Bytes that libllama takes for the vocabulary: what a model without weights adds."""
        before = anonymous_bytes()
        params = self._lib.model_params()
        params.set("vocab_only", True)
        pointer = self._lib.llama_model_load_from_file(self._settings.model.encode(), params)
        taken = anonymous_bytes() - before
        self._lib.llama_model_free(pointer)
        return {"bytes": taken}

    def _prefill(
        self, context: Context, batch: Batch, chains: Sequence[SamplerChain], n_prompt: int
    ) -> list[int]:
        """Decode all prompts in full batches; return the first token of each stream."""
        tokens: list[int] = []
        at_end: list[tuple[SamplerChain, int]] = []
        batch.clear()
        for seq_id, chain in enumerate(chains):
            for position in range(n_prompt):
                is_last = position == n_prompt - 1
                batch.add(FIRST_TOKEN + seq_id, position, seq_id, is_last)
                if is_last:
                    at_end.append((chain, batch.n_tokens - 1))
                if batch.n_tokens == batch.capacity or (is_last and chain is chains[-1]):
                    must_decode(context, batch)
                    tokens += [each.sample(context, row) for each, row in at_end]
                    at_end.clear()
                    batch.clear()
        return tokens

    def _tokens(self, text: str) -> list[int]:
        return self._model.vocab.tokenize(text, add_special=True, parse_special=True)

    def _generating(self) -> Context:
        if self._context is None:
            self._context = self._stack.enter_context(self._made(self._settings))
        return self._context

    def _made(self, settings: core.EngineSettings, **more: Any) -> Context:
        return Context(self._model, settings, pools=self._pools, **more)

    def _embedding(self) -> Context:
        if self._embedding_context is None:
            n_batch = min(self._settings.n_batch, self._model.n_ctx_train)
            n_seq = EMBEDDING_SEQUENCES
            wishes = core.EngineSettings(
                n_parallel=n_seq, n_ctx=-(-n_batch // n_seq), n_batch=n_batch, kv_unified=True,
                n_threads=self._settings.n_threads,
            )  # fmt: skip
            context = self._made(wishes, embeddings=True)
            self._embedding_context = self._stack.enter_context(context)
        return self._embedding_context


def anonymous_bytes() -> int:
    """What this process has in memory that is no file's; Linux only."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss_Anon:"))


def packed(inputs: Any, n_rows: int, n_sequences: int) -> list[list[list[int]]]:
    """Group inputs in order, as many as fit one batch."""
    groups: list[list[list[int]]] = []
    room = 0
    for tokens in inputs:
        room -= len(tokens)
        if room < 0 or len(groups[-1]) == n_sequences:
            groups.append([])
            room = n_rows - len(tokens)
        groups[-1].append(tokens)
    return groups


def must_decode(context: Context, batch: Batch) -> None:
    code = context.decode(batch)
    if code != 0:
        raise SystemExit(f"llama_decode answered {code} to {batch.n_tokens} rows")


def main() -> int:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # native code may print
    with ExitStack() as stack:
        raw = RawLoop(sys.argv[1:], stack)
        can: dict[str, Callable[..., Any]] = {
            "decode": raw.decode, "prefill": raw.prefill, "embed": raw.embed,
            "distinct": raw.distinct, "vocabulary": raw.vocabulary,
        }  # fmt: skip
        for line in sys.stdin:
            request = json.loads(line)
            print(json.dumps(can[request.pop("do")](**request)), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
