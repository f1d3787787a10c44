"""Tools, schemas and reasoning over HTTP, with the official client, on the pocket model.

What a grammar guarantees is asserted; what the pocket model happens to know is not.
"""

import json

import openai
import pytest
from serving import serving

from libloader.grammar import validate

pytestmark = pytest.mark.native

ASK = [{"role": "user", "content": "What is the weather in Rome?"}]
PLACE = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 1, "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 5},
        "unit": {"enum": ["C", "F"]},
    },
    "required": ["city", "days", "unit"],
    "additionalProperties": False,
}
TIMES = {
    "type": "object",
    "properties": {"zone": {"enum": ["UTC", "CET"]}},
    "required": ["zone"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": PLACE}},
    {"type": "function", "function": {"name": "get_time", "parameters": TIMES}},
]
SCHEMAS = {"get_weather": PLACE, "get_time": TIMES}
HOT = {"temperature": 1.5, "max_tokens": 200}


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as made:
        yield made


def ask(client, messages=ASK, **fields):
    return client.chat.completions.create(model="pocket", messages=messages, **fields)


def named(name):
    return {"type": "function", "function": {"name": name}}


def check_call(function):
    """The arguments satisfy the schema of the function that is called."""
    assert validate.text_problems(SCHEMAS[function.name], function.arguments) == []


@pytest.mark.parametrize("seed", range(5))
def test_a_schema_holds_at_any_temperature(client, seed):
    schema = {"name": "place", "schema": PLACE, "strict": True}
    wanted = {"type": "json_schema", "json_schema": schema}
    choice = ask(client, response_format=wanted, seed=seed, **HOT).choices[0]
    assert choice.finish_reason == "stop"
    assert validate.text_problems(PLACE, choice.message.content) == []


def test_json_object_is_an_object(client):
    choice = ask(client, response_format={"type": "json_object"}, temperature=0).choices[0]
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)
    else:
        assert choice.finish_reason == "length"


def test_a_streamed_schema_is_the_plain_one(client):
    fields = {"extra_body": {"json_schema": PLACE}, "seed": 3, **HOT}
    plain = ask(client, **fields).choices[0].message.content
    stream = ask(client, stream=True, **fields)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == plain


def test_a_grammar_is_kept_to_the_letter(server):
    answer = server.chat("Hello!", grammar='root ::= "yes" | "no"')
    assert answer["choices"][0]["message"]["content"] in ("yes", "no")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"grammar": 'root ::= root "a"'}, "grammar"),
        ({"grammar": "root ::= ("}, "grammar"),
        ({"json_schema": {"type": "nonsense"}}, "json_schema"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"strict": True, "schema": {"not": {"const": 5}}},
                }
            },
            "response_format",
        ),
    ],
)
def test_what_no_grammar_can_say_is_a_400_that_names_the_field(server, fields, param):
    body = {"messages": ASK, **fields}
    status, answer = server.post("/v1/chat/completions", body)
    assert (status, answer["error"]["param"]) == (400, param)
    assert answer["error"]["code"] == "invalid_grammar"


def test_a_keyword_that_is_only_checked_afterwards_is_a_warning(server):
    schema = {"type": "integer", "not": {"const": 5}}
    said = server.chat("Hello!", json_schema=schema)["warnings"]
    assert said[0].startswith("not at #")
    streamed = server.stream("Hello!", json_schema=schema)
    told = [event["warnings"] for event in streamed if "warnings" in event]
    # The last one, if there is one, is that the finished text did not keep to it.
    assert [warning for warnings in told for warning in warnings] == said


FIVE = {"type": "integer", "minimum": 5, "maximum": 5, "not": {"const": 5}}


def test_a_finished_stream_that_breaks_its_schema_says_so_in_its_last_chunk(server):
    schema = {"type": "array", "items": FIVE, "minItems": 1, "maxItems": 1}
    plain = server.chat("Hello!", json_schema=schema)
    assert json.loads(plain["choices"][0]["message"]["content"]) == [5]
    assert plain["warnings"][-1].startswith("the answer does not match its schema: ")
    streamed = server.stream("Hello!", json_schema=schema, n=2)
    ends = [e for e in streamed[:-1] if e["choices"] and e["choices"][0]["finish_reason"]]
    assert [end["warnings"] for end in ends] == [plain["warnings"][-1:]] * 2


def test_arguments_that_break_their_schema_are_told_of_plain_and_streamed(server):
    parameters = {"type": "object", "properties": {"n": FIVE}, "required": ["n"]}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    fields = {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}
    plain = server.chat("Hello!", **fields)
    assert plain["choices"][0]["finish_reason"] == "tool_calls"
    assert plain["warnings"][-1].startswith("the arguments of f do not match their schema: ")
    streamed = server.stream("Hello!", **fields)
    assert streamed[-2]["warnings"] == plain["warnings"][-1:]
    tool["function"]["strict"] = True
    status, answer = server.post("/v1/chat/completions", {"messages": ASK, **fields})
    assert (status, answer["error"]["param"]) == (400, "tools[0].function.parameters")
    assert "#/properties/n: not cannot" in answer["error"]["message"]


@pytest.mark.parametrize("seed", range(5))
def test_required_forces_a_call_with_valid_arguments(client, seed):
    fields = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    choice = ask(client, seed=seed, **fields, **HOT).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    (call,) = choice.message.tool_calls
    assert call.id.startswith("call_")
    check_call(call.function)


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_a_named_function_is_the_one_that_is_called(client, name):
    choice = ask(client, tools=TOOLS, tool_choice=named(name), **HOT).choices[0]
    assert {call.function.name for call in choice.message.tool_calls} == {name}
    if choice.finish_reason == "tool_calls":
        for call in choice.message.tool_calls:
            check_call(call.function)


def test_calls_that_the_model_decides_on_have_valid_arguments_at_any_temperature(client):
    """tool_choice auto: once a call has begun, the sampler can write nothing else."""
    n_calls = 0
    for seed in range(20):
        choice = ask(client, tools=TOOLS, tool_choice="auto", seed=seed, **HOT).choices[0]
        calls = choice.message.tool_calls or ()
        if choice.finish_reason == "tool_calls":
            for call in calls:
                check_call(call.function)
        n_calls += len(calls)
        assert "<tool_call>" not in (choice.message.content or "")
    assert n_calls >= 5


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_only_allowed_tools_are_called(client, mode):
    allowed = {"mode": mode, "tools": [{"type": "function", "function": {"name": "get_time"}}]}
    fields = {"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": allowed}}
    for seed in range(4):
        message = ask(client, seed=seed, **fields, **HOT).choices[0].message
        assert {call.function.name for call in message.tool_calls or ()} <= {"get_time"}
        assert message.tool_calls or mode == "auto"


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_choice": "auto"},
        {"tool_choice": "auto", "parallel_tool_calls": False},
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
        {
            "tool_choice": {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "required", "tools": [TOOLS[1]]},
            }
        },
        {"tool_choice": "required", "extra_body": {"enable_thinking": True}},
    ],
    ids=["auto", "one", "required", "named", "allowed", "thinking"],
)
def test_every_way_to_choose_streams_what_it_answers_plainly(client, fields):
    fields = {"tools": TOOLS, "seed": 6, "temperature": 0.5, "max_tokens": 200, **fields}
    plain = ask(client, **fields).choices[0]
    calls: dict[int, list[str]] = {}
    texts, reason = {"content": "", "reasoning_content": ""}, None
    for chunk in ask(client, stream=True, **fields):
        delta, reason = chunk.choices[0].delta, chunk.choices[0].finish_reason
        for piece in delta.tool_calls or ():
            name, arguments = calls.setdefault(piece.index, ["", ""])
            new = [name + (piece.function.name or ""), arguments + piece.function.arguments]
            calls[piece.index] = new
        for name in texts:
            texts[name] += getattr(delta, name, None) or ""
    made = [call.function for call in plain.message.tool_calls or ()]
    assert list(calls.values()) == [[each.name, each.arguments] for each in made]
    assert texts["content"] == (plain.message.content or "")
    assert texts["reasoning_content"] == getattr(plain.message, "reasoning_content", "")
    assert reason == plain.finish_reason


def test_a_forced_call_may_be_thought_about_first(server):
    fields = {"tools": TOOLS, "tool_choice": named("get_time"), "parallel_tool_calls": False}
    answer = server.chat("What time is it?", enable_thinking=True, max_tokens=300, **fields)
    message = answer["choices"][0]["message"]
    if answer["choices"][0]["finish_reason"] == "tool_calls":
        assert json.loads(message["tool_calls"][0]["function"]["arguments"])["zone"]
    assert "<think>" not in (message["content"] or "")


def test_streamed_calls_have_each_id_once_and_arguments_that_add_up(client):
    fields = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    plain = ask(client, seed=2, **fields, **HOT).choices[0].message.tool_calls[0].function
    chunks = list(ask(client, stream=True, seed=2, **fields, **HOT))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    pieces = [piece for delta in deltas for piece in delta.tool_calls or ()]
    assert {piece.index for piece in pieces} == {0}
    assert len([piece.id for piece in pieces if piece.id]) == 1
    assert [piece.function.name for piece in pieces if piece.function.name] == [plain.name]
    assert "".join(piece.function.arguments for piece in pieces) == plain.arguments
    assert not any(delta.content for delta in deltas)
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_the_older_functions_get_the_older_answer(client):
    choice = ask(
        client,
        functions=[TOOLS[1]["function"]],
        function_call={"name": "get_time"},
        **HOT,
    ).choices[0]
    assert choice.finish_reason == "function_call"
    check_call(choice.message.function_call)


def test_tool_results_go_back_to_the_model(client):
    first = ask(
        client, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, seed=1, **HOT
    )
    message = first.choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": '"Sunny"'}
    answer = ask(client, [*ASK, message, result], tools=TOOLS, temperature=0, max_tokens=50)
    assert answer.usage.prompt_tokens > first.usage.prompt_tokens


def test_reasoning_comes_apart_and_is_counted(server):
    answer = server.chat("What is 2 + 2?", enable_thinking=True, max_tokens=200)
    whole = server.chat(
        "What is 2 + 2?", enable_thinking=True, reasoning_format="none", max_tokens=200
    )
    message, text = answer["choices"][0]["message"], whole["choices"][0]["message"]["content"]
    counted = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert (counted > 0) == text.startswith("<think>") == ("reasoning_content" in message)
    assert message["content"] in text
    assert message.get("reasoning_content", "") in text


def test_streamed_reasoning_is_the_plain_one(server):
    fields = {"enable_thinking": True, "max_tokens": 200}
    message = server.chat("What is 2 + 2?", **fields)["choices"][0]["message"]
    deltas = [
        event["choices"][0]["delta"] for event in server.stream("What is 2 + 2?", **fields)[:-1]
    ]
    thought = "".join(delta.get("reasoning_content", "") for delta in deltas)
    assert thought == message.get("reasoning_content", "")
    assert "".join(delta.get("content", "") for delta in deltas) == message["content"]


CUT = {"enable_thinking": True, "thinking_budget_tokens": 3, "max_tokens": 200}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"json_schema": TIMES},
        {"tools": TOOLS},
        {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False},
        {"tools": TOOLS, "tool_choice": named("get_time"), "parallel_tool_calls": False},
    ],
    ids=["free", "schema", "auto", "required", "named"],
)
def test_thoughts_end_with_their_budget_and_the_answer_follows(server, fields):
    question = "What is the weather in Rome?" if "tools" in fields else "What is 2 + 2?"
    long = server.chat(question, **{**CUT, **fields, "thinking_budget_tokens": -1})
    answer = server.chat(question, **CUT, **fields)
    choice, message = answer["choices"][0], answer["choices"][0]["message"]
    thought = message["reasoning_content"]
    assert len(thought) < len(long["choices"][0]["message"]["reasoning_content"])
    assert "think>" not in (message["content"] or "")
    assert message["content"] or message["tool_calls"]
    counted = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert 3 <= counted <= 3 + len("<think>\n\n</think>\n\n")
    for call in message.get("tool_calls", ()) if choice["finish_reason"] != "length" else ():
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        assert validate.text_problems(SCHEMAS[name], arguments) == []
    if "json_schema" in fields and choice["finish_reason"] == "stop":
        assert validate.text_problems(TIMES, message["content"]) == []
    deltas = [e["choices"][0]["delta"] for e in server.stream(question, **CUT, **fields)[:-1]]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == thought
    assert "".join(delta.get("content") or "" for delta in deltas) == (message["content"] or "")


def test_a_budget_of_nothing_is_an_answer_without_thoughts(server):
    for how in (
        {"reasoning_budget": 0},
        {"chat_template_kwargs": {"thinking_budget": 0}},
        {"thinking_budget_tokens": 0, "enable_thinking": True},
    ):
        answer = server.chat("What is 2 + 2?", max_tokens=100, **how)
        assert not answer["choices"][0]["message"].get("reasoning_content")
        assert answer["choices"][0]["message"]["content"]


def test_the_servers_budget_is_for_requests_without_one(server):
    question, thinks = "What is 2 + 2?", {"enable_thinking": True, "max_tokens": 200}
    long = server.chat(question, **thinks)["choices"][0]["message"]["reasoning_content"]
    flags = ("-t", "1", "--reasoning-budget", "3", "--reasoning-budget-message", "Enough.")
    with serving(*flags) as bounded:
        short = bounded.chat(question, **thinks)["choices"][0]["message"]["reasoning_content"]
        own = bounded.chat(question, thinking_budget_tokens=-1, **thinks)
    assert short.endswith("\n\nEnough.") and len(short) < len(long) + len("\n\nEnough.")
    assert own["choices"][0]["message"]["reasoning_content"] == long


def test_a_shape_is_of_the_content_not_of_the_reasoning(server):
    choice = server.chat("What is 2 + 2?", enable_thinking=True, json_schema=TIMES, max_tokens=300)[
        "choices"
    ][0]
    if choice["finish_reason"] == "stop":
        assert validate.text_problems(TIMES, choice["message"]["content"]) == []
    assert "<think>" not in choice["message"]["content"]


def test_a_shape_with_tools_leaves_the_choice_to_the_model(client):
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": TIMES}}
    choice = ask(client, tools=TOOLS, response_format=wanted, **HOT).choices[0]
    if choice.finish_reason == "stop":
        assert validate.text_problems(TIMES, choice.message.content) == []
    for call in choice.message.tool_calls or ():
        assert call.function.name in SCHEMAS


def test_the_servers_flags_decide_on_thoughts_where_the_client_does_not():
    always = "{{ messages[-1].content }}{% if enable_thinking is not false %}<think>{% endif %}"
    with serving("-t", "1", "--chat-template", always + "</think>") as thinking:
        thoughts = thinking.chat("Hello!", max_tokens=4)["usage"]["prompt_tokens"]
    flags = ("-t", "1", "--no-think", "--reasoning-format", "none")
    with serving(*flags, "--chat-template", always + "</think>") as quiet:
        assert quiet.chat("Hello!", max_tokens=4)["usage"]["prompt_tokens"] < thoughts
        asked = quiet.chat("Hello!", max_tokens=4, enable_thinking=True)
        assert asked["usage"]["prompt_tokens"] == thoughts
        assert "reasoning_content" not in asked["choices"][0]["message"]
