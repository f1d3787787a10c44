"""Ownership of native objects: each pointer has one owner, which frees it exactly once.

Laws:
- A handle frees what was made from it (its children) before itself, newest first.
- Closing twice does nothing. Using a closed handle raises EngineUnavailable, never reaches C.
- No __del__: at interpreter shutdown nobody could say in which order it runs.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Callable, TypeVar

from libloader.errors import DecodeFailed, EngineUnavailable

Self = TypeVar("Self", bound="Handle")


class Handle:
    """Owner of one native pointer. `free` gets the pointer back when the handle is closed."""

    def __init__(
        self, what: str, pointer: Any, free: Callable[[Any], Any], parent: Handle | None = None
    ) -> None:
        self._what, self._pointer, self._free = what, pointer, free
        self._parent = parent
        self._children: dict[Handle, None] = {}
        if parent is not None:
            parent._children[self] = None

    @property
    def pointer(self) -> Any:
        """The native pointer, for a C call; EngineUnavailable once the handle is closed."""
        if self._pointer is None:
            raise EngineUnavailable(f"the {self._what} is closed")
        return self._pointer

    @property
    def closed(self) -> bool:
        return self._pointer is None

    def close(self) -> None:
        for child in reversed(list(self._children)):
            child.close()
        pointer, self._pointer = self._pointer, None
        if pointer is None:
            return
        if self._parent is not None:
            self._parent._children.pop(self, None)
        self._free(pointer)

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def require_in_range(what: str, value: int, end: int) -> None:
    """Raise DecodeFailed unless 0 <= value < end: C would read or write beyond its arrays."""
    if not 0 <= value < end:
        raise DecodeFailed(f"{what} {value} is not in 0..{end - 1}")
