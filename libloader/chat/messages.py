"""Brings messages into the form that a template handles. The caller's messages never change.

Where a template knows no tools, they are described in the system message, earlier calls become the
text that the model would have written, and their results become user messages.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from libloader.chat.capabilities import Capabilities, Message
from libloader.chat.tools.deltas import Call
from libloader.chat.tools.format import Format
from libloader.chat.tools.generic import instructions


def prepare(
    messages: Sequence[Message],
    form: Capabilities,
    format: Format,
    tools: Sequence[Message] | None = None,
) -> list[Message]:
    """Return copies of `messages` as a template with these capabilities expects them.

    `format` writes calls where the template does not; `tools` are to be described in words.
    """
    prepared = [_prepared(message, form) for message in messages]
    if form.one_call:
        prepared = _one_call_each(prepared)
    if form.text_hides_calls:
        prepared = [each for message in prepared for each in _text_apart(message)]
    if tools:
        prepared = _with_instructions(prepared, instructions(tools, format))
    if not form.tool_calls:
        prepared = [_with_calls_as_text(message, format) for message in prepared]
    if not form.tool_results:
        prepared = _with_results_as_user(prepared)
    if not form.system:
        prepared = _without_system(prepared)
    return [_in_form(message, form) for message in prepared]


def _prepared(message: Message, form: Capabilities) -> Message:
    """Return a copy with OpenAI's older and missing fields put right."""
    copy = {**message, "role": _role(str(message.get("role", "")), form)}
    if copy.get("content") is None:
        copy["content"] = ""
    if "reasoning" in copy:
        copy.setdefault("reasoning_content", copy.pop("reasoning"))
    if copy.get("reasoning_content") is None:
        copy.pop("reasoning_content", None)
    function_call = copy.pop("function_call", None)
    if function_call:
        copy["tool_calls"] = [{"type": "function", "function": function_call}]
    if not copy.get("tool_calls"):
        copy.pop("tool_calls", None)
    return copy


def _role(role: str, form: Capabilities) -> str:
    if role == "developer" and not form.developer:
        return "system"
    return "tool" if role == "function" else role


def _in_form(message: Message, form: Capabilities) -> Message:
    """Give content and arguments the types that the template expects."""
    content = message["content"]
    if isinstance(content, (list, tuple)):
        lists = message["role"] in form.list_roles and content
        content = [dict(part) for part in content] if lists else text_of(content)
    if form.only_lists and isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if "tool_calls" not in message:
        return {**message, "content": content}
    if form.null_with_calls and not content:
        content = None
    calls = [_tool_call(call, form) for call in message["tool_calls"]]
    return {**message, "content": content, "tool_calls": calls}


def text_of(content: Any) -> str:
    """Return content as text: parts of a list on lines of their own."""
    if not isinstance(content, (list, tuple)):
        return content if isinstance(content, str) else str(content)
    texts = (part.get("text", "") for part in content if part.get("type", "text") == "text")
    return "\n".join(texts)


def _tool_call(call: Message, form: Capabilities) -> Message:
    function = dict(call.get("function") or {})
    function["arguments"] = _arguments(function.get("arguments"), form.arguments_as_text)
    return {**call, "function": function}


def _arguments(arguments: Any, as_text: bool) -> Any:
    """Return an object, or its JSON text; what is not the JSON of an object stays as it is."""
    if arguments is None or arguments == "":
        arguments = {}
    if isinstance(arguments, str):
        if as_text:
            return arguments
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            return arguments
        return parsed if isinstance(parsed, dict) else arguments
    return json.dumps(arguments, ensure_ascii=False) if as_text else arguments


# --- where there is no role or variable for it ---------------------------------------------------


def _one_call_each(messages: list[Message]) -> list[Message]:
    """Make several calls of one message several messages, each before its result."""
    result: list[Message] = []
    waiting: list[Message] = []  # messages of one call, whose result has not come
    for message in messages:
        calls = message.get("tool_calls") or ()
        if message["role"] == "tool" and waiting:
            ids = [one["tool_calls"][0].get("id") for one in waiting]
            id = message.get("tool_call_id")
            result.append(waiting.pop(ids.index(id) if id in ids else 0))
        elif len(calls) > 1:
            result += waiting
            texts = (message["content"], *[""] * len(calls))
            waiting = [
                {**message, "content": text, "tool_calls": [call]}
                for text, call in zip(texts, calls)
            ]
            continue
        else:
            result += waiting
            waiting = []
        result.append(message)
    return result + waiting


def _text_apart(message: Message) -> list[Message]:
    """Where text hides the calls beside it, it is a message before them."""
    if not message["content"] or "tool_calls" not in message:
        return [message]
    text = {name: value for name, value in message.items() if name != "tool_calls"}
    return [text, {**message, "content": ""}]


def _with_instructions(messages: list[Message], text: str) -> list[Message]:
    """Add `text` to the first system message, or begin with one."""
    if messages and messages[0]["role"] == "system":
        first = {**messages[0], "content": f"{text_of(messages[0]['content'])}\n\n{text}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _with_calls_as_text(message: Message, format: Format) -> Message:
    if "tool_calls" not in message:
        return message
    copy = dict(message)
    written = format.write([_call_of(call) for call in copy.pop("tool_calls")])
    text = text_of(copy["content"])
    copy["content"] = f"{text}\n{written}" if text else written
    return copy


def _call_of(call: Message) -> Call:
    function = call.get("function") or {}
    arguments = _arguments(function.get("arguments"), as_text=False)
    as_object = arguments if isinstance(arguments, dict) else {"arguments": arguments}
    text = json.dumps(as_object, ensure_ascii=False)
    return Call(str(call.get("id", "")), str(function.get("name", "")), text)


def _with_results_as_user(messages: list[Message]) -> list[Message]:
    """Make results user messages; one message for those that follow each other, and the next."""
    result: list[Message] = []
    joins = False  # the last message is of results, so the next user text goes there too
    for message in messages:
        is_result = message["role"] == "tool"
        text = text_of(message["content"])
        if is_result:
            name = message.get("name") or message.get("tool_call_id") or "the call"
            text = f"Result of {name}:\n{text}"
        if joins and (is_result or message["role"] == "user"):
            result[-1]["content"] += "\n\n" + text
        elif is_result:
            result.append({"role": "user", "content": text})
        else:
            result.append(message)
        joins = is_result
    return result


def _without_system(messages: list[Message]) -> list[Message]:
    """Put the text of system messages in front of the user message after them."""
    result: list[Message] = []
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "system":
            waiting.append(text_of(message["content"]))
        elif message["role"] == "user" and waiting:
            text = "\n\n".join([*waiting, text_of(message["content"])])
            result.append({**message, "content": text})
            waiting = []
        else:
            result.append(message)
    if waiting:
        result.append({"role": "user", "content": "\n\n".join(waiting)})
    return result
