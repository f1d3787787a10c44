"""Splits a model's text into reasoning and content, as it streams.

The block may begin in the prompt (templates that end in `<think>`), at the start of the answer, or
not at all; only there: a `<think>` further on is content, for models write about tags too. White
space around the block belongs to neither part. However the text is cut into pieces, the parts come
out the same. Channels of gpt-oss are read by tools/harmony.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

REASONING, CONTENT = "reasoning", "content"


class Tags(NamedTuple):
    begin: str
    end: str


TAGS: tuple[Tags, ...] = (
    Tags("<think>", "</think>"),
    Tags("<mm:think>", "</mm:think>"),
    Tags("<think:opensource>", "</think:opensource>"),
    Tags("<seed:think>", "</seed:think>"),
    Tags("<thinking>", "</thinking>"),
    Tags("[THINK]", "[/THINK]"),
    Tags("<|START_THINKING|>", "<|END_THINKING|>"),
    Tags("<|channel>thought", "<channel|>"),
    Tags("<reasoning>", "</reasoning>"),
    Tags("<thought>", "</thought>"),
)


def tags_of(source: str) -> Tags | None:
    """Return the tags that a chat template writes or looks for."""
    return next((tags for tags in TAGS if tags.end in source), None)


def opened_by(prompt: str) -> Tags | None:
    """Return the tags of the block that a prompt ends in, right after its begin tag."""
    end = prompt.rstrip()
    return next((tags for tags in TAGS if end.endswith(tags.begin)), None)


def left_open(message: Mapping[str, Any], tags: Tags | None) -> Tags | None:
    """Return `tags` if this unfinished assistant message ends inside its reasoning."""
    if tags is None:
        return None
    content = message.get("content")
    if not content:
        return tags if message.get("reasoning_content") or message.get("reasoning") else None
    text = content if isinstance(content, str) else str(content[-1].get("text", ""))
    return tags if text.rfind(tags.begin) > text.rfind(tags.end) else None


class Delta(NamedTuple):
    """A piece of the answer. `kind` is REASONING or CONTENT."""

    kind: str
    text: str


class Splitter:
    """Cuts one answer into deltas. Without `tags` all of it is content, unchanged.

    `opened` says that the prompt ended inside the block. `n_tokens` counts those of the block.
    """

    def __init__(self, tags: Tags | None, opened: bool = False) -> None:
        self.tags = tags
        self.n_tokens = 0
        self._held = ""  # not given out yet: white space, or what may become a tag
        self._read = self._begin if tags else self._content
        self._opened = opened
        self._lone_ends = (tags.end,) if tags and not opened else ()
        self._in_block = opened

    @property
    def in_block(self) -> bool:
        """Whether the next token is, as far as is known, one of the reasoning."""
        return self._in_block

    def finds_block(self, text: str) -> bool:
        """Say whether there is a block in `text`, an answer as a whole."""
        if self.tags is None:
            return False
        return self._opened or text.lstrip().startswith(self.tags.begin)

    def feed(self, text: str, n_tokens: int = 0) -> list[Delta]:
        """Return the deltas that are certain now that `text`, made of `n_tokens`, has come. Hot."""
        if self.tags is None:
            return [Delta(CONTENT, text)] if text else []
        was_in_block = self._in_block
        self._held += text
        deltas = self._read()
        if was_in_block or self._in_block:
            self.n_tokens += n_tokens
        return [delta for delta in deltas if delta.text]

    def finish(self) -> list[Delta]:
        """The answer has ended: return what was held back."""
        kind = REASONING if self._in_block else CONTENT
        text, self._held = self._held, ""
        return [Delta(kind, text)] if text else []

    def _begin(self) -> list[Delta]:
        """At the very start: is there a begin tag?"""
        assert self.tags is not None
        text = self._held.lstrip()
        if text.startswith(self.tags.begin):
            self._held = text[len(self.tags.begin) :]
            self._in_block = True
            return self._enter(self._reasoning_start)
        if self._lone_ends and text.startswith(self._lone_ends):
            self._held = text[len(self.tags.end) :]
            return self._enter(self._content_start)  # how some models say: no thoughts today
        if any(tag.startswith(text) for tag in (self.tags.begin, *self._lone_ends)):
            return []  # all white space so far, or the beginning of a tag
        return self._enter(self._reasoning_start if self._opened else self._content)

    def _enter(self, state: Any) -> list[Delta]:
        self._read = state
        deltas: list[Delta] = state()
        return deltas

    def _reasoning_start(self) -> list[Delta]:
        self._held = self._held.lstrip()
        return self._enter(self._reasoning) if self._held else []

    def _reasoning(self) -> list[Delta]:
        assert self.tags is not None
        before, found, after = self._held.partition(self.tags.end)
        if found:
            self._held, self._in_block = after, False
            return [Delta(REASONING, before.rstrip()), *self._enter(self._content_start)]
        certain = len(self._held) - overlap(self._held, self.tags.end)
        certain = len(self._held[:certain].rstrip())
        text, self._held = self._held[:certain], self._held[certain:]
        return [Delta(REASONING, text)]

    def _content_start(self) -> list[Delta]:
        self._held = self._held.lstrip()
        return self._enter(self._content) if self._held else []

    def _content(self) -> list[Delta]:
        text, self._held = self._held, ""
        return [Delta(CONTENT, text)]


def overlap(text: str, tag: str) -> int:
    """Return how many characters at the end of `text` may be the beginning of `tag`."""
    for length in range(min(len(text), len(tag) - 1), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0


def split(text: str, tags: Tags | None, opened: bool = False) -> tuple[str, str]:
    """Return (reasoning, content) of a whole answer."""
    splitter = Splitter(tags, opened)
    parts = {REASONING: "", CONTENT: ""}
    for kind, piece in splitter.feed(text) + splitter.finish():
        parts[kind] += piece
    return parts[REASONING], parts[CONTENT]
