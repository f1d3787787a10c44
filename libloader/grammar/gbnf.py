"""GBNF, the grammar language of llama.cpp: its text is read, judged and matched here.

    check(text)             raises GrammarInvalid, with the line, for what libllama must never see
    matches(text, document) does the grammar accept the document, exactly
    choices_grammar(texts)  a grammar for exactly one of these texts

libllama parses GBNF by recursion and looks for left recursion along every path, so that a kilobyte
of text can end or freeze the process (llama.cpp #26600 and its like).

Laws:
- What `check` lets pass, libllama reads in milliseconds and within its stack; no limit here costs
  more than linear time.
- The language is the part that every build knows: no references to tokens (`<think>`, `<[7]>`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import NamedTuple, NoReturn

from libloader.errors import GrammarInvalid
from libloader.grammar import charset
from libloader.grammar.ambiguity import Survey
from libloader.grammar.expr import ANY_CHAR, Alt, Chars, Node, Ref, Repeat, Seq, Text, write
from libloader.grammar.flat import FlatGrammar, Matcher

MAX_TEXT_BYTES = 64 << 10
MAX_RULES = 2_000
MAX_NESTING = 64
MAX_CHAIN = 256  # rules that begin with each other, groups and repetitions included
MAX_PATHS = 100_000  # calls that libllama makes to look for left recursion
MAX_REPETITION = 2_000  # libllama's own limit from b6500 on
MAX_ELEMENTS = 200_000  # what libllama holds once repetitions are written out
N_KNOWN = 32
ROOT = "root"

_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")
_HEX = frozenset("0123456789abcdefABCDEF")
_PLAIN = re.compile(r'[^"\\\0]+')
_SPACE, _BLANK = re.compile(r"(?:[ \t\r\n]+|#[^\r\n]*)*"), re.compile(r"(?:[ \t]+|#[^\r\n]*)*")
_HEX_ESCAPES = {"x": 2, "u": 4, "U": 8}
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]"}
_REPETITIONS: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}


class Rule(NamedTuple):
    node: Node
    line: int


@functools.lru_cache(maxsize=N_KNOWN)
def check(text: str, *, max_bytes: int = MAX_TEXT_BYTES, param: str = "grammar") -> None:
    """Raise GrammarInvalid, naming the line, unless libllama can use this grammar safely.

    Clients send the same few grammars again and again: the last that passed are known.
    """
    compile_text(text, max_bytes=max_bytes, param=param)


def matches(text: str, document: str) -> bool:
    """Say whether the grammar accepts `document` from its first to its last character."""
    return matches_compiled(compile_text(text), document)


def matches_compiled(grammar: FlatGrammar, document: str) -> bool:
    """`matches` for a grammar that `compile_text` has read."""
    matcher = Matcher(grammar)
    return matcher.feed(document) == len(document) and matcher.is_complete


def matcher(text: str) -> Matcher:
    """Return a matcher that takes a document piece by piece and says where it stops fitting."""
    return Matcher(compile_text(text))


def choices_grammar(texts: Iterable[str], *, param: str = "choices") -> str:
    """Return a grammar whose only documents are these texts."""
    options = list(dict.fromkeys(texts))
    if not options or "" in options:
        raise GrammarInvalid("choices must be texts of one character or more", param=param)
    if not all(_is_writable(option) for option in options):
        raise GrammarInvalid("a choice contains NUL or half a surrogate pair", param=param)
    text = write({ROOT: Alt(tuple(Text(option) for option in options))})
    check(text, param=param)
    return text


def _is_writable(text: str) -> bool:
    return all(0 < ord(char) < 0xD800 or ord(char) > 0xDFFF for char in text)


def compile_text(
    text: str, *, max_bytes: int = MAX_TEXT_BYTES, param: str = "grammar"
) -> FlatGrammar:
    """Return the grammar as libllama would hold it, or raise GrammarInvalid."""
    try:
        n_bytes = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise GrammarInvalid("the grammar contains half a surrogate pair", param=param) from None
    if n_bytes > max_bytes:
        raise GrammarInvalid(
            f"the grammar has {n_bytes} bytes; at most {max_bytes} are taken", param=param
        )
    rules = Parser(text, param).rules()
    flat = _flattened(rules, param)
    _check_recursion(flat, rules, param)
    _check_ambiguity(flat, rules, param)
    return flat


def parse(text: str, *, param: str = "grammar") -> dict[str, Rule]:
    """Return the rules of a grammar; raises GrammarInvalid for what is not GBNF."""
    return Parser(text, param).rules()


def _flattened(rules: dict[str, Rule], param: str) -> FlatGrammar:
    """Write out groups and repetitions, after a look at how much that would be."""
    n_elements = 0
    for name, rule in rules.items():
        n_elements += _n_elements(rule.node)
        if n_elements > MAX_ELEMENTS:
            raise GrammarInvalid(
                f"line {rule.line}: with the repetitions of rule {name!r} written out, the grammar"
                f" has over {MAX_ELEMENTS} elements",
                param=param,
            )
    return FlatGrammar({name: rule.node for name, rule in rules.items()}, ROOT)


def _n_elements(node: Node) -> int:
    if isinstance(node, Text):
        return len(node.text)
    if isinstance(node, Chars):
        return 1 + len(node.ranges)
    if isinstance(node, Repeat):
        times = node.low + 1 if node.high is None else node.high
        # A repeated group is one reference each time; a repeated literal is copied.
        size = _n_elements(node.item)
        return (size + 3) * times if isinstance(node.item, (Text, Chars)) else size + 4 * times
    if isinstance(node, (Seq, Alt)):
        children = node.items if isinstance(node, Seq) else node.options
        return 2 + sum(_n_elements(child) for child in children)
    return 1


def _check_recursion(flat: FlatGrammar, rules: dict[str, Rule], param: str) -> None:
    """Refuse left recursion, long chains of beginnings, and too many paths through them."""
    walk = flat.walk_beginnings()
    problems = (
        (walk.looping, "begins with itself (left recursion), or repeats something empty"),
        (walk.too_long(MAX_CHAIN), f"begins a chain of over {MAX_CHAIN} rules"),
        (walk.too_many(MAX_PATHS), f"begins in over {MAX_PATHS} ways"),
    )
    for name, problem in problems:
        if name is not None:
            raise GrammarInvalid(f"line {rules[name].line}: rule {name!r} {problem}", param=param)


def _check_ambiguity(flat: FlatGrammar, rules: dict[str, Rule], param: str) -> None:
    matcher = Matcher(flat)
    alternative = Survey(matcher).first_too_many()
    if alternative is not None:
        name = matcher.owner_of(alternative)
        raise GrammarInvalid(
            f"line {rules[name].line}: what rule {name!r} begins can be read in too many"
            " ways; let neighbouring repetitions differ in their characters",
            param=param,
        )


class Parser:
    """Reads GBNF text as libllama does, one method per level of its syntax."""

    def __init__(self, text: str, param: str) -> None:
        self._text, self._at, self._param = text, 0, param
        self._uses: dict[str, int] = {}  # rule name -> where it is first used

    def rules(self) -> dict[str, Rule]:
        rules: dict[str, Rule] = {}
        self._skip_space(newlines=True)
        while self._at < len(self._text):
            start = self._at
            name, node = self._rule()
            if name in rules:
                self._fail(f"rule {name!r} is defined twice", start)
            rules[name] = Rule(node, self._line(start))
            if len(rules) > MAX_RULES:
                self._fail(f"there are over {MAX_RULES} rules", start)
        for name, at in self._uses.items():
            if name not in rules:
                self._fail(f"rule {name!r} is used but not defined", at)
        if ROOT not in rules:
            self._fail(f"there is no rule {ROOT!r}")
        return rules

    def _rule(self) -> tuple[str, Node]:
        name = self._name()
        self._skip_space(newlines=False)
        if not self._text.startswith("::=", self._at):
            self._fail(f"expected ::= after {name!r}")
        self._at += 3
        self._skip_space(newlines=True)
        node = self._choice(depth=0)
        if self._peek() not in ("", "\r", "\n"):
            self._fail(f"unexpected {self._peek()!r}")
        self._skip_space(newlines=True)
        return name, node

    def _choice(self, depth: int) -> Node:
        options = [self._sequence(depth)]
        while self._peek() == "|":
            self._at += 1
            self._skip_space(newlines=True)
            options.append(self._sequence(depth))
        return options[0] if len(options) == 1 else Alt(tuple(options))

    def _sequence(self, depth: int) -> Node:
        items: list[Node] = []
        while True:
            item = self._item(depth)
            if item is not None:
                items.append(item)
            elif self._peek() and self._peek() in "*+?{":
                if not items or items[-1] == Text(""):
                    self._fail(f"{self._peek()!r} has nothing before it to repeat")
                items[-1] = Repeat(items[-1], *self._count(newlines=depth > 0))
            else:
                return items[0] if len(items) == 1 else Seq(tuple(items))
            self._skip_space(newlines=depth > 0)

    def _item(self, depth: int) -> Node | None:
        char = self._peek()
        if char == '"':
            return self._literal()
        if char == "[":
            return self._class()
        if char == "(":
            return self._group(depth + 1)
        if char == ".":
            self._at += 1
            return ANY_CHAR
        if char in _NAME:
            start = self._at
            name = self._name()
            self._uses.setdefault(name, start)
            return Ref(name)
        return None

    def _group(self, depth: int) -> Node:
        if depth > MAX_NESTING:
            self._fail(f"groups are nested over {MAX_NESTING} deep")
        start = self._at
        self._at += 1
        self._skip_space(newlines=True)
        node = self._choice(depth)
        if self._peek() != ")":
            self._fail("this group is not closed", start)
        self._at += 1
        # As an Alt of one, a group stays a group: what follows repeats all of it.
        return node if isinstance(node, Alt) else Alt((node,))

    def _literal(self) -> Node:
        start = self._at
        self._at += 1
        text = []
        while self._peek() != '"':
            if not self._peek():
                self._fail("this literal is not closed", start)
            plain = _PLAIN.match(self._text, self._at)
            text.append(plain.group() if plain else self._char())
            self._at = plain.end() if plain else self._at
        self._at += 1
        return Text("".join(text))

    def _class(self) -> Node:
        start = self._at
        self._at += 1
        is_negated = self._take("^")
        ranges = []
        while self._peek() != "]":
            if not self._peek():
                self._fail("this character class is not closed", start)
            first = last = ord(self._char())
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] != "]":
                self._at += 1
                last = ord(self._char())
            ranges.append((first, last))
        self._at += 1
        if not ranges or any(first > last for first, last in ranges):
            self._fail("this character class contains no character", start)
        return Chars(charset.of(ranges), is_negated)

    def _char(self) -> str:
        char = self._peek()
        if not char:
            self._fail("the text ends in the middle of a character")
        self._at += 1
        if char == "\0":
            self._fail("a NUL character")
        if char != "\\":
            return char
        kind = self._peek()
        self._at += 1
        if kind in _HEX_ESCAPES:
            return self._hex(_HEX_ESCAPES[kind])
        if kind not in _ESCAPES:
            self._fail(f"unknown escape \\{kind}")
        return _ESCAPES[kind]

    def _hex(self, n_digits: int) -> str:
        digits = self._text[self._at : self._at + n_digits]
        if len(digits) != n_digits or not _HEX.issuperset(digits):
            self._fail(f"expected {n_digits} hexadecimal digits")
        code = int(digits, 16)
        if code > charset.LAST:
            self._fail(f"U+{digits} is no character that a text can contain")
        self._at += n_digits
        return chr(code)

    def _count(self, newlines: bool) -> tuple[int, int | None]:
        start = self._at
        self._at += 1
        if self._text[start] in _REPETITIONS:
            return _REPETITIONS[self._text[start]]
        self._skip_space(newlines)
        low = self._number()
        high: int | None = low
        self._skip_space(newlines)
        if self._take(","):
            self._skip_space(newlines)
            high = self._number() if self._peek().isdigit() else None
            self._skip_space(newlines)
        if not self._take("}"):
            self._fail("expected } after a repetition", start)
        if low > MAX_REPETITION or (high or 0) > MAX_REPETITION:
            self._fail(f"a repetition of over {MAX_REPETITION}", start)
        if high is not None and high < max(low, 1):
            self._fail(f"a repetition from {low} to {high} is empty", start)
        return low, high

    def _number(self) -> int:
        start = self._at
        while self._peek().isascii() and self._peek().isdigit():
            self._at += 1
        digits = self._text[start : self._at]
        if not digits:
            self._fail("expected a number")
        return int(digits[:9])  # nine digits are over every limit

    def _name(self) -> str:
        start = self._at
        while self._peek() in _NAME:
            self._at += 1
        if start == self._at:
            self._fail(f"expected the name of a rule, not {self._peek()!r}")
        return self._text[start : self._at]

    def _skip_space(self, newlines: bool) -> None:
        space = (_SPACE if newlines else _BLANK).match(self._text, self._at)
        assert space, "nothing at all is a match too"
        self._at = space.end()

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self, char: str) -> bool:
        is_here = self._peek() == char
        self._at += is_here
        return is_here

    def _line(self, at: int) -> int:
        return self._text.count("\n", 0, at) + 1

    def _fail(self, problem: str, at: int | None = None) -> NoReturn:
        line = self._line(self._at if at is None else at)
        raise GrammarInvalid(f"grammar line {line}: {problem}", param=self._param)
