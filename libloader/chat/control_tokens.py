"""Keeps what a client typed from becoming control tokens.

A chat template mixes its own control texts (`<|im_end|>`) with texts of the client. Before it
renders, `Marker.mark` puts noncharacters into the client's strings, and `Marker.cut` takes them out
of the result, which they leave as segments for the tokenizer:

    MARK text BREAK   `text` is a control token, or a piece of one at the beginning or end of a
                      string, where its neighbours might complete it: a segment that stays text
    END               after the message that is to be continued: the prompt ends here

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
        self._beginnings = _dangerous(t[:n] for t in self.tokens for n in range(1, len(t)))
        self._endings = _dangerous(t[n:] for t in self.tokens for n in range(1, len(t) - 1))
        self._longest = max(map(len, self.tokens), default=0)
        self._marked = re.compile(f"{MARK}([^{MARK}{BREAK}]{{1,{max(self._longest, 1)}}}){BREAK}")

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
        if self._is_inside_a_token(text):
            return f"{MARK}{text}{BREAK}"
        matches = list(pattern.finditer(text))
        start = matches[0].start() if matches else len(text)
        end = matches[-1].end() if matches else 0
        head = self._head(text[:start])
        tail = self._tail(text[max(end, len(head)) :])
        middle = text[len(head) : len(text) - len(tail)]
        marked = pattern.sub(rf"{MARK}\g<0>{BREAK}", middle)
        return _wrapped(head) + marked + _wrapped(tail)

    def _is_inside_a_token(self, text: str) -> bool:
        """Say whether this is a piece out of the middle; plain words and letters are no danger."""
        if not 1 < len(text) < self._longest or _WORD.fullmatch(text):
            return False
        return any(text in token[1:-1] for token in self.tokens)

    def _head(self, text: str) -> str:
        """Return the longest beginning of `text` that a control token may end in."""
        lengths = range(min(self._longest, len(text)), 1, -1)
        return next((text[:n] for n in lengths if text[:n] in self._endings), "")

    def _tail(self, text: str) -> str:
        """Return the longest end of `text` that a control token may begin with."""
        lengths = range(min(self._longest, len(text)), 0, -1)
        return next((text[-n:] for n in lengths if text[-n:] in self._beginnings), "")

    def cut(self, text: str, *, escaped: bool = False) -> Segments:
        """Return the segments of a rendered text, as (text, parse_special).

        `escaped` says that the template may have written marks as JSON escapes.
        """
        if escaped:
            text = _ESCAPED.sub(lambda match: chr(0xFDD0 + int(match.group(1))), text)
        segments: list[tuple[str, bool]] = []
        for index, piece in enumerate(self._marked.split(text)):
            # Marks whose token a template cut away may enclose a text of its own.
            is_typed = index % 2 == 1 and any(piece in token for token in self.tokens)
            segments.append((_NONCHARACTERS.sub("", piece), not is_typed))
        return _merged(segments)


def _wrapped(text: str) -> str:
    return f"{MARK}{text}{BREAK}" if text else ""


def _merged(segments: list[tuple[str, bool]]) -> Segments:
    """Join neighbours of the template's own text, and drop what is empty."""
    merged: list[tuple[str, bool]] = []
    for text, parse_special in segments:
        if merged and parse_special and merged[-1][1]:
            merged[-1] = (merged[-1][0] + text, True)
        elif text:
            merged.append((text, parse_special))
    return tuple(merged)


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
