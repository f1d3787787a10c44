"""What constrains an answer: in every template's own format, and what the grammar then accepts."""

from dataclasses import replace
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
    assert constrained(shape=None, kwargs={"enable_thinking": True}) == FREE


@pytest.mark.parametrize("format", FORMATS, ids=lambda each: each.name)
@pytest.mark.parametrize("shape", [None, SHAPE])
def test_every_format_gives_a_grammar_that_libllama_reads_safely(format, shape):
    template = ChatTemplate("{{ messages[0].content }}", tool_format=format.name)
    use = ToolUse((TIME, WEATHER), is_forced=shape is None)
    found = constraint(template, template.render([USER], tools=use.tools), use, shape)
    gbnf.check(found.grammar)
    content = template.format.content + JSON
    assert gbnf.matches(found.grammar, content) == (shape is not None)


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


def test_where_calls_are_allowed_text_is_free_and_a_call_must_fit():
    found = constrained(ToolUse((TIME, WEATHER)))
    assert accepts(found, "", "Hi! {", JSON, "a <tool_call", CALL, f"Well.\n{CALL}\n{CALL}")
    wrong = CALL.replace("UTC", "X")
    assert accepts(found, wrong, f"Well. {wrong}", CALL[:-14], CALL + " Done.") == [False] * 4
    thought = f"<think>{wrong}</think>"
    assert accepts(found, thought + CALL, thought + wrong, thought) == [True, False, True]


def test_where_some_functions_are_allowed_the_others_cannot_be_called():
    use = ToolUse((TIME, WEATHER), names=("get_time",))
    for is_forced in (False, True):
        found = constrained(replace(use, is_forced=is_forced))
        assert accepts(found, CALL, WEATHER_CALL) == [True, False]
    shaped = constrained(use, SHAPE)
    assert accepts(shaped, CALL, WEATHER_CALL, JSON) == [True, False, True]


def test_models_that_make_one_call_are_asked_for_one():
    call = '{"name": "get_weather", "parameters": {}}'
    for is_forced in (False, True):
        found = constrained(ToolUse((WEATHER,), is_forced=is_forced), name="header_tools")
        assert accepts(found, call, f"{call}; {call}") == [True, False]


def test_channels_have_thoughts_before_a_forced_call_and_before_a_shape():
    think = "<|channel|>analysis<|message|>Hm. to=functions.x<|end|><|start|>assistant"
    call = '<|channel|>commentary to=functions.get_time <|constrain|>json<|message|>{"zone":"UTC"}'
    answer = f"<|channel|>final<|message|>{JSON}"
    forced = constrained(ToolUse((TIME,), is_forced=True), name="typescript_tools")
    assert accepts(forced, call, think + call) == [True, True]
    assert accepts(forced, answer, think + answer, think, think + think + call) == [False] * 4
    shaped = constrained(shape=SHAPE, name="typescript_tools")
    assert accepts(shaped, answer, think + answer, JSON, call) == [True, True, False, False]
    auto = constrained(ToolUse((TIME,)), name="typescript_tools")
    assert all(accepts(auto, call, think + call, answer, think + answer, think, "Hi!"))
    to_first = "<|start|>assistant to=functions.get_time<|channel|>commentary json<|message|>"
    assert accepts(auto, think[:-9] + to_first[9:] + JSON, think + call[:-2] + "}") == [True, False]


def test_tools_too_large_for_a_grammar_are_held_to_less_or_refused_if_strict():
    many = {"type": "object", "properties": {f"p{i}": {"enum": [i]} for i in range(2500)}}
    function = {"name": "f", "parameters": many}
    found = constrained(ToolUse(({"type": "function", "function": function},)))
    call = '<tool_call>\n{"name": "f", "arguments": {"p1":%s}}\n</tool_call>'
    assert accepts(found, call % "2", call % "") == [True, False]
    assert len(found.arguments) == 1  # checked on the finished calls
    assert "held to their types only" in found.warnings[0]
    strict = {"type": "function", "function": {**function, "strict": True}}
    for use in (ToolUse((strict,)), ToolUse(({"function": function},), is_forced=True)):
        with pytest.raises(GrammarInvalid) as caught:
            constrained(use)
        assert caught.value.param.startswith("tools")


def test_where_nothing_marks_a_call_the_finished_ones_are_checked():
    template = ChatTemplate("{{ messages }}", tool_format="command-r")
    use = ToolUse((TIME,))
    found = constraint(template, template.render([USER], tools=use.tools), use, None)
    assert found.grammar == ""
    call = {"function": {"name": "get_time", "arguments": '{"zone": "X"}'}}
    assert len(found.problems({"tool_calls": [call]})) == 1


def test_a_wrong_schema_is_refused_also_where_no_call_is_forced():
    wrong = {"name": "f", "parameters": {"properties": {"a": {"type": "nonsense"}}}}
    with pytest.raises(GrammarInvalid, match="nonsense|type") as caught:
        constrained(ToolUse(({"type": "function", "function": wrong},)))
    assert caught.value.param == "tools"


BY_PARAMETER = [format.name for format in FORMATS if format.by_parameter]


def of_format(name, use):
    source = (FOLDER / "chatml_tools.jinja").read_text("utf-8")
    template = ChatTemplate(source, tool_format=name)
    return constraint(template, template.render([USER]), use, None)


@pytest.mark.parametrize("forced", [True, False])
@pytest.mark.parametrize("format", [format.name for format in FORMATS])
def test_a_function_without_parameters_is_one_in_every_format(format, forced):
    found = of_format(format, ToolUse((WEATHER,), is_forced=forced))
    assert "get_weather" in found.grammar or not forced


@pytest.mark.parametrize("forced", [True, False])
@pytest.mark.parametrize("format", BY_PARAMETER)
@pytest.mark.parametrize(
    "parameters", [{"properties": [1]}, {"required": 5}, {"type": 5}, {"properties": {"a": 5}}]
)
def test_parameters_that_are_no_schema_are_refused_by_their_path(parameters, format, forced):
    with pytest.raises(GrammarInvalid) as caught:
        of_format(format, ToolUse((TIME, called("f", parameters)), is_forced=forced))
    assert caught.value.param == "tools[1].function.parameters"


@pytest.mark.parametrize("forced", [True, False])
@pytest.mark.parametrize("format", BY_PARAMETER)
def test_what_a_notation_by_parameter_has_no_place_for_is_named_and_checked(format, forced):
    properties = {**SCHEMA["properties"], "day": {"type": "boolean"}}
    parameters = {"properties": properties, "dependentRequired": {"zone": ["day"]}}
    found = of_format(format, ToolUse((called("f", parameters),), is_forced=forced))
    assert any(said.startswith("dependentRequired at # of f cannot") for said in found.warnings)
    call = {"function": {"name": "f", "arguments": JSON}}
    assert len(found.problems({"tool_calls": [call]})) == 1
    with pytest.raises(GrammarInvalid, match="dependentRequired"):
        of_format(format, ToolUse((called("f", parameters, True),), is_forced=forced))


def test_limits_of_a_text_that_is_written_without_quotes_are_named_and_checked():
    text = {"type": "string", "description": "A place", "pattern": "^[A-Z]+$"}
    use = ToolUse((called("f", {"type": "object", "properties": {"x": text}}),), is_forced=True)
    found = of_format("qwen3-coder", use)
    assert found.warnings[0].startswith("pattern at #/properties/x of f cannot be enforced")
    assert found.arguments
    quoted = of_format("hermes", use)
    assert (quoted.warnings, quoted.needs_check) == ((), False)
