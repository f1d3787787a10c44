"""A chat template as the server uses it: messages in, prompt segments out.

What a template can do is found out once, by rendering small conversations (`detect`), and messages
are then brought into the form that it handles: text parts joined, arguments as objects or strings,
system prompts moved where there is no role for them. The caller's messages never change. What a
client typed never becomes a control token (control_tokens.py).
"""

from __future__ import annotations

import datetime
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from libloader.chat import reasoning
from libloader.chat.builtin_templates import FALLBACK, TEMPLATES
from libloader.chat.control_tokens import END, Marker, Segments
from libloader.chat.jinja import Template
from libloader.errors import TemplateError, UsageError

LOG = logging.getLogger("igllama")

Message = dict[str, Any]
Context = dict[str, Any]

# Names of the variable that switches thinking, with its values for on and off.
SWITCHES: tuple[tuple[str, Any, Any], ...] = (
    ("enable_thinking", True, False),
    ("thinking", True, False),
    ("thinking_mode", "enabled", "disabled"),
)
RESERVED = ("messages", "tools", "add_generation_prompt", "bos_token", "eos_token")


class Capabilities(NamedTuple):
    """What a template does, as its own renderings show."""

    list_roles: frozenset[str] = frozenset()  # whose content may be a list of text parts
    only_lists: bool = False  # text as content does not work
    system: bool = True
    developer: bool = False
    tools: bool = False
    tool_calls: bool = False
    null_with_calls: bool = False  # it writes calls only where content is null
    arguments_as_text: bool = False  # it wants a call's arguments as a JSON string
    switch: tuple[str, Any, Any] | None = None  # a row of SWITCHES
    opens_thinking: bool = False  # the generation prompt ends inside a think block
    prints_bos: bool = False
    needs: tuple[str, ...] = ()  # variables that it cannot do without: functions, datetime


class RenderedPrompt(NamedTuple):
    """A prompt. In segments with parse_special, control texts become control tokens."""

    segments: Segments
    text: str  # the segments joined
    add_special: bool  # whether the tokenizer shall add BOS: the template did not print it
    thinking: reasoning.Tags | None  # of the think block that the prompt ends in


class ChatTemplate:
    """A template with the vocabulary's texts that it needs. Threads may share it.

    Raises TemplateError, with the line, if `source` is broken. `origin` says where it is from.
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str = "",
        eos_token: str = "",
        special_tokens: Iterable[str] = (),
        origin: str = "",
        warnings: tuple[str, ...] = (),
    ) -> None:
        self.source = source
        self.origin = origin
        self.warnings = warnings
        self.bos_token = bos_token
        self.eos_token = eos_token
        self._template = Template(source)
        self._marker = Marker(special_tokens)
        self.capabilities = detect(self._probe)
        if "developer" not in source:  # it writes any role's name, its model knows no such role
            self.capabilities = self.capabilities._replace(developer=False)
        self.tags = reasoning.tags_of(source)

    def _probe(self, context: Context) -> str:
        """Return what the template writes for `context`, "" if it fails."""
        tokens = {"bos_token": self.bos_token or "<s>", "eos_token": self.eos_token or "</s>"}
        try:
            return self._template.render({**tokens, **context})
        except TemplateError:
            return ""

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        kwargs: Mapping[str, Any] | None = None,
        now: datetime.datetime | None = None,
    ) -> RenderedPrompt:
        """Return the prompt for `messages`.

        With `continue_final_message` the prompt ends inside the last message, which must be the
        assistant's. `kwargs` are the client's template variables; they replace none of RESERVED.
        """
        if continue_final_message and (not messages or messages[-1].get("role") != "assistant"):
            raise TemplateError(
                "continue_final_message needs an assistant message as the last one",
                param="continue_final_message",
            )
        context = self._context(tools, dict(kwargs or {}), now)
        context["add_generation_prompt"] = add_generation_prompt and not continue_final_message
        text = self._render_either_form(messages, context, continue_final_message, now)
        if continue_final_message:
            text, found, _ = text.partition(END)
            if not found:
                raise TemplateError(
                    "this template rewrites the last message, so it cannot be continued",
                    param="continue_final_message",
                )
        elif add_generation_prompt and _wants_no_thinking(context):
            text += self._empty_thought(text)
        return self._prompt(text, messages[-1] if continue_final_message else None)

    def _context(
        self, tools: Sequence[Message] | None, kwargs: Context, now: datetime.datetime | None
    ) -> Context:
        context: Context = self._marker.mark(kwargs)
        if context.get("reasoning_effort") == "none":
            context.setdefault("enable_thinking", False)
        wanted, switch = context.get("enable_thinking"), self.capabilities.switch
        if isinstance(wanted, bool) and switch:
            name, on, off = switch
            context.setdefault(name, on if wanted else off)
        for name in self.capabilities.needs:
            context.setdefault(name, NEEDS[name](tools or (), now or datetime.datetime.now()))
        for name in RESERVED:
            context.pop(name, None)
        if tools:
            context["tools"] = self._marker.mark(tools)
        context["bos_token"], context["eos_token"] = self.bos_token, self.eos_token
        return context

    def _render_either_form(
        self,
        messages: Sequence[Message],
        context: Context,
        continued: bool,
        now: datetime.datetime | None,
    ) -> str:
        """Render; if that fails, with a call's arguments in the form that was not preferred."""
        as_text = self.capabilities.arguments_as_text
        try:
            return self._render_form(messages, context, continued, now, as_text)
        except TemplateError as error:
            if not any(message.get("tool_calls") for message in messages):
                raise
            first = error
        try:
            return self._render_form(messages, context, continued, now, not as_text)
        except TemplateError:
            raise first from None

    def _render_form(
        self,
        messages: Sequence[Message],
        context: Context,
        continued: bool,
        now: datetime.datetime | None,
        arguments_as_text: bool,
    ) -> str:
        form = self.capabilities._replace(arguments_as_text=arguments_as_text)
        prepared = [
            self._marker.mark(message, keep_markup=message["role"] == "assistant")
            for message in prepare(messages, form)
        ]
        if continued:
            _append_end(prepared[-1])
        return self._template.render({**context, "messages": prepared}, now)

    def _empty_thought(self, text: str) -> str:
        """Return what ends or skips the think block, where no switch of the template did."""
        opened = reasoning.opened_by(text)
        if opened:
            return f"\n{opened.end}\n\n" if text.endswith(opened.begin) else f"{opened.end}\n\n"
        if self.tags is None or self.capabilities.switch:
            return ""
        return f"{self.tags.begin}\n\n{self.tags.end}\n\n"

    def _prompt(self, text: str, continued: Message | None) -> RenderedPrompt:
        segments = self._marker.cut(text)
        plain = "".join(part for part, _ in segments)
        if continued is None:
            thinking = reasoning.opened_by(plain)
        else:
            thinking = reasoning.left_open(continued, self.tags)
        add_special = not (self.bos_token and plain.startswith(self.bos_token))
        return RenderedPrompt(segments, plain, add_special, thinking)


def _wants_no_thinking(context: Context) -> bool:
    return context.get("enable_thinking") is False


def _append_end(message: Message) -> None:
    """Mark the end of a message that is to be continued: of its reasoning if that is all."""
    name = (
        "content"
        if message["content"] or not message.get("reasoning_content")
        else ("reasoning_content")
    )
    if isinstance(message[name], list):
        message[name][-1]["text"] += END
    else:
        message[name] += END


# --- what a template can do ----------------------------------------------------------------------

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
    return Capabilities(
        list_roles=lists,
        only_lists="user" in lists and "zq_user" not in plain,
        system="zq_system" in text({"role": "system", "content": "zq_system"}, USER),
        developer="zq_system" in text({"role": "developer", "content": "zq_system"}, USER),
        tools="zq_tool" in text(USER, tools=[TOOL]),
        tool_calls=any("zq_value" in call for call in calls + null_calls),
        null_with_calls=not any("zq_value" in call for call in calls),
        arguments_as_text=_prefers_text(*calls) or _prefers_text(*null_calls),
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
    answer = {"role": "tool", "tool_call_id": "zqcall001", "name": "zq_tool", "content": "zq"}
    return str(text(USER, asking, answer, tools=[TOOL]))


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


# --- bringing messages into the form that a template handles -------------------------------------


def prepare(messages: Sequence[Message], form: Capabilities) -> list[Message]:
    """Return copies of `messages` as a template with these capabilities expects them."""
    prepared = [_prepared(message, form) for message in messages]
    if not form.system:
        prepared = _without_system(prepared)
    return prepared


def _prepared(message: Message, form: Capabilities) -> Message:
    role = _role(str(message.get("role", "")), form)
    content = _content(message.get("content"), role in form.list_roles)
    if form.only_lists and isinstance(content, str):
        content = [{"type": "text", "text": content}]
    copy = {**message, "role": role, "content": content}
    if "reasoning" in copy:
        copy.setdefault("reasoning_content", copy.pop("reasoning"))
    if copy.get("reasoning_content") is None:
        copy.pop("reasoning_content", None)
    if "function_call" in copy and copy["function_call"]:
        copy["tool_calls"] = [{"type": "function", "function": copy.pop("function_call")}]
    if copy.get("tool_calls"):
        copy["tool_calls"] = [_tool_call(call, form) for call in copy["tool_calls"]]
        if form.null_with_calls and not copy["content"]:
            copy["content"] = None
    else:
        copy.pop("tool_calls", None)
    return copy


def _role(role: str, form: Capabilities) -> str:
    if role == "developer" and not form.developer:
        return "system"
    return "tool" if role == "function" else role


def _content(content: Any, lists: bool) -> Any:
    """Return text for null, and for a list of text parts unless the template writes lists."""
    if content is None:
        return ""
    if not isinstance(content, (list, tuple)):
        return content
    if lists and content:
        return [dict(part) for part in content]
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


def _without_system(messages: list[Message]) -> list[Message]:
    """Put the text of system messages in front of the user message after them."""
    result: list[Message] = []
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "system":
            waiting.append(_text_of(message["content"]))
        elif message["role"] == "user" and waiting:
            text = "\n\n".join([*waiting, _text_of(message["content"])])
            result.append({**message, "content": text})
            waiting = []
        else:
            result.append(message)
    if waiting:
        result.append({"role": "user", "content": "\n\n".join(waiting)})
    return result


def _text_of(content: Any) -> str:
    return str(_content(content, lists=False))


# --- choosing a template -------------------------------------------------------------------------


def select_template(
    choice: str = "",
    gguf_template: str = "",
    *,
    bos_token: str = "",
    eos_token: str = "",
    special_tokens: Iterable[str] = (),
) -> ChatTemplate:
    """Return the template to use: the user's choice, else the model's, else the fallback.

    `choice` is the name of a built-in template, a file, or the text of a template. UsageError if it
    is none of these; TemplateError, naming the line, if a template is broken.
    """
    source, origin = _source_of(choice, gguf_template)
    warnings: tuple[str, ...] = ()
    if not source:
        source, origin = TEMPLATES[FALLBACK], f"built-in {FALLBACK}"
        warnings = (
            f"the model file has no chat template: using {FALLBACK}; "
            f"--chat-template takes {', '.join(TEMPLATES)}, a file or a text",
        )
        LOG.warning(warnings[0])
    try:
        return ChatTemplate(
            source,
            bos_token=bos_token,
            eos_token=eos_token,
            special_tokens=special_tokens,
            origin=origin,
            warnings=warnings,
        )
    except TemplateError as error:
        raise TemplateError(
            f"the chat template ({origin}) is broken: {error.reason}", line=error.line
        ) from None


def _source_of(choice: str, gguf_template: str) -> tuple[str, str]:
    if not choice:
        return gguf_template, "the model file"
    if choice in TEMPLATES:
        return TEMPLATES[choice], f"built-in {choice}"
    if "{{" in choice or "{%" in choice or "\n" in choice:
        return choice, "--chat-template"
    if not os.path.isfile(choice):
        raise UsageError(
            f"--chat-template {choice}: no such file, and no built-in template of that name "
            f"({', '.join(TEMPLATES)})"
        )
    try:
        with open(choice, encoding="utf-8", newline="") as file:
            return file.read(), choice
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--chat-template {choice}: {error}") from None
