"""An answer as OpenAI's JSON: however the text is cut, the deltas add up to the plain message."""

import itertools
import json
import random
from pathlib import Path

import pytest
from chat_scenarios import WEATHER
from test_chat_answer import THINK

from libloader.chat.answer import SLICE, AnswerReader
from libloader.chat.message import MessageReader, message
from libloader.chat.tools import format_named

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"place": "Rome"}}\n</tool_call>'
TEXTS = (
    "",
    "Hi!",
    "  Hi! \n",
    "<think>Hm.</think>\n\nHi!",
    "<think>cut of",
    CALL,
    f"{CALL}\n{CALL}",
    f"<think>\nI need it.\n</think>\n\nLet me look.\n{CALL}",
    "<tool_call>\nnot a call\n</tool_call>",
    '<tool_call>{"name": "get_weather", "arguments": {"place": "Ro',
)


def new_reader(legacy=False):
    numbers = itertools.count()
    reader = AnswerReader(
        THINK,
        format=format_named("hermes"),
        tools=[WEATHER],
        make_id=lambda: f"call_{next(numbers)}",
    )
    return MessageReader(reader, legacy=legacy)


def read(pieces, legacy=False, reason="stop"):
    reader = new_reader(legacy)
    deltas = [delta for piece in pieces for delta in reader.feed(piece, 1)]
    rest, reason = reader.finish(reason)
    return [*deltas, *rest], reason


def feed_each(reader, pieces):
    return [delta for text, n_tokens in pieces for delta in reader.feed(text, n_tokens)]


def cut(text, chance):
    places = sorted(chance.randint(0, len(text)) for _ in range(chance.randint(0, 12)))
    return [text[i:j] for i, j in zip([0, *places], [*places, len(text)])]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_the_sum_of_the_deltas_is_the_plain_message(text, legacy):
    """E-group: streamed and plain answers are the same."""
    chance = random.Random(text)
    deltas, reason = read([text], legacy)
    whole = message(deltas)
    for pieces in [list(text), *(cut(text, chance) for _ in range(50))]:
        deltas, its_reason = read(pieces, legacy)
        assert (message(deltas), its_reason) == (whole, reason)


def test_plain_text_is_content_and_nothing_else():
    deltas, reason = read(["Hi", "!"])
    assert deltas == [{"content": "Hi"}, {"content": "!"}]
    assert (message(deltas), reason) == ({"role": "assistant", "content": "Hi!"}, "stop")


def test_reasoning_has_both_of_its_names():
    whole = message(read(["<think>Hm.</think>Hi!"])[0])
    assert (whole["reasoning_content"], whole["reasoning"], whole["content"]) == (
        "Hm.",
        "Hm.",
        "Hi!",
    )


def test_calls_are_numbered_and_their_name_and_id_come_once():
    deltas, reason = read(list(f"{CALL}\n{CALL}"))
    pieces = [delta["tool_calls"][0] for delta in deltas]
    assert [piece["index"] for piece in pieces if "id" in piece] == [0, 1]
    assert all("name" in piece["function"] for piece in pieces if "id" in piece)
    assert not any("name" in piece["function"] for piece in pieces if "id" not in piece)
    calls = message(deltas)["tool_calls"]
    assert [call["id"] for call in calls] == ["call_0", "call_1"]
    assert {call["function"]["arguments"] for call in calls} == {'{"place": "Rome"}'}
    assert reason == "tool_calls"


def test_a_message_of_calls_only_has_no_content():
    assert message(read([CALL])[0])["content"] is None
    assert message(read([""])[0])["content"] == ""


def test_an_answer_that_was_cut_says_length_also_after_a_call():
    assert read([CALL], reason="length")[1] == "length"


def test_the_older_form_has_one_call():
    deltas, reason = read([f"{CALL}\n{CALL}"], legacy=True)
    called = {"name": "get_weather", "arguments": '{"place": "Rome"}'}
    assert message(deltas) == {"role": "assistant", "content": None, "function_call": called}
    assert reason == "function_call"


def test_tokens_of_reasoning_are_counted():
    reader = new_reader()
    for piece in ("<think>", "Hm.", "</think>", "Hi!"):
        reader.feed(piece, 1)
    assert reader.n_reasoning_tokens == 3


def test_a_long_answer_is_read_in_slices_so_that_a_thousand_calls_cost_no_square(monkeypatch):
    sizes = []

    def feed(reader, text, n_tokens=0):
        sizes.append(len(text))
        return feed_one(reader, text, n_tokens)

    feed_one = AnswerReader.feed
    monkeypatch.setattr(AnswerReader, "feed", feed)
    reader = new_reader()
    deltas = reader.feed_all([(f"{CALL}\n", 20)] * 1000)
    whole = message([*deltas, *reader.finish("stop")[0]])
    assert len(whole["tool_calls"]) == 1000
    assert max(sizes) <= SLICE < sum(sizes) == 1000 * len(f"{CALL}\n")


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("text", [*TEXTS, "<think></think>Hi!", " \n<think>Hm.", "</think>Hi!"])
def test_an_answer_that_is_there_as_a_whole_is_read_as_its_pieces_are(text, opened):
    chance = random.Random(text)
    for cuts in [list(text), *(cut(text, chance) for _ in range(30))]:
        one, other = (MessageReader(AnswerReader(THINK, opened=opened)) for _ in range(2))
        pieces = [(piece, 2) for piece in cuts]
        deltas, whole = feed_each(one, pieces), other.feed_all(pieces)
        rest, its_rest = one.finish("stop")[0], other.finish("stop")[0]
        assert message([*whole, *its_rest]) == message([*deltas, *rest])
        assert other.n_reasoning_tokens == one.n_reasoning_tokens


FOLDER = Path(__file__).parent / "data" / "tool_calls"
CASES = sorted(FOLDER.glob("*/*.json"))


def json_deltas(format, pieces, feed=feed_each):
    numbers = itertools.count()
    options = {"format": format_named(format), "make_id": lambda: f"id{next(numbers)}"}
    reader = MessageReader(AnswerReader(THINK, **options))
    deltas = feed(reader, [(piece, 1) for piece in pieces])
    return deltas + reader.finish("stop")[0], reader.n_reasoning_tokens


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_what_streams_adds_up_to_the_plain_message_however_it_is_cut(path):
    text = "<think>\nHm. <tool_call>\n</think>\n\n" + json.loads(path.read_text("utf-8"))["text"]
    format, chance = path.parent.name, random.Random(path.stem)
    whole = message(json_deltas(format, [text])[0])
    assert whole["reasoning_content"].startswith("Hm. <tool_call>")
    for _ in range(15):
        cuts = sorted(chance.randint(0, len(text)) for _ in range(chance.randint(1, 20)))
        pieces = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)])]
        deltas, _ = json_deltas(format, pieces)
        assert message(deltas) == whole
        assert all(all(delta.values()) for delta in deltas)  # nothing is sent for nothing


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_whole_answer_in_any_format_is_read_as_its_pieces_are(path):
    text = json.loads(path.read_text("utf-8"))["text"]
    format, chance = path.parent.name, random.Random(path.stem)
    for _ in range(5):
        pieces = cut(text, chance)
        deltas, n_reasoning = json_deltas(format, pieces)
        whole, its_n_reasoning = json_deltas(format, pieces, MessageReader.feed_all)
        assert (message(whole), its_n_reasoning) == (message(deltas), n_reasoning)
