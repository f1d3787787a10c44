"""A grammar as libllama holds it: rules of alternatives of characters and references, no more.

Groups and repetitions become rules of their own, in libllama's way, so that what is counted here is
what would happen there: how deep its search for left recursion goes and how many calls it makes.
The same form drives `Matcher`, which keeps every way to read the text so far as a stack.

Laws: nothing here recurses over the grammar's rules; sizes were bounded before (`gbnf.check`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Union

from libloader.errors import GrammarInvalid
from libloader.grammar.expr import Alt, Chars, Node, Ref, Repeat, Seq, Text

Element = Union[int, Chars]  # a rule's number, or one character
Alternative = tuple[Element, ...]
Frame = tuple[int, int, int]
MAX_STACKS = 20_000  # ways to read one text at once; more is refused
BOTTOM = -1


class FlatGrammar:
    """Numbered rules; `names[i]` is the rule of the text that rule i comes from."""

    def __init__(self, rules: Mapping[str, Node], root: str) -> None:
        self.rules: list[list[Alternative]] = [[] for _ in rules]
        self.names = list(rules)
        self._numbers = {name: number for number, name in enumerate(rules)}
        self.root = self._numbers[root]
        for name, node in rules.items():
            self.rules[self._numbers[name]] = self._alternatives(node, name)

    def _alternatives(self, node: Node, owner: str) -> list[Alternative]:
        options = node.options if isinstance(node, Alt) else (node,)
        return [self._elements(option, owner) for option in options]

    def _elements(self, node: Node, owner: str) -> Alternative:
        if isinstance(node, Text):
            return tuple(Chars(((ord(char), ord(char)),)) for char in node.text)
        if isinstance(node, Chars):
            return (node,)
        if isinstance(node, Ref):
            return (self._numbers[node.name],)
        if isinstance(node, Seq):
            return tuple(e for item in node.items for e in self._elements(item, owner))
        if isinstance(node, Repeat):
            return self._repetition(node, owner)
        return (self._add(self._alternatives(node, owner), owner),)

    def _repetition(self, node: Repeat, owner: str) -> Alternative:
        """item{2,4} is `item item rest`, with rest ::= item rest2 | and rest2 ::= item | ."""
        item = self._elements(node.item, owner)
        start = item * node.low
        if node.high is None:
            loop = self._add([], owner)
            self.rules[loop] = [(*item, loop), ()]
            return (*start, loop)
        rest: Alternative = ()
        for _ in range(node.high - node.low):
            rest = (self._add([(*item, *rest), ()], owner),)
        return start + rest

    def _add(self, alternatives: list[Alternative], owner: str) -> int:
        self.rules.append(alternatives)
        self.names.append(owner)
        return len(self.rules) - 1

    def nullable(self) -> list[bool]:
        """Say of each rule whether it can match the empty text."""
        users: dict[int, list[int]] = {}
        for number, alternatives in enumerate(self.rules):
            for element in (e for alternative in alternatives for e in alternative):
                if isinstance(element, int):
                    users.setdefault(element, []).append(number)
        empty = [False] * len(self.rules)
        todo = list(range(len(self.rules)))
        while todo:
            number = todo.pop()
            if not empty[number] and any(
                all(isinstance(e, int) and empty[e] for e in alternative)
                for alternative in self.rules[number]
            ):
                empty[number] = True
                todo += users.get(number, ())
        return empty

    def walk_beginnings(self) -> Walk:
        """Follow from each rule those that it can begin with, as libllama looks for loops."""
        empty = self.nullable()
        return Walk(self.names, [list(_beginnings(rule, empty)) for rule in self.rules])


def _beginnings(alternatives: list[Alternative], empty: list[bool]) -> Iterable[int]:
    for alternative in alternatives:
        for element in alternative:
            if not isinstance(element, int):
                break
            yield element
            if not empty[element]:
                break


class Walk:
    """The graph of "begins with": its first loop, and how deep and how wide a search of it gets."""

    def __init__(self, names: list[str], beginnings: list[list[int]]) -> None:
        self._names, self._beginnings = names, beginnings
        self._depth: list[int] = [0] * len(names)
        self._calls: list[int] = [0] * len(names)
        self.looping: str | None = self._search()

    def too_long(self, limit: int) -> str | None:
        """Name the first rule from which a chain of over `limit` rules begins."""
        return next((n for n, depth in zip(self._names, self._depth) if depth > limit), None)

    def too_many(self, limit: int) -> str | None:
        """Name the rule at which libllama's search passes `limit` calls; it skips no path."""
        total = 0
        seen: set[int] = set()
        for number, name in enumerate(self._names):
            if number not in seen:
                total += self._calls[number]
                self._mark(number, seen)
            if total > limit:
                return name
        return None

    def _mark(self, number: int, seen: set[int]) -> None:
        todo = [number]
        while todo:
            current = todo.pop()
            if current not in seen:
                seen.add(current)
                todo += self._beginnings[current]

    def _search(self) -> str | None:
        """Fill in depth and calls bottom-up; return the rule that a loop leads back to."""
        open_rules: set[int] = set()
        done: set[int] = set()
        for start in range(len(self._names)):
            todo = [(start, False)]
            while todo:
                number, is_left = todo.pop()
                if is_left:
                    open_rules.discard(number)
                    done.add(number)
                    self._sum_up(number)
                elif number in open_rules:
                    return self._names[number]
                elif number not in done:
                    open_rules.add(number)
                    todo.append((number, True))
                    todo += [(next_, False) for next_ in set(self._beginnings[number])]
        return None

    def _sum_up(self, number: int) -> None:
        below = self._beginnings[number]
        self._depth[number] = 1 + max((self._depth[b] for b in below), default=0)
        # Far beyond every limit the exact number, which may have thousands of digits, is no use.
        self._calls[number] = min(1 + sum(self._calls[b] for b in below), 1 << 62)


class Matcher:
    """Reads a text piece by piece; holds every stack of what may follow.

    A frame is (alternative, position in it, frame below), all as numbers; a stack is its top frame.
    Equal stacks have equal numbers: ambiguity costs no more than the number of different ones.
    """

    def __init__(self, grammar: FlatGrammar) -> None:
        self._alternatives = [a for alternatives in grammar.rules for a in alternatives]
        numbers = iter(range(len(self._alternatives)))
        self._of_rule = [[next(numbers) for _ in rule] for rule in grammar.rules]
        self._names = grammar.names
        self._frames: list[Frame] = []
        self._numbers: dict[Frame, int] = {}
        self._next: dict[int, tuple[frozenset[int], bool]] = {}
        starts = [(alternative, 0, BOTTOM) for alternative in self._of_rule[grammar.root]]
        self.stacks, self.is_complete = self._closure(starts)

    def feed(self, text: str) -> int:
        """Read on and return how many characters fit; from the first misfit on, nothing does."""
        for n_read, char in enumerate(text):
            if not self._step(ord(char)):
                return n_read
        return len(text)

    def _step(self, code: int) -> bool:
        stacks: set[int] = set()
        is_complete = False
        for number in self.stacks:
            if self.chars_of(number).accepts(code):
                after, can_end = self._after(number)
                stacks |= after
                is_complete |= can_end
        if len(stacks) > MAX_STACKS:
            raise GrammarInvalid(f"the grammar reads this text in over {MAX_STACKS} ways")
        self.stacks, self.is_complete = frozenset(stacks), is_complete
        return bool(stacks) or is_complete

    def place_of(self, number: int) -> tuple[int, int]:
        """Return (alternative, position in it) of a stack's top, whatever is below."""
        return self._frames[number][:2]

    def skip_literal(self, number: int) -> int:
        """Return the last stack that single characters in a row lead to from this one."""
        alternative, at, below = self._frames[number]
        elements, end = self._alternatives[alternative], at
        while end + 1 < len(elements) and isinstance(elements[end + 1], Chars):
            end += 1
        return self._push((alternative, end, below)) if end > at else number

    def depth_of(self, number: int) -> int:
        """Return how many frames a stack has."""
        n_frames = 0
        while number != BOTTOM:
            n_frames, number = n_frames + 1, self._frames[number][2]
        return n_frames

    def alternative_of(self, number: int) -> int:
        return self._frames[number][0]

    def chars_of(self, number: int) -> Chars:
        """Return the characters that may come next on a stack."""
        alternative, at, _ = self._frames[number]
        element = self._alternatives[alternative][at]
        assert isinstance(element, Chars), "a stack has a character on top"
        return element

    def after(self, number: int) -> frozenset[int]:
        """Return the stacks that follow once a character was read from this one."""
        return self._after(number)[0]

    def owner_of(self, alternative: int) -> str:
        """Return the name of the rule, in the text, that an alternative comes from."""
        rule = next(i for i, numbers in enumerate(self._of_rule) if alternative in numbers)
        return self._names[rule]

    def _after(self, number: int) -> tuple[frozenset[int], bool]:
        if number not in self._next:
            alternative, at, below = self._frames[number]
            self._next[number] = self._closure([(alternative, at + 1, below)])
        return self._next[number]

    def _closure(self, todo: list[Frame]) -> tuple[frozenset[int], bool]:
        """Expand references until every stack has a character on top; also: may the text end?"""
        found, seen, can_end = set(), set(todo), False
        while todo:
            number, at, below = todo.pop()
            alternative = self._alternatives[number]
            element = alternative[at] if at < len(alternative) else None
            if isinstance(element, Chars):
                found.add(self._push((number, at, below)))
                continue
            if isinstance(element, int):
                is_last = at + 1 == len(alternative)
                rest = below if is_last else self._push((number, at + 1, below))
                following = [(option, 0, rest) for option in self._of_rule[element]]
            else:
                can_end |= below == BOTTOM
                following = [] if below == BOTTOM else [self._frames[below]]
            todo += [frame for frame in following if frame not in seen]
            seen.update(following)
        return frozenset(found), can_end

    def _push(self, frame: Frame) -> int:
        number = self._numbers.setdefault(frame, len(self._frames))
        if number == len(self._frames):
            self._frames.append(frame)
        return number
