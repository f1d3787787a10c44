"""Simulated libraries: what a build with a given layout would write, and which names it exports."""

from __future__ import annotations

import struct

from libloader.abi import builds, detect, layouts, structs
from libloader.abi.layouts.exports import EXPORTS

NEWEST = builds.Bracket(builds.order(layouts.TESTED_UP_TO), builds.NEVER)


def probe_of(rows, *, written=True) -> detect.Probe:
    """Return what the default function of a library with exactly these fields leaves behind.

    `written=False`: as on arm64, where nobody can tell which bytes were written.
    """
    data, mask = bytearray(structs.BLOCK_BYTES), [False] * structs.BLOCK_BYTES
    for (_, c_type, values), (offset, size) in zip(rows, structs.offsets(rows)):
        value = values[-1] if values else 0
        packed = float(value) if c_type == "f32" else int(value)
        struct.pack_into(detect.FORMATS[c_type], data, offset, packed)
        mask[offset : offset + size] = [True] * size
    return detect.Probe(bytes(data), tuple(mask) if written else None)


def exports_of(build: int) -> set[str]:
    """Return the names, of those that we look for, that a build and its own ggml export."""
    intervals = [*EXPORTS, *((name, first, "") for name, first in detect.GGML_HINTS)]
    return {"ggml_init"} | {
        name
        for name, first, end in intervals
        if builds.order(first) <= build and (not end or build < builds.order(end))
    }
