"""What one rendering may use: steps, characters, memory, depth.

Chat templates come out of downloaded files, so they are treated as hostile. Laws:
- A size is checked before the thing is built (`room`), its memory is counted when it is (`text`,
  `items`).
- Steps are charged where time can grow: per body run, per loop turn, per call, per item that a
  filter handles, per 128 characters made, 256 compared, and more where each is looked at. No clock
  is read, so a template either always renders or never does.
- Depth is counted in Python frames that the evaluator needs, so its stack never runs out.

Memory is counted in three places:
    pending    made by the statements now running and perhaps held by an unfinished expression
    settled    made by finished statements since the last audit: kept in a variable, or garbage
    live       what the last audit found reachable from variables, without the caller's own values
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from libloader.errors import TemplateError

MAX_SOURCE = 2 << 20  # characters of a template
MAX_TOKENS = 60_000
MAX_NESTING = 100  # of brackets, operators and blocks, while parsing
MAX_NAMES = 2_000  # different names that a template assigns to

MAX_STEPS = 3_000_000
MAX_FRAMES = 700  # Python's own limit is 1,000 and the server stands on some of them
MAX_OUTPUT = 8 << 20  # characters written, macros and block sets included
MAX_STRING = 4 << 20  # characters
MAX_ITEMS = 250_000  # of one list or dict
MAX_MEMORY = 24 << 20  # bytes
MAX_RANGE = 100_000
MAX_INT_BITS = 4096
MAX_WIDTH = 1000  # of padding and indents
MAX_VALUE_DEPTH = 100  # of a value that is printed, compared or sorted
MAX_VALUE_NODES = 500_000

ITEM_BYTES = 64  # a list slot and the small object in it
AUDIT_EVERY = 8 << 20  # bytes
SMALL = 256  # shorter strings are counted by the list that holds them
_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
CONTAINERS: tuple[type, ...] = (list, tuple, dict, *_VIEWS)


class Extent(NamedTuple):
    """The size of a value as printing would meet it, shared parts counted each time."""

    length: int  # characters of all strings in it
    n_values: int
    depth: int


class Budget:
    """The counters of one rendering. `given` are the caller's values, which cost nothing."""

    __slots__ = ("steps", "frames", "output", "pending", "settled", "live", "scopes", "given")

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.steps = MAX_STEPS
        self.frames = 0
        self.output = 0
        self.pending = 0
        self.settled = 0
        self.live = 0
        self.scopes: list[Mapping[str, Any]] = []  # all that are alive, the innermost last
        self.given = given

    def spend(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise TemplateError("the template takes too many steps")

    def enter(self, frames: int) -> None:
        """Count `frames` Python frames more; the caller subtracts them from `frames` again."""
        self.frames += frames
        if self.frames > MAX_FRAMES:
            raise TemplateError("the template calls macros or loops too deeply")

    def write(self, length: int) -> None:
        self.output += length
        if self.output > MAX_OUTPUT:
            raise TemplateError("the template writes too much text")

    def room(self, length: int) -> None:
        """Check that a string of `length` characters may be built."""
        if length > MAX_STRING:
            raise TemplateError("the template builds too long a string")

    def text(self, value: str) -> str:
        """Count a string just made, and return it."""
        if len(value) > SMALL:
            self.room(len(value))
            self.spend(len(value) >> 7)
            self.hold(sys.getsizeof(value))
        return value

    def room_for_items(self, count: int) -> None:
        """Check that a list of `count` items may be built, and charge for making it."""
        if count > MAX_ITEMS:
            raise TemplateError("the template builds too long a list")
        self.spend(count)
        self.hold(count * ITEM_BYTES)

    def hold(self, size_bytes: int) -> None:
        self.pending += size_bytes
        if self.pending + self.live > MAX_MEMORY:
            raise TemplateError("the template uses too much memory")

    def compare(self, left: Any, right: Any) -> None:
        """Charge for comparing two values, before it is done."""
        if type(left) is str and type(right) is str:
            self.spend(min(len(left), len(right)) >> 8)
        elif isinstance(left, CONTAINERS) and isinstance(right, CONTAINERS):
            self.walk(left)
            self.walk(right)

    def key(self, value: Any) -> Any:
        """Charge for hashing `value`, which visits all of a tuple, and return it."""
        if isinstance(value, tuple):
            self.walk(value)
        return value

    def search(self, text: str, part: str) -> None:
        """Charge for looking for `part` in `text`; older Pythons may need the product of both."""
        self.spend(len(text) * max(1, len(part)) >> 8)

    def walk(self, value: Any) -> Extent:
        """Charge for all that is inside `value`, as often as printing would meet it.

        After this, Python's own comparison, repr and JSON encoder are safe on `value`: it is
        neither deep, nor cyclic, nor a bomb of shared parts.
        """
        level: list[Any] = [value]
        length = count = depth = 0
        while level:
            depth += 1
            count += len(level)
            if depth > MAX_VALUE_DEPTH:
                raise TemplateError("a value is nested too deeply")
            inner: list[Any] = []
            for item in level:
                if isinstance(item, str):
                    length += len(item)
                elif isinstance(item, CONTAINERS):
                    _extend(inner, item)
                    if count + len(inner) > MAX_VALUE_NODES:
                        raise TemplateError("a value has too many parts")
            level = inner
        self.spend(count + (length >> 8))
        return Extent(length, count, depth)

    def settle(self, mark: int) -> None:
        """A statement ended: what it made beyond `mark` is now in a variable, or garbage."""
        self.settled += self.pending - mark
        self.pending = mark
        if self.settled > AUDIT_EVERY:
            self._audit()

    def _audit(self) -> None:
        seen: set[int] = set()
        self._reach(self.given.values(), seen)
        self.live = 0
        for scope in self.scopes:
            self.live += self._reach(scope.values(), seen)
        self.settled = 0
        self.hold(0)

    def _reach(self, values: Iterable[Any], seen: set[int]) -> int:
        """Return the bytes of all reachable values whose ids are not in `seen`; add them there."""
        stack = list(values)
        size = 0
        while stack:
            value = stack.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            self.spend(1)
            size += sys.getsizeof(value)
            if isinstance(value, CONTAINERS):
                _extend(stack, value)
            elif hasattr(value, "parts"):
                stack.extend(value.parts())
        return size


def _extend(items: list[Any], container: Any) -> None:
    items.extend(container)
    if isinstance(container, dict):
        items.extend(container.values())
