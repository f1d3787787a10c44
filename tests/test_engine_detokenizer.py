"""Bytes in, text out: whole characters, stop strings, whatever the cuts between tokens."""

from __future__ import annotations

import random

import pytest

from libloader.engine.detokenizer import Detokenizer


def split(data: bytes, chance: random.Random) -> list[bytes]:
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(8)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)])]


def text_of(pieces, stops=()):
    detokenizer = Detokenizer(stops)
    parts = []
    for piece in pieces:
        parts.append(detokenizer.push(piece))
        if detokenizer.stop is not None:
            return parts, detokenizer.stop
    return [*parts, detokenizer.flush()], detokenizer.stop


def reference(text, stops):
    """Return what is left if the text is read character by character."""
    for end in range(len(text) + 1):
        hits = [stop for stop in stops if text[:end].endswith(stop)]
        if hits:
            longest = max(hits, key=len)
            return text[: end - len(longest)], longest
    return text, None


def test_a_character_in_pieces_comes_out_whole():
    parts, _ = text_of([b"a\xf0", b"\x9f", b"\x99", b"\x82b"])
    assert parts == ["a", "", "", "🙂b", ""]


def test_an_unfinished_character_at_the_end_becomes_a_replacement_character():
    parts, _ = text_of([b"a\xf0\x9f"])
    assert parts == ["a", "\ufffd"]


def test_bytes_that_cannot_become_a_character_are_replaced_at_once():
    parts, _ = text_of([b"a\xffb"])
    assert parts == ["a\ufffdb", ""]


def test_only_what_may_begin_a_stop_string_is_held_back():
    detokenizer = Detokenizer(("\n\n", "END"))
    assert detokenizer.push(b"one\n") == "one"
    assert detokenizer.push(b"two E") == "\ntwo "
    assert detokenizer.push(b"N") == ""
    assert detokenizer.push(b"s") == "ENs"


def test_of_stop_strings_that_end_together_the_longest_is_cut():
    assert text_of([b"xab"], ("ab", "xab")) == ([""], "xab")


def test_the_stop_string_that_ends_first_wins():
    assert text_of([b"abcd"], ("abcd", "bc")) == (["a"], "bc")


def test_a_stop_string_inside_a_cut_emoji_row_is_found():
    parts, stop = text_of([bytes([b]) for b in "🙂🙃🙂".encode()], ("🙃",))
    assert ("".join(parts), stop) == ("🙂", "🙃")


@pytest.mark.parametrize("seed", range(200))
def test_text_and_stop_do_not_depend_on_the_cuts(seed):
    chance = random.Random(seed)
    text = "".join(chance.choice("aab🙂é") for _ in range(chance.randrange(1, 24)))
    stops = tuple(
        "".join(chance.choice("ab🙂") for _ in range(chance.randrange(1, 5)))
        for _ in range(chance.randrange(4))
    )
    for _ in range(5):
        parts, stop = text_of(split(text.encode(), chance), stops)
        assert ("".join(parts), stop) == reference(text, stops)


def test_many_long_stop_strings_cost_little_per_token():
    stops = tuple("ab" * 127 + chr(0x100 + number) for number in range(64))
    parts, stop = text_of([b"ab"] * 500, stops)
    assert "".join(parts) == "ab" * 500 and stop is None
