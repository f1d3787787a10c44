"""Small steps over the llama layer that several tests of it take."""

from __future__ import annotations

from libloader.core import EngineSettings, Sampling
from libloader.llama.batch import Batch
from libloader.llama.context import Context
from libloader.llama.sampler import SamplerChain

SETTINGS = EngineSettings(n_ctx=128, n_parallel=4, n_batch=64, n_ubatch=64, n_threads=1)


def decode(context: Context, tokens, *, start: int = 0, seq_id: int = 0) -> int:
    """Decode `tokens` of one sequence from position `start`; the last row gets logits."""
    batch = Batch(context.model.lib, max(1, len(tokens)), context.n_seq_max)
    for row, token in enumerate(tokens):
        batch.add(token, start + row, seq_id, row == len(tokens) - 1)
    return context.decode(batch)


def generate(context: Context, sampling: Sampling, n_tokens: int, *, prompt=(1, 2, 3)) -> list[int]:
    """Generate in sequence 0, which is emptied first; ends early at an end-of-generation token."""
    context.seq_rm(0, -1, -1)
    assert decode(context, prompt) == 0
    tokens, row, position = [], len(prompt) - 1, len(prompt)
    with SamplerChain(context.model, sampling, context.n_ctx_seq) as chain:
        chain.accept_prompt(prompt)
        for _ in range(n_tokens):
            tokens.append(chain.sample(context, row))
            if context.model.vocab.is_eog(tokens[-1]):
                break
            assert decode(context, tokens[-1:], start=position) == 0
            row, position = 0, position + 1
    return tokens
