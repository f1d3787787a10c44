"""JSON texts as expressions: strings of characters from a set, literals, and what is in between.

Laws:
- A character is escaped only where JSON demands it, in one way; the free string alone may use any
  escape, as models do.
- Half of a surrogate pair is never generated: no UTF-8 text can hold it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from libloader.grammar import charset, numbers
from libloader.grammar.expr import (
    EMPTY,
    Alt,
    Chars,
    Node,
    Ref,
    Repeat,
    Seq,
    Text,
    alt,
    optional,
    repeat,
    seq,
)

BLOCK = 64  # characters or items that are repeated by one rule: libllama writes counts out
MAX_COUNT = 100_000
MAX_TREE_DEPTH = 24  # characters that a text may share with a forbidden one

_MUST_ESCAPE = charset.union(charset.chars('"\\'), ((0, 0x1F),))
PLAIN = charset.invert(_MUST_ESCAPE)
_HEX = Chars(charset.chars("0123456789abcdefABCDEF"))
_COMMON_ESCAPES = charset.chars('"\\\n\r\t')
_SHORT_ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n",
                  "\r": "\\r", "\t": "\\t"}  # fmt: skip

SPACE_NAME, CHAR_NAME, STRING_NAME = "space", "char", "string"
SPACE = Ref(SPACE_NAME)


def common_rules() -> dict[str, Node]:
    """Return the rules that every schema may use; `expr.prune` drops the unused ones."""
    d = Chars(charset.chars("dD"))
    low_half = seq("\\u", d, Chars(charset.chars("cdefCDEF")), _HEX, _HEX)
    unicode_escape = alt(
        seq(Chars(charset.chars("0123456789abcefABCEF")), _HEX, _HEX, _HEX),
        seq(d, Chars(charset.chars("01234567")), _HEX, _HEX),
        seq(d, Chars(charset.chars("89abAB")), _HEX, _HEX, low_half),
    )
    escape = alt(Chars(charset.chars('"\\/bfnrt')), seq("u", unicode_escape))
    return {
        # One line break with indentation at most, or a model that likes space never ends.
        SPACE_NAME: optional(alt(Text(" "), seq("\n", repeat(Text(" "), 0, 16)))),
        CHAR_NAME: alt(Chars(_MUST_ESCAPE, negated=True), seq("\\", escape)),
        STRING_NAME: seq('"', Repeat(Ref(CHAR_NAME), 0, None), '"'),
    }


def literal(value: object) -> Node:
    """Return the JSON text of a value, with room for space where there is structure."""
    if isinstance(value, dict) and value:
        return _enclosed("{", [seq(key(name), literal(item)) for name, item in value.items()], "}")
    if isinstance(value, list) and value:
        return _enclosed("[", [literal(item) for item in value], "]")
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if any(0xD800 <= ord(char) <= 0xDFFF for char in text):
        text = json.dumps(value, separators=(",", ":"))
    return Text(text)


def _enclosed(start: str, items: list[Node], end: str) -> Node:
    more = [seq(",", SPACE, item) for item in items[1:]]
    return seq(start, SPACE, items[0], *more, SPACE, end)


def key(name: str) -> Node:
    """Return a member's name with its colon."""
    return seq(literal(name), SPACE, ":", SPACE)


class StringWriter:
    """Turns expressions over characters into JSON strings; `rules` grows by what they share.

    Names of such rules begin with `prefix`, so that two grammars can be put together.
    """

    def __init__(self, rules: dict[str, Node], prefix: str) -> None:
        self._rules, self._prefix = rules, prefix
        self._sets: dict[charset.Ranges, Node] = {}
        self._shared: dict[Node, str] = {}
        self._n_shared = 0

    def quoted(self, node: Node) -> Node:
        """Return the JSON string whose characters are as `node` says."""
        return seq('"', self._escaped(node), '"')

    def counted(self, item: Node, low: int, high: int | None) -> Node:
        """Repeat an item; many times by blocks, so that libllama has few rules to hold."""
        if (high if high is not None else low) <= BLOCK or not (low or high):
            return repeat(item, low, high)
        block = self.shared(repeat(item, BLOCK, BLOCK), "block")
        n_blocks, n_more = divmod(low, BLOCK)
        start = seq(repeat(block, n_blocks, n_blocks), repeat(item, n_more, n_more))
        if high is None:
            return seq(start, repeat(item, 0, None))
        n_blocks, n_more = divmod(high - low, BLOCK)
        full = seq(repeat(block, n_blocks, n_blocks), repeat(item, 0, n_more))
        if not n_blocks:
            return seq(start, full)
        fewer = seq(repeat(block, 0, n_blocks - 1), repeat(item, 0, BLOCK - 1))
        return seq(start, alt(full, fewer))

    def shared(self, node: Node, kind: str) -> Node:
        """Return a reference to a rule for `node`, the same for equal ones."""
        if node not in self._shared:
            self._shared[node] = self._fresh_name(kind)
            self._rules[self._shared[node]] = node
        return Ref(self._shared[node])

    def _fresh_name(self, kind: str) -> str:
        while True:
            self._n_shared += 1
            name = f"{self._prefix}-{kind}-{self._n_shared}"
            if name not in self._rules:
                return name

    def machine(self, step: int, *, is_signed: bool) -> Node:
        """Return a reference to rules for the whole numbers over 0 that `step` divides."""
        name = f"{'any' if is_signed else 'positive'}-multiple-of-{step}"
        if name not in self._rules:
            self._rules.update(numbers.multiples(step, name, is_signed=is_signed))
        return Ref(name)

    def _escaped(self, node: Node) -> Node:
        if isinstance(node, Text):
            return seq(*(self._char_set(charset.chars(char)) for char in node.text))
        if isinstance(node, Chars):
            return self._char_set(charset.invert(node.ranges) if node.negated else node.ranges)
        if isinstance(node, Repeat):
            return self.counted(self._escaped(node.item), node.low, node.high)
        if isinstance(node, Seq):
            return seq(*(self._escaped(item) for item in node.items))
        if isinstance(node, Alt):
            return alt(*(self._escaped(option) for option in node.options))
        return node

    def _char_set(self, ranges: charset.Ranges) -> Node:
        if ranges == charset.ALL:
            return Ref(CHAR_NAME)
        if ranges not in self._sets:
            node = self._written_set(ranges)
            is_small = isinstance(node, Text) or isinstance(node, Chars) and len(node.ranges) < 5
            self._sets[ranges] = node if is_small else self.shared(node, "chars")
        return self._sets[ranges]

    def _written_set(self, ranges: charset.Ranges) -> Node:
        plain = charset.intersect(ranges, PLAIN)
        special = charset.intersect(ranges, _MUST_ESCAPE)
        if plain:  # [^a] allows NUL too, but who wants it in an answer
            special = charset.intersect(special, _COMMON_ESCAPES)
        codes = (code for first, last in special for code in range(first, last + 1))
        escaped = [Text(_SHORT_ESCAPES.get(chr(c), f"\\u{c:04x}")) for c in codes]
        if len(plain) == 1 and plain[0][0] == plain[0][1]:
            return alt(Text(chr(plain[0][0])), *escaped)
        return alt(*([Chars(plain)] if plain else []), *escaped)


def other_than(names: Iterable[str]) -> Node:
    """Return the texts of plain characters that are none of `names`: a path off their tree."""
    plain = {name for name in names if not charset.subtract(charset.chars(name), PLAIN)}
    return _off_tree(plain, MAX_TREE_DEPTH)


def _off_tree(names: set[str], depth: int) -> Node:
    heads = sorted({name[0] for name in names if name})
    options: list[Node] = [] if "" in names else [EMPTY]
    rest = Repeat(Chars(PLAIN), 0, None)
    options.append(seq(Chars(charset.subtract(PLAIN, charset.chars("".join(heads)))), rest))
    for head in heads if depth else ():
        tails = {name[1:] for name in names if name[:1] == head}
        options.append(seq(head, _off_tree(tails, depth - 1)))
    return alt(*options)
