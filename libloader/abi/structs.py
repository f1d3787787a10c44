"""C structs of llama.h as ctypes types, made from the tables in `layouts`.

A table row is (field, C type, default values seen). The C types are the words of `C_TYPES`; a word
ending in "*" is a pointer to a known scalar, "ptr" any other pointer. Natural alignment gives the
right offsets on every 64-bit target: only fixed-width numbers, bool, enums, size_t and pointers
occur, so LP64 (Linux, macOS) and LLP64 (Windows) agree.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

Value = float  # a default as written in a layout table: a number; NULL is 0
Row = tuple[str, str, tuple[Value, ...]]
Table = dict[str, tuple[str, tuple[Row, ...]]]  # struct -> (layout id, rows)

BLOCK_BYTES = 512  # room for the parameter structs of builds that nobody has seen yet

C_TYPES: dict[str, Any] = {
    "void": None,
    "bool": ctypes.c_bool,
    "i8": ctypes.c_int8,
    "i32": ctypes.c_int32,
    "u32": ctypes.c_uint32,
    "i64": ctypes.c_int64,
    "u64": ctypes.c_uint64,
    "f32": ctypes.c_float,
    "f64": ctypes.c_double,
    "enum": ctypes.c_int32,
    "size": ctypes.c_size_t,
    "ptr": ctypes.c_void_p,
    "str": ctypes.c_char_p,
    "i8*": ctypes.POINTER(ctypes.c_int8),
    "i32*": ctypes.POINTER(ctypes.c_int32),
    "i32**": ctypes.POINTER(ctypes.POINTER(ctypes.c_int32)),
    "f32*": ctypes.POINTER(ctypes.c_float),
}

ProgressCallback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_float, ctypes.c_void_p)
AbortCallback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)
LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
FatalCallback = ctypes.CFUNCTYPE(None, ctypes.c_char_p)


class Block(ctypes.Structure):
    """A parameter struct of unknown length: C reads as many of the bytes as it knows fields for.

    Passed by value it is the last argument, where extra bytes are harmless on SysV (copied to the
    stack), AAPCS64 and Windows x64 (passed by reference).
    """

    _fields_ = [("data", ctypes.c_ubyte * BLOCK_BYTES)]


class ChainParams(ctypes.Structure):
    """llama_sampler_chain_params: one byte that travels in a register, never to be oversized."""

    _fields_ = [("no_perf", ctypes.c_bool)]


def struct_type(name: str, rows: Sequence[Row]) -> type[ctypes.Structure]:
    """Return a ctypes struct with the fields of a layout table, in its order."""
    fields = [(field, C_TYPES[c_type]) for field, c_type, _ in rows]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


def offsets(rows: Sequence[Row]) -> list[tuple[int, int]]:
    """Return (offset, size) of every row of a layout table."""
    struct = struct_type("measured", rows)
    return [(getattr(struct, row[0]).offset, getattr(struct, row[0]).size) for row in rows]


# Newest name -> how an older layout spells it: (older field, what to store there).
OLDER_FIELDS: dict[str, tuple[str, dict[int, int]]] = {
    # llama_flash_attn_type: auto -1, disabled 0, enabled 1; auto was unknown before b6325
    "flash_attn_type": ("flash_attn", {-1: 0, 0: 0, 1: 1}),
}

# b10105 merged use_mmap and use_mlock into load_mode: (mmap, mlock) -> mode.
LOAD_MODES = {(False, False): 0, (True, False): 1, (False, True): 2, (True, True): 3}
# Where mode 3 is direct I/O (b10105..b10144) MLOCK is the nearest: it locks a mapped model there.
OLDER_LOAD_MODES = {**LOAD_MODES, (True, True): 2}


class Params:
    """llama_model_params or llama_context_params, filled with the library's own defaults.

    Pass it to a C call as it is. Fields of a newer build than we know keep the library's defaults,
    because the whole block that the library filled is handed back. Callbacks and arrays given to
    `set` live as long as this object: keep it while C may use them.
    """

    def __init__(
        self,
        struct: type[ctypes.Structure],
        defaults: bytes,
        load_modes: dict[tuple[bool, bool], int] | None = None,
    ) -> None:
        self._as_parameter_ = Block.from_buffer_copy(defaults)
        self._view = struct.from_buffer(self._as_parameter_)
        self._names = {field[0] for field in struct._fields_}
        self._load_modes = load_modes or LOAD_MODES
        self._alive: list[Any] = []

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def set(self, name: str, value: Any) -> bool:
        """Store `value` in a field by its newest name; False if this build has no such field."""
        if name not in self._names and name in OLDER_FIELDS:
            name, translation = OLDER_FIELDS[name]
            value = translation[int(value)]
        if name not in self._names:
            return False
        self._store(name, value)
        return True

    def set_loading(self, mmap: bool, mlock: bool) -> None:
        """Say how the file gets into memory, whichever fields this build has for it."""
        if "load_mode" in self._names:
            self._store("load_mode", self._load_modes[mmap, mlock])
        else:
            self._store("use_mmap", mmap)
            self._store("use_mlock", mlock)

    def get(self, name: str) -> Any:
        """Return a field by the name it has in this layout; None if there is no such field."""
        return getattr(self._view, name) if name in self._names else None

    def _store(self, name: str, value: Any) -> None:
        kind = type(self._view)
        c_type = dict((field[0], field[1]) for field in kind._fields_)[name]
        if c_type is ctypes.c_void_p and not isinstance(value, int):
            self._alive.append(value)
            value = ctypes.cast(value, ctypes.c_void_p)
        setattr(self._view, name, value)
