"""A chat template as the server uses it: messages in, prompt segments out.

What a template can do is found out once, by rendering small conversations (`detect`), and messages
are then brought into the form that it handles: text parts joined, arguments as objects or strings,
system prompts moved where there is no role for them. The caller's messages never change. What a
client typed never becomes a control token (control_tokens.py).
"""

from __future__ import annotations

import datetime
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from libloader.chat import reasoning
from libloader.chat.builtin_templates import FALLBACK, TEMPLATES
from libloader.chat.capabilities import NEEDS, USER, Message, detect
from libloader.chat.control_tokens import END, Marker, Segments
from libloader.chat.jinja import Template
from libloader.chat.messages import prepare
from libloader.chat.tools import format_named, format_of
from libloader.errors import TemplateError, UsageError

LOG = logging.getLogger("igllama")

Context = dict[str, Any]

PLAIN: Context = {"messages": [USER], "add_generation_prompt": True}
RESERVED = ("messages", "tools", "add_generation_prompt", "bos_token", "eos_token")


class RenderedPrompt(NamedTuple):
    """A prompt. In segments with parse_special, control texts become control tokens."""

    segments: Segments
    text: str  # the segments joined
    add_special: bool  # whether the tokenizer shall add BOS: the template did not print it
    thinking: reasoning.Tags | None  # of the think block that the prompt ends in


class _Conversation(NamedTuple):
    """What a prompt is made from, besides the template's variables."""

    messages: Sequence[Message]
    described_tools: Sequence[Message] | None  # in words, as the template does not
    is_continued: bool
    now: datetime.datetime | None


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
        tool_format: str = "",
        origin: str = "",
        warnings: tuple[str, ...] = (),
    ) -> None:
        self.source = source
        self.origin = origin
        self.warnings = warnings
        self.bos_token = bos_token
        self.eos_token = eos_token
        self._template = Template(source)
        self.special_tokens = frozenset(special_tokens)
        self._marker = Marker(self.special_tokens)
        self.capabilities = detect(self._probe)
        if "developer" not in source:  # it writes any role's name, its model knows no such role
            self.capabilities = self.capabilities._replace(developer=False)
        # Some put their tags together while they render: what they write shows them.
        self.tags = reasoning.tags_of(source) or reasoning.tags_of(self._probe(PLAIN))
        self.format = format_named(tool_format) if tool_format else format_of(source)

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
        described = None if self.capabilities.tools else tools
        conversation = _Conversation(messages, described, continue_final_message, now)
        text = self._render_either_form(conversation, context)
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
        if tools and self.capabilities.tools:
            context["tools"] = self._marker.mark(tools)
        context["bos_token"], context["eos_token"] = self.bos_token, self.eos_token
        return context

    def _render_either_form(self, conversation: _Conversation, context: Context) -> str:
        """Render; if that fails, with a call's arguments in the form that was not preferred."""
        as_text = self.capabilities.arguments_as_text
        try:
            return self._render_form(conversation, context, as_text)
        except TemplateError as error:
            if not any(message.get("tool_calls") for message in conversation.messages):
                raise
            first = error
        try:
            return self._render_form(conversation, context, not as_text)
        except TemplateError:
            raise first from None

    def _render_form(self, conversation: _Conversation, context: Context, as_text: bool) -> str:
        form = self.capabilities._replace(arguments_as_text=as_text)
        prepared = [
            self._marker.mark(message, keep_markup=message["role"] == "assistant")
            for message in prepare(
                conversation.messages, form, self.format, conversation.described_tools
            )
        ]
        if conversation.is_continued:
            _append_end(prepared[-1])
        return self._template.render({**context, "messages": prepared}, conversation.now)

    def _empty_thought(self, text: str) -> str:
        """Return what ends or skips the think block, where no switch of the template did."""
        opened = reasoning.opened_by(text)
        if opened:
            return f"\n{opened.end}\n\n" if text.endswith(opened.begin) else f"{opened.end}\n\n"
        if self.tags is None or self.capabilities.switch:
            return ""
        return f"{self.tags.begin}\n\n{self.tags.end}\n\n"

    def _prompt(self, text: str, continued: Message | None) -> RenderedPrompt:
        segments = self._marker.cut(text, escaped="ensure_ascii" in self.source)
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


# --- choosing a template -------------------------------------------------------------------------


def select_template(
    choice: str = "",
    gguf_template: str = "",
    *,
    bos_token: str = "",
    eos_token: str = "",
    special_tokens: Iterable[str] = (),
    tool_format: str = "",
) -> ChatTemplate:
    """Return the template to use: the user's choice, else the model's, else the fallback.

    `choice` is the name of a built-in template, a file, or the text of a template; `tool_format`
    overrides what the template says. UsageError if they are unknown; TemplateError, naming the
    line, if a template is broken.
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
            tool_format=tool_format,
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
