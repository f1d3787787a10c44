"""What constrains an answer: in every template's own format, and what the grammar then accepts."""

from pathlib import Path

import pytest
from chat_scenarios import USER

from libloader.chat.template import ChatTemplate
from libloader.chat.tools import FORMATS
from libloader.constraint import FREE, constraint
from libloader.errors import GrammarInvalid
from libloader.grammar import gbnf
from libloader.protocol.shape import Shape
from libloader.protocol.tools import ToolUse

FOLDER = Path(__file__).parent / "data" / "templates"
SCHEMA = {
    "type": "object",
    "properties": {"zone": {"enum": ["UTC", "CET"]}},
    "required": ["zone"],
    "additionalProperties": False,
}
TIME = {"type": "function", "function": {"name": "get_time", "parameters": SCHEMA}}
WEATHER = {"type": "function", "function": {"name": "get_weather"}}
CALL = '<tool_call>\n{"name": "get_time", "arguments": {"zone":"UTC"}}\n</tool_call>'
WEATHER_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {}}\n</tool_call>'
JSON = '{"zone":"UTC"}'
SHAPE = Shape("response_format", SCHEMA)


def constrained(use=None, shape=None, *, name="chatml_tools", kwargs=None, **more):
    use = use or ToolUse()
    template = ChatTemplate((FOLDER / f"{name}.jinja").read_text("utf-8"))
    prompt = template.render([USER], tools=use.tools or None, kwargs=kwargs or {})
    return constraint(template, prompt, use, shape, **more)


def called(name, parameters, strict=None):
    function = {"name": name, "parameters": parameters, "strict": strict}
    return {"type": "function", "function": function}


def accepts(found, *texts):
    return [gbnf.matches(found.grammar, text) for text in texts]


def test_nothing_asked_is_nothing_constrained():
    assert constrained() == FREE
    assert constrained(ToolUse((TIME,))) == FREE


@pytest.mark.parametrize("format", FORMATS, ids=lambda each: each.name)
@pytest.mark.parametrize("shape", [None, SHAPE])
def test_every_format_gives_a_grammar_that_libllama_reads_safely(format, shape):
    template = ChatTemplate("{{ messages[0].content }}", tool_format=format.name)
    use = ToolUse((TIME, WEATHER), is_forced=shape is None)
    found = constraint(template, template.render([USER], tools=use.tools), use, shape)
    gbnf.check(found.grammar)
    assert gbnf.matches(found.grammar, JSON) == (shape is not None)


def test_required_is_a_call_and_nothing_else():
    found = constrained(ToolUse((TIME, WEATHER), is_forced=True))
    assert accepts(found, CALL, WEATHER_CALL, f"{CALL}\n{CALL}") == [True, True, True]
    assert accepts(found, "", "Hi!", JSON, CALL.replace("UTC", "X")) == [False] * 4


def test_a_named_function_is_the_only_one():
    found = constrained(ToolUse((TIME, WEATHER), is_forced=True, names=("get_time",)))
    assert accepts(found, CALL, WEATHER_CALL) == [True, False]


def test_without_parallel_calls_there_is_one():
    found = constrained(ToolUse((TIME,), is_forced=True, parallel=False))
    assert accepts(found, CALL, f"{CALL}\n{CALL}") == [True, False]


def test_a_shape_is_kept_and_tools_that_may_be_called_are_the_other_way():
    assert accepts(constrained(shape=SHAPE), JSON, CALL, "Hi!") == [True, False, False]
    both = constrained(ToolUse((TIME,)), SHAPE)
    assert accepts(both, JSON, CALL, "Hi!") == [True, True, False]


def test_a_think_block_may_come_first_and_must_end_if_the_prompt_opened_it():
    found = constrained(shape=SHAPE, name="chatml_tools")
    assert accepts(found, f"<think>\nHm.\n</think>\n\n{JSON}", "<think>Hm.") == [True, False]
    opened = constrained(shape=SHAPE, name="reasoning_list")
    assert accepts(opened, f"Hm.</think>\n\n{JSON}", JSON) == [True, False]


def test_after_an_empty_thought_in_the_prompt_there_is_no_other():
    found = constrained(shape=SHAPE, kwargs={"enable_thinking": False})
    assert accepts(found, JSON, f"<think>Hm.</think>{JSON}") == [True, False]


def test_reasoning_that_is_not_split_is_part_of_the_shape():
    found = constrained(shape=SHAPE, name="reasoning_list", split_reasoning=False)
    assert accepts(found, JSON, f"Hm.</think>\n\n{JSON}") == [True, False]


def test_a_grammar_is_taken_as_it_is_or_refused_by_its_field():
    assert constrained(shape=Shape("grammar", grammar='root ::= "a"')).grammar == 'root ::= "a"'
    with pytest.raises(GrammarInvalid) as caught:
        constrained(shape=Shape("grammar", grammar="root ::= root"))
    assert caught.value.param == "grammar"


def test_what_the_grammar_cannot_say_is_checked_on_the_finished_text():
    found = constrained(shape=Shape("json_schema", {"type": "integer", "not": {"const": 5}}))
    assert len(found.warnings) == 1
    assert found.needs_check
    assert found.problems({"content": "4"}) == []
    assert len(found.problems({"content": "5"})) == 1
    assert not constrained(shape=SHAPE).needs_check


@pytest.mark.parametrize("form", ["tool_calls", "function_call"])
def test_what_the_grammar_cannot_say_of_arguments_is_checked_in_the_finished_call(form):
    parameters = {"type": "object", "properties": {"n": {"type": "integer", "not": {"const": 5}}}}
    use = ToolUse((called("f", parameters), called("g", {})), is_forced=True)
    found = constrained(use)

    def message(name, arguments):
        function = {"name": name, "arguments": arguments}
        return {"content": None, form: [{"function": function}] if form[0] == "t" else function}

    assert found.problems(message("f", '{"n":4}')) == []
    assert found.problems(message("g", '{"n":5}')) == []
    (problem,) = found.problems(message("f", '{"n":5}'))
    assert problem.startswith("the arguments of f do not match their schema: ")


@pytest.mark.parametrize(("strict", "is_refused"), [(True, True), (False, False)])
def test_a_strict_function_refuses_what_cannot_be_enforced(strict, is_refused):
    parameters = {"properties": {"n": {"type": "integer", "not": {"const": 5}}}}
    use = ToolUse((called("g", {}), called("f", parameters, strict)), is_forced=True)
    if not is_refused:
        assert constrained(use).warnings
        return
    with pytest.raises(GrammarInvalid) as caught:
        constrained(use)
    assert caught.value.param == "tools[1].function.parameters"
    assert "#/properties/n: not cannot" in caught.value.message


def test_a_strict_function_is_refused_also_where_no_call_is_forced():
    parameters = {"properties": {"n": {"type": "integer", "not": {"const": 5}}}}
    with pytest.raises(GrammarInvalid, match="#/properties/n: not cannot"):
        constrained(ToolUse((called("f", parameters, True),)))
