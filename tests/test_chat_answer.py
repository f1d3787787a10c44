"""Whole answers: reasoning, content and calls together, for the template that asked."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from chat_scenarios import USER, WEATHER

from libloader.chat.answer import AnswerReader, answer_reader, keeps_special, read_whole
from libloader.chat.reasoning import Tags
from libloader.chat.template import ChatTemplate
from libloader.chat.tools import format_named
from libloader.chat.tools.deltas import CallDelta, ContentDelta, ReasoningDelta, collect

FOLDER = Path(__file__).parent / "data" / "templates"
THINK = Tags("<think>", "</think>")
TEXT = (
    "<think>\nI need it. <tool_call> is the tag.\n</think>\n\nLet me look.\n"
    '<tool_call>\n{"name": "get_weather", "arguments": {"place": "Rome"}}\n</tool_call>'
)


def load(name, **more):
    return ChatTemplate((FOLDER / f"{name}.jinja").read_text("utf-8"), **more)


def reader_for(name, **options):
    template = load(name)
    tools = options.pop("tools", [WEATHER])
    kwargs = options.pop("kwargs", {})
    prompt = template.render([USER], tools=tools, kwargs=kwargs)
    return answer_reader(template, prompt, tools=tools, make_id=lambda: "id", **options)


def test_reasoning_content_and_calls_come_apart():
    message = read_whole(reader_for("chatml_tools"), TEXT)
    assert message.reasoning == "I need it. <tool_call> is the tag."
    assert message.content == "Let me look."
    assert message.calls == (("id", "get_weather", '{"place": "Rome"}'),)


def test_every_cut_gives_the_same_message():
    chance = random.Random(4)
    whole = read_whole(reader_for("chatml_tools"), TEXT)
    for _ in range(100):
        cuts = sorted(chance.randint(0, len(TEXT)) for _ in range(10))
        reader, deltas = reader_for("chatml_tools"), []
        for start, end in zip([0, *cuts], [*cuts, len(TEXT)]):
            deltas += reader.feed(TEXT[start:end], 1)
        assert collect(deltas + reader.finish()) == whole


def test_a_block_that_the_prompt_opened_needs_no_begin_tag():
    message = read_whole(reader_for("reasoning_list", tools=[]), "Hm.</think>\n\n2")
    assert (message.reasoning, message.content) == ("Hm.", "2")


def test_without_splitting_the_block_stays_content():
    message = read_whole(reader_for("chatml_tools", split_reasoning=False), TEXT)
    assert message.reasoning == ""
    assert message.content.startswith("<think>\nI need it. ")
    assert len(message.calls) == 1


def test_without_tools_nothing_is_a_call():
    message = read_whole(reader_for("chatml_tools", tools=[]), TEXT)
    assert message.calls == ()
    assert message.content.endswith("</tool_call>")


def test_channels_are_read_with_and_without_tools():
    text = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>2"
    for tools in ([], [WEATHER]):
        message = read_whole(reader_for("typescript_tools", tools=tools), text)
        assert (message.reasoning, message.content) == ("Hm.", "2")


def test_texts_around_content_go_also_without_tools():
    template = ChatTemplate("{{ messages }}<|START_ACTION|><|START_RESPONSE|>{# #}")
    assert template.format.name == "command-r7b"
    reader = answer_reader(template, template.render([USER]))
    text = "<|START_RESPONSE|>It <|START_ACTION|> is<|END_RESPONSE|>"
    assert read_whole(reader, text).content == "It <|START_ACTION|> is"


def test_tokens_of_reasoning_are_counted():
    reader = reader_for("chatml_tools")
    for text, n_tokens in (("<think>", 1), ("a b c", 3), ("</think>", 1), ("Yes.", 2)):
        reader.feed(text, n_tokens)
    assert reader.n_reasoning_tokens == 5
    harmony = reader_for("typescript_tools")
    for text in ("<|channel|>", "analysis", "<|message|>", "Hm", ".", "<|end|>"):
        harmony.feed(text, 1)
    assert harmony.n_reasoning_tokens == 2


def test_the_reason_to_finish_is_tool_calls_after_calls():
    reader = reader_for("chatml_tools")
    assert reader.finish_reason("stop") == "stop"
    read_whole(reader, TEXT)
    assert reader.finish_reason("stop") == "tool_calls"
    assert reader.finish_reason("length") == "length"


def test_deltas_are_plain_and_typed():
    reader = AnswerReader(THINK, format=format_named("hermes"), make_id=lambda: "id")
    deltas = reader.feed("<think>a</think>b<tool_call>") + reader.feed('{"name": "f"}</tool_call>')
    assert deltas == [
        ReasoningDelta("a"),
        ContentDelta("b"),
        CallDelta(0, "id", "f", ""),
        CallDelta(0, "", "", "{}"),
    ]


@pytest.mark.parametrize(
    ("special", "with_tools", "wanted"),
    [
        ((), True, False),
        (("<|im_end|>",), True, False),
        (("<tool_call>",), True, True),
        (("<tool_call>",), False, False),
        (("<think>", "</think>"), False, True),
    ],
)
def test_the_engine_keeps_control_texts_where_they_are_needed(special, with_tools, wanted):
    template = load("chatml_tools", special_tokens=special)
    assert keeps_special(template, with_tools=with_tools) is wanted


def test_channels_need_their_control_texts_always():
    template = load("typescript_tools", special_tokens=("<|channel|>",))
    assert keeps_special(template, with_tools=False)


def test_a_format_can_be_chosen():
    assert load("chatml_tools", tool_format="mistral").format.name == "mistral"
