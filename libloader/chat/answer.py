"""An answer as it streams: the model's text becomes reasoning, content and calls.

One AnswerReader per choice; it composes the splitter of reasoning and the reader of calls. What it
returns may be sent at once, and adds up to the same message however the text was cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Callable

from libloader.chat import reasoning
from libloader.chat.template import ChatTemplate, RenderedPrompt
from libloader.chat.tools.deltas import (
    CallDelta,
    Delta,
    Message,
    ReasoningDelta,
    collect,
    new_id,
)
from libloader.chat.tools.format import Format
from libloader.chat.tools.reader import Reader

SLICE = 4096  # characters that are read at once of an answer that is there as a whole


class AnswerReader:
    """Reads one answer. `n_reasoning_tokens` and `n_calls` may be asked for at any time."""

    def __init__(
        self,
        tags: reasoning.Tags | None = None,
        *,
        opened: bool = False,
        format: Format | None = None,
        tools: Sequence[dict[str, Any]] = (),
        make_id: Callable[[], str] = new_id,
    ) -> None:
        self._splitter = reasoning.Splitter(tags, opened)
        self._reader = Reader(format, tools, make_id)
        self._is_told_apart = format is not None and format.read_all is not None
        self._n_other_tokens = 0  # of reasoning that the format itself tells apart

    @property
    def n_reasoning_tokens(self) -> int:
        return self._splitter.n_tokens + self._n_other_tokens

    @property
    def n_calls(self) -> int:
        return self._reader.n_calls

    @property
    def in_reasoning(self) -> bool:
        return self._splitter.in_block

    def feed(self, text: str, n_tokens: int = 0) -> list[Delta]:
        """Return the deltas that are certain now that `text`, made of `n_tokens`, has come."""
        before = self._splitter.n_tokens
        deltas = self._read(self._splitter.feed(text, n_tokens))
        if self._splitter.n_tokens == before and _ends_in_reasoning(deltas):
            self._n_other_tokens += n_tokens
        return deltas

    def feed_all(self, pieces: Sequence[tuple[str, int]]) -> list[Delta]:
        """Return the deltas of an answer that is there as a whole, in pieces of (text, n_tokens).

        The pieces matter only where their tokens may be some of reasoning: else there are fewer,
        but short ones, for what a reader has in hand is copied at each call that it finds.
        """
        text = "".join([text for text, _ in pieces])
        if not (self._is_told_apart or self._splitter.finds_block(text)):
            pieces = [(text[i : i + SLICE], 0) for i in range(0, len(text), SLICE)]
        return [delta for text, n_tokens in pieces for delta in self.feed(text, n_tokens)]

    def finish(self) -> list[Delta]:
        """The answer has ended: return what was held back."""
        return self._read(self._splitter.finish()) + self._reader.finish()

    def _read(self, parts: list[reasoning.Delta]) -> list[Delta]:
        deltas: list[Delta] = []
        for kind, text in parts:
            if kind == reasoning.REASONING:
                deltas.append(ReasoningDelta(text))
            else:
                deltas += self._reader.feed(text)
        return deltas

    def finish_reason(self, reason: str) -> str:
        """Return OpenAI's finish_reason for the engine's: `stop` after calls is `tool_calls`."""
        return "tool_calls" if reason == "stop" and self.n_calls else reason


def _ends_in_reasoning(deltas: list[Delta]) -> bool:
    return bool(deltas) and isinstance(deltas[-1], ReasoningDelta)


def answer_reader(
    template: ChatTemplate,
    prompt: RenderedPrompt,
    *,
    tools: Sequence[dict[str, Any]] = (),
    split_reasoning: bool = True,
    make_id: Callable[[], str] = new_id,
) -> AnswerReader:
    """Return the reader of one answer to `prompt`.

    `tools` are the request's, none if it forbids calls; without `split_reasoning`
    (reasoning_format none) the think block stays in the content as it is.
    """
    format: Format | None = template.format
    if not tools and template.format.read_all is None:
        # Without tools nothing is a call, but texts around content are still not content.
        format = replace(template.format, triggers=(), first_triggers=())
    tags = (prompt.thinking or template.tags) if split_reasoning else None
    return AnswerReader(
        tags,
        opened=prompt.thinking is not None and split_reasoning,
        format=format,
        tools=tools,
        make_id=make_id,
    )


def keeps_special(template: ChatTemplate, *, with_tools: bool) -> bool:
    """Say whether reading answers needs the text of control tokens (core.Request.keep_special)."""
    texts = set(template.tags or ())
    if with_tools or template.format.read_all:
        texts.update(template.format.texts())
    texts.update(template.format.wrappers)
    return not texts.isdisjoint(template.special_tokens)


def read_whole(reader: AnswerReader, text: str, n_tokens: int = 0) -> Message:
    """Return the message of an answer that is there as a whole."""
    return collect(reader.feed(text, n_tokens) + reader.finish())


__all__ = ["AnswerReader", "CallDelta", "answer_reader", "keeps_special", "read_whole"]
