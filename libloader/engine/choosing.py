"""Choosing one of a few labels: how likely would the model write each of them?

Lives here: the trie of labels, what is computed at its nodes, the draw. Not here: who runs when
(engine.py, scheduler.py), how a label's text becomes tokens (prompt_reader.py).

What is computed. The labels' tokens make a trie whose root is the prompt:

    prompt ─┬─ "no" ── " way"     P(no)     = p(no) * (1 - p(way | no))
            │                     P(no way) = p(no) * p(way | no)
            └─ "yes"              P(yes)    = p(yes)

p(token | what is before it) is the model's own, before any sampler; along a path it is multiplied.
Behind a label anything may follow, except that a label with which another one begins ends only
where the text does not go on to that one. So no two labels are ever written at once; one more label
takes from those alone that it begins with; and P summed over the labels, at most 1, says how likely
the model begins with any of them when left alone. Whoever shows the numbers normalises by that sum.

A vocabulary may spell a label in two ways: SentencePiece's puts a space before the first word of a
text. Both are paths to the same label, and count together.

Only nodes with children need the model. One *walk* reads those on its way down, each with a row of
logits; several walks share the prompt by the prefix cache. Where the memory can be cut, a walk's
tokens are decoded in one batch, as guesses that are always right; else one by one. Labels of one
token need no step at all beside the prompt's.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import Any, Callable

from libloader.core import ChoiceDone, Event, Request, Sampling, TokenEvent
from libloader.engine.ports import ContextPort
from libloader.errors import FieldInvalid, NanLogits

END = -1  # what a walk samples when it has read all that it came for
LOWEST = -1e4  # a log probability that counts as none; infinities cannot travel as JSON
LONGEST = 16  # rows ahead in one batch: who streams beside it waits for that

Spellings = Sequence[Sequence[int]]  # of one label: the exact one first
Entry = tuple[int, str, float, tuple[tuple[int, str, float], ...]]  # as core.TokenEvent.logprobs


class Node:
    """A place in the trie: after the prompt and some tokens. `label` is -1 if none ends here."""

    __slots__ = (
        "token",
        "parent",
        "children",
        "label",
        "logprob",
        "left",
        "entry",
        "is_read",
    )

    def __init__(self, token: int = END, parent: Node | None = None) -> None:
        self.token = token
        self.parent = parent
        self.children: dict[int, Node] = {}
        self.label = -1
        self.logprob = 0.0  # of all tokens down to here
        self.left = 0.0  # log of the part that goes on to no child
        self.entry: Entry | None = None
        self.is_read = False

    def path(self) -> list[Node]:
        """Return the nodes from the root to this one, without the root."""
        nodes: list[Node] = []
        node = self
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]

    def grow(self, tokens: Sequence[int]) -> Node:
        """Return the node after `tokens`, made if there is none."""
        node = self
        for token in tokens:
            node = node.children.setdefault(token, Node(token, node))
        return node

    def below(self) -> Iterator[Node]:
        """Yield this node and all under it, each before its children."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(reversed(node.children.values()))

    def read(self, logprobs: Sequence[float]) -> None:
        """Take the log probabilities of the children, in their order."""
        self.is_read = True
        for child, logprob in zip(self.children.values(), logprobs):
            child.logprob = self.logprob + logprob
        onwards = math.fsum(math.exp(min(0.0, logprob)) for logprob in logprobs)
        self.left = math.log1p(-onwards) if onwards < 1.0 else LOWEST


class Walk:
    """One way down the trie, as the chain of a sequence: it chooses nothing and follows its path.

    The nodes are read by the engine thread (`Choosing.read`): chains may sample in other threads.
    """

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes  # with children, from the root on
        self.depth = 0  # how many rows were sampled

    @property
    def is_over(self) -> bool:
        return self.depth >= len(self.nodes)

    def passed(self, n: int) -> list[Node]:
        """Return the nodes of the last `n` rows that were sampled."""
        return self.nodes[self.depth - n : self.depth]

    def sample(self, context: Any, row: int) -> int:
        self.depth += 1
        return END if self.is_over else self.nodes[self.depth].token

    def accept(self, token: int) -> None:
        raise AssertionError("a walk knows its tokens")

    def accept_prompt(self, tokens: Sequence[int]) -> None:
        """The prompt is no part of the trie."""

    def close(self) -> None:
        """Nothing native is held."""


class Foresight:
    """Guesses what a walk will sample, and is right: so its rows share a batch.

    No more of them than of other guesses: who streams beside it waits for that batch.
    """

    n_drafted = n_accepted = 0  # this is no speculation, so there is nothing to tell of it
    is_sure, chance = True, 1.0

    def __init__(self, walk: Walk) -> None:
        self._walk = walk

    def push(self, token: int) -> None:
        """The walk itself knows where it is."""

    def guess(self, n: int) -> list[int]:
        ahead = self._walk.nodes[self._walk.depth + 1 :]
        return [node.token for node in ahead[: min(n, LONGEST)]]

    def learn(self, n_guessed: int, n_right: int) -> None:
        """Nothing is wrong, so there is nothing to learn."""

    def close(self) -> None:
        """Nothing native is held."""


class Choosing:
    """What a choose request knows; its sequences are `walks`. Engine thread only."""

    def __init__(self, request: Request, spellings: Sequence[Spellings]) -> None:
        self._request = request
        self._root = Node()
        _plant(self._root, spellings)
        self.walks = [Walk(nodes) for nodes in _ways(self._root)]
        self.n_completion = 0

    def read(
        self, nodes: Sequence[Node], context: ContextPort, row: int, text_of: Callable[[int], str]
    ) -> None:
        """Learn what follows each node, the first from `row`, unless another walk has been here."""
        for each_row, node in enumerate(nodes, row):
            if not node.is_read:
                self._read(node, context, each_row, text_of)

    def _read(
        self, node: Node, context: ContextPort, row: int, text_of: Callable[[int], str]
    ) -> None:
        n_top = self._request.top_logprobs
        own, top = context.logprobs_of(row, list(node.children), max(0, n_top))
        node.read(own)
        if n_top >= 0:
            others = tuple((token, text_of(token), logprob) for token, logprob in top)
            for child, logprob in zip(node.children.values(), own):
                child.entry = (
                    child.token,
                    text_of(child.token),
                    max(LOWEST, logprob),
                    others,
                )

    def events(self) -> list[Event]:
        """All is read: return each choice's label, with the log probabilities of all labels."""
        request = self._request
        ends = [node for node in self._root.below() if node.label >= 0]
        logprobs = tuple(
            _sum([node.logprob + node.left for node in ends if node.label == label])
            for label in range(len(request.labels))
        )
        events: list[Event] = []
        for index in range(request.n):
            known = request.resume[index] if index < len(request.resume) else ()
            label = draw(logprobs, request.sampling, index)
            end = max((n for n in ends if n.label == label), key=lambda node: node.logprob)
            tokens = known or tuple(node.token for node in end.path())
            self.n_completion += len(tokens)
            if not known:
                entries = tuple(node.entry for node in end.path() if node.entry)
                text = request.labels[label]
                events.append(TokenEvent(request.id, index, text, tokens, entries or None))
            events.append(ChoiceDone(request.id, index, "stop", None, logprobs))
        return events


def draw(logprobs: Sequence[float], sampling: Sampling, number: int) -> int:
    """Return the label of choice `number`: the likeliest, or with a temperature drawn by seed."""
    best = max(logprobs)
    if sampling.temperature <= 0.0:
        return logprobs.index(best)
    weights = [math.exp((logprob - best) / sampling.temperature) for logprob in logprobs]
    at = random.Random((sampling.seed + number) % 2**32).random() * math.fsum(weights)
    for label, weight in enumerate(weights):
        at -= weight
        if at < 0.0:
            return label
    return logprobs.index(best)  # floating point left a grain over


def _plant(root: Node, spellings: Sequence[Spellings]) -> None:
    """Put every label into the trie: the exact spellings first, others where they are free."""
    for label, (exact, *_) in enumerate(spellings):
        node = root.grow(exact)
        if node is root or node.label >= 0:
            raise FieldInvalid(
                f"choices[{label}] is no text of its own to this model: its tokens are "
                + ("none" if node is root else f"those of choices[{node.label}]"),
                param=f"choices[{label}]",
            )
        node.label = label
    for label, (_, *others) in enumerate(spellings):
        for tokens in others:
            node = root.grow(tokens)
            if node is not root and node.label < 0:
                node.label = label


def _ways(root: Node) -> Iterator[list[Node]]:
    """Yield ways down that pass every node with children; none is the beginning of another."""
    for node in root.below():
        if node.children and not any(child.children for child in node.children.values()):
            yield [root, *node.path()]


def _sum(logprobs: Sequence[float]) -> float:
    """Return the log of the sum of what these are the logs of."""
    best = max(logprobs)
    if math.isnan(best):
        raise NanLogits("the model produced no finite numbers for a choice")
    if best <= LOWEST:
        return LOWEST
    return best + math.log(math.fsum(math.exp(each - best) for each in logprobs))
