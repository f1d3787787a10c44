"""Struct layouts of llama.h, one module per build that changed a struct.

The modules, `modules.py` and `exports.py` are made by scripts/abi_check.py from a llama.h and are
never edited by hand. What a layout looks like says `libloader.abi.structs`; which one a library has
finds `libloader.abi.detect`.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from libloader.abi import builds
from libloader.abi.layouts.modules import MODULES
from libloader.abi.structs import Row

__all__ = ["MODULES", "TESTED_UP_TO", "Layout", "at", "of"]

TESTED_UP_TO = "0.6.0-dev"  # the newest llama.h that abi_check.py has compared with these tables


class Layout(NamedTuple):
    """One layout of one struct, found in builds [since, until)."""

    struct: str
    id: str
    since: int
    until: int
    rows: tuple[Row, ...]


@cache
def of(struct: str) -> tuple[Layout, ...]:
    """Return every known layout of a struct, oldest first."""
    found = [
        (builds.order(module.SINCE), *module.STRUCTS[struct])
        for module in MODULES
        if struct in module.STRUCTS
    ]
    ends = [since for since, _, _ in found[1:]] + [builds.NEVER]
    return tuple(
        Layout(struct, id, since, until, rows) for (since, id, rows), until in zip(found, ends)
    )


def at(struct: str, build: int) -> Layout:
    """Return the layout of a struct in a build; the oldest one before its time."""
    past = [layout for layout in of(struct) if layout.since <= build]
    return past[-1] if past else of(struct)[0]
