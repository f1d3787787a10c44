"""Reads the header of a GGUF file in pure Python: metadata and tensor list, never tensor data.

A GGUF file comes from anywhere, and llama.cpp's own loader has aborted on mutated ones. So this
reader looks first, and whatever it cannot prove right ends in one ModelFileInvalid line.

Laws:
- Nothing raises but ModelFileInvalid, whatever the bytes are; no libllama is needed.
- Every length and count is compared with a limit and with the file's size before it is used.
- Memory stays small: the header is read through a window, arrays stay in the file until asked for.

Layout, all little-endian (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md):

    "GGUF"  u32 version  u64 n_tensors  u64 n_keys
    n_keys    x  string key, u32 type, value      a string is u64 length and that many bytes,
                                                  an array u32 type, u64 count and the elements
    n_tensors x  string name, u32 n_dims, u64 x n_dims shape, u32 type, u64 offset
    padding to general.alignment, then the data; offsets count from here
"""

from __future__ import annotations

import array
import dataclasses
import os
import re
import stat
import struct
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple, NoReturn, Union

from libloader.errors import ModelFileInvalid
from libloader.llama import ggml_types

VERSIONS = (2, 3)
WINDOW_BYTES = 1 << 20
HEADER_LIMIT_BYTES = 128 << 20  # the largest known header, of 262k tokens, has some 30 MiB
KEY_LIMIT_BYTES = 65535  # the format's own limit
NAME_LIMIT_BYTES = 63  # ggml's GGML_MAX_NAME less its NUL
STRING_LIMIT_BYTES = 1 << 20
LONG_STRINGS = {"tokenizer.huggingface.json": 64 << 20}
KEYS_LIMIT, TENSORS_LIMIT, DIMS_LIMIT = 65536, 65536, 4
ALIGNMENT_DEFAULT, ALIGNMENT_LIMIT = 32, 1 << 20
SPLIT_LIMIT = 1024

STRING, ARRAY = 8, 9
# GGUF value type -> struct format and array.array typecode; bool is one byte
SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
ARRAY_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q"}
ARRAY_CODES[12] = "d"
_U32, _U64 = SCALARS[4], SCALARS[10]

# What people pass by mistake, by its first bytes
LOOKS_LIKE = (
    (b"<!doctype", "a web page; the download went wrong"),
    (b"<html", "a web page; the download went wrong"),
    (b"<?xml", "an XML page; the download went wrong"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file itself with `git lfs pull`"),
    (b"{", "a JSON file"),
    (b"pk\x03\x04", "a zip archive or a PyTorch checkpoint; convert it to GGUF"),
    (b"\x80\x02", "a Python pickle; convert it to GGUF"),
    (b"\x1f\x8b", "a gzip archive; unpack it"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive; unpack it"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it"),
    (b"\x7felf", "a program or library, not a model"),
    (b"tjgg", "a GGML file from before GGUF; convert it or get a newer one"),
    (b"fmgg", "a GGML file from before GGUF; convert it or get a newer one"),
    (b"lmgg", "a GGML file from before GGUF; convert it or get a newer one"),
    (b"algg", "a GGML LoRA adapter from before GGUF, not a model"),
    (b"\0\0\0\0", "zeros; the download did not finish"),
)
_SPLIT_NAME = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")


class Array(NamedTuple):
    """Where an array lies: `length` elements of a GGUF type in bytes [start, end) of the file."""

    type: int
    length: int
    start: int
    end: int


Value = Union[int, float, bool, str, Array]


class Tensor(NamedTuple):
    """One entry of the tensor list; `offset` counts from the start of the data, in bytes."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int

    @property
    def n_elements(self) -> int:
        product = 1
        for size in self.shape:
            product *= size
        return product


@dataclass(frozen=True)
class GGUFFile:
    """The checked header of one file, and of its other parts if it is the first of a split."""

    path: str
    version: int
    size_bytes: int
    data_start: int
    metadata: dict[str, Value]
    tensors: tuple[Tensor, ...]
    parts: tuple[GGUFFile, ...] = field(default=())

    def text(self, key: str, default: str = "") -> str:
        value = self.metadata.get(key)
        return value if isinstance(value, str) else default

    def integer(self, key: str, default: int = 0) -> int:
        value = self.metadata.get(key)
        return value if isinstance(value, int) else default

    def number(self, key: str, default: float = 0.0) -> float:
        value = self.metadata.get(key)
        return value if isinstance(value, (int, float)) else default

    def array(self, key: str) -> Array | None:
        value = self.metadata.get(key)
        return value if isinstance(value, Array) else None

    def numbers(self, key: str) -> Sequence[float]:
        """Return the elements of a numeric array, read now; empty if there is no such array."""
        where = self.array(key)
        if where is None or where.type not in ARRAY_CODES:
            return []
        values = array.array(ARRAY_CODES[where.type])
        values.frombytes(self._read(where))
        if sys.byteorder == "big":
            values.byteswap()
        return values

    def strings(self, key: str) -> list[bytes]:
        """Return the elements of a string array, read now; empty if there is no such array."""
        where = self.array(key)
        if where is None or where.type != STRING:
            return []
        data, at, items = self._read(where), 0, []
        for _ in range(where.length):
            start = at + _U64.size
            at = start + _U64.unpack_from(data, at)[0]
            items.append(data[start:at])
        return items

    @property
    def architecture(self) -> str:
        return self.text("general.architecture")

    def of_architecture(self, name: str, default: int = 0) -> int:
        """Return `<architecture>.<name>`; of a value per layer the largest."""
        key = f"{self.architecture}.{name}"
        return self.integer(key, default) or int(max(self.numbers(key), default=default))

    @property
    def all_tensors(self) -> tuple[Tensor, ...]:
        return self.tensors + tuple(tensor for part in self.parts for tensor in part.tensors)

    @property
    def total_bytes(self) -> int:
        return self.size_bytes + sum(part.size_bytes for part in self.parts)

    @property
    def n_params(self) -> int:
        return sum(tensor.n_elements for tensor in self.all_tensors)

    def _read(self, where: Array) -> bytes:
        try:
            with open(self.path, "rb") as file:
                file.seek(where.start)
                data = file.read(where.end - where.start)
        except OSError as error:
            raise ModelFileInvalid(f"{self.path}: {error.strerror}") from error
        if len(data) != where.end - where.start:
            raise ModelFileInvalid(f"{self.path}: the file changed while it was read")
        return data


def read(path: str) -> GGUFFile:
    """Read and check the header of `path`, and of every further part if it is split."""
    name = _SPLIT_NAME.match(os.path.basename(path))
    if name and int(name["number"]) != 1:
        raise ModelFileInvalid(
            f"{path}: this is part {int(name['number'])} of {int(name['count'])}; "
            f"load the first part, {_part_path(path, 1, int(name['count']))}"
        )
    first = _read_one(path)
    count = first.integer("split.count")
    if count < 2:
        return first
    parts = tuple(_read_part(first, number, count) for number in _further_parts(first, count))
    return dataclasses.replace(first, parts=parts)


def _further_parts(first: GGUFFile, count: int) -> range:
    name = _SPLIT_NAME.match(os.path.basename(first.path))
    if first.integer("split.no") != 0:
        raise ModelFileInvalid(
            f"{first.path}: this is part {first.integer('split.no') + 1} of {count}; load the first"
        )
    if count > SPLIT_LIMIT or name is None or int(name["count"]) != count:
        raise ModelFileInvalid(
            f"{first.path}: it is the first of {count} parts and must keep the name it was made "
            f"with, such as model-00001-of-{count:05d}.gguf"
        )
    return range(2, count + 1)


def _read_part(first: GGUFFile, number: int, count: int) -> GGUFFile:
    path = _part_path(first.path, number, count)
    if not os.path.exists(path):
        raise ModelFileInvalid(f"{path}: part {number} of {count} of this model is missing")
    part = _read_one(path)
    if (part.integer("split.no", -1), part.integer("split.count")) != (number - 1, count):
        raise ModelFileInvalid(f"{path}: it is not part {number} of {count} of this model")
    return part


def _part_path(path: str, number: int, count: int) -> str:
    folder, base = os.path.split(path)
    match = _SPLIT_NAME.match(base)
    assert match is not None, "only called for names that match"
    return os.path.join(folder, f"{match['stem']}-{number:05d}-of-{count:05d}.gguf")


def _read_one(path: str) -> GGUFFile:
    try:
        with open(path, "rb", buffering=0, opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ModelFileInvalid(f"{path}: not a regular file")
            return _HeaderReader(file, path, status.st_size).read()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ModelFileInvalid(f"{path}: {reason or error}") from error


def _open_without_waiting(path: str, flags: int) -> int:
    """Open for reading; a named pipe must be refused, not waited for."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


class _HeaderReader:
    """Walks one header from its first byte to its last through a window of the file."""

    def __init__(self, file: BinaryIO, path: str, size: int) -> None:
        self._file, self._path, self._size = file, path, size
        self._window = b""
        self._window_start = 0
        self._at = 0  # in the window; may lie beyond it after a skip

    def read(self) -> GGUFFile:
        version = self._read_magic()
        n_tensors = self._read_count("tensor", TENSORS_LIMIT)
        n_keys = self._read_count("key", KEYS_LIMIT)
        metadata = self._read_metadata(n_keys)
        tensors = tuple(self._read_tensor(i) for i in range(n_tensors))
        alignment = self._alignment(metadata)
        data_start = -(-self._position // alignment) * alignment
        self._check_tensors(tensors, alignment, data_start)
        return GGUFFile(self._path, version, self._size, data_start, metadata, tensors)

    def _fail(self, reason: str) -> NoReturn:
        raise ModelFileInvalid(f"{self._path}: {reason}")

    # The window

    @property
    def _position(self) -> int:
        return self._window_start + self._at

    def _fill(self, n_bytes: int) -> None:
        """Bring the next `n_bytes` into the window, and more if the file has more."""
        end = self._position + n_bytes
        if end > self._size:
            self._fail(
                f"truncated: its header needs byte {end:,}, the file ends at {self._size:,}; "
                "download it again"
            )
        if end > HEADER_LIMIT_BYTES:
            self._fail(f"its header is larger than {HEADER_LIMIT_BYTES >> 20} MiB")
        if self._at + n_bytes <= len(self._window):
            return
        start = self._position
        self._file.seek(start)
        self._window = self._read_fully(max(n_bytes, WINDOW_BYTES))
        self._window_start, self._at = start, 0
        if len(self._window) < n_bytes:
            self._fail("the file changed while it was read")

    def _read_fully(self, n_bytes: int) -> bytes:
        """Read until `n_bytes` or the end of the file: an unbuffered read may return less."""
        pieces, n_left = [], n_bytes
        while n_left:
            piece = self._file.read(n_left)
            if not piece:
                break
            pieces.append(piece)
            n_left -= len(piece)
        return b"".join(pieces)

    def _scalar(self, form: struct.Struct) -> int | float | bool:
        self._fill(form.size)
        value: int | float | bool = form.unpack_from(self._window, self._at)[0]
        self._at += form.size
        return value

    def _integer(self, form: struct.Struct) -> int:
        return int(self._scalar(form))

    def _string(self, limit: int, what: str) -> str:
        length = self._integer(_U64)
        if length > limit:
            self._fail(f"{what} claims {length:,} bytes; at most {limit:,} are taken")
        self._fill(length)
        raw = self._window[self._at : self._at + length]
        self._at += length
        return raw.decode("utf-8", "replace")

    # Head

    def _read_magic(self) -> int:
        if self._size == 0:
            self._fail("the file is empty")
        head = self._read_fully(64)
        if head[:4] != b"GGUF":
            self._fail(f"not a GGUF file{_likeness(head)}")
        self._at = 4
        version = self._integer(_U32)
        if version not in VERSIONS:
            self._fail(_version_refusal(version))
        return version

    def _read_count(self, what: str, limit: int) -> int:
        count = self._integer(_U64)
        if count > limit:
            self._fail(f"it claims {count:,} {what}s; at most {limit:,} are taken")
        return count

    # Metadata

    def _read_metadata(self, n_keys: int) -> dict[str, Value]:
        metadata: dict[str, Value] = {}
        for number in range(n_keys):
            key = self._string(KEY_LIMIT_BYTES, f"the name of key {number}")
            if key in metadata:
                self._fail(f"key {_shown(key)} occurs twice")
            metadata[key] = self._read_value(key)
        return metadata

    def _read_value(self, key: str) -> Value:
        kind = self._integer(_U32)
        if kind == STRING:
            limit = LONG_STRINGS.get(key, STRING_LIMIT_BYTES)
            return self._string(limit, f"key {_shown(key)}")
        if kind == ARRAY:
            return self._read_array(key)
        if kind not in SCALARS:
            self._fail(f"key {_shown(key)} has the unknown type {kind}")
        return self._scalar(SCALARS[kind])

    def _read_array(self, key: str) -> Array:
        """Walk over an array, checking its extent; its elements stay in the file."""
        kind, count = self._integer(_U32), self._integer(_U64)
        if kind == ARRAY:
            self._fail(f"key {_shown(key)} is an array of arrays, which llama.cpp does not load")
        if kind != STRING and kind not in SCALARS:
            self._fail(f"key {_shown(key)} is an array of the unknown type {kind}")
        start = self._position
        if kind == STRING:
            self._skip_strings(key, count)
        else:
            self._at += count * SCALARS[kind].size
        self._fill(0)
        return Array(kind, count, start, self._position)

    def _skip_strings(self, key: str, count: int) -> None:
        """Hot: runs once per token of the vocabulary, 300,000 times for a large one."""
        unpack, n_left = _U64.unpack_from, count
        while n_left:
            self._fill(_U64.size)
            window, at = self._window, self._at
            last = len(window) - _U64.size
            while n_left and at <= last:
                length = unpack(window, at)[0]
                if length > STRING_LIMIT_BYTES:
                    self._fail(
                        f"a string in key {_shown(key)} claims {length:,} bytes; "
                        f"at most {STRING_LIMIT_BYTES:,} are taken"
                    )
                at += _U64.size + length
                n_left -= 1
            self._at = at

    def _alignment(self, metadata: dict[str, Value]) -> int:
        value = metadata.get("general.alignment", ALIGNMENT_DEFAULT)
        good = isinstance(value, int) and 0 < value <= ALIGNMENT_LIMIT and value & (value - 1) == 0
        if not good:
            self._fail("general.alignment is not a power of two")
        return int(value)  # type: ignore[arg-type]

    # Tensors

    def _read_tensor(self, number: int) -> Tensor:
        name = self._string(NAME_LIMIT_BYTES, f"the name of tensor {number}")
        n_dims = self._integer(_U32)
        if n_dims > DIMS_LIMIT:
            self._fail(f"tensor {_shown(name)} has {n_dims:,} dimensions; ggml knows {DIMS_LIMIT}")
        shape = tuple(self._integer(_U64) for _ in range(n_dims))
        return Tensor(name, shape, self._integer(_U32), self._integer(_U64))

    def _check_tensors(self, tensors: tuple[Tensor, ...], alignment: int, data_start: int) -> None:
        seen: set[str] = set()
        for tensor in tensors:
            if tensor.name in seen:
                self._fail(f"tensor {_shown(tensor.name)} occurs twice")
            seen.add(tensor.name)
            self._check_shape(tensor)
            self._check_extent(tensor, alignment, data_start)

    def _check_shape(self, tensor: Tensor) -> None:
        if any(not 0 < size < 1 << 63 for size in tensor.shape):
            self._fail(f"tensor {_shown(tensor.name)} has the impossible shape {tensor.shape}")
        known = ggml_types.TYPES.get(tensor.type)
        if known and tensor.shape and tensor.shape[0] % known.n_block:
            self._fail(
                f"tensor {_shown(tensor.name)} has rows of {tensor.shape[0]:,}, "
                f"which {known.name} cannot store: it takes multiples of {known.n_block}"
            )

    def _check_extent(self, tensor: Tensor, alignment: int, data_start: int) -> None:
        if tensor.offset % alignment:
            self._fail(f"tensor {_shown(tensor.name)} is not aligned to {alignment} bytes")
        n_bytes = ggml_types.size_bytes(tensor.type, tensor.n_elements) or 0
        end = data_start + tensor.offset + n_bytes
        if end > self._size:
            self._fail(
                f"truncated: tensor {_shown(tensor.name)} ends at byte {end:,}, "
                f"the file at {self._size:,}; download it again"
            )


def _version_refusal(version: int) -> str:
    if version & 0xFFFF == 0 and version >> 24 in VERSIONS:
        return "a big-endian GGUF file; get or convert a little-endian one"
    if version == 1:
        return "GGUF version 1, which llama.cpp no longer loads; convert the model again"
    return f"GGUF version {version:,} is unknown; versions 2 and 3 are read"


def _likeness(head: bytes) -> str:
    """Say what a file that is no GGUF looks like, from its first bytes."""
    lowered = head.lower().lstrip(b"\xef\xbb\xbf \t\r\n") or head
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return ": it looks like a safetensors file; convert it to GGUF"
    for start, what in LOOKS_LIKE:
        if lowered.startswith(start):
            return f": it looks like {what}"
    return ""


def _shown(name: str) -> str:
    """Return a name from the file for an error line: quoted, one line, not long."""
    return repr(name if len(name) <= 80 else name[:77] + "...")


# What `igllama show` prints

VOCABULARY_KINDS = {
    "llama": "SentencePiece",
    "gpt2": "byte-level BPE",
    "bert": "WordPiece",
    "t5": "Unigram",
    "rwkv": "RWKV",
    "plamo2": "PLaMo-2",
    "gemma4": "byte-fallback BPE",
    "none": "none",
    "no_vocab": "none",
}
# general.sampling.<key>, as converters write it -> the name that requests use
RECOMMENDED_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold",
    "penalty_last_n": "repeat_last_n",
    "penalty_repeat": "repeat_penalty",
    "mirostat": "mirostat",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
}
TEMPLATE_KEY = "tokenizer.chat_template"
TOOL_TEMPLATE_KEY = f"{TEMPLATE_KEY}.tool_use"


def recommended_sampling(model: GGUFFile) -> dict[str, int | float]:
    """Return the sampling values that the model's makers put into the file, by request name."""
    found = {}
    for key, name in RECOMMENDED_SAMPLING.items():
        value = model.metadata.get(f"general.sampling.{key}")
        if isinstance(value, (int, float)):
            found[name] = value if isinstance(value, int) else round(value, 6)
    return found


def template_names(model: GGUFFile) -> list[str]:
    """Return the names of the chat templates beside the default one, e.g. tool_use."""
    start = TEMPLATE_KEY + "."
    return sorted(key[len(start) :] for key in model.metadata if key.startswith(start))


def describe(model: GGUFFile) -> list[str]:
    """Return the lines that tell a person what this file is; facts it does not hold are absent."""
    facts = (
        ("file", _file_fact(model)),
        ("architecture", model.architecture or "not named"),
        ("name", _one_line(model.text("general.name"))),
        ("parameters", f"{_short(model.n_params)} in {len(model.all_tensors):,} tensors"),
        ("quantisation", _quantisation_fact(model)),
        ("context", _counted(model.of_architecture("context_length"), "tokens")),
        ("embedding", _counted(model.of_architecture("embedding_length"), "numbers")),
        ("layers", _counted(model.of_architecture("block_count"), "")),
        ("heads", _heads_fact(model)),
        ("experts", _experts_fact(model)),
        ("vocabulary", _vocabulary_fact(model)),
        ("chat template", _template_fact(model)),
        ("sampling", ", ".join(f"{k} {v}" for k, v in recommended_sampling(model).items())),
        ("licence", _one_line(model.text("general.license"))),
    )
    return [f"{name:<14} {fact}" for name, fact in facts if fact]


def _file_fact(model: GGUFFile) -> str:
    size = f"{model.total_bytes / (1 << 20):,.1f} MiB"
    parts = f" in {len(model.parts) + 1} parts" if model.parts else ""
    return f"{os.path.basename(model.path)}, {size}{parts}, GGUF version {model.version}"


def _quantisation_fact(model: GGUFFile) -> str:
    counts = Counter(ggml_types.type_name(tensor.type) for tensor in model.all_tensors)
    kinds = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    if "general.file_type" not in model.metadata:
        return kinds
    return f"{ggml_types.file_type_name(model.integer('general.file_type'))} ({kinds})"


def _heads_fact(model: GGUFFile) -> str:
    n_heads = model.of_architecture("attention.head_count")
    n_kv = model.of_architecture("attention.head_count_kv", n_heads)
    return f"{n_heads}, {n_kv} for keys and values" if n_kv != n_heads else _counted(n_heads, "")


def _experts_fact(model: GGUFFile) -> str:
    n_experts, n_used = (model.of_architecture(f"expert_{key}") for key in ("count", "used_count"))
    return f"{n_experts}, {n_used} used per token" if n_experts else ""


def _vocabulary_fact(model: GGUFFile) -> str:
    tokens = model.array("tokenizer.ggml.tokens")
    kind = model.text("tokenizer.ggml.model")
    if tokens is None:
        return ""
    named = VOCABULARY_KINDS.get(kind, _one_line(kind) or "kind not named")
    return f"{tokens.length:,} tokens, {named}"


def _template_fact(model: GGUFFile) -> str:
    names = template_names(model)
    also = f"; also named: {', '.join(_one_line(name) for name in names)}" if names else ""
    text = model.text(TEMPLATE_KEY)
    return (f"yes, {len(text):,} characters" if text else "none") + also


def _counted(count: int, unit: str) -> str:
    return f"{count:,} {unit}".rstrip() if count else ""


def _one_line(text: str) -> str:
    """Return text from the file for a terminal: no control characters, not long."""
    return "".join(c if c.isprintable() else " " for c in text)[:100].strip()


def _short(count: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return str(count)
