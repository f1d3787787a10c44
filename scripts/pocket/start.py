"""The weights that training starts from: random, but for two heads that can copy.

A small network learns to answer from memory within minutes, but needs far longer to find out how
to repeat a word that it has only just read: two layers must agree on a trick (an "induction head")
before either of them is of any use. So the trick is there from the start, in rough form:

    layer 0, head 0    looks one token back, and notes what stood there
    layer 1, all heads look for a place whose note is the current token, and copy what stands there

With it, 3 of 4 tokens of a repeated random sequence are right before the first step. Everything
else starts at random or, where it writes into the stream, at zero; training is free to change all.

    the stream of numbers:  [0] one and the same for every token   [1..] random, by token
"""

from __future__ import annotations

import math

import torch

from .network import Block, Network

CONSTANT, SPREAD = 1.0, 0.1  # of the embedding: number 0, and the deviation of the others
N_FAST = 3  # rotary pairs that tell one place from the next
FIRST_SLOW = 7  # rotary pairs from here on hardly turn within a hundred places
BACK_SHARPNESS, MATCH_SHARPNESS, COPY_GAIN = 60.0, 4.0, 6.0


@torch.no_grad()
def begin_with_copying(network: Network) -> None:
    network.token_embd.normal_(0, SPREAD)
    network.token_embd[:, 0] = CONSTANT
    for block in network.blk:
        block.attn_output.zero_()
        block.ffn_down.zero_()
    level = network.token_embd.square().mean().sqrt().item()
    current, noted = directions(network), directions(network)
    note_the_token_before(network, network.blk[0], level, current, noted)
    n_noted = network.shape.head_size
    level = math.hypot(level, SPREAD * math.sqrt(n_noted / network.shape.n_embd))
    copy_what_followed(network.blk[1], level, current, noted)


def directions(network: Network) -> torch.Tensor:
    """As many orthogonal directions of the stream as a head has numbers, blind to number 0."""
    columns = torch.randn(network.shape.n_embd, network.shape.head_size)
    rows = torch.linalg.qr(columns).Q.T.contiguous()
    rows[:, 0] = 0
    return rows


def note_the_token_before(
    network: Network, block: Block, level: float, current: torch.Tensor, noted: torch.Tensor
) -> None:
    """Heads 0 and 1 look one and two places back; head 0 writes down what it sees.

    Query and key are made from number 0 alone, so they know nothing but their places.
    """
    size = network.shape.head_size
    strength = math.sqrt(BACK_SHARPNESS) * level / CONSTANT
    speeds = network.shape.rope_base ** (-torch.arange(0, size, 2) / size)[:N_FAST]
    block.attn_k[:size] = 0
    block.attn_k[0 : 2 * N_FAST : 2, 0] = strength
    for head, back in enumerate((1, 2)):
        query = block.attn_q[head * size : (head + 1) * size]
        query.zero_()
        query[0 : 2 * N_FAST : 2, 0] = strength * (back * speeds).cos()
        query[1 : 2 * N_FAST : 2, 0] = -strength * (back * speeds).sin()
    block.attn_v[:size] = current * level
    block.attn_output[:, :size] = noted.T


def copy_what_followed(
    block: Block, level: float, current: torch.Tensor, noted: torch.Tensor
) -> None:
    """Query: this token; key: the token noted as the one before; value: the token there."""
    shape = block.shape
    size, slow = shape.head_size, slice(2 * FIRST_SLOW, shape.head_size)
    strength = math.sqrt(MATCH_SHARPNESS) * level / SPREAD
    for group in range(shape.n_head_kv):
        copied = torch.linalg.qr(torch.randn(shape.n_embd, size)).Q.T
        copied[:, 0] = 0
        rows = slice(group * size, (group + 1) * size)
        block.attn_k[rows] = 0
        block.attn_k[rows][slow] = noted[slow] * strength
        block.attn_v[rows] = copied * level
        for head in heads_of(block, group):
            rows = slice(head * size, (head + 1) * size)
            block.attn_q[rows] = 0
            block.attn_q[rows][slow] = current[slow] * strength
            block.attn_output[:, rows] = copied.T * COPY_GAIN


def heads_of(block: Block, group: int) -> range:
    repeats = block.shape.n_head // block.shape.n_head_kv
    return range(group * repeats, (group + 1) * repeats)
