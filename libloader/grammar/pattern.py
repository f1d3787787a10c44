"""Regular expressions of JSON Schema (`pattern`, `patternProperties`): read, matched, made GBNF.

    compile_pattern(text)  -> Pattern       GrammarInvalid for what is no expression or too large
    Pattern.search(text)   does it occur    linear in the text, whatever the expression
    Pattern.expression()   -> expr.Node     characters as they are, before JSON escapes them

The dialect is ECMA-262's with the u flag. Look-around and word boundaries can be searched but not
written as a grammar (Inexpressible); back-references are refused: they are not regular.

Laws: Python's `re` is never used on what a client sent: `^(a+)+$` takes it exponential time.
"""

from __future__ import annotations

import functools
import unicodedata
from dataclasses import dataclass
from typing import NamedTuple, NoReturn, Union

from libloader.errors import GrammarInvalid
from libloader.grammar import charset
from libloader.grammar.expr import EMPTY, Alt, Chars, Node, Repeat, Seq, Text, alt, repeat, seq

MAX_PATTERN_CHARS = 4096
MAX_NESTING = 40
MAX_REPETITION = 100_000
MAX_INSTRUCTIONS = 20_000  # of the compiled program: repetitions are written out in it
N_KEPT = 32  # compiled expressions in memory, 3 MB each at worst
MAX_STEPS = 2_000_000  # of one search: a few seconds

DIGITS = charset.chars("0123456789")
WORD = charset.of(((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)))
SPACE = charset.union(
    charset.chars("\t\n\v\f\r \xa0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff"),
    charset.of([(0x2000, 0x200A)]),
)
NEWLINES = charset.chars("\n\r\u2028\u2029")
CLASS_ESCAPES = {
    "d": DIGITS, "D": charset.invert(DIGITS),
    "w": WORD, "W": charset.invert(WORD),
    "s": SPACE, "S": charset.invert(SPACE),
}  # fmt: skip
CHAR_ESCAPES = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}
# JSON Schema's own tests demand that \a is refused: letters have no identity escape.
SYNTAX_CHARS = "^$\\.*+?()[]{}|/-"
COUNTS: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}


class Inexpressible(Exception):
    """A grammar cannot say this; str() names the construct."""


@dataclass(frozen=True)
class Assertion:
    """A condition on the place: ^ $ b B, or look-around as = ! (ahead) and <= <! (behind)."""

    kind: str
    body: Part | None = None


@dataclass(frozen=True)
class Group:
    """Parts in a row: each is a character set, a repetition, a choice, or an assertion."""

    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Choice:
    options: tuple[Part, ...]


@dataclass(frozen=True)
class Loop:
    body: Part
    low: int
    high: int | None


Part = Union[Chars, Group, Choice, Loop, Assertion]


class Instruction(NamedTuple):
    """`chars` reads one character; `assertion` is tested; then on to any of `targets`."""

    targets: tuple[int, ...]
    chars: charset.Ranges | None = None
    assertion: str = ""
    program: Program | None = None


class Program(NamedTuple):
    code: list[Instruction]
    start: int


ACCEPT = -1


class Pattern:
    """A compiled expression; thread-safe, as nothing changes after construction."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._root = _Parser(text).parse()
        if _size(self._root) > MAX_INSTRUCTIONS:
            raise GrammarInvalid(f"the pattern {_short(text)} is too large")
        self._program = _compiled(self._root)

    def search(self, text: str) -> bool:
        """Say whether the expression occurs anywhere in `text`."""
        return _Search(text).run(self._program, 0, anywhere=True) is not None

    def expression(self) -> Node:
        """Return what whole texts the expression occurs in; raises Inexpressible."""
        options = self._root.options if isinstance(self._root, Choice) else (self._root,)
        return alt(*(_anchored(option) for option in options))


@functools.lru_cache(maxsize=N_KEPT)
def compile_pattern(text: str) -> Pattern:
    """Return the compiled expression; raises GrammarInvalid."""
    return Pattern(text)


class _Parser:
    """Reads an expression, one method per level of its syntax."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def parse(self) -> Part:
        if len(self._text) > MAX_PATTERN_CHARS:
            self._fail(f"it has over {MAX_PATTERN_CHARS} characters")
        part = self._choice(0)
        if self._peek():
            self._fail("a ) without its (")
        return part

    def _choice(self, depth: int) -> Part:
        if depth > MAX_NESTING:
            self._fail(f"groups are nested over {MAX_NESTING} deep")
        options = [self._sequence(depth)]
        while self._take("|"):
            options.append(self._sequence(depth))
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def _sequence(self, depth: int) -> Part:
        parts: list[Part] = []
        while self._peek() not in ("", "|", ")"):
            parts.append(self._repeated(self._atom(depth)))
        return parts[0] if len(parts) == 1 else Group(tuple(parts))

    def _repeated(self, part: Part) -> Part:
        count = self._count()
        if count is None:
            return part
        if isinstance(part, Assertion):
            self._fail("an assertion cannot be repeated")
        self._take("?")  # a lazy repetition finds the same texts
        return Loop(part, *count)

    def _count(self) -> tuple[int, int | None] | None:
        char = self._peek()
        if char in COUNTS:
            self._at += 1
            return COUNTS[char]
        if char != "{":
            return None
        self._at += 1
        low = self._number()
        high: int | None = low
        if self._take(","):
            high = self._number() if self._peek() != "}" else None
        if not self._take("}"):
            self._fail("a { that is no repetition")
        if max(low, high or 0) > MAX_REPETITION:
            self._fail(f"a repetition of over {MAX_REPETITION}")
        if high is not None and high < low:
            self._fail(f"a repetition from {low} to {high}")
        return low, high

    def _number(self) -> int:
        start = self._at
        while self._peek() and self._peek() in "0123456789":
            self._at += 1
        if start == self._at:
            self._fail("a { that is no repetition")
        return int(self._text[start : self._at][:9])

    def _atom(self, depth: int) -> Part:
        char = self._next()
        if char == "(":
            return self._group(depth)
        if char == "[":
            return Chars(self._class())
        if char == ".":
            return Chars(charset.invert(NEWLINES))
        if char in "^$":
            return Assertion(char)
        if char == "\\":
            return self._escape()
        if char in "*+?{":
            self._fail(f"{char} has nothing before it to repeat")
        if char in "]}":
            self._fail(f"a {char} alone")
        return Chars(charset.chars(char))

    def _group(self, depth: int) -> Part:
        kind = ""
        if self._take("?"):
            kind = self._group_kind()
        part = self._choice(depth + 1)
        if not self._take(")"):
            self._fail("a ( without its )")
        return Assertion(kind, part) if kind else part

    def _group_kind(self) -> str:
        for kind in ("<=", "<!", "=", "!"):
            if self._text.startswith(kind, self._at):
                self._at += len(kind)
                return kind
        if self._take(":"):
            return ""
        end = self._text.find(">", self._at)
        if self._peek() != "<" or not self._text[self._at + 1 : end].isidentifier():
            self._fail("an unknown kind of group")
        self._at = end + 1
        return ""

    def _escape(self) -> Part:
        char = self._next()
        if char in "bB":
            return Assertion(char)
        if char in "123456789k":
            self._fail("a back-reference, which is not supported")
        return Chars(self._escaped(char))

    def _escaped(self, char: str) -> charset.Ranges:
        """Return the set that an escape means; the backslash and `char` are read."""
        if char in CLASS_ESCAPES:
            return CLASS_ESCAPES[char]
        if char in CHAR_ESCAPES:
            return charset.chars(CHAR_ESCAPES[char])
        if char in "pP":
            ranges = self._property()
            return charset.invert(ranges) if char == "P" else ranges
        if char in "xu":
            return charset.chars(self._hex(2 if char == "x" else 4))
        if char == "c" and self._peek().isascii() and self._peek().isalpha():
            return charset.chars(chr(ord(self._next()) % 32))
        if char not in SYNTAX_CHARS:
            self._fail(f"unknown escape \\{char}")
        return charset.chars(char)

    def _hex(self, n_digits: int) -> str:
        if n_digits == 4 and self._take("{"):
            end = self._text.find("}", self._at)
            digits, self._at = self._text[self._at : end], end + 1
        else:
            digits, self._at = self._text[self._at : self._at + n_digits], self._at + n_digits
        is_hex = bool(digits) and set(digits) <= set("0123456789abcdefABCDEF")
        if not is_hex or len(digits) > 8 or int(digits, 16) > charset.LAST:
            self._fail("an escape with wrong digits")
        high = int(digits, 16)
        if 0xD800 <= high < 0xDC00 and self._text.startswith("\\u", self._at):
            low = self._text[self._at + 2 : self._at + 6]
            if len(low) == 4 and low[0] in "dD" and low[1] in "cdefCDEF":
                self._at += 2
                return chr(0x10000 + ((high - 0xD800) << 10) + ord(self._hex(4)) - 0xDC00)
        return chr(high)

    def _property(self) -> charset.Ranges:
        end = self._text.find("}", self._at)
        if not self._take("{") or end < 0:
            self._fail("\\p without {category}")
        name = self._text[self._at : end].split("=")[-1]
        self._at = end + 1
        name = CATEGORY_NAMES.get(name, name)
        ranges = [r for category, r in _categories().items() if category.startswith(name)]
        if not ranges or not name:
            self._fail(f"the unknown category {name!r}")
        return charset.union(*ranges)

    def _class(self) -> charset.Ranges:
        is_negated = self._take("^")
        ranges: list[tuple[int, int]] = []
        while not self._take("]"):
            first = self._class_item()
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                ranges.append(self._range(first, self._class_item()))
            else:
                ranges += first
        found = charset.of(ranges)
        return charset.invert(found) if is_negated else found

    def _range(self, first: charset.Ranges, last: charset.Ranges) -> tuple[int, int]:
        is_single = all(len(r) == 1 and r[0][0] == r[0][1] for r in (first, last))
        if not is_single or first[0][0] > last[0][0]:
            self._fail("a character class with a wrong range")
        return first[0][0], last[0][0]

    def _class_item(self) -> charset.Ranges:
        char = self._next()
        if char != "\\":
            return charset.chars(char)
        char = self._next()
        return charset.chars("\b") if char == "b" else self._escaped(char)

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _next(self) -> str:
        char = self._peek()
        if not char:
            self._fail("it ends too early")
        self._at += 1
        return char

    def _take(self, char: str) -> bool:
        is_here = self._peek() == char
        self._at += is_here
        return is_here

    def _fail(self, problem: str) -> NoReturn:
        raise GrammarInvalid(
            f"the pattern {_short(self._text)} cannot be used: {problem}, at character {self._at}"
        )


CATEGORY_NAMES = {
    "Letter": "L", "Lowercase_Letter": "Ll", "Uppercase_Letter": "Lu", "Mark": "M", "Number": "N",
    "Decimal_Number": "Nd", "Punctuation": "P", "Symbol": "S", "Separator": "Z",
    "Space_Separator": "Zs", "Alphabetic": "L", "digit": "Nd", "punct": "P",
}  # fmt: skip


@functools.lru_cache(maxsize=1)
def _categories() -> dict[str, charset.Ranges]:
    """Return the characters of every Unicode category: one pass over all of them, once."""
    found: dict[str, list[tuple[int, int]]] = {}
    for code in range(charset.LAST + 1):
        ranges = found.setdefault(unicodedata.category(chr(code)), [])
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1] = (ranges[-1][0], code)
        else:
            ranges.append((code, code))
    return {category: charset.of(ranges) for category, ranges in found.items()}


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


# Searching: the expression becomes a program, and all its states advance over the text together.


def _size(part: Part) -> int:
    """Return an upper bound of the instructions; repetitions multiply."""
    if isinstance(part, Loop):
        return 2 + (_size(part.body) + 1) * max(part.low + 1, part.high or 0)
    if isinstance(part, Group):
        return 1 + sum(_size(p) for p in part.parts)
    if isinstance(part, Choice):
        return 1 + sum(_size(p) for p in part.options)
    return 1 + (_size(part.body) if isinstance(part, Assertion) and part.body else 0)


def _compiled(part: Part) -> Program:
    code: list[Instruction] = []
    return Program(code, _emit(part, ACCEPT, code))


def _emit(part: Part, then: int, code: list[Instruction]) -> int:
    """Append code for `part` that goes on at `then`; return where it starts."""
    if isinstance(part, Chars):
        return _append(code, Instruction((then,), chars=part.ranges))
    if isinstance(part, Assertion):
        program = _compiled(part.body) if part.body is not None else None
        return _append(code, Instruction((then,), assertion=part.kind, program=program))
    if isinstance(part, Choice):
        return _append(code, Instruction(tuple(_emit(p, then, code) for p in part.options)))
    if isinstance(part, Group):
        for inner in reversed(part.parts):
            then = _emit(inner, then, code)
        return then
    if part.high is None:
        loop = _append(code, Instruction(()))
        code[loop] = Instruction((_emit(part.body, loop, code), then))
        then = loop
    for _ in range((part.high or part.low) - part.low):
        then = _append(code, Instruction((_emit(part.body, then, code), then)))
    for _ in range(part.low):
        then = _emit(part.body, then, code)
    return then


def _append(code: list[Instruction], instruction: Instruction) -> int:
    code.append(instruction)
    return len(code) - 1


class _Search:
    """One search of one text; what look-around found is remembered per place."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._n_steps = 0
        self._known: dict[tuple[int, str, int], bool] = {}

    def run(
        self, program: Program, at: int, *, anywhere: bool = False, until: int | None = None
    ) -> int | None:
        """Return where a match that begins at `at` (or anywhere behind) ends, the shortest one.

        With `until`, it must end there.
        """
        states = self._closure(program, [program.start], at)
        for place in range(at, len(self._text) + 1):
            if ACCEPT in states and until in (None, place):
                return place
            if place == len(self._text) or not (states or anywhere):
                return None
            code = ord(self._text[place])
            after = [
                program.code[s].targets[0]
                for s in states
                if s != ACCEPT and charset.contains(program.code[s].chars or (), code)
            ]
            states = self._closure(program, after + [program.start] * anywhere, place + 1)
        return None

    def _closure(self, program: Program, todo: list[int], at: int) -> set[int]:
        """Follow what reads no character; return the states that read one, and ACCEPT."""
        seen = set(todo)
        todo = list(seen)
        found = set()
        while todo:
            state = todo.pop()
            instruction = program.code[state] if state != ACCEPT else None
            if instruction is None or instruction.chars is not None:
                found.add(state)
            elif not instruction.assertion or self._holds(instruction, at):
                todo += [t for t in instruction.targets if t not in seen]
                seen.update(instruction.targets)
        self._n_steps += len(seen)
        if self._n_steps > MAX_STEPS:
            raise GrammarInvalid("matching this text against its pattern takes too long")
        return found

    def _holds(self, instruction: Instruction, at: int) -> bool:
        key = (id(instruction.program), instruction.assertion, at)
        if key not in self._known:
            self._known[key] = self._test(instruction.assertion, instruction.program, at)
        return self._known[key]

    def _test(self, kind: str, program: Program | None, at: int) -> bool:
        if kind == "^":
            return at == 0
        if kind == "$":
            return at == len(self._text)
        if program is None:
            is_boundary = self._is_word(at - 1) is not self._is_word(at)
            return is_boundary is (kind == "b")
        if kind in "=!":
            return (self.run(program, at) is not None) is (kind == "=")
        found = any(self.run(program, start, until=at) is not None for start in range(at, -1, -1))
        return found is (kind == "<=")

    def _is_word(self, at: int) -> bool:
        return 0 <= at < len(self._text) and charset.contains(WORD, ord(self._text[at]))


# Writing as a grammar: anchors are taken off the ends, an end without one is open.

ANYTHING = Repeat(Chars(charset.ALL), 0, None)


def _anchored(part: Part) -> Node:
    part, is_start = _without_anchor(part, "^", 0)
    part, is_end = _without_anchor(part, "$", -1)
    return seq(EMPTY if is_start else ANYTHING, _node(part), EMPTY if is_end else ANYTHING)


def _without_anchor(part: Part, kind: str, end: int) -> tuple[Part, bool]:
    """Take an anchor off the first (0) or last (-1) place of a part; say whether one was there."""
    if part == Assertion(kind):
        return Group(()), True
    if isinstance(part, Group) and part.parts:
        inner, was_there = _without_anchor(part.parts[end], kind, end)
        parts = list(part.parts)
        parts[end] = inner
        # Twice the same anchor, as in ^^, is harmless: look again behind it.
        if was_there and inner == Group(()):
            del parts[end]
            return _without_anchor(Group(tuple(parts)), kind, end)[0], True
        return Group(tuple(parts)), was_there
    if isinstance(part, Choice):
        inner_parts = [_without_anchor(option, kind, end) for option in part.options]
        if all(was_there for _, was_there in inner_parts):
            return Choice(tuple(option for option, _ in inner_parts)), True
        if any(was_there for _, was_there in inner_parts):
            raise Inexpressible("an anchor in only some options of a group")
    return part, False


def _node(part: Part) -> Node:
    if isinstance(part, Chars):
        return part
    if isinstance(part, Group):
        return seq(*(_node(inner) for inner in part.parts))
    if isinstance(part, Choice):
        return alt(*(_node(option) for option in part.options))
    if isinstance(part, Loop):
        return repeat(_node(part.body), part.low, part.high)
    names = {"^": "an anchor inside", "$": "an anchor inside", "b": "\\b", "B": "\\B"}
    raise Inexpressible(names.get(part.kind, "look-around"))


def lengths(node: Node) -> tuple[int, int | None]:
    """Return the least and the greatest number of characters that match; None = without end."""
    if isinstance(node, Text):
        return len(node.text), len(node.text)
    if isinstance(node, Chars):
        return 1, 1
    if isinstance(node, Repeat):
        low, high = lengths(node.item)
        is_open = high is None or node.high is None
        return low * node.low, None if is_open else (high or 0) * (node.high or 0)
    if isinstance(node, (Seq, Alt)):
        found = [lengths(n) for n in (node.items if isinstance(node, Seq) else node.options)]
        lows, highs = [low for low, _ in found], [high for _, high in found if high is not None]
        is_open = len(highs) < len(found)
        if isinstance(node, Seq):
            return sum(lows), None if is_open else sum(highs)
        return min(lows, default=0), None if is_open else max(highs, default=0)
    raise Inexpressible("a reference")


def within_lengths(node: Node, low: int, high: int | None) -> Node:
    """Narrow an expression to `low`..`high` characters; Inexpressible where that takes more than
    to narrow one repetition of single characters."""
    least, most = lengths(node)
    is_short_enough = high is None or (most is not None and most <= high)
    if least >= low and is_short_enough:
        return node
    if isinstance(node, Alt):
        return alt(*(within_lengths(option, low, high) for option in node.options))
    items: list[Node] = list(node.items) if isinstance(node, Seq) else [node]
    loops = [i for i, item in enumerate(items) if len(set(lengths(item))) > 1]
    fixed = sum(lengths(item)[0] for i, item in enumerate(items) if i not in loops)
    loop = items[loops[0]] if len(loops) == 1 else None
    if not loops and (least < low or (high is not None and least > high)):
        return Alt(())
    if not isinstance(loop, Repeat) or lengths(loop.item) != (1, 1):
        raise Inexpressible("a length on top of this pattern")
    new_low = max(loop.low, low - fixed)
    highs = [h for h in (loop.high, None if high is None else high - fixed) if h is not None]
    if highs and min(highs) < new_low:
        return Alt(())
    items[loops[0]] = repeat(loop.item, new_low, min(highs) if highs else None)
    return seq(*items)
