"""The prefix trees of all adapter sets: what was computed with one serves no other.

Lives here: the choice of the tree. Not here: the tree (radix_tree.py), what holders are for
(prefix_cache.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Union

from libloader.core import Adapters
from libloader.engine.prefix_store import Saved
from libloader.engine.radix_tree import PrefixTree
from libloader.engine.slot import Slot

Holder = Union[Slot, Saved]


class PrefixForest:
    """Maps an adapter set and tokens to their holders; each of these is in one tree."""

    def __init__(self) -> None:
        self._trees: dict[Adapters, PrefixTree[Holder]] = {}
        self._home_of: dict[Holder, Adapters] = {}

    def __contains__(self, holder: Holder) -> bool:
        return holder in self._home_of

    def longest(self, tokens: list[int], adapters: Adapters) -> tuple[int, dict[Holder, None]]:
        """Return what PrefixTree.longest does, of those computed with `adapters`."""
        tree = self._trees.get(adapters)
        return tree.longest(tokens) if tree is not None else (0, {})

    def path(
        self, tokens: list[int], adapters: Adapters
    ) -> Iterator[tuple[int, dict[Holder, None], dict[Holder, None]]]:
        """Yield what PrefixTree.path does, of those computed with `adapters`."""
        tree = self._trees.get(adapters)
        return tree.path(tokens) if tree is not None else iter(())

    def beginnings(self, tokens: list[int], adapters: Adapters) -> list[Holder]:
        """Return what PrefixTree.beginnings does, of those computed with `adapters`."""
        tree = self._trees.get(adapters)
        return tree.beginnings(tokens) if tree is not None else []

    def insert(self, tokens: list[int], holder: Holder) -> None:
        """Make `holder` the holder of `tokens`, computed with its adapters, and of nothing else."""
        self.remove(holder)
        if tokens:
            self._home_of[holder] = holder.adapters
            self._trees.setdefault(holder.adapters, PrefixTree()).insert(tokens, holder)

    def remove(self, holder: Holder) -> None:
        """Forget `holder`, if it is known; its adapters may have changed since."""
        adapters = self._home_of.pop(holder, None)
        if adapters is not None:
            self._trees[adapters].remove(holder)
            if not self._trees[adapters]:
                del self._trees[adapters]
