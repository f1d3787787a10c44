"""Patterns: read as ECMA-262 does, searched in linear time, written as expressions."""

from __future__ import annotations

import random
import re

import pytest

from libloader.errors import GrammarInvalid
from libloader.grammar import charset, expr, gbnf, pattern
from libloader.grammar.pattern import compile_pattern


@pytest.mark.parametrize(
    ("text", "good", "bad"),
    [
        ("", ["", "x"], []),
        ("a.c", ["abc", "xabcx"], ["ac", "a\nc"]),
        ("^a?$", ["", "a"], ["aa"]),
        ("^(?=.*\\d)(?=.*[a-z]).{3,}$", ["a1x"], ["abc", "a1"]),
        ("^(?!admin)", ["user"], ["admin1"]),
        ("(?<=\\$)\\d+", ["$5"], ["5"]),
        ("(?<!\\$)\\b\\d+", ["5"], ["$5"]),
        ("\\bcat\\b", ["a cat.", "cat"], ["concat"]),
        ("a\\Bb", ["ab"], ["a b"]),
        ("^[^\\d\\s]+$", ["ab"], ["a1", "a b"]),
        ("^[\\b]$", ["\b"], ["b"]),
        ("^\\cJ$", ["\n"], ["J"]),
        ("^[\\w-]+$", ["a-b_1"], ["a b"]),
        ("^\\u{1F600}\\uD83D\\uDE00$", ["\U0001f600\U0001f600"], ["x"]),
        ("^\\p{L}+\\P{L}$", ["éa1"], ["1a"]),
        ("^a{2,3}?$", ["aa", "aaa"], ["a", "aaaa"]),
        ("^(?:a|b|)c$", ["c", "ac"], ["abc"]),
        ("^(a?){3}$", ["", "aaa"], ["aaaa"]),
        ("(^a|b)c", ["ac", "xbc"], ["xac"]),
        ("^\\x41\\t\\0$", ["A\t\0"], ["A"]),
        ("^\\/\\-\\.$", ["/-."], ["/--"]),
    ],
)
def test_a_pattern_finds_what_it_should(text, good, bad):
    compiled = compile_pattern(text)
    assert [t for t in good if not compiled.search(t)] == []
    assert [t for t in bad if compiled.search(t)] == []


def random_pattern(rng, depth=3):
    if depth == 0:
        return rng.choice(["a", "b", "c", ".", "[ab]", "[^a]", "\\d", "ab"])
    inner = random_pattern(rng, depth - 1)
    kind = rng.randrange(6)
    if kind == 0:
        return f"(?:{inner}){rng.choice(['*', '+', '?', '{2}', '{1,3}', '{2,}'])}"
    if kind == 1:
        return f"(?:{inner}|{random_pattern(rng, depth - 1)})"
    return inner + random_pattern(rng, depth - 1)


@pytest.mark.parametrize("seed", range(60))
def test_search_and_grammar_agree_with_python_on_small_patterns(seed):
    rng = random.Random(seed)
    inner = random_pattern(rng)
    text = rng.choice(["", "^"]) + f"(?:{inner})" + rng.choice(["", "$"])
    known, ours = re.compile(text.replace("$", r"\Z")), compile_pattern(text)
    grammar = gbnf.compile_text(expr.write({"root": ours.expression()}))
    for _ in range(60):
        document = "".join(rng.choice("abc1\n") for _ in range(rng.randint(0, 7)))
        expected = known.search(document) is not None
        assert ours.search(document) == expected
        # A grammar's dot is the pattern's: both stop at line ends.
        assert gbnf.matches_compiled(grammar, document) == expected


@pytest.mark.parametrize(
    "text", ["^(?=a)b", "a(?!b)", "(?<=a)b", "\\ba", "a^b", "(a|^b)c", "(?:a$|b)c"]
)
def test_what_a_grammar_cannot_hold_says_so(text):
    with pytest.raises(pattern.Inexpressible):
        compile_pattern(text).expression()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("(", "without its \\)"),
        ("[a", "ends too early"),
        ("a{2", "no repetition"),
        ("a{3,2}", "from 3 to 2"),
        ("{", "nothing before it"),
        ("(?x)", "unknown kind of group"),
        ("^*", "cannot be repeated"),
        ("\\", "ends too early"),
        ("\\k<a>", "back-reference"),
        ("\\xZZ", "wrong digits"),
        ("]", "a ] alone"),
        ("\\p{}", "unknown category"),
        ("\\p", "without"),
    ],
)
def test_a_broken_pattern_names_the_trouble_and_the_place(text, match):
    with pytest.raises(GrammarInvalid, match=match) as caught:
        pattern.Pattern(text)
    assert "at character" in caught.value.message


def test_look_behind_over_a_long_text_gives_up_instead_of_hanging(monkeypatch):
    monkeypatch.setattr(pattern, "MAX_STEPS", 50_000)
    compiled = compile_pattern("(?<=a[^b]*)c")
    with pytest.raises(GrammarInvalid, match="too long"):
        compiled.search("a" * 20_000)


def test_a_length_narrows_one_loop_only():
    node = compile_pattern("^x[a-z]*$").expression()
    assert pattern.lengths(node) == (1, None)
    assert pattern.lengths(pattern.within_lengths(node, 3, 5)) == (3, 5)
    assert pattern.within_lengths(node, 0, 0) == expr.NEVER
    with pytest.raises(pattern.Inexpressible):
        pattern.within_lengths(compile_pattern("^a+b+$").expression(), 0, 5)


def test_sets_of_characters_are_an_algebra():
    letters, vowels = charset.of([(0x61, 0x7A)]), charset.chars("aeiou")
    consonants = charset.subtract(letters, vowels)
    assert charset.union(consonants, vowels) == letters
    assert charset.intersect(consonants, vowels) == ()
    assert charset.invert(charset.invert(letters)) == letters
    assert charset.invert(()) == charset.ALL
    assert not charset.contains(charset.invert(vowels), 0xD800)
