"""The radix tree over prompts, against a plain list of everything it was told."""

from __future__ import annotations

import random

import pytest

from libloader.engine.radix_tree import PrefixTree, common_length


def longest(tree, tokens):
    n, holders = tree.longest(tokens)
    return n, set(holders)


class Shy:
    """A holder that notices when it is looked at."""

    n_looks = 0

    def __hash__(self):
        Shy.n_looks += 1
        return id(self)


def test_a_look_up_costs_the_same_whoever_else_is_known():
    tree = PrefixTree()
    for number in range(2000):
        tree.insert([*range(100), 1000 + number % 50, number], Shy())
    Shy.n_looks = 0
    n, holders = tree.longest([*range(100), 5])
    assert n == 100 and len(holders) == 2000
    assert Shy.n_looks == 0


def slow_common_length(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


@pytest.mark.parametrize("seed", range(50))
def test_common_length_is_the_number_of_equal_leading_tokens(seed):
    chance = random.Random(seed)
    a = [chance.randrange(2) for _ in range(chance.randrange(40))]
    b = a[: chance.randrange(len(a) + 1)] + [chance.randrange(2) for _ in range(5)]
    assert common_length(a, b) == slow_common_length(a, b)


def test_an_empty_tree_knows_nothing():
    assert longest(PrefixTree(), [1, 2, 3]) == (0, set())


def test_the_longest_prefix_names_all_who_hold_it():
    tree = PrefixTree()
    tree.insert([1, 2, 3, 4], "a")
    tree.insert([1, 2, 3, 5], "b")
    tree.insert([1, 9], "c")
    assert longest(tree, [1, 2, 3]) == (3, {"a", "b"})
    assert longest(tree, [1, 2, 3, 5, 6]) == (4, {"b"})
    assert longest(tree, [1, 8]) == (1, {"a", "b", "c"})
    assert longest(tree, [7]) == (0, set())


def test_the_path_tells_who_holds_more_and_whose_tokens_end():
    tree = PrefixTree()
    tree.insert([1, 2, 3, 4], "a")
    tree.insert([1, 2], "b")
    tree.insert([1, 2, 3, 5], "c")
    path = [(n, set(holders), set(ends)) for n, holders, ends in tree.path([1, 2, 3, 4, 6])]
    assert path == [(2, {"a", "b", "c"}, {"b"}), (3, {"a", "c"}, set()), (4, {"a"}, {"a"})]
    assert [(n, set(ends)) for n, _, ends in tree.path([1])] == [(1, set())]
    tree.remove("b")
    assert not any("b" in ends for _, _, ends in tree.path([1, 2, 3]))


def test_a_holder_that_is_inserted_again_holds_only_the_new_tokens():
    tree = PrefixTree()
    tree.insert([1, 2, 3], "a")
    tree.insert([4, 5], "a")
    assert longest(tree, [1, 2, 3]) == (0, set()) and longest(tree, [4, 5]) == (
        2,
        {"a"},
    )
    assert len(tree) == 1


def test_a_holder_of_nothing_is_not_in_the_tree():
    tree = PrefixTree()
    tree.insert([], "a")
    assert "a" not in tree and len(tree) == 0


def test_who_is_a_beginning_of_a_prompt_is_found_without_asking_the_others():
    tree = PrefixTree()
    for number in range(2000):
        tree.insert([1, 2, 1000 + number], Shy())
    for name, tokens in {"a": [1], "b": [1, 2, 3], "c": [1, 2, 3, 4], "d": [1, 2, 4]}.items():
        tree.insert(tokens, name)
    Shy.n_looks = 0
    assert tree.beginnings([1, 2, 3, 4]) == ["a", "b", "c"]
    assert tree.beginnings([1, 2, 3]) == ["a", "b"] and tree.beginnings([2]) == []
    assert Shy.n_looks == 0


@pytest.mark.parametrize("seed", range(30))
def test_the_tree_answers_as_a_search_through_all_holders_would(seed):
    chance = random.Random(seed)
    tree, known = PrefixTree(), {}
    for _ in range(120):
        holder = chance.randrange(8)
        if chance.random() < 0.3:
            tree.remove(holder)
            known.pop(holder, None)
        else:
            known[holder] = [chance.randrange(2) for _ in range(chance.randrange(1, 12))]
            tree.insert(known[holder], holder)
        asked = [chance.randrange(2) for _ in range(12)]
        lengths = {h: common_length(tokens, asked) for h, tokens in known.items()}
        best = max(lengths.values(), default=0)
        holders = {h for h, n in lengths.items() if n == best} if best else set()
        assert longest(tree, asked) == (best, holders)
        begun = {h for h, tokens in known.items() if asked[: len(tokens)] == tokens}
        assert set(tree.beginnings(asked)) == begun
    for holder in list(known):
        tree.remove(holder)
    assert not tree._root.children
