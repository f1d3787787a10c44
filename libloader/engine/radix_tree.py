"""A radix tree over token ids: who holds the longest known beginning of this prompt?

Lives here: the tree. Not here: what a holder is (a slot of the KV cache, a saved state) and whether
its tokens are computed yet: the tree knows names, the holders know their tokens.

    root ── (1, 5, 7, 2) ── (9, 4)        each node: its edge's tokens, its children by first token,
                        └── (8,)          and the holders whose tokens run through all of the edge,
                        and apart, those whose tokens end with it

Laws:
- The cost of a look-up grows with the length of the prompt, never with the number of holders.
- A match is exact, token by token; nothing is hashed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

H = TypeVar("H", bound=Hashable)
Edge = tuple[int, ...]


def common_length(a: list[int], b: list[int]) -> int:
    """Return how many leading tokens `a` and `b` share."""
    limit = min(len(a), len(b))
    if a[:limit] == b[:limit]:  # list comparison runs in C: the usual case is equal to the end
        return limit
    low, high = 0, limit
    while high - low > 1:  # a[:low] is equal, a[:high] is not
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


class _Node(Generic[H]):
    __slots__ = ("edge", "parent", "children", "holders", "ends")

    def __init__(self, edge: Edge, parent: _Node[H] | None) -> None:
        self.edge = edge
        self.parent = parent
        self.children: dict[int, _Node[H]] = {}
        self.holders: dict[H, None] = {}  # in the order in which they came
        self.ends: dict[H, None] = {}


class PrefixTree(Generic[H]):
    """Maps token sequences to their holders; one sequence per holder."""

    def __init__(self) -> None:
        self._root: _Node[H] = _Node((), None)
        self._end_of: dict[H, _Node[H]] = {}

    def __len__(self) -> int:
        return len(self._end_of)

    def __contains__(self, holder: H) -> bool:
        return holder in self._end_of

    def longest(self, tokens: list[int]) -> tuple[int, dict[H, None]]:
        """Return the longest known prefix's length and all who hold it, in order of arrival.

        Not a copy: to be read, before the next change.
        """
        n, holders = 0, self._root.holders
        for step in self.path(tokens):
            n, holders, _ = step
        return n, holders

    def path(self, tokens: list[int]) -> Iterator[tuple[int, dict[H, None], dict[H, None]]]:
        """Yield, ever longer: n, all who hold the first `n` tokens, and those who hold no more."""
        node, done = self._root, 0
        while done < len(tokens):
            child = node.children.get(tokens[done])
            if child is None:
                return
            matched = _matched(child.edge, tokens, done)
            node, done = child, done + matched
            is_whole = matched == len(child.edge)
            yield done, child.holders, child.ends if is_whole else {}
            if not is_whole:
                return

    def beginnings(self, tokens: list[int]) -> list[H]:
        """Return all whose tokens are a beginning of `tokens`, or the same, shortest first."""
        return [holder for _, _, ends in self.path(tokens) for holder in ends]

    def insert(self, tokens: list[int], holder: H) -> None:
        """Make `holder` the holder of `tokens`, and of nothing else."""
        self.remove(holder)
        node, done = self._root, 0
        while done < len(tokens):
            node, done = self._descend(node, tokens, done)
            node.holders[holder] = None
        if node is not self._root:
            self._end_of[holder] = node
            node.ends[holder] = None

    def remove(self, holder: H) -> None:
        """Forget `holder`; nodes that nobody else holds go with it."""
        node = self._end_of.pop(holder, None)
        if node is not None:
            del node.ends[holder]
        while node is not None and node.parent is not None:
            del node.holders[holder]
            parent = node.parent
            if not node.holders:
                del parent.children[node.edge[0]]
            node = parent

    def _descend(self, node: _Node[H], tokens: list[int], done: int) -> tuple[_Node[H], int]:
        """Return the child that ends where `tokens` and its edge part, made or split as needed."""
        child = node.children.get(tokens[done])
        if child is None:
            child = node.children[tokens[done]] = _Node(tuple(tokens[done:]), node)
            return child, len(tokens)
        matched = _matched(child.edge, tokens, done)
        if matched < len(child.edge):
            child = self._split(child, matched)
        return child, done + matched

    def _split(self, node: _Node[H], n: int) -> _Node[H]:
        """Cut `node`'s edge after `n` tokens; return the new upper part."""
        assert node.parent is not None and 0 < n < len(node.edge)
        upper: _Node[H] = _Node(node.edge[:n], node.parent)
        upper.holders = dict(node.holders)
        upper.children[node.edge[n]] = node
        node.parent.children[node.edge[0]] = upper
        node.edge, node.parent = node.edge[n:], upper
        return upper


def _matched(edge: Edge, tokens: list[int], done: int) -> int:
    return common_length(list(edge), tokens[done : done + len(edge)])
