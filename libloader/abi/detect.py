"""Which build and which struct layouts a loaded library has: measured, never assumed.

1. The exported functions bracket the build (`bracket`).
2. The library fills its own default parameters: every field of a layout must show a known default.
3. Filled twice over different patterns, the bytes that agree are the ones it wrote: every field
   must be written, nothing past the end, and written padding must be zero (x86-64 only).
4. Of the layouts left in the bracket the last one is taken. None left: refused, with the first
   field that differs.

What this cannot see:
- two fields swapped that are equally wide and have the same default: 9 and 17 pairs of neighbours
  in the newest layouts (`Library.check_context` shows n_threads and n_threads_batch);
- new flags that fill the padding of a struct to its last byte, and a last flag that is off in
  builds that zero their padding (up to b5589);
- on arm64, where step 3 is impossible, also a field left out or inserted where only zeroes follow.
scripts/abi_check.py compares every field with llama.h and is for these.
"""

from __future__ import annotations

import ctypes
import platform
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Callable, NamedTuple

from libloader import errors
from libloader.abi import builds, layouts, structs
from libloader.abi.builds import Bracket
from libloader.abi.layouts import Layout
from libloader.abi.layouts.exports import EXPORTS

DEFAULT_FUNCTIONS = {
    "llama_model_params": "llama_model_default_params",
    "llama_context_params": "llama_context_default_params",
}

# ggml functions that narrow a bracket further, and their first build. Only hints: a distribution
# may ship ggml apart from llama, so they never contradict what libllama's own functions say.
GGML_HINTS = (
    ("ggml_backend_load", "b4163"),
    ("ggml_backend_load_all_from_path", "b4302"),
    ("ggml_rope_multi", "b4327"),
    ("ggml_set_abort_callback", "b5798"),
    ("ggml_version", "b5810"),
)

FORMATS = {
    "bool": "<B",
    "i32": "<i",
    "u32": "<I",
    "enum": "<i",
    "f32": "<f",
    "f64": "<d",
    "size": "<Q",
    "ptr": "<Q",
}


class Probe(NamedTuple):
    """What a *_default_params() gave over a zeroed block; which bytes it wrote, None if unknown."""

    data: bytes
    written: tuple[bool, ...] | None


# --- step 1: the exported functions ------------------------------------------------------------


def bracket(has: Callable[[str], bool]) -> Bracket:
    """Return the builds whose exports fit; `has` tells whether the library exports a name.

    A build that only lacks functions of the newest one we know counts as newer than it. Raises
    LibraryRefused if no build fits: a fork, or not libllama at all.
    """
    present = {name for name, _, _ in EXPORTS if has(name)}
    groups = [(_misfits(present, low), low, high) for low, high in _groups()]
    best = min(groups, key=lambda group: len(group[0]))
    if best[0]:
        best = _as_newer(groups[-1], present) or best
    misfits, low, high = best
    if misfits:
        raise errors.LibraryRefused(_contradiction(misfits, low, present))
    return _narrowed(Bracket(low, high), has)


def _narrowed(span: Bracket, has: Callable[[str], bool]) -> Bracket:
    if not has("ggml_init"):
        return span  # ggml's names are hidden here, so their absence says nothing
    low, high = span
    for name, first in GGML_HINTS:
        edge = builds.order(first)
        if low < edge < high:
            low, high = (edge, high) if has(name) else (low, edge)
    return Bracket(low, high)


def _groups() -> Iterator[tuple[int, int]]:
    """Yield [low, high) of builds that all export the same functions, oldest first."""
    edges = {builds.order(name) for _, first, end in EXPORTS for name in (first, end) if name}
    marks = sorted(edges | {builds.NEVER})
    yield from zip(marks, marks[1:])


def _misfits(present: set[str], build: int) -> list[str]:
    """Return the functions whose presence does not fit a build."""
    return [
        name for name, first, end in EXPORTS if _exported(build, first, end) != (name in present)
    ]


def _exported(build: int, first: str, end: str) -> bool:
    return builds.order(first) <= build and (not end or build < builds.order(end))


def _as_newer(
    newest: tuple[list[str], int, int], present: set[str]
) -> tuple[list[str], int, int] | None:
    """Accept the newest group if the library only lacks old functions, but has all recent ones."""
    misfits, low, high = newest
    recent = [name for name, first, _ in EXPORTS if builds.order(first) >= builds.FIRST_VERSION]
    removed = all(name not in present and name not in recent for name in misfits)
    return ([], low, high) if removed and len(misfits) < len(EXPORTS) // 2 else None


def _contradiction(misfits: Sequence[str], low: int, present: set[str]) -> str:
    first = misfits[0]
    what = "has" if first in present else "lacks"
    return (
        f"its functions fit no release of llama.cpp: nearest to {builds.label(low)}, but it {what} "
        f"{first} (a fork?); use an official build"
    )


# --- steps 2 and 3: the default parameters ------------------------------------------------------


def probe_defaults(handle: Any, function: str) -> Probe:
    """Call a *_default_params() of a library and return what it wrote.

    On x86-64 (SysV and Windows) a large struct is returned through a hidden pointer in the first
    argument, so the call is declared as one that takes our own block. On arm64 the pointer travels
    in x8, which ctypes cannot set: there the bytes come as a result, with rubbish past their end.
    """
    if platform.machine().lower() in ("x86_64", "amd64"):
        return _probe_by_pointer(handle[function])
    call = handle[function]
    call.restype, call.argtypes = structs.Block, []
    return Probe(bytes(call().data), None)


def _probe_by_pointer(call: Any) -> Probe:
    call.restype, call.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    filled = []
    for pattern in (0xA5, 0x5A, 0x00):
        block = structs.Block()
        ctypes.memset(ctypes.byref(block), pattern, structs.BLOCK_BYTES)
        call(ctypes.addressof(block))
        filled.append(bytes(block.data))
    written = tuple(a == b for a, b in zip(filled[0], filled[1]))
    return Probe(filled[2], written)


def values_of(rows: Sequence[structs.Row], data: bytes) -> Iterator[tuple[str, float]]:
    """Yield (field, value) as a layout reads the bytes; pointers as addresses."""
    for (name, c_type, _), (offset, _size) in zip(rows, structs.offsets(rows)):
        yield name, struct.unpack_from(FORMATS[c_type], data, offset)[0]


class Difference(NamedTuple):
    """The first field, in the order of offsets, in which a library differs from a layout."""

    offset: int
    text: str


def first_difference(
    rows: Sequence[structs.Row], probe: Probe, exact: bool = False
) -> Difference | None:
    """Return where the library's defaults contradict a layout, None if they fit.

    `exact` also refuses padding of which the library wrote a part: a compiler either zeroes a whole
    struct or leaves its padding alone, so a byte of it that was written is a field.
    """
    places = structs.offsets(rows)
    found = [_padding_difference(rows, places, probe, exact)]
    for row, (offset, size), (_, value) in zip(rows, places, values_of(rows, probe.data)):
        text = _field_difference(row, offset, size, value, probe)
        if text:
            found.append(Difference(offset, text))
            break
    return min((item for item in found if item is not None), default=None)


def _field_difference(row: structs.Row, offset: int, size: int, value: float, probe: Probe) -> str:
    name, _, allowed = row
    if probe.written and not all(probe.written[offset : offset + size]):
        return f"{name} (offset {offset}) is not written by the library"
    if allowed and value not in allowed:
        wanted = " or ".join(f"{number:g}" for number in allowed)
        return f"{name} (offset {offset}) is {value:g} by default, expected {wanted}"
    return ""


def _padding_difference(
    rows: Sequence[structs.Row], places: Sequence[tuple[int, int]], probe: Probe, exact: bool
) -> Difference | None:
    """Look for a field that the layout does not know: in its padding, or past its end."""
    if probe.written is None:
        return None
    sizeof = ctypes.sizeof(structs.struct_type("measured", rows))
    fields = {at for offset, size in places for at in range(offset, offset + size)}
    padding = [at for at in range(sizeof) if at not in fields]
    written = [at for at in padding if probe.written[at]]
    partly = exact and 0 < len(written) < len(padding)
    unknown = [at for at in written if partly or probe.data[at]]
    unknown += [at for at in range(sizeof, structs.BLOCK_BYTES) if probe.written[at]]
    if not unknown:
        return None
    before = [row[0] for row, (offset, _) in zip(rows, places) if offset < unknown[0]]
    return Difference(unknown[0], f"an unknown field follows {before[-1]} at offset {unknown[0]}")


# --- step 4: the choice -------------------------------------------------------------------------


def choose(name: str, span: Bracket, probe: Probe) -> Layout:
    """Return the last layout of a parameter struct in the bracket that fits what was measured.

    Raises LayoutMismatch that names the first differing field of the layout that came furthest.
    """
    candidates = [item for item in layouts.of(name) if span.meets(item.since, item.until)]
    exact = span.high == builds.NEVER  # nobody has seen such a build: it must fit to the byte
    differences = [(first_difference(item.rows, probe, exact), item) for item in candidates]
    fitting = [item for difference, item in differences if difference is None]
    if fitting:
        return fitting[-1]
    difference, nearest = max(differences, key=lambda pair: pair[0].offset if pair[0] else -1)
    assert difference is not None, "no fitting layout and no difference"
    raise errors.LayoutMismatch(
        f"{name}: {difference.text} (layout {nearest.id}, {builds.label(nearest.since)}; the "
        f"library's functions say {span}). This libllama has a struct layout that igllama does "
        f"not know: use a release up to {layouts.TESTED_UP_TO}, or a newer igllama"
    )


def all_layouts(span: Bracket, probes: dict[str, Probe]) -> dict[str, Layout]:
    """Return the layout of every struct: the measured ones chosen, the others by their build.

    Where a bracket spans a change of llama_batch or of a returned struct, the longer one is taken:
    each is the other plus trailing fields, and too long is harmless in both directions.
    """
    names = {name for module in layouts.MODULES for name in module.STRUCTS}
    chosen = {}
    for name in names - set(probes):
        meeting = [item for item in layouts.of(name) if span.meets(item.since, item.until)]
        if meeting:
            chosen[name] = max(meeting, key=lambda item: ctypes.sizeof(_struct(item)))
    for name, probe in probes.items():
        chosen[name] = choose(name, span, probe)
    return chosen


def _struct(layout: Layout) -> type[ctypes.Structure]:
    return structs.struct_type(layout.struct, layout.rows)
