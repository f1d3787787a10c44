"""What a chat template can do, found out by rendering small conversations with it.

A template is a program: only running it tells whether it knows a system role, writes tools, or
wants a call's arguments as text. The probes use words that no template contains (`zq_...`).
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from libloader.chat import reasoning

Message = dict[str, Any]

# Names of the variable that switches thinking, with its values for on and off.
SWITCHES: tuple[tuple[str, Any, Any], ...] = (
    ("enable_thinking", True, False),
    ("thinking", True, False),
    ("thinking_mode", "enabled", "disabled"),
)


class Capabilities(NamedTuple):
    """What a template does, as its own renderings show."""

    list_roles: frozenset[str] = frozenset()  # whose content may be a list of text parts
    only_lists: bool = False  # text as content does not work
    system: bool = True
    developer: bool = False
    tools: bool = False
    tool_calls: bool = False
    tool_results: bool = False  # it knows the role tool, not just any role's name
    null_with_calls: bool = False  # it writes calls only where content is null
    text_hides_calls: bool = False  # it writes calls only where there is no text beside them
    one_call: bool = False  # it writes one call a message, its model makes no more
    arguments_as_text: bool = False  # it wants a call's arguments as a JSON string
    switch: tuple[str, Any, Any] | None = None  # a row of SWITCHES
    opens_thinking: bool = False  # the generation prompt ends inside a think block
    prints_bos: bool = False
    needs: tuple[str, ...] = ()  # variables that it cannot do without: functions, datetime


TOOL = {
    "type": "function",
    "function": {
        "name": "zq_tool",
        "description": "zq_description",
        "parameters": {
            "type": "object",
            "properties": {"zq_key": {"type": "string", "description": "zq_text"}},
            "required": ["zq_key"],
        },
    },
}
USER = {"role": "user", "content": "zq_user"}


def _json_functions(tools: Sequence[Message], now: datetime.datetime) -> str:
    return json.dumps([tool.get("function", tool) for tool in tools], ensure_ascii=False)


def _date_and_time(tools: Sequence[Message], now: datetime.datetime) -> str:
    return now.strftime("%Y-%m-%d %H:%M:%S")


PARTS = [{"type": "text", "text": "zq_part"}]
CALL = {"type": "function", "function": {"name": "zq_tool", "arguments": {}}, "id": "zqcall001"}
ASKING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
# For each role, a conversation in which its content is a list.
LISTS: Mapping[str, Sequence[Message]] = {
    "user": ({"role": "user", "content": PARTS},),
    "system": ({"role": "system", "content": PARTS}, USER),
    "assistant": (USER, {"role": "assistant", "content": PARTS}, USER),
    "tool": (USER, ASKING, {"role": "tool", "tool_call_id": "zqcall001", "content": PARTS}),
}

# Variables that some templates (firefunction v2) cannot do without.
NEEDS = {"functions": _json_functions, "datetime": _date_and_time}


def detect(probe: Any) -> Capabilities:
    """Find out what a template does; `probe(context)` returns its text, "" if it fails."""
    needs: tuple[str, ...] = ()

    def text(*messages: Message, **more: Any) -> str:
        extra = dict.fromkeys(needs, "zq")
        return str(
            probe({"messages": list(messages), "add_generation_prompt": True, **extra, **more})
        )

    if not text(USER):
        needs = tuple(NEEDS)
        if not text(USER):
            needs = ()
    plain = text(USER)
    calls = [_with_call(text, as_text, "") for as_text in (False, True)]
    null_calls = [_with_call(text, as_text, None) for as_text in (False, True)]
    lists = frozenset(role for role, around in LISTS.items() if _writes_list(text, around))
    tools = "functions" in needs or "zq_tool" in text(USER, tools=[TOOL])
    tool_calls = any("zq_value" in call for call in calls + null_calls)
    prefers_text = _prefers_text(*calls) or _prefers_text(*null_calls)
    return Capabilities(
        list_roles=lists,
        only_lists="user" in lists and "zq_user" not in plain,
        system="zq_system" in text({"role": "system", "content": "zq_system"}, USER),
        developer="zq_system" in text({"role": "developer", "content": "zq_system"}, USER),
        tools=tools,
        tool_calls=tool_calls,
        tool_results=(tools or tool_calls) and any("zq_result" in c for c in calls + null_calls),
        null_with_calls=not any("zq_value" in call for call in calls),
        text_hides_calls=tool_calls and "zq_value" not in _with_call(text, prefers_text, "zq_said"),
        one_call=tool_calls and not _writes_two(text),
        arguments_as_text=prefers_text,
        switch=_switch(lambda **more: text(USER, **more)),
        opens_thinking=reasoning.opened_by(plain) is not None,
        prints_bos=bool(plain) and plain.lstrip() != text(USER, bos_token="").lstrip(),
        needs=needs,
    )


def _writes_list(text: Any, messages: Sequence[Message]) -> bool:
    written = text(*messages)
    return "zq_part" in written and "'zq_part'" not in written


def _with_call(text: Any, as_text: bool, content: str | None) -> str:
    arguments = {"zq_key": "zq_value"}
    function = {"name": "zq_tool", "arguments": json.dumps(arguments) if as_text else arguments}
    asking = {**ASKING, "content": content, "tool_calls": [{**CALL, "function": function}]}
    answer = {
        "role": "tool",
        "tool_call_id": "zqcall001",
        "name": "zq_tool",
        "content": "zq_result",
    }
    return str(text(USER, asking, answer, tools=[TOOL]))


def _writes_two(text: Any) -> bool:
    """Say whether two calls in one message are both written, in any form of them."""
    for as_text, content in ((False, ""), (True, ""), (False, None), (True, None)):
        arguments = [{"zq_key": "zq_first"}, {"zq_key": "zq_second"}]
        calls = [
            {
                **CALL,
                "id": f"zqcall00{i}",
                "function": {"name": "zq_tool", "arguments": each},
            }
            for i, each in enumerate(map(json.dumps, arguments) if as_text else arguments)
        ]
        asking = {**ASKING, "content": content, "tool_calls": calls}
        results = [
            {
                "role": "tool",
                "tool_call_id": call["id"],
                "name": "zq_tool",
                "content": "zq_result",
            }
            for call in calls
        ]
        written = text(USER, asking, *results, tools=[TOOL])
        if "zq_first" in written and "zq_second" in written:
            return True
    return False


def _prefers_text(with_object: str, with_text: str) -> bool:
    """Arguments are better as objects, unless that fails or shows Python's repr of a dict."""
    object_is_good = "zq_value" in with_object and "{'zq_key'" not in with_object
    return not object_is_good and "zq_value" in with_text


def _switch(text: Any) -> tuple[str, Any, Any] | None:
    for name, on, off in SWITCHES:
        without = text(**{name: off})
        if without and text(**{name: on}) != without:
            return name, on, off
    return None
