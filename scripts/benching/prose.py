"""Text for prompts: words by chance from a seed, so that no two prompts begin alike."""

from __future__ import annotations

import random

# A few tokens each in any vocabulary.
WORDS = """
the of and to in is that for it as was with be by on not he his but at are this have from or had an
they which one you were all her she there would their we him been has when who will no more if out
so up said what its about than into them can only other time new some could these two may first then
do any like my now over such our man me even most made after also did many
"""


# Capitals: the vocabularies of make_model.py have them as single letters, so there is one spelling.
LINE = "THE QUICK BROWN FOX JUMPS OVER 13 LAZY DOGS, AND THEN SLEEPS. "


def words(n: int, seed: object) -> str:
    """Return `n` words; another seed gives other words from the first one on."""
    chosen = random.Random(repr(seed)).choices(WORDS.split(), k=n)
    return " ".join(chosen)


def repetitive(n_sentences: int) -> str:
    """Return text that repeats itself: the same sentence again and again."""
    return " ".join(
        ["the man said that it was the time to be there for all of them."] * n_sentences
    )
