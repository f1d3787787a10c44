"""The catalogue's cases of templates, tools and thoughts, against the real server."""

from __future__ import annotations

import json
import time

import pytest

from libloader.grammar import validate

pytestmark = pytest.mark.native

HELLO = {"role": "user", "content": "Hello!"}
TIMES = {
    "type": "object",
    "properties": {"zone": {"enum": ["UTC", "CET"]}},
    "required": ["zone"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "get_time", "parameters": TIMES}}


def described(**function):
    return {"type": "function", "function": {"name": "f", **function}}


LARGE = {f"property_{i}": {"type": "string", "description": "d" * 60} for i in range(9000)}
INPUTS = {
    # name: (fields of the request, status)
    "10k messages": ({"messages": [HELLO] * 10_000}, 400),
    "10,001 messages": ({"messages": [HELLO] * 10_001}, 400),
    "a schema of 1 MB": ({"tools": [described(parameters={"properties": LARGE})]}, 400),
    "a description of 1 MB": ({"tools": [described(description="d" * (1 << 20))]}, 400),
    "an enum of 1 MB": ({"tools": [described(parameters={"enum": list(range(150_000))})]}, 400),
    "257 tools": ({"tools": [described()] * 257}, 400),
    "an unknown role": ({"messages": [{"role": "root", "content": "Hi"}]}, 400),
    "a role of another type": ({"messages": [{"role": ["user"], "content": "Hi"}]}, 400),
    "text parts": ({"messages": [{**HELLO, "content": [{"type": "text", "text": "Hi"}]}]}, 200),
    "no parts": ({"messages": [{**HELLO, "content": []}]}, 200),
    "an image": ({"messages": [{**HELLO, "content": [{"type": "image_url"}]}]}, 400),
    "a part that is none": ({"messages": [{**HELLO, "content": ["Hi"]}]}, 400),
    "a call that is none": (
        {"messages": [HELLO, {"role": "assistant", "tool_calls": [{"function": 1}]}]},
        400,
    ),
    "arguments that are no JSON": (
        {
            "messages": [
                HELLO,
                {
                    "role": "assistant",
                    "tool_calls": [{"function": {"name": "f", "arguments": "{"}}],
                },
            ]
        },
        200,
    ),
}


@pytest.mark.parametrize("name", INPUTS)
def test_what_a_template_is_fed_is_answered_or_refused(server, name):
    """E13: messages without end, megabytes of schema, roles and parts that nobody knows."""
    fields, wanted = INPUTS[name]
    started_s = time.monotonic()
    body = {"messages": [HELLO], "max_tokens": 4, **fields}
    status, answer = server.post("/v1/chat/completions", body)
    assert status == wanted, answer
    assert time.monotonic() - started_s < 30
    if wanted == 400:
        assert answer["error"]["message"] and len(json.dumps(answer)) < 4096


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_schema_too_deep_to_read_is_a_400_also_in_a_tool(server, choice):
    """E05: the nesting of a schema is judged before anything recurses into it."""
    raw = json.dumps({"messages": [HELLO], "tools": [TOOL], "tool_choice": choice}).encode()
    deep = b'{"properties":{"a":' * 900 + b"{}" + b"}}" * 900
    raw = raw.replace(b'"parameters": ' + json.dumps(TIMES).encode(), b'"parameters": ' + deep)
    status, _, answer = server.request("POST", "/v1/chat/completions", raw)
    assert status == 400 and json.loads(answer)["error"]["message"]


@pytest.mark.parametrize("fields", [{"max_tokens": 12}, {"stop": ["get_time"]}])
def test_a_call_that_is_cut_short_says_so_and_loses_no_text(server, fields):
    """E08: a limit or a stop string in the midst of a call."""
    body = {"tools": [TOOL], "tool_choice": "required", "max_tokens": 100, **fields}
    choice = server.chat("What time is it?", **body)["choices"][0]
    message = choice["message"]
    assert choice["finish_reason"] == ("length" if "stop" not in fields else "stop")
    assert message["content"] or message.get("tool_calls")
    for call in message.get("tool_calls", ()):
        assert validate.text_problems(TIMES, call["function"]["arguments"]) != []


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_no_grammar_no_answer(server, choice):
    """E09: a schema that cannot be held is refused; nothing unconstrained comes instead."""
    wrong = described(parameters={"properties": {"a": {"type": "nonsense"}}})
    body = {"messages": [HELLO], "tools": [wrong], "tool_choice": choice}
    status, answer = server.post("/v1/chat/completions", body)
    assert (status, answer["error"]["code"]) == (400, "invalid_grammar")
    assert answer["error"]["param"].startswith("tools")


@pytest.mark.parametrize("name", ["chat_template", "chat_template_kwargs"])
def test_no_request_brings_a_template(server, name):
    """E14: a template is the operator's choice (CVE-2026-115911)."""
    source = "{{ messages[0].content }}"
    fields = {name: source} if name == "chat_template" else {name: {"chat_template": source}}
    status, answer = server.post("/v1/chat/completions", {"messages": [HELLO], **fields})
    assert (status, answer["error"]["param"].rpartition(".")[2]) == (400, "chat_template")
