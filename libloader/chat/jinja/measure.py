"""Static sizes of nodes, so that running them needs no counter per node.

Nodes are NamedTuples, and so is all that they hold: one walk over nested tuples fits every type.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from libloader.chat.jinja import statements as st
from libloader.chat.jinja.limits import MAX_FRAMES
from libloader.errors import TemplateError

# Python frames that a node takes while what is inside it runs, where that is not one.
FRAMES: Mapping[type[Any], int] = {
    tuple: 0,
    st.For: 2,  # run, _loop
    st.Inner: 2,  # run, run_inner
    st.Captured: 3,  # evaluate, capture, run_inner
}
FRAMES_OF_CALL = 5  # Loop.call, again, _loop; a macro's call, run_inner or _bind


def frames(*roots: Any) -> int:
    """Return the Python frames that one call of `roots` takes, at most; macros in them excepted."""
    deepest = 0
    todo = [(root, FRAMES_OF_CALL) for root in roots]
    while todo:
        node, above = todo.pop()
        here = above + FRAMES.get(type(node), 1)
        deepest = max(deepest, here)
        todo.extend((part, here) for part in _parts(node))
    if deepest > MAX_FRAMES // 2:
        raise TemplateError("the template is nested too deeply")
    return deepest


def cost(statements: Iterable[Any]) -> int:
    """Return how many nodes run when `statements` do, the bodies inside them excepted."""
    count = 0
    todo: list[Any] = list(statements)
    while todo:
        node = todo.pop()
        if type(node) is not st.Body:
            count += type(node) is not tuple
            todo.extend(_parts(node))
    return count


def _parts(node: Any) -> Iterable[Any]:
    return (part for part in node if isinstance(part, tuple))
