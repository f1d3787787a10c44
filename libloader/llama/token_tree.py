"""The tokens of a vocabulary by prefix: which of them need no look once another one is refused.

    (start)              a grammar that refuses "d" refuses "do" and "dog" as well,
   /   |   \\             so that of 150,000 tokens some hundreds are looked at
 "a"  "d"  "é"
       |
     "do"                a parent is the longest token that its children begin with
    /    \\               and that ends with a whole character: half of one may be
"dog"    "dot"           refused where the whole would be allowed
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Set

CONTINUATION, LEAD = b"\x80", b"\xc0"  # first bytes of their kinds in UTF-8
WRONG_LEADS = bytes([0xC0, 0xC1, *range(0xF5, 0x100)])
NO_PARENT = -1


class TokenTree:
    """Looks at every token once: half a second for 150,000. Immutable afterwards.

    roots      tokens that begin with no other one
    silent     tokens without text, such as those that end a generation
    inside     tokens that begin with the rest of a character
    wrong      tokens that begin with a byte which UTF-8 does not have
    broken     tokens that are no whole characters: whether they fit depends on what was before
    """

    def __init__(self, each_piece: Iterable[bytes], hidden: Set[int]) -> None:
        pieces = list(each_piece)
        heads = [(token, piece[:1]) for token, piece in enumerate(pieces)]
        self.inside = array("i", [t for t, head in heads if CONTINUATION <= head < LEAD])
        self.wrong = array("i", [t for t, head in heads if head and head in WRONG_LEADS])
        self.broken = frozenset(t for t, piece in enumerate(pieces) if not _is_whole(piece))
        self.silent = array("i", [t for t, head in heads if not head and t not in hidden])
        parents = self._parents(pieces, {*hidden, *self.silent, *self.inside, *self.wrong})
        self.roots = array("i", [t for t, parent in parents if parent == NO_PARENT])
        self._first, self._children = _grouped(parents, len(pieces))

    def children(self, token: int) -> array[int]:
        """Return the tokens that begin with `token` and with no longer one. Hot."""
        return self._children[self._first[token] : self._first[token + 1]]

    def _parents(self, pieces: list[bytes], left_out: set[int]) -> list[tuple[int, int]]:
        """Return (token, its parent or NO_PARENT) for all that may begin a text."""
        parents: list[tuple[int, int]] = []
        path: list[int] = []  # each begins with the one before it
        for token in sorted(range(len(pieces)), key=pieces.__getitem__):
            piece = pieces[token]
            while path and not piece.startswith(pieces[path[-1]]):
                path.pop()
            if token not in left_out:
                parents.append((token, path[-1] if path else NO_PARENT))
                if token not in self.broken:
                    path.append(token)
        return parents


def _is_whole(piece: bytes) -> bool:
    if piece.isascii():
        return True
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def _grouped(parents: list[tuple[int, int]], n_tokens: int) -> tuple[array[int], array[int]]:
    """Return where each token's children begin, and all children in this order."""
    children: dict[int, list[int]] = {}
    for token, parent in parents:
        if parent != NO_PARENT:
            children.setdefault(parent, []).append(token)
    first, flat = array("i", [0]), array("i")
    for token in range(n_tokens):
        flat.extend(children.get(token, ()))
        first.append(len(flat))
    return first, flat
