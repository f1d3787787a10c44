"""What a budget for thoughts means in the words of a template."""

from __future__ import annotations

from pathlib import Path

import pytest
from chat_scenarios import USER

from libloader.chat.budget import thinking
from libloader.chat.template import ChatTemplate
from libloader.core import Thinking

FOLDER = Path(__file__).parent / "data" / "templates"


def budget(name, n_max, message="", **kwargs):
    template = ChatTemplate((FOLDER / f"{name}.jinja").read_text("utf-8"))
    return thinking(template, template.render([USER], kwargs=kwargs), n_max, message)


def test_without_a_limit_nothing_is_counted():
    assert budget("chatml_tools", -1) is None


def test_a_block_may_begin_the_answer_or_be_open_already():
    tags = {"begin": "<think>", "end": "</think>", "closing": "\n</think>\n\n"}
    assert budget("chatml_tools", 5) == Thinking(5, **tags)
    assert budget("reasoning_list", 0) == Thinking(0, opened=True, **tags)


def test_after_an_empty_thought_in_the_prompt_there_is_nothing_to_count():
    assert budget("chatml_tools", 5, enable_thinking=False) is None
    assert budget("bracket_roles", 5) is None


def test_a_sentence_may_say_why():
    closing = budget("chatml_tools", 5, "Enough.").closing
    assert closing == "\n\nEnough.\n</think>\n\n"


@pytest.mark.parametrize("n_max", [0, 7])
def test_channels_go_on_with_the_next_role(n_max):
    found = budget("typescript_tools", n_max)
    assert (found.n_max, found.begin, found.end) == (
        n_max,
        "<|channel|>analysis<|message|>",
        "<|end|>",
    )
    assert found.closing == "<|end|><|start|>assistant" and found.again
