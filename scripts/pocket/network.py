"""The llama architecture in PyTorch, small enough to train on a CPU, and its way into GGUF.

Laws:
- Every operation is the one that llama.cpp computes for architecture "llama": RMS norm before
  attention and before the feed-forward part, rotary positions on neighbouring pairs, grouped
  key/value heads, SwiGLU, and the embedding matrix again as output matrix.
- Parameter names are the GGUF tensor names, so the export is a table copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from gguf_writer import TENSOR_TYPES, Tensor
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    n_vocab: int
    n_embd: int = 128
    n_layer: int = 6
    n_head: int = 4
    n_head_kv: int = 2
    n_ff: int = 384
    n_ctx_train: int = 4096
    rope_base: float = 10000.0
    norm_epsilon: float = 1e-5

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head


def matrix(n_in: int, n_out: int, spread: float) -> nn.Parameter:
    """A weight as GGUF stores it: `n_out` rows of `n_in` numbers."""
    return nn.Parameter(torch.randn(n_out, n_in) * spread)


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        n_embd, n_kv, spread = shape.n_embd, shape.n_head_kv * shape.head_size, shape.n_embd**-0.5
        self.shape = shape
        self.attn_norm = nn.Parameter(torch.ones(n_embd))
        self.attn_q = matrix(n_embd, n_embd, spread)
        self.attn_k = matrix(n_embd, n_kv, spread)
        self.attn_v = matrix(n_embd, n_kv, spread)
        self.attn_output = matrix(n_embd, n_embd, spread)
        self.ffn_norm = nn.Parameter(torch.ones(n_embd))
        self.ffn_gate = matrix(n_embd, shape.n_ff, spread)
        self.ffn_up = matrix(n_embd, shape.n_ff, spread)
        self.ffn_down = matrix(shape.n_ff, n_embd, spread)

    def forward(self, x: torch.Tensor, turns: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        x = x + self.attend(self.norm(x, self.attn_norm), turns)
        return x + self.feed_forward(self.norm(x, self.ffn_norm))

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, weight.shape, weight, self.shape.norm_epsilon)

    def attend(self, x: torch.Tensor, turns: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        repeats = self.shape.n_head // self.shape.n_head_kv
        query = rotate(self.split(x @ self.attn_q.T), turns)
        key = rotate(self.split(x @ self.attn_k.T), turns).repeat_interleave(repeats, 1)
        value = self.split(x @ self.attn_v.T).repeat_interleave(repeats, 1)
        mixed = attention(query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1))
        return (
            mixed.unflatten(0, (-1, self.shape.n_head)).transpose(1, 2).flatten(2)
            @ self.attn_output.T
        )

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, positions, heads * size) -> (rows, heads, positions, size)"""
        return x.unflatten(2, (-1, self.shape.head_size)).transpose(1, 2)

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        gated = functional.silu(x @ self.ffn_gate.T) * (x @ self.ffn_up.T)
        return gated @ self.ffn_down.T


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Causal attention of (rows * heads, positions, size).

    Spelled out: for rows of some hundred positions two plain products in half precision are
    three to nine times as fast as PyTorch's fused one on a CPU.
    """
    n_positions = query.shape[1]
    future = torch.full((1, n_positions, n_positions), float("-inf")).triu(1)
    scale = query.shape[2] ** -0.5
    scores = torch.baddbmm(future, query, key.transpose(1, 2), alpha=scale)
    return torch.bmm(scores.softmax(-1), value)


def rotate(x: torch.Tensor, turns: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary positions on the pairs (0, 1), (2, 3), ...: llama.cpp's GGML_ROPE_TYPE_NORMAL."""
    cosine, sine = turns
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), -1).flatten(-2)


class Network(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = matrix(shape.n_embd, shape.n_vocab, 0.1)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.n_layer))
        self.output_norm = nn.Parameter(torch.ones(shape.n_embd))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(rows, positions) -> the last layer's normed output, (rows, positions, n_embd)"""
        turns = self.turns(ids.shape[1])
        x = functional.embedding(ids, self.token_embd)
        for block in self.blk:
            x = block(x, turns)
        return functional.rms_norm(x, x.shape[-1:], self.output_norm, self.shape.norm_epsilon)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ self.token_embd.T

    def turns(self, n_positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        size = self.shape.head_size
        speeds = self.shape.rope_base ** (-torch.arange(0, size, 2) / size)
        angles = torch.arange(n_positions)[:, None] * speeds[None, :]
        return angles.cos(), angles.sin()

    def matrices(self) -> Iterator[nn.Parameter]:
        """The weights between the layers: two-dimensional and not the embedding."""
        return (p for name, p in self.named_parameters() if p.dim() == 2 and name != "token_embd")

    def others(self) -> Iterator[nn.Parameter]:
        return (p for name, p in self.named_parameters() if p.dim() != 2 or name == "token_embd")


def gguf_tensors(network: Network) -> list[Tensor]:
    """Every parameter as a GGUF tensor: matrices in half precision, norms in full."""
    return [gguf_tensor(name, parameter) for name, parameter in network.named_parameters()]


def gguf_tensor(name: str, parameter: nn.Parameter) -> Tensor:
    full = parameter.dim() == 1
    numbers = parameter.detach().to(torch.float32 if full else torch.float16).contiguous()

    def data() -> Iterable[bytes]:
        return [numbers.numpy().tobytes()]

    return Tensor(
        f"{name}.weight",
        tuple(reversed(numbers.shape)),
        TENSOR_TYPES["f32" if full else "f16"],
        data,
    )
