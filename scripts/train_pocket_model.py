#!/usr/bin/env python3
"""Train the pocket model from scratch and write it as GGUF. A development tool: needs PyTorch.

    pip install torch numpy jinja2
    python3 scripts/train_pocket_model.py -o tests/models/pocket.gguf

The corpus is drawn from scripts/pocket/ with a fixed seed; the same machine and the same
PyTorch write the same file. What the model can do afterwards is held by
tests/test_pocket_model.py on the real library, not by this script.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Callable, NamedTuple

import torch
from gguf_writer import Value, write_gguf
from pocket import bpe, closed, corpus
from pocket.network import Network, Shape, gguf_tensors
from pocket.start import begin_with_copying
from torch.nn import functional

# Qwen's markers and their kinds: what opens a turn is control, what a client may want to see
# as text (tool calls, thinking) is user-defined.
CONTROL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|fim_prefix|>",
    "<|fim_suffix|>",
    "<|fim_middle|>",
)
USER_TOKENS = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
)
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # enum llama_token_type
N_VOCAB = 1024
N_TEXTS_FOR_BPE = 6000
IGNORED = -100


def main() -> int:
    options = read_options()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    tokenizer = make_tokenizer(options.seed)
    network = Network(Shape(len(tokenizer.tokens)))
    begin_with_copying(network)
    print(
        f"{sum(p.numel() for p in network.parameters()):,} parameters, "
        f"{len(tokenizer.tokens)} tokens",
        flush=True,
    )
    for step in train(network, tokenizer, options):
        if step % options.every == 0 or step == options.steps:
            write(network, tokenizer, options.output)
    return 0


def write(network: Network, tokenizer: bpe.Tokenizer, path: str) -> None:
    size = write_gguf(path, metadata(network.shape, tokenizer), gguf_tensors(network))
    print(f"{path}: {size:,} bytes", flush=True)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", required=True, metavar="FILE")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument(
        "--every",
        type=int,
        default=500,
        metavar="STEPS",
        help="also write the file so often, to look at it early",
    )
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="more than one only pays on an otherwise idle machine",
    )
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def make_tokenizer(seed: int) -> bpe.Tokenizer:
    rng = random.Random(f"{seed} tokenizer")
    special = (*CONTROL_TOKENS, *USER_TOKENS)
    plain = bpe.Tokenizer([], special)
    samples = (corpus.draw(rng) for _ in range(N_TEXTS_FOR_BPE))
    texts = (sample.prompt + sample.answer for sample in samples)
    merges = bpe.train(
        (part for text in texts for part in plain.plain_parts(text)), N_VOCAB - 256 - len(special)
    )
    return bpe.Tokenizer(merges, special)


# --- batches -------------------------------------------------------------------------------


class Row(NamedTuple):
    """Token ids of one sample, and for each whether the model is to learn to write it."""

    ids: list[int]
    learned: list[bool]


def row(tokenizer: bpe.Tokenizer, sample: corpus.Sample) -> Row:
    prompt, answer = tokenizer.encode(sample.prompt), tokenizer.encode(sample.answer)
    return Row(
        prompt + answer,
        earlier_answers(tokenizer, prompt) + free_tokens(tokenizer, answer, sample.dictated),
    )


def earlier_answers(tokenizer: bpe.Tokenizer, prompt: Sequence[int]) -> list[bool]:
    """The model's earlier turns are learned too, all but their first token.

    The template drops earlier thoughts, so in the prompt an answer follows where a thought or an
    empty <think> block came when it was written: its first token is the template's doing.
    """
    opening = tokenizer.encode("<|im_start|>assistant\n")
    closing, think = tokenizer.encode("<|im_end|><think>")
    learned = [False] * len(prompt)
    for start in range(len(prompt) - len(opening)):
        at = start + len(opening)
        if prompt[start:at] == opening and prompt[at] != think:
            end = prompt.index(closing, at)
            learned[at + 1 : end + 1] = [True] * (end - at)
    return learned


def free_tokens(
    tokenizer: bpe.Tokenizer, answer: Sequence[int], dictated: Sequence[tuple[int, int]]
) -> list[bool]:
    """Tokens that are the model's own choice: those that no dictated character ends."""
    learned, end = [], 0
    for token in answer:
        end += len(tokenizer.tokens[token])
        learned.append(not any(start < end <= stop for start, stop in dictated))
    return learned


class Stage(NamedTuple):
    """A part of the training: until which share of the steps, and what its rows are."""

    until: float
    longest: int  # tokens; rows that are longer are left out
    share_of_drills: float
    draw: Callable[[random.Random], corpus.Sample]


# Short rows first: they are many more for the same work, and most dialogues are short. Then the
# closed course: what tests and documentation rely on gets its margins.
STAGES = (
    Stage(0.1, 160, 0.1, corpus.draw),
    Stage(0.3, 1024, 0.02, corpus.draw),
    Stage(1.0, 450, 0.0, closed.draw),
)


def batches(
    tokenizer: bpe.Tokenizer, options: argparse.Namespace
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (inputs, targets): rows of similar length together, in random order."""
    rng = random.Random(f"{options.seed} batches")
    step = 0
    while True:
        stage = next(one for one in STAGES if step < one.until * options.steps or one == STAGES[-1])
        rows = (one_row(tokenizer, stage, rng) for _ in range(1000))
        fitting = sorted((r for r in rows if len(r.ids) <= stage.longest), key=lambda r: len(r.ids))
        cut = list(cut_by_tokens(fitting, options.batch_tokens))[:-1]
        rng.shuffle(cut)
        yield from map(padded, cut)
        step += len(cut)


def one_row(tokenizer: bpe.Tokenizer, stage: Stage, rng: random.Random) -> Row:
    if rng.random() < stage.share_of_drills:
        return drill(rng, len(tokenizer.tokens) - len(tokenizer.special))
    return row(tokenizer, stage.draw(rng))


def drill(rng: random.Random, n_tokens: int) -> Row:
    """A random sequence three times; all after its first time is learned."""
    before = rng.choices(range(n_tokens), k=rng.randint(0, 20))
    once = rng.choices(range(n_tokens), k=rng.randint(3, 24))
    n_read = len(before) + len(once) + 1
    ids = before + once * 3
    return Row(ids, [False] * n_read + [True] * (len(ids) - n_read))


def cut_by_tokens(rows: Sequence[Row], batch_tokens: int) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for item in rows:
        if batch and len(item.ids) * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(item)
    yield batch


def padded(rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(item.ids) for item in rows)
    inputs = torch.zeros(len(rows), width - 1, dtype=torch.long)
    targets = torch.full((len(rows), width - 1), IGNORED)
    for index, (ids, learned) in enumerate(rows):
        inputs[index, : len(ids) - 1] = torch.tensor(ids[:-1])
        targets[index, : len(ids) - 1] = torch.tensor(
            [token if wanted else IGNORED for token, wanted in zip(ids[1:], learned[1:])]
        )
    return inputs, targets


# --- training ------------------------------------------------------------------------------


def train(network: Network, tokenizer: bpe.Tokenizer, options: argparse.Namespace) -> Iterator[int]:
    """Train, and yield the number of steps done after each."""
    optimizers = [
        torch.optim.Muon(
            list(network.matrices()),
            lr=options.lr,
            weight_decay=0.01,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            list(network.others()), lr=options.lr, weight_decay=0.0, betas=(0.9, 0.98)
        ),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(one, lambda step: rate(step, options.steps))
        for one in optimizers
    ]
    source = batches(tokenizer, options)
    started, mean = time.monotonic(), 0.0
    for step in range(options.steps):
        inputs, targets = next(source)
        value = learn(network, inputs, targets)
        for one in (*optimizers, *schedules):
            one.step()
        for one in optimizers:
            one.zero_grad()
        mean += (value - mean) / min(step + 1, 50)
        if step % 50 == 49:
            print(
                f"step {step + 1}: loss {mean:.4f}, {time.monotonic() - started:.0f} s", flush=True
            )
        yield step + 1


def learn(network: Network, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    """One backward pass; only the learned positions reach the output matrix."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = network(inputs)
        wanted = targets != IGNORED
        logits = network.logits(hidden[wanted])
    loss = functional.cross_entropy(logits.float(), targets[wanted])
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    return loss.item()


def rate(step: int, n_steps: int) -> float:
    """Warm up, stay, then fall in a straight line over the last half."""
    return min((step + 1) / 50, 1.0, max(n_steps - step, 1) / (n_steps * 0.5))


# --- metadata ------------------------------------------------------------------------------


def metadata(shape: Shape, tokenizer: bpe.Tokenizer) -> dict[str, Value]:
    return {**general(), **architecture(shape), **vocabulary(tokenizer)}


def general() -> dict[str, Value]:
    return {
        "general.architecture": "llama",
        "general.name": "igllama pocket",
        "general.author": "igllama",
        "general.license": "mit",
        "general.description": "A tiny chat model that makes tests of a server real",
        "general.size_label": "1.3M",
        "general.file_type": 1,
        "general.quantization_version": 2,
    }


def architecture(shape: Shape) -> dict[str, Value]:
    return {
        "llama.block_count": shape.n_layer,
        "llama.context_length": shape.n_ctx_train,
        "llama.embedding_length": shape.n_embd,
        "llama.feed_forward_length": shape.n_ff,
        "llama.attention.head_count": shape.n_head,
        "llama.attention.head_count_kv": shape.n_head_kv,
        "llama.attention.layer_norm_rms_epsilon": shape.norm_epsilon,
        "llama.rope.dimension_count": shape.head_size,
        "llama.rope.freq_base": shape.rope_base,
        "llama.vocab_size": shape.n_vocab,
    }


def vocabulary(tokenizer: bpe.Tokenizer) -> dict[str, Value]:
    id_of = tokenizer.id_of
    n_normal = len(tokenizer.tokens) - len(tokenizer.special)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokenizer.tokens,
        "tokenizer.ggml.token_type": (
            [NORMAL] * n_normal
            + [CONTROL] * len(CONTROL_TOKENS)
            + [USER_DEFINED] * len(USER_TOKENS)
        ),
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in tokenizer.merges],
        "tokenizer.ggml.bos_token_id": id_of["<|endoftext|>"],
        "tokenizer.ggml.eos_token_id": id_of["<|im_end|>"],
        "tokenizer.ggml.eot_token_id": id_of["<|im_end|>"],
        "tokenizer.ggml.padding_token_id": id_of["<|endoftext|>"],
        "tokenizer.ggml.fim_pre_token_id": id_of["<|fim_prefix|>"],
        "tokenizer.ggml.fim_suf_token_id": id_of["<|fim_suffix|>"],
        "tokenizer.ggml.fim_mid_token_id": id_of["<|fim_middle|>"],
        # the same three as releases before b3912 name them
        "tokenizer.ggml.prefix_token_id": id_of["<|fim_prefix|>"],
        "tokenizer.ggml.suffix_token_id": id_of["<|fim_suffix|>"],
        "tokenizer.ggml.middle_token_id": id_of["<|fim_middle|>"],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": corpus.TEMPLATE_TEXT,
    }


if __name__ == "__main__":
    sys.exit(main())
