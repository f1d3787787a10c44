"""Build numbers as comparable integers: b3889 is 3889; v0.4.0 comes after every b-number.

llama.cpp numbered its builds by commits on master (b3889) up to 0.3.x and by versions (v0.4.0)
since. A "-dev" version covers many commits; it is ordered as the version it names.
"""

from __future__ import annotations

import re
from typing import NamedTuple

FIRST_VERSION = 100_000  # no b-number comes near it
NEVER = 1_000_000_000

_BUILD = re.compile(r"b(\d{3,6})\Z")
_VERSION = re.compile(r"v?(\d{1,3})\.(\d{1,2})\.(\d{1,2})(?:-dev)?\Z")


class Bracket(NamedTuple):
    """Builds [low, high) in which an ABI state occurs; `high` is NEVER if it may still do."""

    low: int
    high: int

    def meets(self, low: int, high: int) -> bool:
        """Tell whether any build of this bracket lies in [low, high)."""
        return self.low < high and low < self.high

    def __str__(self) -> str:
        if self.high == NEVER:
            return f"{label(self.low)} or newer"
        if self.low >= FIRST_VERSION:
            return label(self.low)
        if self.high >= FIRST_VERSION:
            return f"{label(self.low)} or newer, before {label(self.high)}"
        return f"{label(self.low)}..{label(self.high - 1)}"


def order(name: str) -> int:
    """Return the place of "b3889", "v0.4.0" or "0.6.0-dev"; ValueError for anything else."""
    build = _BUILD.match(name)
    if build:
        return int(build.group(1))
    version = _VERSION.match(name)
    if version is None:
        raise ValueError(f"{name!r} is neither a build (b3889) nor a version (v0.4.0)")
    major, minor, patch = (int(part) for part in version.groups())
    return FIRST_VERSION + major * 10_000 + minor * 100 + patch


def label(place: int) -> str:
    """Return the name of a place: the inverse of `order`, without "-dev"."""
    if place < FIRST_VERSION:
        return f"b{place}"
    major, rest = divmod(place - FIRST_VERSION, 10_000)
    return f"v{major}.{rest // 100}.{rest % 100}"


def named_in(text: str) -> str:
    """Return the build that a file name carries ("libllama.b9842.so" -> "b9842"), or ""."""
    found = re.search(r"(?:^|[.\-_])(b\d{4,5}|v\d+\.\d+\.\d+)(?=[.\-_]|$)", text)
    if found:
        return found.group(1)
    soname = re.search(r"\.so\.0\.0\.(\d{4,5})$", text)
    return f"b{soname.group(1)}" if soname else ""
