"""Ranges of numbers: the grammar accepts a number if and only if it is inside."""

from __future__ import annotations

import random
from decimal import Decimal

import pytest
import schema_cases

from libloader.grammar import expr, formats, gbnf, numbers
from libloader.grammar.pattern import compile_pattern


def compiled(rules):
    return gbnf.compile_text(expr.write(expr.prune(rules, ("root",))))


@pytest.mark.parametrize("seed", range(40))
def test_a_range_of_integers_holds_these_and_no_others(seed):
    rng = random.Random(seed)
    size = rng.choice([20, 2_000, 10**9, 10**17])
    low, high = sorted(rng.randint(-size, size) for _ in range(2))
    grammar = compiled({"root": numbers.integers(low, high)})
    near = [end + step for end in (low, high, 0, -low, -high) for step in (-1, 0, 1)]
    for value in [*near, *(rng.randint(-size, size) for _ in range(10))]:
        assert gbnf.matches_compiled(grammar, str(value)) == (low <= value <= high), value


@pytest.mark.parametrize("low", [None, -7, 0, 3])
def test_an_open_range_of_integers_goes_on(low):
    grammar = compiled({"root": numbers.integers(low, None)})
    for value in (-(10**12), -7, -8, 0, 2, 3, 10**12):
        assert gbnf.matches_compiled(grammar, str(value)) == (low is None or value >= low)


@pytest.mark.parametrize("seed", range(120))
def test_a_range_of_decimals_holds_these_and_no_others(seed):
    rng = random.Random(seed)

    def draw():
        return Decimal(rng.randint(-3_000, 3_000)) / rng.choice([1, 10, 100, 1000])

    low, high = sorted((draw(), draw()))
    opened = [rng.random() < 0.3 for _ in range(2)]
    if low == high:
        opened = [False, False]
    node = numbers.decimals(low, high, open_low=opened[0], open_high=opened[1])
    grammar = compiled({"root": node})
    step = Decimal("0.0001")
    for value in (low, high, low - step, low + step, high - step, high + step, draw(), draw()):
        is_above = value > low if opened[0] else value >= low
        is_below = value < high if opened[1] else value <= high
        assert gbnf.matches_compiled(grammar, f"{value:f}") == (is_above and is_below), value


@pytest.mark.parametrize("seed", range(40))
def test_what_is_written_is_read_back_inside_its_limits(seed):
    """As doubles, open limits included: nothing is rounded across."""
    rng = random.Random(seed)
    low, high = sorted(rng.uniform(-1, 1) * 10 ** rng.randint(-3, 12) for _ in range(2))
    node = numbers.decimals(Decimal(repr(low)), Decimal(repr(high)), open_low=True, open_high=True)
    text = expr.write(expr.prune({"root": node}, ("root",)))
    writer = schema_cases.Writer(text, seed)
    for _ in range(50):
        assert low < float(writer.document()) < high


@pytest.mark.parametrize("step", [2, 3, 7, 16, 32])
def test_multiples_are_found_by_their_digits(step):
    grammar = compiled(numbers.multiples(step, "root", is_signed=True))
    for value in [*range(-3 * step, 0), *range(1, 5 * step), 10**6, 10**6 + 1]:
        assert gbnf.matches_compiled(grammar, str(value)) == (value % step == 0), value


@pytest.mark.parametrize("name", [n for n in formats.FORMATS if formats.FORMATS[n].pattern])
def test_what_a_formats_pattern_writes_passes_its_test(name):
    node = compile_pattern(f"^(?:{formats.FORMATS[name].pattern})$").expression()
    writer = schema_cases.Writer(expr.write({"root": node}), seed=1)
    documents = [writer.document() for _ in range(150)]
    assert [text for text in documents if not formats.FORMATS[name].is_right(text)] == []


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("date", ["0001-01-01", "2000-02-29"], ["1900-02-29", "2024-2-9", "２024-01-01"]),
        ("time", ["23:59:60Z", "00:59:60+01:00", "12:00:00z"],
         ["22:59:60Z", "12:00:00", "12:00:00+24:00", "12:00:00.Z", "1:00:00Z"]),
        ("duration", ["P4DT12H30M5S", "PT0S"], ["P1Y1D", "P1W1D", "P1H", "PT1D", "p1d"]),
        ("ipv6", ["::ffff:1.2.3.4", "::"], ["fe80::1%eth0", ":::", "1:2:3:4:5:6:7:8:9"]),
        ("email", ['"a b"@x.org', "a+b@c"], ["a..b@c.d", ".a@b.c", "a b@c.d", "@"]),
        ("uri", ["mailto:a@b", "urn:x:y", "http://[::1]:80/"], ["http://[::1", "a%zz:b", "//x"]),
        ("hostname", ["a", "xn--x.y"], ["a_b", "a" * 64, "é.ch", "a."]),
        ("uuid", ["ABCDEF01-2345-6789-abcd-ef0123456789"],
         ["gggggggg-0000-0000-0000-000000000000"]),
    ],
)  # fmt: skip
def test_a_formats_test_is_the_standards(name, good, bad):
    is_right = formats.FORMATS[name].is_right
    assert [text for text in good if not is_right(text)] == []
    assert [text for text in bad if is_right(text)] == []
