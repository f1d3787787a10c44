"""What a grammar is made of: expressions over characters and rules, and how GBNF writes them.

Laws:
- An expression is a value: building one has no effect elsewhere.
- `Alt(())` matches nothing at all, `Seq(())` matches the empty text; `prune` removes the former,
  so that what is printed can always be completed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Union

from libloader.grammar import charset


@dataclass(frozen=True)
class Text:
    """Exactly these characters."""

    text: str


@dataclass(frozen=True)
class Chars:
    """One character of a set; `negated` is how it was written, for printing and for `.`."""

    ranges: charset.Ranges
    negated: bool = False

    def accepts(self, code: int) -> bool:
        return charset.contains(self.ranges, code) is not self.negated


@dataclass(frozen=True)
class Ref:
    name: str


@dataclass(frozen=True)
class Seq:
    items: tuple[Node, ...]


@dataclass(frozen=True)
class Alt:
    options: tuple[Node, ...]


@dataclass(frozen=True)
class Repeat:
    """`item` from `low` to `high` times; `high` None means without end."""

    item: Node
    low: int
    high: int | None


Node = Union[Text, Chars, Ref, Seq, Alt, Repeat]
EMPTY = Seq(())
NEVER = Alt(())
MAX_MERGES = 8  # each makes rules equal that differ in what they refer to
ANY_CHAR = Chars((), negated=True)


def seq(*items: Node | str) -> Node:
    """Join items to a sequence; neighbouring texts grow together, nested sequences dissolve."""
    flat: list[Node] = []
    for item in _dissolved(items):
        last = flat[-1] if flat else None
        if isinstance(item, Text) and isinstance(last, Text):
            flat[-1] = Text(last.text + item.text)
        elif item != Text(""):
            flat.append(item)
    return flat[0] if len(flat) == 1 else Seq(tuple(flat))


def alt(*options: Node) -> Node:
    """Join options to a choice without doubles; nested choices dissolve."""
    flat: dict[Node, None] = {}
    for option in options:
        flat.update(dict.fromkeys(option.options if isinstance(option, Alt) else (option,)))
    return next(iter(flat)) if len(flat) == 1 else Alt(tuple(flat))


def optional(item: Node) -> Node:
    return repeat(item, 0, 1)


def repeat(item: Node, low: int, high: int | None) -> Node:
    """Repeat an item; trivial and doubly endless repetitions are simplified.

    `(a+)+` is one loop here: as two, each further character would double the ways to read it.
    """
    if high == 0:
        return EMPTY
    if (low, high) == (1, 1):
        return item
    if isinstance(item, Repeat) and item.high is None and item.low <= 1 and low <= 1:
        return Repeat(item.item, min(item.low, low), None)
    if is_nullable(item):  # libllama refuses an endless repetition of something empty
        return repeat(non_empty(item), 0, high)
    return Repeat(item, low, high)


def _dissolved(items: tuple[Node | str, ...]) -> Iterator[Node]:
    for item in items:
        if isinstance(item, str):
            yield Text(item)
        elif isinstance(item, Seq):
            yield from item.items
        else:
            yield item


def is_nullable(node: Node) -> bool:
    """Say whether the empty text matches; a rule by name is taken to need a character."""
    if isinstance(node, Text):
        return not node.text
    if isinstance(node, Seq):
        return all(is_nullable(item) for item in node.items)
    if isinstance(node, Alt):
        return any(is_nullable(option) for option in node.options)
    return isinstance(node, Repeat) and (node.low == 0 or is_nullable(node.item))


def non_empty(node: Node) -> Node:
    """Return what matches as `node` does, except the empty text."""
    if not is_nullable(node):
        return node
    if isinstance(node, Alt):
        return alt(*(non_empty(option) for option in node.options))
    if isinstance(node, Repeat):
        return repeat(non_empty(node.item), 1, node.high)
    if isinstance(node, Seq):
        tails = (node.items[i + 1 :] for i in range(len(node.items)))
        return alt(*(seq(non_empty(item), *tail) for item, tail in zip(node.items, tails)))
    return NEVER


def references(node: Node) -> Iterator[str]:
    """Yield the names of the rules that an expression uses."""
    if isinstance(node, Ref):
        yield node.name
    elif isinstance(node, Repeat):
        yield from references(node.item)
    elif isinstance(node, (Seq, Alt)):
        for child in node.items if isinstance(node, Seq) else node.options:
            yield from references(child)


def prune(rules: Mapping[str, Node], roots: tuple[str, ...]) -> dict[str, Node]:
    """Return the rules that `roots` need, without the parts that no text can complete.

    A root that itself cannot be completed is missing in the result.
    """
    rules = _merged(_without_circles(rules), roots)
    productive = _productive(rules)
    kept: dict[str, Node] = {}
    todo = [name for name in reversed(roots) if name in productive]
    while todo:
        name = todo.pop()
        if name not in kept:
            kept[name] = _renamed(_pruned(rules[name], productive) or EMPTY, rules)
            todo += reversed(list(references(kept[name])))
    return kept


def _merged(rules: Mapping[str, Node], roots: tuple[str, ...]) -> Mapping[str, Node]:
    """Return the rules with equal ones made one: 200 members of one type have one rule for it.

    Only rules that are named after a root take part: all others are the same in every grammar.
    """
    own = tuple(f"{root}-" for root in roots)
    found = dict(rules)
    for _ in range(MAX_MERGES):
        first: dict[Node, str] = {}
        others = {}
        for name, node in found.items():
            if name.startswith(own) and first.setdefault(node, name) != name:
                others[name] = Ref(first[node])
        if not others:
            break
        kept = {name: node for name, node in found.items() if name not in others}
        found = {name: _renamed(node, {**kept, **others}) for name, node in kept.items()}
    return found


def _without_circles(rules: Mapping[str, Node]) -> Mapping[str, Node]:
    """Return the rules without options that lead back to their own rule and read nothing.

    `a ::= b | "x"` with `b ::= a | "y"` says no more than that either is "x" or "y".
    """
    found = dict(rules)
    for name in rules:
        reached = _reached_at_once(name, rules)
        if name in reached:
            options = [option for other in reached for option in _options(rules[other])]
            found[name] = alt(*(option for option in options if not isinstance(option, Ref)))
    return found


def _reached_at_once(name: str, rules: Mapping[str, Node]) -> dict[str, None]:
    """Return the rules that are options of this one, or of one of those, in order."""
    reached: dict[str, None] = {}
    todo = [name]
    while todo:
        for option in _options(rules[todo.pop()]):
            if isinstance(option, Ref) and option.name not in reached:
                reached[option.name] = None
                todo.append(option.name)
    return reached


def _options(node: Node) -> tuple[Node, ...]:
    return node.options if isinstance(node, Alt) else (node,)


def _renamed(node: Node, rules: Mapping[str, Node]) -> Node:
    """Return the expression with each rule that is only another name replaced by the other."""
    if isinstance(node, Ref):
        seen = {node.name}
        while isinstance(other := rules[node.name], Ref) and other.name not in seen:
            node = other
            seen.add(node.name)
        return node
    if isinstance(node, Repeat):
        return Repeat(_renamed(node.item, rules), node.low, node.high)
    if isinstance(node, Seq):
        return Seq(tuple(_renamed(item, rules) for item in node.items))
    if isinstance(node, Alt):
        return alt(*(_renamed(option, rules) for option in node.options))
    return node


def _productive(rules: Mapping[str, Node]) -> set[str]:
    """Return the rules that derive at least one finite text."""
    users: dict[str, list[str]] = {}
    for name, node in rules.items():
        for used in references(node):
            users.setdefault(used, []).append(name)
    found: set[str] = set()
    todo = list(rules)
    while todo:
        name = todo.pop()
        if name not in found and _can_end(rules[name], found):
            found.add(name)
            todo += users.get(name, ())
    return found


def _can_end(node: Node, productive: set[str]) -> bool:
    if isinstance(node, Ref):
        return node.name in productive
    if isinstance(node, Seq):
        return all(_can_end(item, productive) for item in node.items)
    if isinstance(node, Alt):
        return any(_can_end(option, productive) for option in node.options)
    if isinstance(node, Repeat):
        return node.low == 0 or _can_end(node.item, productive)
    return isinstance(node, Text) or bool(node.ranges) or node.negated


def _pruned(node: Node, productive: set[str]) -> Node | None:
    if not _can_end(node, productive):
        return None
    if isinstance(node, Seq):
        return seq(*(_pruned(item, productive) or EMPTY for item in node.items))
    if isinstance(node, Alt):
        return alt(*(o for o in (_pruned(o, productive) for o in node.options) if o is not None))
    if isinstance(node, Repeat):
        item = _pruned(node.item, productive)
        return EMPTY if item is None else repeat(item, node.low, node.high)
    return node


# Writing GBNF. Nested choices, and sequences under a repetition, need parentheses.

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}
_REPETITIONS = {(0, 1): "?", (0, None): "*", (1, None): "+"}


def write(rules: Mapping[str, Node]) -> str:
    """Return the rules as GBNF text, one line each."""
    return "".join(f"{name} ::= {_written(node)}\n" for name, node in rules.items())


def _written(node: Node, is_nested: bool = False, is_repeated: bool = False) -> str:
    if isinstance(node, Text):
        return '"' + "".join(_in_literal(char) for char in node.text) + '"'
    if isinstance(node, Chars):
        return _written_chars(node)
    if isinstance(node, Ref):
        return node.name
    if isinstance(node, Repeat):
        inner = _written(node.item, is_nested=True, is_repeated=True)
        return _in_group(inner, is_repeated) + _written_count(node.low, node.high)
    if isinstance(node, Seq):
        inner = " ".join(_written(item, is_nested=True) for item in node.items) or '""'
        return _in_group(inner, is_repeated)
    return _in_group(" | ".join(_written(option) for option in node.options), is_nested)


def _in_group(text: str, is_group: bool) -> str:
    return f"({text})" if is_group else text


def _written_count(low: int, high: int | None) -> str:
    if (low, high) in _REPETITIONS:
        return _REPETITIONS[low, high]
    if high == low:
        return f"{{{low}}}"
    return f"{{{low},{'' if high is None else high}}}"


def _written_chars(node: Chars) -> str:
    if not node.ranges and node.negated:
        return "."
    inner = "".join(
        _in_class(first) + ("" if first == last else "-" + _in_class(last))
        for first, last in node.ranges
    )
    return f"[{'^' if node.negated else ''}{inner}]"


def _in_literal(char: str) -> str:
    return '\\"' if char == '"' else _escaped(ord(char))


def _in_class(code: int) -> str:
    return f"\\x{code:02x}" if chr(code) in '"[]^-' else _escaped(code)


def _escaped(code: int) -> str:
    char = chr(code)
    if char in _SHORT:
        return _SHORT[char]
    if 0x20 <= code < 0x7F:
        return char
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
