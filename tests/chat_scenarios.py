"""Conversations to render every template of tests/data/templates with."""

from __future__ import annotations

from typing import Any

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'Weather of a "place" & <time>.',
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "city, e.g. Zürich"},
                "unit": {"type": "string", "enum": ["celsius", "kelvin"], "default": "celsius"},
                "days": {"type": "array", "items": {"type": "integer"}},
                "when": {
                    "type": "object",
                    "properties": {
                        "from": {"type": "string"},
                        "items": {"type": "array", "items": {"type": "object", "properties": {}}},
                    },
                    "required": ["from"],
                },
                "limit": {"oneOf": [{"type": "number"}, {"type": "boolean"}], "default": "none"},
            },
            "required": ["place"],
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {"name": "Clock", "parameters": {"type": "object", "properties": {}}},
}
SYSTEM = {"role": "system", "content": "Be brief, please."}
USER = {"role": "user", "content": "What is 1 + 1?"}
ANSWER = {"role": "assistant", "content": "2"}


def call(name: str, arguments: Any, id: str = "abcdefghi") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def result(content: Any, id: str = "abcdefghi") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "name": "get_weather", "content": content}


CALLING = {
    "role": "assistant",
    "content": "",
    "tool_calls": [call("get_weather", {"place": "Zürich", "days": [1, 2]})],
}
MANY_VALUES = {
    **{"int": 1, "big": 2**70, "float": 1.0, "small": 1e-7, "large": 1e22, "yes": True},
    **{"none": None, "list": [1, "two", [3.5, None]], "map": {"a": {"b": "c\"d'e\\"}}},
    **{"empty": {}, "text": "é\n\t<&>"},
}
ODD = "  <b>\"'&\\n\t é 漢 \U0001f600 {{ x }} {% if %}\r\n "


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "a question": [USER],
    "with system": [SYSTEM, USER],
    "several turns": [SYSTEM, USER, ANSWER, user("And 2 + 2?")],
    "ends with an answer": [USER, ANSWER],
    "no messages": [],
    "two users in a row": [USER, USER],
    "an unknown role": [USER, {"role": "critic", "content": "Hm."}],
    "a developer": [{"role": "developer", "content": "Only facts."}, USER],
    "odd characters": [user(ODD)],
    "empty content": [SYSTEM, user(""), assistant("")],
    "parts": [user([text_part("a"), text_part("b")])],
    "an image": [user([{"type": "image"}, text_part("b")])],
    "null content": [USER, assistant(None), USER],
    "missing content": [USER, {"role": "assistant"}, USER],
    "thoughts": [USER, assistant("2", reasoning_content="Easy.\n"), USER],
    "thoughts at the end": [USER, assistant("2", reasoning_content=" Easy ")],
    "thoughts in the text": [USER, assistant("<think>\nHm\n</think>\n\n2"), USER],
    "other thoughts in the text": [USER, assistant("a<begin>b<end> c"), USER],
    "a call": [SYSTEM, USER, CALLING, result('{"temp": 21}')],
    "a call and its answer": [USER, CALLING, result("21"), ANSWER],
    "a call with text arguments": [
        USER,
        assistant("", tool_calls=[call("get_weather", '{"place": "x"}')]),
        result("21"),
        ANSWER,
    ],
    "two calls": [
        USER,
        assistant(
            "Let me see.",
            tool_calls=[call("get_weather", {"place": "a"}), call("Clock", {}, "jklmnopqr")],
        ),
        result("21"),
        result("noon", "jklmnopqr"),
    ],
    "a call of all values": [
        USER,
        assistant(None, tool_calls=[call("get_weather", MANY_VALUES)]),
        result({"temp": 21.5, "ok": True}),
    ],
    "a call with thoughts": [
        USER,
        {**CALLING, "reasoning_content": "I need the weather."},
        result([text_part("21")]),
    ],
    "a call with a bad id": [
        USER,
        {**CALLING, "tool_calls": [call("Clock", {}, "1")]},
        result("x", "1"),
    ],
}

VARIABLES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no prompt": {"add_generation_prompt": False},
    "tools": {"tools": [WEATHER, CLOCK]},
    "none for tools": {"tools": None, "documents": None},
    "not thinking": {"enable_thinking": False, "thinking": False, "reasoning_effort": "low"},
    "thinking with tools": {
        **{"enable_thinking": True, "thinking": True, "tools": [CLOCK], "date_string": "1 May"},
        **{"builtin_tools": ["Clock", "web"], "tools_in_user_message": False},
        "model_identity": "You are T.",
    },
}


def contexts() -> list[tuple[str, dict[str, Any]]]:
    """Every conversation with every set of variables, named."""
    base = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True}
    return [
        (f"{conversation}, {variables}", {**base, "messages": messages, **extra})
        for conversation, messages in CONVERSATIONS.items()
        for variables, extra in VARIABLES.items()
    ]
