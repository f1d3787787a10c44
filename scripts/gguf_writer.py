"""Write GGUF version 3 files with the standard library alone.

What lives here: the container (header, metadata, tensor table, aligned data) and the few
tensor types that our own models use. What does not: where the numbers come from; that is
`make_model.py` (random weights) and `train_pocket_model.py` (trained ones). The reader is
`libloader/llama/gguf.py` and shares no code with this file, so each one checks the other.

Laws:
- Everything is little-endian; tensor data starts on multiples of ALIGNMENT bytes.
- Tensors are streamed: a model is never held in memory as a whole.
- The file appears under its name only when it is complete.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Callable, Union

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32

Scalar = Union[bool, int, float, str]
Value = Union[Scalar, Sequence[int], Sequence[float], Sequence[str]]

# GGUF value types that are written (ggml's gguf.h: enum gguf_type)
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9

# fmt: off
# Python type       GGUF type  as an array element  struct code
VALUE_TYPES: dict[type, tuple[int, int, str]] = {
    bool:          (BOOL,      BOOL,                "?"),
    int:           (UINT32,    INT32,               "I"),
    float:         (FLOAT32,   FLOAT32,             "f"),
}
# fmt: on
ELEMENT_CODES = {BOOL: "?", INT32: "i", FLOAT32: "f"}


@dataclass(frozen=True)
class TensorType:
    """How ggml stores a row: blocks of `block` weights in `block_bytes` bytes."""

    name: str
    ggml_id: int
    file_type: int  # general.file_type of a model made mostly of it (enum llama_ftype)
    block: int
    block_bytes: int

    def n_bytes(self, n_weights: int) -> int:
        return n_weights // self.block * self.block_bytes


TENSOR_TYPES = {
    row.name: row
    for row in (
        TensorType("f32", 0, 0, 1, 4),
        TensorType("f16", 1, 1, 1, 2),
        TensorType("q4_0", 2, 2, 32, 18),
        TensorType("q8_0", 8, 7, 32, 34),
    )
}


@dataclass(frozen=True)
class Tensor:
    """One tensor to write. `shape` is in ggml's order: the length of a row comes first.

    `data` yields the bytes in pieces of any size; together exactly `n_bytes`.
    """

    name: str
    shape: tuple[int, ...]
    type: TensorType
    data: Callable[[], Iterable[bytes]]

    @property
    def n_weights(self) -> int:
        count = 1
        for length in self.shape:
            count *= length
        return count

    @property
    def n_bytes(self) -> int:
        return self.type.n_bytes(self.n_weights)


def write_gguf(path: str, metadata: Mapping[str, Value], tensors: Sequence[Tensor]) -> int:
    """Write the file and return its size in bytes; an interrupted run leaves `path` untouched."""
    partial = f"{path}.partial"
    try:
        with open(partial, "wb") as file:
            file.write(header(metadata, tensors))
            for tensor in tensors:
                pad(file)
                write_tensor(file, tensor)
            pad(file)
            size = file.tell()
        os.replace(partial, path)
    except BaseException:
        if os.path.exists(partial):
            os.unlink(partial)
        raise
    return size


def header(metadata: Mapping[str, Value], tensors: Sequence[Tensor]) -> bytes:
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [packed_string(key), packed_value(value)]
    parts += tensor_table(tensors)
    return b"".join(parts)


def tensor_table(tensors: Sequence[Tensor]) -> list[bytes]:
    """One row per tensor; offsets count from the start of the data, not of the file."""
    rows, offset = [], 0
    for tensor in tensors:
        assert tensor.shape[0] % tensor.type.block == 0, f"{tensor.name}: row is no whole blocks"
        rows.append(packed_string(tensor.name))
        rows.append(struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape))
        rows.append(struct.pack("<IQ", tensor.type.ggml_id, offset))
        offset += aligned(tensor.n_bytes)
    return rows


def write_tensor(file: BinaryIO, tensor: Tensor) -> None:
    written = sum(file.write(piece) for piece in tensor.data())
    assert written == tensor.n_bytes, f"{tensor.name}: {written} bytes, not {tensor.n_bytes}"


def pad(file: BinaryIO) -> None:
    file.write(bytes(aligned(file.tell()) - file.tell()))


def aligned(n_bytes: int) -> int:
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def packed_string(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def packed_value(value: Value) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", STRING) + packed_string(value)
    if isinstance(value, (bool, int, float)):
        gguf_type, _, code = VALUE_TYPES[type(value)]
        return struct.pack(f"<I{code}", gguf_type, value)
    return struct.pack("<I", ARRAY) + packed_array(value)


def packed_array(values: Sequence[Scalar]) -> bytes:
    """An array takes its type from its first element, so it must not be empty."""
    assert values, "an empty array has no type"
    if isinstance(values[0], str):
        strings = b"".join(packed_string(str(value)) for value in values)
        return struct.pack("<IQ", STRING, len(values)) + strings
    element = VALUE_TYPES[type(values[0])][1]
    packed = struct.pack(f"<{len(values)}{ELEMENT_CODES[element]}", *values)
    return struct.pack("<IQ", element, len(values)) + packed
