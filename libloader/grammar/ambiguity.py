"""How many ways there are to read a token: what libllama pays to find that it does not fit.

libllama follows every way on its own, also where two ways meet again, until one of them takes the
token. A token that fits is found at once; for one that does not, all ways are walked to their end:
`("a"?){0,24}` has 16 million ways to find that it does not take 25 letters, which is 10 seconds.

Laws: an estimate, made by reading one character again and again, as loops are where ways multiply;
what is looked at is bounded, so that it takes milliseconds for most grammars and half a second for
any. What it does not find, the engine's watchdog ends.
"""

from __future__ import annotations

from collections import Counter, defaultdict

from libloader.grammar.expr import Chars
from libloader.grammar.flat import Matcher

# Characters that tokens have before one that may not fit, as in "getName" -> ways to allow.
MAX_WAYS = {7: 10_000, 12: 300_000}
N_WORD, N_RUN = 20, 64  # characters of the longest words, and of spaces, dashes and other signs
MAX_STEPS = 300_000  # to find out about one token
MAX_HELD = 2_000  # frames of the stacks that a text leaves, more than before: each is copied
MAX_SAME = 32  # ways to have come to one place without reading anything
MAX_FRAMES = 1_000
MAX_STACKS = 8_000  # that follow those places
MAX_READS = 6_000  # of a character, in all
MAX_VISITS = 2  # of one place in the grammar, reached in different ways
MAX_CODES = 40  # characters tried in one place
SAMPLES = "a1 \n."  # tried where a set is said by what it leaves out


class Survey:
    """Walks the places that a grammar can be in, and counts ways onward where they part."""

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher
        self._n_left = MAX_READS
        self._walked: dict[int, set[int]] = defaultdict(set)  # by character

    def first_too_many(self) -> int | None:
        """Return an alternative behind which there are too many ways, None if there is none."""
        matcher = self._matcher
        groups = [matcher.stacks, *(matcher.after(frame) for frame in self._frames())]
        for group in dict.fromkeys(group for group in groups if len(group) > 1):
            if max(Counter(map(matcher.place_of, group)).values()) > MAX_SAME:
                return matcher.alternative_of(min(group))
            for code in self._contested(group):
                if self._explodes(group, code):
                    return matcher.alternative_of(min(group))
        return None

    def _frames(self) -> list[int]:
        """Return places from the start on; inside a literal there is only one way on."""
        matcher, n_visits = self._matcher, Counter[tuple[int, int]]()
        found, todo = list[int](), sorted(matcher.stacks)
        n_stacks = 0
        while todo and len(found) < MAX_FRAMES and n_stacks < MAX_STACKS:
            following: list[int] = []
            for frame in todo[:MAX_FRAMES]:
                frame = matcher.skip_literal(frame)
                place = matcher.place_of(frame)
                if n_visits[place] < MAX_VISITS:
                    n_visits[place] += 1
                    found.append(frame)
                    following += sorted(matcher.after(frame))
                    n_stacks += len(matcher.after(frame))
                if n_stacks > MAX_STACKS:
                    break
            todo = following
        return found[:MAX_FRAMES]

    def _contested(self, group: frozenset[int]) -> list[int]:
        """Return a letter and a sign that most places of a group may read, two at least."""
        sets = Counter(self._matcher.chars_of(frame) for frame in group)
        codes = list(dict.fromkeys(code for each in sets for code in _samples(each)))[:MAX_CODES]
        n_readers = {
            code: sum(n for each, n in sets.items() if each.accepts(code)) for code in codes
        }
        best: dict[bool, int] = {}
        for code in sorted(codes, key=n_readers.__getitem__):
            if n_readers[code] > 1:
                best[_is_in_words(code)] = code
        return list(best.values())

    def _explodes(self, group: frozenset[int], code: int) -> bool:
        """Read `code` again and again from a group of places, counting the ways to each place."""
        if group <= self._walked[code] or self._n_left <= 0:
            return False
        layers = [Counter(group)]
        max_held = MAX_HELD + sum(map(self._matcher.depth_of, group))
        while layers[-1] and len(layers) <= N_RUN:
            layers.append(self._read(layers[-1], code))
            if sum(map(self._matcher.depth_of, layers[-1])) > max_held:
                return True
        n_token = N_WORD if _is_in_words(code) else N_RUN
        for layer in layers[: n_token // 2]:  # from there on, half a token was read already
            self._walked[code].update(layer)
        for length, n_ways in MAX_WAYS.items():
            if max(sum(layer.values()) for layer in layers[:length]) > n_ways:
                return True
        return self._n_steps(layers[: n_token + 1], code) > MAX_STEPS

    def _read(self, ways: Counter[int], code: int) -> Counter[int]:
        after = Counter[int]()
        self._n_left -= len(ways)
        for frame, n_ways in ways.items():
            if self._matcher.chars_of(frame).accepts(code):
                for following in self._matcher.after(frame):
                    after[following] += n_ways
        return after

    def _n_steps(self, layers: list[Counter[int]], code: int) -> int:
        """Return how many steps find out about a token of as many characters as there are layers.

        Places that lead to the last layer are *open*: of those, libllama walks one only, but it
        may walk all others first.
        """
        matcher = self._matcher
        open_steps, dead_steps = dict.fromkeys(layers[-1], 1), dict[int, int]()
        for layer in reversed(layers[:-1]):
            open_here, dead_here = dict[int, int](), dict[int, int]()
            for frame in layer:
                accepts = matcher.chars_of(frame).accepts(code)
                after = matcher.after(frame) if accepts else frozenset[int]()
                n_open = max((open_steps[f] for f in after if f in open_steps), default=0)
                n_all = 1 + n_open + sum(dead_steps[f] for f in after if f in dead_steps)
                (open_here if n_open else dead_here)[frame] = n_all
            open_steps, dead_steps = open_here, dead_here
        return max(open_steps.values(), default=0) + sum(dead_steps.values())


def _is_in_words(code: int) -> bool:
    return chr(code).isalnum()


def _samples(chars: Chars) -> list[int]:
    """Return characters of a set; where two sets meet, one of them begins a range there."""
    if chars.negated:
        return [code for code in map(ord, SAMPLES) if chars.accepts(code)]
    return [first for first, _ in chars.ranges[:MAX_CODES]]
