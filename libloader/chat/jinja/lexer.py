"""Template source -> tokens, with white space around tags already dealt with.

    text           literal text, as it will be written
    block, end     {% and %}: trim_blocks takes one newline after, lstrip_blocks blanks before
    print, end     {{ and }}: neither happens
    name, string, integer, float, operator      inside tags

Comments and raw blocks end here: the parser never sees them. `-` in a tag strips all white space
on its side, `+` keeps it. Every scan moves forward only, so blanks cost linear time.
"""

from __future__ import annotations

import re
from re import Match, Pattern
from typing import Any, NamedTuple

from libloader.chat.jinja.limits import MAX_SOURCE, MAX_TOKENS
from libloader.errors import TemplateError


class Token(NamedTuple):
    kind: str
    value: Any
    line: int


_NEWLINE = re.compile(r"\r\n|\r|\n")
_OPENING = re.compile(r"\{([%{#])([-+]?)")
_COMMENT_END = re.compile(r"\+#\}|-#\}\s*|#\}\n?")
_RAW_BEGIN = re.compile(r"\{%[-+]?\s*raw\s*(?:-%\}\s*|%\})")
_RAW_END = re.compile(r"\{%([-+]?)\s*endraw\s*(?:\+%\}|-%\}\s*|%\}\n?)")
_TAG_END = {
    "block": re.compile(r"\+%\}|-%\}\s*|%\}\n?"),
    "print": re.compile(r"-\}\}\s*|\}\}"),
}
_TOKEN = re.compile(
    r"""(?P<space>\s+)
    |(?P<float>(?<!\.)\d+(?:_\d+)*(?:(?:\.\d+(?:_\d+)*)?[eE][-+]?\d+(?:_\d+)*|\.\d+(?:_\d+)*))
    |(?P<integer>0[bB](?:_?[01])+|0[oO](?:_?[0-7])+|0[xX](?:_?[0-9a-fA-F])+|\d+(?:_\d+)*)
    |(?P<name>[^\W\d]\w*)
    |(?P<operator>//|\*\*|==|!=|<=|>=|[-+*/%~<>=.,:|()\[\]{}])""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(
    r"\\(?:([0-7]{1,3})|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL
)
_ESCAPED = {
    "\n": "", "\\": "\\", "'": "'", '"': '"', "a": "\a", "b": "\b", "f": "\f",
    "n": "\n", "r": "\r", "t": "\t", "v": "\v",
}  # fmt: skip
_CLOSING = {")": "(", "]": "[", "}": "{"}
MAX_LITERAL = 250_000  # characters of a string in the source
MAX_DIGITS = 1200  # of a number in the source: within limits.MAX_INT_BITS


def tokenize(source: str) -> list[Token]:
    """Return the tokens of `source`, closed by one of kind "eof". TemplateError if it has none."""
    if len(source) > MAX_SOURCE:
        raise TemplateError("the template is too long")
    source = _NEWLINE.sub("\n", source)
    return _Lexer(source[:-1] if source.endswith("\n") else source).run()


class _Lexer:
    def __init__(self, source: str) -> None:
        self.source = source
        self.position = 0
        self.line = 1
        self.at_line_start = True  # the last tag ended a line, so only blanks precede the next
        self.tokens: list[Token] = []

    def run(self) -> list[Token]:
        while self.position < len(self.source):
            opening = _OPENING.search(self.source, self.position)
            if opening is None:
                self._text(self.source[self.position :])
                self.position = len(self.source)
            else:
                self._text_before(opening)
                self._open(opening)
        self._add("eof", "")
        return self.tokens

    def _add(self, kind: str, value: Any) -> None:
        self.tokens.append(Token(kind, value, self.line))
        if len(self.tokens) > MAX_TOKENS:
            raise TemplateError("the template has too many parts", line=self.line)

    def _move(self, match: Match[str]) -> None:
        """Go to the end of `match`, which must begin here, and count its lines."""
        self.position = match.end()
        self.line += match.group().count("\n")

    def _text(self, text: str, written: str = "") -> None:
        """Add `text`, or what is left of it; its lines count in any case."""
        if text:
            self._add("text", text)
        self.line += (written or text).count("\n")

    def _text_before(self, opening: Match[str]) -> None:
        text = self.source[self.position : opening.start()]
        self._text(self._strip(text, opening.group(2), opening.group(1) != "{"), text)
        self.position = opening.start()

    def _strip(self, text: str, sign: str, is_block: bool) -> str:
        """Return `text` without the white space that the tag after it takes away."""
        if sign == "-":
            return text.rstrip()
        if sign == "+" or not is_block:
            return text
        line_start = text.rfind("\n") + 1
        if line_start == 0 and not self.at_line_start:
            return text
        return text[:line_start] if text[line_start:].isspace() else text

    def _open(self, opening: Match[str]) -> None:
        raw = _RAW_BEGIN.match(self.source, self.position)
        if raw:
            self._raw(raw)
        elif opening.group(1) == "#":
            self._move(opening)
            self._move_past(_COMMENT_END, "this comment is never closed")
        else:
            self._tag("block" if opening.group(1) == "%" else "print", opening)

    def _move_past(self, pattern: Pattern[str], complaint: str) -> None:
        end = pattern.search(self.source, self.position)
        if end is None:
            raise TemplateError(complaint, line=self.line)
        self.line += self.source.count("\n", self.position, end.end())
        self.position = end.end()
        self.at_line_start = end.group().endswith("\n")

    def _raw(self, begin: Match[str]) -> None:
        self._move(begin)
        self.at_line_start = begin.group().endswith("\n")
        end = _RAW_END.search(self.source, self.position)
        if end is None:
            raise TemplateError("this raw block is never closed", line=self.line)
        text = self.source[self.position : end.start()]
        self._text(self._strip(text, end.group(1), True), text)
        self._move(end)
        self.at_line_start = end.group().endswith("\n")

    def _tag(self, kind: str, opening: Match[str]) -> None:
        self._add(kind, "")
        first_line = self.line
        self._move(opening)
        brackets: list[str] = []  # inside them, }} closes two dicts and not the tag
        while self.position < len(self.source):
            end = None if brackets else _TAG_END[kind].match(self.source, self.position)
            if end:
                self._add("end", "")
                self._move(end)
                self.at_line_start = end.group().endswith("\n")
                return
            self._token(brackets)
        raise TemplateError("this tag is never closed", line=first_line)

    def _token(self, brackets: list[str]) -> None:
        if self.source[self.position] in "'\"":
            self._string()
            return
        match = _TOKEN.match(self.source, self.position)
        if match is None:
            raise TemplateError(
                f"unexpected character {self.source[self.position]!r}", line=self.line
            )
        kind, text = str(match.lastgroup), match.group()
        if kind == "operator":
            self._balance(text, brackets)
        if kind in ("integer", "float"):
            self._add(kind, self._number(kind, text))
        elif kind != "space":
            self._add(kind, text)
        self._move(match)

    def _string(self) -> None:
        quote, start = self.source[self.position], self.position + 1
        end = self.source.find(quote, start)
        while end >= 0 and _is_escaped(self.source, start, end):
            end = self.source.find(quote, end + 1)
        if end < 0:
            raise TemplateError("this string is never closed", line=self.line)
        text = self.source[start:end]
        if len(text) > MAX_LITERAL:
            raise TemplateError("this string is too long", line=self.line)
        self._add("string", _ESCAPE.sub(self._unescape, text) if "\\" in text else text)
        self.line += text.count("\n")
        self.position = end + 1

    def _balance(self, operator: str, brackets: list[str]) -> None:
        if operator in "([{":
            brackets.append(operator)
        elif operator in _CLOSING and (not brackets or brackets.pop() != _CLOSING[operator]):
            raise TemplateError(f"unexpected '{operator}'", line=self.line)

    def _number(self, kind: str, text: str) -> float:
        if len(text) > MAX_DIGITS:
            raise TemplateError("this number is too long", line=self.line)
        digits = text.replace("_", "")
        try:
            return float(digits) if kind == "float" else int(digits, 0)
        except ValueError:
            raise TemplateError(f"{text[:20]} is not a number", line=self.line) from None

    def _unescape(self, match: Match[str]) -> str:
        octal, two, four, eight, character = match.groups()
        if character is not None:
            if character in "xuUN":
                raise TemplateError(f"bad \\{character} escape in a string", line=self.line)
            return _ESCAPED.get(character, match.group())
        code = int(octal, 8) if octal else int(two or four or eight, 16)
        if code > 0x10FFFF:
            raise TemplateError("bad \\U escape in a string", line=self.line)
        return chr(code)


def _is_escaped(source: str, start: int, position: int) -> bool:
    """Return whether an odd number of backslashes stands before `position`."""
    first = position
    while first > start and source[first - 1] == "\\":
        first -= 1
    return (position - first) % 2 == 1
