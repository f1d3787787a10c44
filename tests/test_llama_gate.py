"""The second choice behind a grammar: the same tokens may pass, however they are found."""

from __future__ import annotations

import collections
import random
from dataclasses import replace

import pytest
from llama_rows import SETTINGS, decode

from libloader.core import Sampling
from libloader.errors import GrammarInvalid
from libloader.llama import gate as gate_module
from libloader.llama.context import Context
from libloader.llama.gate import Gate
from libloader.llama.sampler import SamplerChain
from libloader.llama.token_tree import TokenTree

PLAIN = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)

# Trees of tokens, without libllama


def tree_of(*pieces, hidden=()):
    return TokenTree(pieces, frozenset(hidden))


def children(tree, token):
    return list(tree.children(token))


def test_a_token_hangs_below_the_longest_one_that_it_begins_with():
    tree = tree_of(b"d", b"dot", b"do", b"dog", b"a")
    assert sorted(tree.roots) == [0, 4]
    assert children(tree, 0) == [2] and sorted(children(tree, 2)) == [1, 3]
    assert children(tree, 1) == children(tree, 3) == children(tree, 4) == []


def test_of_two_tokens_with_the_same_text_one_leads_to_the_other():
    tree = tree_of(b"a", b"a", b"ab")
    reached = [*tree.roots]
    for token in reached:
        reached += tree.children(token)
    assert sorted(reached) == [0, 1, 2]


def test_half_a_character_leads_nowhere():
    half, whole = "é".encode()[:1], "é".encode()
    tree = tree_of(half, whole, whole + b"t", b"a" + half, b"a" + whole)
    assert sorted(tree.roots) == [0, 1, 3, 4]
    assert children(tree, 1) == [2] and children(tree, 3) == []
    assert tree.broken == {0, 3}


def test_tokens_that_begin_no_text_are_kept_apart():
    tree = tree_of(b"a", b"", b"", b"\xa9", b"\xffa", hidden=[2])
    assert list(tree.roots) == [0] and list(tree.silent) == [1]
    assert list(tree.inside) == [3] and list(tree.wrong) == [4]


# On libllama

GRAMMARS = (
    'root ::= "hello" " world"',
    'root ::= "[" [0-9]+ ("," [0-9]+)* "]"',
    'root ::= "\\"" [^"\\\\]* "\\""',
    "root ::= [^é]+",
    'root ::= [à-ü]+ | "é!" [一-鿿]',
    'root ::= ("a" | "an" | "ant") ("t" | "x" | "") root | "."',
    "root ::= .*",
)


@pytest.fixture(scope="module")
def context(tiny_model):
    with Context(tiny_model, SETTINGS) as context:
        decode(context, [1, 2, 3])
        yield context


@pytest.mark.native
@pytest.mark.parametrize("shows_special", [False, True])
@pytest.mark.parametrize("text", GRAMMARS)
def test_what_the_tree_leads_to_is_what_may_pass(context, text, shows_special):
    model, chance = context.model, random.Random(text)
    for _ in range(4):
        sampling = Sampling(grammar=text, shows_special=shows_special)
        with Gate(model, sampling) as gate:
            for _ in range(12):
                wanted = [token for token in range(model.vocab.n_tokens) if gate.allows(token)]
                assert list(gate.few() or ()) == wanted
                if not wanted or model.vocab.is_eog(token := chance.choice(wanted)):
                    break
                gate.accept(token)


def share_of_each(context, sampling, n=4000):
    """How often each token is drawn as the first of a text, in parts of one."""
    chains = collections.Counter()
    with SamplerChain(context.model, sampling, 128) as chain:
        for _ in range(n):
            chains[chain.sample(context, 2)] += 1
            chain._gate.reset()
    return {token: count / n for token, count in chains.items()}


@pytest.mark.native
@pytest.mark.parametrize("changes", [{}, {"top_k": 5}, {"top_p": 0.6}, {"min_p": 0.4}])
@pytest.mark.parametrize("text", ["root ::= [a-f] .*", 'root ::= [^a-m"]+'])
def test_both_ways_draw_from_the_same_distribution(context, monkeypatch, text, changes):
    sampling = replace(PLAIN, temperature=0.9, grammar=text, seed=5, **changes)
    by_tree = share_of_each(context, sampling)
    monkeypatch.setattr(gate_module, "FEW", -1)
    by_mask = share_of_each(context, sampling)
    assert by_tree.keys() <= by_mask.keys() | {t for t, share in by_tree.items() if share < 0.002}
    for token, share in by_mask.items():
        assert by_tree.get(token, 0.0) == pytest.approx(share, abs=0.04)


@pytest.mark.native
@pytest.mark.parametrize("few", [-1, 1 << 14])
def test_a_grammar_that_no_token_fits_is_found_either_way(context, monkeypatch, few):
    monkeypatch.setattr(gate_module, "FEW", few)
    with Gate(context.model, Sampling(grammar=r"root ::= [\x00] [\x00]")) as gate:
        chain = SamplerChain(context.model, PLAIN, 128)
        with chain, pytest.raises(GrammarInvalid):
            gate.choose(chain.pointer, context.logits_pointer(2))
