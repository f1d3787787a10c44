"""LoRA adapters: files that are small changes of a model, checked against it and loaded.

Lives here: the check and the loading. Not here: which adapters a batch runs with, and how strongly
(`Context.set_adapters`).

Laws:
- libllama sees an adapter only after `check`: wrong shapes would end in an assertion.
- Adapters are loaded before any context of their model: newer builds size its graph by them.
- They live as long as their model does: the newest builds free them with it and ignore any other
  wish, and freeing them beside it would free them twice in some that are older.

For a weight W of the model, of rows of n_in numbers and n_out rows, an adapter brings two tensors;
the model then computes with W + scale * alpha / rank * B A:

    W.lora_a   n_in x rank         W.lora_b   rank x n_out        (a row's length comes first)
    token_embd.weight is looked up, not multiplied; its two are rank x n_vocab and rank x n_embd
"""

from __future__ import annotations

import os
from typing import Any, NoReturn

from libloader.errors import ModelFileInvalid, ModelLoadFailed
from libloader.llama import ggml_types, gguf
from libloader.llama.model import Model
from libloader.llama.preflight import NOT_FOR_WEIGHTS

ALPHA = "adapter.lora.alpha"
ACTIVATED = "adapter.alora.invocation_tokens"
NO_GRAPH_REUSE = "LLAMA_GRAPH_REUSE_DISABLE"  # llama-context.cpp
LOOKED_UP = "token_embd.weight"
A, B = ".lora_a", ".lora_b"
# Converters leave these in; libllama skips them.
SKIPPED = "_norm.weight"
# key, the only value that libllama takes
KINDS = (("general.type", "adapter"), ("adapter.type", "lora"))


def load(model: Model, path: str) -> Any:
    """Check and load an adapter of `model`; return its native pointer, which is never freed."""
    file = gguf.read(path)
    check(file, model.file)
    if not model.lib.has("lora"):
        raise ModelLoadFailed(f"{path}: libllama {model.lib.release} has no LoRA adapters")
    if model.lib.hazard("adapters_unnoticed"):
        os.environ[NO_GRAPH_REUSE] = "1"  # read when a context is made
    pointer = model.lib.llama_adapter_lora_init(model.pointer, os.fsencode(path))
    if not pointer:
        raise ModelLoadFailed(f"{path}: libllama {model.lib.release} cannot load this adapter")
    return pointer


def check(adapter: gguf.GGUFFile, model: gguf.GGUFFile) -> None:
    """Raise ModelFileInvalid unless `adapter` is a LoRA adapter that fits `model`."""
    for key, wanted in KINDS:
        if adapter.text(key) != wanted:
            found = adapter.text(key) or "missing"
            _fail(adapter, f"not a LoRA adapter: {key} is {found}, not {wanted}")
    if adapter.architecture != model.architecture:
        made_for = f"it is made for {adapter.architecture or 'no architecture'}"
        _fail(adapter, f"{made_for}, the model is {model.architecture}")
    if not isinstance(adapter.metadata.get(ALPHA, 0.0), float):
        _fail(adapter, f"{ALPHA} is no number with a fraction")
    if ACTIVATED in adapter.metadata:
        _fail(adapter, "adapters that certain tokens switch on (aLoRA) are not supported")
    _check_tensors(adapter, model)


def _check_tensors(adapter: gguf.GGUFFile, model: gguf.GGUFFile) -> None:
    tensors = {
        tensor.name: tensor for tensor in adapter.all_tensors if not tensor.name.endswith(SKIPPED)
    }
    if not tensors:
        _fail(adapter, "it changes no tensor")
    weights = {tensor.name: tensor for tensor in model.all_tensors}
    for name, tensor in tensors.items():
        base, part = name[: -len(A)], name[-len(A) :]
        if part not in (A, B):
            _fail(adapter, f"tensor {name} is no part of a LoRA adapter")
        if base not in weights:
            _fail(adapter, f"the model has no tensor {base}: is it made for another one?")
        if base + A not in tensors or base + B not in tensors:
            _fail(adapter, f"of tensor {base} it brings only {part[1:]}")
        if tensor.type in NOT_FOR_WEIGHTS or tensor.type not in ggml_types.TYPES:
            kind = ggml_types.type_name(tensor.type)
            _fail(adapter, f"tensor {name} is stored as {kind}, which ggml cannot compute with")
        if part == A:
            _check_shapes(adapter, weights[base], tensor, tensors[base + B])


def _check_shapes(
    adapter: gguf.GGUFFile, weight: gguf.Tensor, a: gguf.Tensor, b: gguf.Tensor
) -> None:
    (n_in, n_out, *experts), (a0, a1, *rest_a), (b0, b1, *rest_b) = map(_shape, (weight, a, b))
    if weight.name == LOOKED_UP:
        fits = (b1, a1, a0) == (n_in, n_out, b0)
    else:
        fits = (a0, b1, a1) == (n_in, n_out, b0)
    if not fits or not experts == rest_a == rest_b:
        shapes = " and ".join(" x ".join(map(str, tensor.shape)) for tensor in (a, b))
        of_model = " x ".join(map(str, weight.shape))
        _fail(adapter, f"{shapes} do not fit the model's {weight.name} of {of_model}")


def _shape(tensor: gguf.Tensor) -> tuple[int, ...]:
    return (*tensor.shape, 1, 1, 1, 1)[:4]


def _fail(adapter: gguf.GGUFFile, reason: str) -> NoReturn:
    raise ModelFileInvalid(f"{adapter.path}: {reason}")
