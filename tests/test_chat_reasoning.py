"""Reasoning and content come apart the same way, however the text is cut into pieces."""

from __future__ import annotations

import random

import pytest

from libloader.chat import reasoning
from libloader.chat.reasoning import CONTENT, REASONING, Splitter, Tags, split

THINK = Tags("<think>", "</think>")

CASES = [
    # text, whether the prompt opened the block, reasoning, content
    ("<think>\nHm.\n</think>\n\nYes.", False, "Hm.", "Yes."),
    ("  \n<think>a</think>b", False, "a", "b"),
    ("a\n</think>\nb", True, "a", "b"),
    ("<think>\na</think>b", True, "a", "b"),
    ("\n\n  a  b \n c </think> b", True, "a  b \n c", "b"),
    ("</think>\n\nb", True, "", "b"),
    ("<think></think>b", False, "", "b"),
    ("<think>\n\n</think>\n\n", False, "", ""),
    ("no tags at all", False, "", "no tags at all"),
    ("  leading space stays", False, "", "  leading space stays"),
    ("text <think>no</think> more", False, "", "text <think>no</think> more"),
    ("<thinker>x", False, "", "<thinker>x"),
    ("<thin", False, "", "<thin"),
    (" \n ", False, "", " \n "),
    ("", False, "", ""),
    ("", True, "", ""),
    ("never ends", True, "never ends", ""),
    ("cut in the tag </thi", True, "cut in the tag </thi", ""),
    ("a < b </ c </think x </think>d", True, "a < b </ c </think x", "d"),
    ("<think>a</think>b</think>c<think>d", False, "a", "b</think>c<think>d"),
]


@pytest.mark.parametrize(("text", "opened", "thought", "content"), CASES)
def test_a_whole_answer_is_split(text, opened, thought, content):
    assert split(text, THINK, opened) == (thought, content)


def pieces(text, chance):
    """Cut `text` at random places."""
    cuts = sorted(chance.randint(0, len(text)) for _ in range(chance.randint(0, 8)))
    return [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)])]


def streamed(text, tags, opened, parts):
    splitter = Splitter(tags, opened)
    found = {REASONING: "", CONTENT: ""}
    order = []
    for part in parts:
        for kind, piece in splitter.feed(part):
            assert piece
            found[kind] += piece
            order.append(kind)
    for kind, piece in splitter.finish():
        found[kind] += piece
        order.append(kind)
    assert order == sorted(order, key=[REASONING, CONTENT].index)
    return found[REASONING], found[CONTENT]


@pytest.mark.parametrize(("text", "opened", "thought", "content"), CASES)
def test_every_cut_into_pieces_gives_the_same_parts(text, opened, thought, content):
    chance = random.Random(7)
    assert streamed(text, THINK, opened, list(text)) == (thought, content)
    for _ in range(60):
        assert streamed(text, THINK, opened, pieces(text, chance)) == (thought, content)


@pytest.mark.parametrize("tags", reasoning.TAGS)
def test_random_texts_of_every_kind_of_tags_come_out_whole(tags):
    chance = random.Random(3)
    words = [tags.begin, tags.end, tags.end[:-1], tags.begin[1:], "a", " ", "\n", "<", "["]
    for _ in range(200):
        text = "".join(chance.choice(words) for _ in range(chance.randint(0, 8)))
        opened = chance.random() < 0.5
        whole = split(text, tags, opened)
        assert streamed(text, tags, opened, pieces(text, chance)) == whole
        lost = n_letters(text) - n_letters("".join(whole))
        begin, end = len(tags.begin), len(tags.end)
        assert lost in (0, begin, end, begin + end)  # one pair of tags at most


def n_letters(text):
    return len("".join(text.split()))


def test_text_comes_as_soon_as_it_is_certain():
    splitter = Splitter(THINK, opened=True)
    assert splitter.feed("I think") == [(REASONING, "I think")]
    assert splitter.feed(" that <") == [(REASONING, " that")]
    assert splitter.feed("b") == [(REASONING, " <b")]
    assert splitter.feed("</think") == []
    assert splitter.feed(">\n") == []
    assert splitter.feed("\nYes") == [(CONTENT, "Yes")]
    assert splitter.feed(" <") == [(CONTENT, " <")]


def test_without_tags_all_is_content_at_once():
    splitter = Splitter(None)
    assert splitter.feed(" <think>") == [(CONTENT, " <think>")]
    assert splitter.finish() == []


def test_tokens_of_the_block_are_counted():
    splitter = Splitter(THINK)
    for text, n_tokens in (("<think>", 1), ("a b", 2), ("</think>", 1), ("\n\n", 1), ("Yes", 3)):
        splitter.feed(text, n_tokens)
    assert splitter.n_tokens == 4
    assert not splitter.in_block


def test_prompts_that_end_in_a_block_are_seen():
    assert reasoning.opened_by("<|im_start|>assistant\n<think>\n") == THINK
    assert reasoning.opened_by("[INST]x[/INST][THINK]") == Tags("[THINK]", "[/THINK]")
    assert reasoning.opened_by("<think>\n\n</think>\n\n") is None
    assert reasoning.opened_by("") is None


def test_the_tags_of_a_template_are_found_in_it():
    assert reasoning.tags_of("{{ content.split('</think>')[-1] }}") == THINK
    assert reasoning.tags_of("no reasoning") is None


@pytest.mark.parametrize("text", ["</think>2", "\n</think>\n\n2", "</think>\n2"])
def test_an_end_without_a_beginning_says_that_there_are_no_thoughts(text):
    assert split(text, THINK) == ("", "2")
    assert split("a</think>2", THINK) == ("", "a</think>2")
