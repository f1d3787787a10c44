"""The schemas of tests/data/schemas, and random documents of a grammar."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, NamedTuple

from libloader.grammar import gbnf
from libloader.grammar.expr import Alt, Chars, Node, Ref, Repeat, Seq, Text

FOLDER = Path(__file__).resolve().parent / "data" / "schemas"
READABLE = ((0x20, 0x7E),)


class Case(NamedTuple):
    """`check` says that the grammar alone does not hold the schema."""

    name: str
    schema: Any
    valid: list[Any]
    invalid: list[Any]
    check: bool


def load() -> list[Case]:
    return [
        Case(f"{path.stem}: {row['name']}", row["schema"], row["valid"], row["invalid"],
             row.get("check", False))
        for path in sorted(FOLDER.glob("*.json"))
        for row in json.loads(path.read_text(encoding="utf-8"))
    ]  # fmt: skip


class Writer:
    """Writes random documents that a grammar allows; past `size` characters it hurries to end."""

    def __init__(self, text: str, seed: int, size: int = 300) -> None:
        self._rules = {name: rule.node for name, rule in gbnf.parse(text).items()}
        self._random = random.Random(seed)
        self._size = size
        self._costs = self._least_costs()

    def document(self) -> str:
        written: list[str] = []
        todo: list[Node] = [Ref(gbnf.ROOT)]
        n_chars = 0
        while todo:
            node = todo.pop()
            if isinstance(node, (Text, Chars)):
                written.append(node.text if isinstance(node, Text) else self._char(node))
                n_chars += len(written[-1])
            else:
                todo += reversed(self._expanded(node, n_chars > self._size))
        return "".join(written)

    def _expanded(self, node: Node, is_late: bool) -> list[Node]:
        if isinstance(node, Ref):
            return [self._rules[node.name]]
        if isinstance(node, Seq):
            return list(node.items)
        if isinstance(node, Repeat):
            high = node.low + 3 if node.high is None else min(node.high, node.low + 6)
            return [node.item] * (node.low if is_late else self._random.randint(node.low, high))
        assert isinstance(node, Alt)
        if is_late:
            return [min(node.options, key=self._cost)]
        return [self._random.choice(node.options)]

    def _char(self, node: Chars) -> str:
        ranges = READABLE if node.negated else node.ranges
        while True:
            code = self._random.randint(*self._random.choice(ranges))
            if node.accepts(code) and not 0xD800 <= code <= 0xDFFF:
                return chr(code)

    def _least_costs(self) -> dict[str, float]:
        """How many steps each rule takes at least; recursion costs most until proven finite."""
        self._costs = dict.fromkeys(self._rules, float("inf"))
        while True:
            costs = {name: 1 + self._cost(node) for name, node in self._rules.items()}
            if costs == self._costs:
                return costs
            self._costs = costs

    def _cost(self, node: Node) -> float:
        if isinstance(node, Ref):
            return self._costs[node.name]
        if isinstance(node, Seq):
            return sum(map(self._cost, node.items))
        if isinstance(node, Alt):
            return min(map(self._cost, node.options))
        if isinstance(node, Repeat):
            return node.low * self._cost(node.item) if node.low else 0
        return 1
