"""Keeps what a client typed from becoming control tokens.

A chat template mixes its own control texts (`<|im_end|>`) with texts of the client. Before it
renders, `Marker.mark` puts noncharacters into the client's strings, and `Marker.cut` takes them out
of the result, which they leave as segments for the tokenizer:

    MARK token BREAK    the token's text becomes a segment that stays text
    BREAK               where a control token could arise from the end or beginning of a client's
                        string and what stands next to it: segments are tokenized apart
    END                 after the message that is to be continued: the prompt ends here

Noncharacters are no white space and no template looks for them, so `trim`, `startswith` and
`split` of real templates work as before; they may lose, move or repeat a mark without harm. In
assistant messages the markers of reasoning and tool calls (`</think>`, `<tool_call>`, ...) are not
marked: templates split at them, and the model wrote them as what they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

Segments = tuple[tuple[str, bool], ...]

MARK, BREAK, END = "\ufdd0", "\ufdd1", "\ufdd2"
_NONCHARACTERS = re.compile(f"[{MARK}{BREAK}{END}]")
_ESCAPED = re.compile(r"\\ufdd([0-2])")  # as tojson(ensure_ascii=true) writes them
_WORD = re.compile(r"\w*")
_MARKUP = re.compile(r"think|tool|channel|reason|thought|call|function|<\|python_tag\|>", re.I)


class Marker:
    """Knows the control tokens of one vocabulary; holds no state between calls."""

    def __init__(self, special_tokens: Iterable[str]) -> None:
        self.tokens = frozenset(token for token in special_tokens if token)
        markup = frozenset(token for token in self.tokens if _MARKUP.search(token))
        self._any = _one_of(self.tokens)
        self._not_markup = _one_of(self.tokens - markup)
        self._marked = re.compile(f"{MARK}({self._any.pattern}){BREAK}")
        self._beginnings = _dangerous(t[:n] for t in self.tokens for n in range(1, len(t)))
        self._endings = _dangerous(t[n:] for t in self.tokens for n in range(1, len(t) - 1))
        self._longest = max(map(len, self.tokens), default=0)

    def mark(self, value: Any, *, keep_markup: bool = False) -> Any:
        """Return a copy of `value` (text, or lists and dicts of it) with all its strings marked."""
        if isinstance(value, str):
            return self._mark_text(value, self._not_markup if keep_markup else self._any)
        if isinstance(value, (list, tuple)):
            return [self.mark(each, keep_markup=keep_markup) for each in value]
        if isinstance(value, dict):
            pairs = value.items()
            return {self.mark(key): self.mark(each, keep_markup=keep_markup) for key, each in pairs}
        return value

    def _mark_text(self, text: str, pattern: re.Pattern[str]) -> str:
        text = _NONCHARACTERS.sub("\ufffd", text)
        if not self.tokens or not text:
            return text
        before = BREAK if self._may_end_a_token(text) else ""
        after = BREAK if self._may_begin_a_token(text) else ""
        return before + pattern.sub(rf"{MARK}\g<0>{BREAK}", text) + after

    def _may_begin_a_token(self, text: str) -> bool:
        tails = (text[-n:] for n in range(1, min(self._longest, len(text) + 1)))
        return any(tail in self._beginnings for tail in tails)

    def _may_end_a_token(self, text: str) -> bool:
        """Also true if `text` is a piece out of the middle. One letter alone is no danger."""
        is_short = 1 < len(text) < self._longest and not _WORD.fullmatch(text)
        if is_short and any(text in token[1:] for token in self.tokens):
            return True
        heads = (text[:n] for n in range(2, min(self._longest, len(text) + 1)))
        return any(head in self._endings for head in heads)

    def cut(self, text: str) -> Segments:
        """Return the segments of a rendered text, as (text, parse_special)."""
        text = _ESCAPED.sub(lambda match: chr(0xFDD0 + int(match.group(1))), text)
        segments: list[tuple[str, bool]] = []
        for index, piece in enumerate(self._marked.split(text)):
            if index % 2:
                segments.append((piece, False))
            else:
                # A mark whose token a template cut away is no border.
                plain = re.sub(f"[{MARK}{END}]", "", piece)
                segments.extend((part, True) for part in plain.split(BREAK) if part)
        return tuple(segments)


def _dangerous(pieces: Iterable[str]) -> frozenset[str]:
    """Leave out plain words: templates compare them, and put no `<|` around the client's."""
    return frozenset(piece for piece in pieces if not _WORD.fullmatch(piece))


def _one_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern for the longest of `texts`, in time linear in the text searched.

    A plain alternation of a vocabulary's thousand control tokens would try each at every `<`.
    """
    trie: dict[str, Any] = {}
    for text in texts:
        node = trie
        for character in text:
            node = node.setdefault(character, {})
        node[""] = {}
    return re.compile(_trie_pattern(trie) if trie else "(?!)")


def _trie_pattern(node: dict[str, Any]) -> str:
    """Return the pattern of a trie. Unbranched runs are written out, so nesting stays low."""
    run = ""
    while len(node) == 1 and "" not in node:
        ((character, node),) = node.items()
        run += re.escape(character)
    if set(node) == {""}:
        return run
    branches = [re.escape(c) + _trie_pattern(child) for c, child in sorted(node.items()) if c]
    optional = "?" if "" in node else ""
    return f"{run}(?:{'|'.join(branches)}){optional}"
