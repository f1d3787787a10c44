"""Tool calls are read out of answers, the same way however the text is cut into pieces."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest

from libloader.chat import tools
from libloader.chat.reasoning import Tags
from libloader.chat.tools.deltas import Call, CallDelta, ContentDelta, collect, new_id
from libloader.chat.tools.forcing import allow, force
from libloader.chat.tools.gbnf import Begins, Forced, free_text, text_before
from libloader.chat.tools.reader import Reader
from libloader.errors import UsageError
from libloader.grammar import gbnf, json_schema, validate
from libloader.grammar.flat import Matcher

FOLDER = Path(__file__).parent / "data" / "tool_calls"
CASES = sorted(FOLDER.glob("*/*.json"))
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string"},
                    "note": {"type": ["string", "null"]},
                    "days": {"type": "array", "items": {"type": "integer"}},
                },
                "required": ["place"],
            },
        },
    },
    {"type": "function", "function": {"name": "get_time"}},
]


def name_of(path):
    return f"{path.parent.name}-{path.stem}"


def load(path):
    return json.loads(path.read_text("utf-8"))


def read(format, pieces):
    """Return all deltas of an answer that comes in these pieces."""
    numbers = itertools.count()
    reader = Reader(format, TOOLS, lambda: f"id{next(numbers)}")
    deltas = []
    for piece in pieces:
        deltas += reader.feed(piece)
    return deltas + reader.finish()


def cut(text, chance):
    places = sorted(chance.randint(0, len(text)) for _ in range(chance.randint(0, 12)))
    return [text[i:j] for i, j in zip([0, *places], [*places, len(text)])]


@pytest.mark.parametrize("path", CASES, ids=name_of)
def test_a_recorded_answer_is_read(path):
    case = load(path)
    message = collect(read(tools.format_named(path.parent.name), [case["text"]]))
    assert message.reasoning == case.get("reasoning", "")
    assert message.content == case["content"]
    assert [call.name for call in message.calls] == [each["name"] for each in case["calls"]]
    for call, wanted in zip(message.calls, case["calls"]):
        if "text" in wanted:
            assert call.arguments == wanted["text"]
        else:
            assert json.loads(call.arguments) == wanted["arguments"]
    assert len({call.id for call in message.calls}) == len(message.calls)


@pytest.mark.parametrize("path", CASES, ids=name_of)
def test_every_cut_into_pieces_gives_the_same_message(path):
    text, format = load(path)["text"], tools.format_named(path.parent.name)
    chance = random.Random(11)
    whole = collect(read(format, [text]))
    assert collect(read(format, list(text))) == whole
    for _ in range(25):
        deltas = read(format, cut(text, chance))
        assert collect(deltas) == whole
        check_stream(deltas)


def check_stream(deltas):
    """Calls begin in order, with id and name once; nothing is empty."""
    begun = 0
    for delta in deltas:
        if not isinstance(delta, CallDelta):
            assert delta.text
        elif delta.name:
            assert (delta.number, delta.arguments) == (begun, "") and delta.id
            begun += 1
        else:
            assert delta.number == begun - 1 and delta.arguments and not delta.id


WORDS = [
    "<tool_call>",
    "</tool_call>",
    '{"name": "get_time"',
    ', "arguments": {',
    "}",
    "}",
    "]",
    "[",
]
WORDS += ["text", " ", "\n", '"', ":", ",", "<function=get_time>", "</function>", "get_time", "{"]
WORDS += ["<parameter=place>", "</parameter>", "(place=", ")", "```json", ">>>", "call:", "[ARGS]"]


@pytest.mark.parametrize("format", tools.FORMATS, ids=lambda format: format.name)
def test_random_answers_lose_no_text_and_raise_nothing(format):
    chance = random.Random(format.name)
    words = [*WORDS, *format.texts() * 3]
    for _ in range(150):
        text = "".join(chance.choice(words) for _ in range(chance.randint(1, 12)))
        whole = collect(read(format, [text]))
        assert collect(read(format, cut(text, chance))) == whole
        if not whole.calls and not format.wrappers and format.read:
            assert whole.content == text


CALLS = [
    Call("", "get_weather", '{"place": "Rome", "days": [1, 2], "note": "a \\"b\\" é"}'),
    Call("", "get_time", "{}"),
]


@pytest.mark.parametrize("format", tools.FORMATS, ids=lambda format: format.name)
@pytest.mark.parametrize("n_calls", [1, 2])
def test_what_a_format_writes_it_reads(format, n_calls):
    message = collect(read(format, [format.write(CALLS[:n_calls])]))
    assert message.content == ""
    assert [call.name for call in message.calls] == [call.name for call in CALLS[:n_calls]]
    for call, wanted in zip(message.calls, CALLS):
        assert json.loads(call.arguments) == json.loads(wanted.arguments)


def test_every_format_has_recorded_answers_with_malformed_ones():
    for name in tools.names():
        stems = {path.stem for path in (FOLDER / name).glob("*.json")}
        assert stems & {"one", "two"}
        assert load_any_without_calls(name)


def load_any_without_calls(name):
    return [path for path in (FOLDER / name).glob("*.json") if not load(path)["calls"]]


# --- streaming -----------------------------------------------------------------------------------


def test_arguments_stream_as_they_come():
    reader = Reader(tools.format_named("hermes"), TOOLS, lambda: "id")
    assert reader.feed("Hi <to") == [ContentDelta("Hi")]
    assert reader.feed("ols") == [ContentDelta(" <tools")]
    assert reader.feed("\n<tool_call>\n") == []
    assert reader.feed('{"name": "get_weather", "argum') == []
    assert reader.feed('ents": {') == []
    assert reader.feed('"pl') == [
        CallDelta(0, "id", "get_weather", ""),
        CallDelta(0, "", "", '{"pl'),
    ]
    assert reader.feed('ace": "Ro') == [CallDelta(0, "", "", 'ace": "Ro')]
    assert reader.feed('me"}}\n</tool_call>') == [CallDelta(0, "", "", 'me"}')]
    assert reader.finish() == []


def test_text_is_held_back_no_longer_than_needed():
    reader = Reader(tools.format_named("hermes"))
    assert reader.feed("a <") == [ContentDelta("a")]
    assert reader.feed("b") == [ContentDelta(" <b")]
    assert reader.feed("<tool_call") == []
    assert reader.feed(" x") == [ContentDelta("<tool_call x")]


def test_without_a_format_all_is_content():
    reader = Reader(None)
    assert reader.feed("<tool_call>{") == [ContentDelta("<tool_call>{")]
    assert reader.finish() == []


def test_ids_of_the_model_are_kept_if_they_are_new():
    text = (
        '[TOOL_CALLS][{"name": "f", "id": "abcdefghi", "arguments": {}}, '
        '{"name": "f", "id": "abcdefghi", "arguments": {}}]'
    )
    calls = collect(read(tools.format_named("mistral-nemo"), [text])).calls
    assert [call.id for call in calls] == ["abcdefghi", "id0"]
    assert len({new_id() for _ in range(1000)}) == 1000


def test_a_very_long_call_does_not_slow_down():
    reader = Reader(tools.format_named("hermes"), TOOLS)
    reader.feed('<tool_call>{"name": "get_weather", "arguments": {"note": "')
    for _ in range(20_000):
        reader.feed("0123456789")
    assert len(reader._buffer) < 100


BARE = {
    "qwen3-coder": "<tool_call>\n<function=get_weather>\n<parameter=place>\n{}\n</parameter>",
    "glm": "<tool_call>get_weather\n<arg_key>place</arg_key>\n<arg_value>{}</arg_value>",
    "minimax-m2": '<minimax:tool_call><invoke name="get_weather"><parameter name="place">{}'
    "</parameter>",
    "minicpm": '<function name="get_weather"><param name="place"><![CDATA[{}]]></param>',
    "deepseek-dsml": '<｜DSML｜tool_calls><｜DSML｜invoke name="get_weather">'
    '<｜DSML｜parameter name="place" string="true">{}</｜DSML｜parameter>',
}


@pytest.mark.parametrize("name", BARE)
def test_text_that_is_written_bare_streams_as_it_comes(name):
    """A file that a model writes into an argument reaches the client line by line."""
    before, after = BARE[name].split("{}")
    reader = Reader(tools.format_named(name), TOOLS, lambda: "id")
    deltas = reader.feed(before)
    for _ in range(3000):
        new = reader.feed('a "b"\n</p')
        assert new and len(reader._buffer) < 40
        deltas += new
    deltas += reader.feed(after)
    (call,) = collect(deltas).calls
    assert json.loads(call.arguments + "}") == {"place": 'a "b"\n</p' * 3000}


# --- choosing a format ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("<tool_call>{...}</tool_call>", "hermes"),
        ("<tool_call><function=f><parameter=x>", "qwen3-coder"),
        ("<tool_call>name<arg_key>k</arg_key><arg_value>", "glm"),
        ("[TOOL_CALLS]name[ARGS]{}", "mistral"),
        ("[TOOL_CALLS][{}]", "mistral-nemo"),
        ("<|start_header_id|>ipython", "llama3"),
        ("<｜tool▁calls▁begin｜>```json", "deepseek-v3"),
        ("<｜tool▁calls▁begin｜>", "deepseek-v3.1"),
        ("<|channel|>analysis <|channel|>final", "harmony"),
        ("no tools", "json"),
    ],
)
def test_the_template_says_which_format_its_model_speaks(source, name):
    assert tools.format_of(source).name == name


def test_an_unknown_format_name_lists_the_known_ones():
    with pytest.raises(UsageError, match="hermes"):
        tools.format_named("nope")


# --- forcing calls -------------------------------------------------------------------------------

STRICT = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string"},
                    "days": {"type": "array", "items": {"$ref": "#/$defs/day"}},
                    "unit": {"enum": ["celsius", "kelvin"]},
                },
                "required": ["place"],
                "additionalProperties": False,
                "$defs": {"day": {"type": "integer"}},
            },
        },
    },
    {"type": "function", "function": {"name": "get_time"}},
]
FITTING = [
    [Call("", "get_weather", '{"place": "Rome <b>", "days": [1, 2], "unit": "kelvin"}')],
    [Call("", "get_weather", '{"place": "Rome"}')],
    [Call("", "get_time", "{}")],
    [Call("", "get_weather", '{"place": "Rome"}'), Call("", "get_time", "{}")],
]
WRONG = [
    [Call("", "get_weather", '{"unit": "kelvin"}')],
    [Call("", "get_weather", '{"place": "Rome", "unit": "F"}')],
    [Call("", "get_weather", '{"place": "Rome", "days": ["x"]}')],
    [Call("", "get_weather", '{"place": "Rome", "more": 1}')],
    [Call("", "rm", "{}")],
]


def whole_grammar(forced):
    return (
        forced.text + "\n" + json_schema.embed(forced.schemas).text
        if forced.schemas
        else forced.text
    )


@pytest.mark.parametrize("format", tools.FORMATS, ids=lambda format: format.name)
def test_forced_answers_are_calls_that_fit_the_schema(format):
    grammar = whole_grammar(force(format, STRICT))
    gbnf.check(grammar, max_bytes=1 << 20)
    for calls in FITTING:
        if len(calls) == 1 or not format.one_call:
            assert gbnf.matches(grammar, format.write(calls)), format.write(calls)
    for calls in WRONG:
        assert not gbnf.matches(grammar, format.write(calls)), format.write(calls)
    assert not gbnf.matches(grammar, "Just text.")


@pytest.mark.parametrize("format", tools.FORMATS, ids=lambda format: format.name)
def test_a_named_function_and_a_single_call_can_be_forced(format):
    named = whole_grammar(force(format, STRICT, names=("get_time",)))
    assert gbnf.matches(named, format.write(FITTING[2]))
    assert not gbnf.matches(named, format.write(FITTING[1]))
    single = whole_grammar(force(format, STRICT, parallel=False))
    assert gbnf.matches(single, format.write(FITTING[1]))
    assert not gbnf.matches(single, format.write(FITTING[3]))


def test_a_think_block_may_come_before_a_forced_call():
    hermes, tags = tools.format_named("hermes"), Tags("<think>", "</think>")
    call = hermes.write(FITTING[1])
    free = whole_grammar(force(hermes, STRICT, tags=tags))
    for text in ("", "<think>Hm < b </thin </think>\n\n", "<think></think>"):
        assert gbnf.matches(free, text + call)
    for text in ("Hm. ", "<think>a</think>b", "<think>"):
        assert not gbnf.matches(free, text + call)
    opened = whole_grammar(force(hermes, STRICT, tags=tags, opened=True))
    assert gbnf.matches(opened, "Hm.</think>\n\n" + call)
    assert not gbnf.matches(opened, call)


@pytest.mark.parametrize("end", ["</a>", "aab", "</parameter>", "\n</p>", "]]", '<|"|>'])
def test_any_text_before_an_end_is_what_the_rules_accept(end):
    rules = text_before("root", end)
    grammar = "\n".join(f"{name} ::= {text}" for name, text in rules.items())
    chance = random.Random(2)
    for _ in range(150):
        text = "".join(chance.choice([*end, "x", end[:-1]]) for _ in range(chance.randint(0, 12)))
        text = text.replace(end, "")
        fits = (text + end).index(end) == len(text)
        assert gbnf.matches(grammar, text + end) is fits
        assert not gbnf.matches(grammar, text) or text.endswith(end)


# --- allowing calls ------------------------------------------------------------------------------

LAZY = [format for format in tools.FORMATS if format.name != "command-r"]
# Formats without marks: what names no function of the request is plain text to them.
BY_NAME = ("json", "llama3", "pythonic", "functionary-v3.2")
PROSE = ["", "Hi!", " \n{", "A lone { or [, a < or <t, 1 > 0.", '{"name": "Bob"}', "[1, 2]", "```"]


def anywhere(format):
    """The texts after which nothing but a call may come."""
    functions = [Forced("get_weather", "a"), Forced("get_time", "a")]
    return format.beginnings(functions, "root").anywhere


@pytest.mark.parametrize("format", LAZY, ids=lambda format: format.name)
def test_allowed_calls_fit_the_schema_wherever_they_begin_in_free_text(format):
    grammar = whole_grammar(allow(format, STRICT))
    gbnf.check(grammar)
    for text in PROSE:
        assert gbnf.matches(grammar, text), text
    for before in ("",) if format.name in BY_NAME else ("", "Let me look.\n"):
        for calls in FITTING:
            if len(calls) == 1 or not format.one_call:
                assert gbnf.matches(grammar, before + format.write(calls)), calls
        for calls in WRONG[: 4 if format.name in BY_NAME else 5]:
            assert not gbnf.matches(grammar, before + format.write(calls)), calls


@pytest.mark.parametrize("format", LAZY, ids=lambda format: format.name)
def test_an_answer_does_not_end_inside_an_allowed_call(format):
    grammar = gbnf.compile_text(whole_grammar(allow(format, STRICT)))
    written = format.write(FITTING[0])
    matcher = Matcher(grammar)
    inside = written.index("Rome")
    assert matcher.feed(written[:inside]) == inside
    assert not matcher.is_complete


@pytest.mark.parametrize("format", LAZY, ids=lambda format: format.name)
def test_one_allowed_call_is_the_last_where_calls_are_not_parallel(format):
    grammar = whole_grammar(allow(format, STRICT, parallel=False))
    assert gbnf.matches(grammar, format.write(FITTING[1]))
    if format.name != "functionary-v3.2":
        assert not gbnf.matches(grammar, format.write(FITTING[3]))


@pytest.mark.parametrize("format", LAZY, ids=lambda format: format.name)
def test_only_the_functions_that_are_allowed_can_be_called(format):
    grammar = whole_grammar(allow(format, STRICT, names=["get_time"]))
    assert gbnf.matches(grammar, format.write(FITTING[2]))
    if format.name not in BY_NAME:
        assert not gbnf.matches(grammar, format.write(FITTING[1]))


SCHEMAS = {each["function"]["name"]: each["function"].get("parameters") for each in STRICT}
CHANGES = ("place", "Rome", "kelvin", "get_time", "get_weather", "1", "2", "days", '"', "}", "\n")
CHANGES += (" ", ">", "<", ", ", "{}", "unit", "]", ": ", "id", "a")


def changed(text, chance):
    """Change a place of `text`: leave something out, double it, or put something else there."""
    start = chance.randint(0, len(text))
    end = min(len(text), start + chance.randint(0, 3))
    found = [each for each in CHANGES if each in text]
    if found and chance.random() < 0.5:
        return text.replace(chance.choice(found), chance.choice(CHANGES), 1)
    return text[:start] + chance.choice(["", text[start:end] * 2, *CHANGES[:8]]) + text[end:]


@pytest.mark.parametrize("format", LAZY, ids=lambda format: format.name)
def test_whatever_an_allowing_grammar_accepts_holds_valid_calls_or_none(format):
    """Not even an unlucky sampler gets a call past its schema, or a broken one into content."""
    grammar = gbnf.compile_text(whole_grammar(allow(format, STRICT)))
    chance, n_calls = random.Random(format.name), 0
    for number in range(50):
        text = format.write(FITTING[number % 3])
        if format.name not in BY_NAME and format.read:
            text = chance.choice(["", "Well. "]) + text
        for _ in range(chance.randint(0, 3)):
            text = changed(text, chance)
        if not gbnf.matches_compiled(grammar, text):
            continue
        message = whole_message(format, text)
        n_calls += len(message.calls)
        for call in message.calls:
            if call.name in SCHEMAS:
                schema = SCHEMAS[call.name] or {"type": "object", "maxProperties": 0}
                assert validate.text_problems(schema, call.arguments) == [], text
            else:
                assert format.name in (*BY_NAME, "harmony"), text  # it has tools of its own
        assert not any(each in message.content for each in anywhere(format)), text
    assert n_calls > 5


def whole_message(format, text):
    reader = Reader(format, STRICT)
    return collect(reader.feed(text) + reader.finish())


def test_a_think_block_may_come_before_an_allowed_call_and_is_free():
    hermes, tags = tools.format_named("hermes"), Tags("<think>", "</think>")
    call, wrong = hermes.write(FITTING[1]), hermes.write(WRONG[0])
    free = whole_grammar(allow(hermes, STRICT, tags=tags))
    for text in (
        "",
        "Hm.",
        f"<think>{wrong}</think>\n\n{call}",
        "<think>Hm.",
        f"\n<think></think>{call}",
    ):
        assert gbnf.matches(free, text), text
    for text in (wrong, f"<think>a</think>{wrong}", f"a<think>{wrong}</think>"):
        assert not gbnf.matches(free, text), text
    opened = whole_grammar(allow(hermes, STRICT, tags=tags, opened=True))
    assert gbnf.matches(opened, f"{wrong}</think>\n\n{call}")
    assert not gbnf.matches(opened, f"Hm.</think>\n\n{wrong}")


def test_a_format_that_free_text_cannot_be_told_from_is_not_constrained():
    assert allow(tools.format_named("command-r"), STRICT) is None


@pytest.mark.parametrize(
    ("everywhere", "at_start"),
    [
        (("<a>",), ()),
        (("<a>", "<ab>", "aa<"), ()),
        (("abab",), ("{x", "{yz")),
        ((), ("[f(", "[fg(")),
        (("b", "abc"), ()),
    ],
)
def test_free_text_is_what_holds_no_beginning_of_a_call(everywhere, at_start):
    rules = free_text("root", Begins(everywhere, '"!"', at_start, '"?"'))
    grammar = gbnf.compile_text("\n".join(f"{name} ::= {text}" for name, text in rules.items()))
    chance = random.Random(5)
    for _ in range(300):
        text = "".join(chance.choice("<ab>c {xyz[fg(\n") for _ in range(chance.randint(0, 9)))
        for each in (*everywhere, *at_start):
            text = text.replace("c", each, 1) if chance.random() < 0.2 else text
        is_free = not any(each in text for each in everywhere)
        is_free &= not text.lstrip().startswith(at_start or "!")
        assert gbnf.matches_compiled(grammar, text) is is_free, text
