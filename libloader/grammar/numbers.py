"""Ranges of numbers as expressions over their digits.

    integers(low, high)      whole numbers, either end None for open
    decimals(low, high, ..)  numbers with a fraction
    multiples(step, ..)      whole numbers that a small number divides
    fraction_steps(step)     numbers that 0.01, 0.5 or their like divides

Laws:
- What is written is read back as a double on the right side of each limit: a number has at most
  SIGNIFICANT digits where limits matter, so that none is rounded across.
- No plus signs, no leading zeros; exponents only where there are no limits.
"""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from libloader.grammar import charset
from libloader.grammar.expr import (
    EMPTY,
    NEVER,
    Chars,
    Node,
    Ref,
    Text,
    alt,
    optional,
    repeat,
    seq,
)

SIGNIFICANT = 15
MAX_INTEGER = 10**19 - 1
MAX_LIMIT = 10**40 - 1  # of the limits that a schema sets
N_MACHINE_DIGITS = 7
MAX_STEPS = 100  # endings that are listed one by one
DIGIT = Chars(((0x30, 0x39),))
NONZERO = Chars(((0x31, 0x39),))
MINUS = optional(seq("-"))

# Bounded in length, or a model that likes digits never ends; finite as a double.
INTEGER = seq(MINUS, alt(seq("0"), seq(NONZERO, repeat(DIGIT, 0, 17))))
NUMBER = seq(
    INTEGER,
    optional(seq(".", repeat(DIGIT, 1, 16))),
    optional(seq(Chars(((0x45, 0x45), (0x65, 0x65))), optional(Chars(((0x2B, 0x2B), (0x2D, 0x2D)))),
                 repeat(DIGIT, 1, 2))),
)  # fmt: skip


def integers(low: int | None, high: int | None) -> Node:
    """Return the whole numbers from `low` to `high`; an open end stops at 19 digits, if it can.

    Nothing is written beyond MAX_LIMIT: NEVER if that is all there is.
    """
    low = -max(MAX_INTEGER, -10 * (high or 0)) if low is None else low
    high = max(MAX_INTEGER, 10 * low) if high is None else high
    low, high = max(low, -MAX_LIMIT), min(high, MAX_LIMIT)
    below_zero = _naturals(max(1, -high), -low)
    negative = seq("-", below_zero) if below_zero != NEVER else NEVER
    return alt(negative, _naturals(max(0, low), high))


def multiples(step: int, name: str, *, is_signed: bool) -> dict[str, Node]:
    """Return rules for the whole numbers but 0 that `step` divides; `name` is the start.

    A machine over the digits: the rule name-R-N has read remainder R and takes N more digits.
    """
    rules: dict[str, Node] = {}

    def after(remainder: int, n_left: int) -> Node:
        own = f"{name}-{remainder}-{n_left}"
        if own not in rules:
            rules[own] = EMPTY  # claimed before its own successors ask for it
            rules[own] = machine(remainder, n_left)
        return Ref(own)

    def machine(remainder: int, n_left: int) -> Node:
        options: list[Node] = [EMPTY] if remainder == 0 else []
        if n_left:
            options += leads(remainder * 10, range(10), n_left - 1)
        return alt(*options)

    def leads(base: int, digits: range, n_left: int) -> list[Node]:
        by_remainder: dict[int, list[str]] = {}
        for digit in digits:
            by_remainder.setdefault((base + digit) % step, []).append(str(digit))
        return [
            seq(Chars(charset.chars("".join(group))), after(remainder, n_left))
            for remainder, group in by_remainder.items()
        ]

    sign = MINUS if is_signed else EMPTY
    start = seq(sign, alt(*leads(0, range(1, 10), N_MACHINE_DIGITS - 1)))
    return {name: start, **rules}


def fraction_steps(step: Decimal) -> Node | None:
    """Return the numbers that a `step` below 1 divides, if only their fraction decides that."""
    n_digits = -int(step.normalize().as_tuple().exponent)
    whole = int(step.scaleb(n_digits))
    if not 0 < n_digits <= 6 or 10**n_digits % whole or 10**n_digits // whole > MAX_STEPS:
        return None if whole != 1 or not 0 < n_digits <= 6 else _any_fraction(n_digits)
    digits = [f"{part:0{n_digits}d}".rstrip("0") for part in range(whole, 10**n_digits, whole)]
    return seq(INTEGER, optional(alt(seq(".0"), *(seq("." + d) for d in digits))))


def _any_fraction(n_digits: int) -> Node:
    return seq(INTEGER, optional(seq(".", repeat(DIGIT, 1, n_digits))))


def _naturals(low: int, high: int) -> Node:
    """Return the digits of the numbers low..high, both from 0."""
    options = []
    while low <= high:
        top = min(high, 10 ** len(str(low)) - 1)
        options.append(_between(str(low), str(top)))
        low = top + 1
    return alt(*options)


def _digits(first: str, last: str) -> Node:
    return Chars(((ord(first), ord(last)),)) if first != last else seq(first)


def _between(low: str, high: str) -> Node:
    """Return the digit strings from `low` to `high`, which are of equal length."""
    n_free = len(low)
    if set(low) <= {"0"} and set(high) <= {"9"}:
        return repeat(DIGIT, n_free, n_free)
    if low[0] == high[0]:
        return seq(low[0], _between(low[1:], high[1:]))
    rest, options = n_free - 1, []
    first, last = low[0], high[0]
    if set(low[1:]) - {"0"}:
        options.append(seq(low[0], _between(low[1:], "9" * rest)))
        first = chr(ord(first) + 1)
    if set(high[1:]) - {"9"}:
        options.append(seq(high[0], _between("0" * rest, high[1:])))
        last = chr(ord(last) - 1)
    if first <= last:
        options.append(seq(_digits(first, last), repeat(DIGIT, rest, rest)))
    return alt(*options)


def decimals(low: Decimal | None, high: Decimal | None, *, open_low: bool, open_high: bool) -> Node:
    """Return the numbers from `low` to `high`, an open end excluded; NEVER if there is none."""
    if low is None:  # mirrored, an open low end is an open high end
        return NEVER if high is None else _up_from(-high, open_high, sign="-")
    if high is None:
        return _up_from(low, open_low, sign="")
    if low > high:
        return NEVER
    zero = Decimal(0)
    options = []
    if low < 0:
        options.append(
            seq("-", _magnitudes(max(zero, -high), -low, open_high or high >= 0, open_low))
        )
    if high >= 0:
        options.append(_magnitudes(max(zero, low), high, open_low and low >= 0, open_high))
    return alt(*options)


def _up_from(low: Decimal, is_open: bool, sign: str) -> Node:
    """Return the numbers from `low` up (mirrored: from -low down): the larger, the coarser."""
    ends = [Decimal(10**9 - 1), Decimal(10**SIGNIFICANT - 1)]
    mirror = {"": "-", "-": ""}[sign]
    options: list[Node] = []
    if low < 0:
        options.append(seq(mirror, _magnitudes(Decimal(0), -low, True, is_open)))
        low, is_open = Decimal(0), False
    if sign and low == 0 and not is_open:
        options.append(Text("0"))
        is_open = True
    for end in ends:
        if low <= end:
            options.append(seq(sign, _magnitudes(low, end, is_open, False)))
            low, is_open = end + 1, False
    return alt(*options)


def _magnitudes(low: Decimal, high: Decimal, open_low: bool, open_high: bool) -> Node:
    """Return the numbers between two limits that are not negative."""
    n_fraction = SIGNIFICANT - len(str(int(high)))
    if n_fraction < 1:
        first, last = math.ceil(low), math.floor(high)
        first += open_low and first == low
        last -= open_high and last == high
        return _naturals(first, min(last, MAX_INTEGER))
    unit = Decimal(1).scaleb(-n_fraction)
    low, high = low.quantize(unit, ROUND_CEILING), high.quantize(unit, ROUND_FLOOR)
    if low > high or (low == high and (open_low or open_high)):
        return NEVER
    first, last = int(low), int(high)
    low_digits, high_digits = _fraction(low), _fraction(high)
    if first == last:
        fraction = _fraction_between(low_digits, high_digits, open_low, open_high, n_fraction)
        return seq(str(first), fraction)
    options = [
        seq(str(first), _fraction_between(low_digits, None, open_low, False, n_fraction)),
        seq(str(last), _fraction_between("", high_digits, False, open_high, n_fraction)),
    ]
    if last - first > 1:
        free = optional(seq(".", repeat(DIGIT, 1, n_fraction)))
        options.append(seq(_naturals(first + 1, last - 1), free))
    return alt(*options)


def _fraction(value: Decimal) -> str:
    """Return the digits behind the point, without zeros at the end."""
    return f"{value:f}".partition(".")[2].rstrip("0")


def _fraction_between(
    low: str, high: str | None, open_low: bool, open_high: bool, n_max: int
) -> Node:
    """Return the fractions, point included, from .low to .high; `high` None means up to 1."""
    options: list[Node] = []
    if not low and not open_low and not (high == "" and open_high):
        options.append(EMPTY)
    tail = _tail(low, high, open_low, open_high, n_max, is_first=True)
    if tail != NEVER:
        options.append(seq(".", tail))
    return alt(*options)


def _tail(
    low: str | None, high: str | None, open_low: bool, open_high: bool, n_max: int, is_first: bool
) -> Node:
    """Return the digits that may follow while `low` and `high` are still met exactly.

    None means that this limit no longer binds: the digits so far are strictly inside it.
    """
    if low == "" and not open_low:
        low = None
    if low is None and high == "" and not open_high:
        return repeat(Text("0"), int(is_first), n_max)
    may_stop = (low is None or (low == "" and not open_low)) and (
        high is None or high != "" or not open_high
    )
    options: list[Node] = [EMPTY] if may_stop and not is_first else []
    if low is None and high is None:
        return repeat(DIGIT, int(is_first), n_max)
    if n_max == 0:
        return alt(*options)
    bottom = 0 if low is None else int(low[:1] or 0)
    top = 9 if high is None else int(high[:1] or 0)
    inner: list[int] = []
    for digit in range(bottom, top + 1):
        new_low = low[1:] if low is not None and digit == bottom else None
        new_high = high[1:] if high is not None and digit == top else None
        if new_low is None and new_high is None:
            inner.append(digit)
            continue
        rest = _tail(new_low, new_high, open_low, open_high, n_max - 1, is_first=False)
        if rest != NEVER:
            options.append(seq(str(digit), rest))
    if inner:
        free = repeat(DIGIT, 0, n_max - 1)
        options.append(seq(_digits(str(inner[0]), str(inner[-1])), free))
    return alt(*options)
