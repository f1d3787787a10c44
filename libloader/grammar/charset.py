"""Sets of characters as sorted, disjoint ranges of code points: what `[a-z]` means.

Laws: a set is a tuple of (first, last) pairs, sorted, neither overlapping nor touching; surrogates
are no characters and never in a set that `of` made.
"""

from __future__ import annotations

from collections.abc import Iterable

Ranges = tuple[tuple[int, int], ...]

LAST = 0x10FFFF
ALL: Ranges = ((0, 0xD7FF), (0xE000, LAST))


def of(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Return these ranges in the canonical form, without surrogates."""
    return intersect(_merged(ranges), ALL)


def chars(text: str) -> Ranges:
    return of((ord(char), ord(char)) for char in text)


def union(*sets: Ranges) -> Ranges:
    return of(pair for ranges in sets for pair in ranges)


def intersect(one: Ranges, other: Ranges) -> Ranges:
    return _merged(
        (max(a, c), min(b, d)) for a, b in one for c, d in other if max(a, c) <= min(b, d)
    )


def invert(ranges: Ranges) -> Ranges:
    """Return every character that is not in `ranges`."""
    gaps, start = [], 0
    for first, last in ranges:
        if start < first:
            gaps.append((start, first - 1))
        start = last + 1
    return of([*gaps, (start, LAST)] if start <= LAST else gaps)


def subtract(one: Ranges, other: Ranges) -> Ranges:
    return intersect(one, invert(other))


def contains(ranges: Ranges, code: int) -> bool:
    return any(first <= code <= last for first, last in ranges)


def _merged(ranges: Iterable[tuple[int, int]]) -> Ranges:
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return tuple(merged)
