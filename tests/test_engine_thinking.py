"""Thoughts that have used up their budget are ended in the model's stead."""

from __future__ import annotations

import pytest
from fakes import IM_END, IM_START, PIECES, Bench, FakeChain, FakeVocab

from libloader.core import RequestDone, Thinking, TokenEvent
from libloader.engine.thinking import ThinkingChain
from libloader.errors import GrammarInvalid

VOCAB = FakeVocab()
CLOSING = "\n</think>\n\n"


class Scripted(FakeChain):
    """Says a text, character by character, wherever it was made to go on; then it ends."""

    def __init__(self, text, *, forbids=()):
        super().__init__(None)
        self.text = text.encode()
        self.n_said = 0
        self.forbids = forbids

    def sample(self, context, row):
        token = self.text[self.n_said] if self.n_said < len(self.text) else IM_END
        self.n_said += 1
        self.accepted.append(token)
        return token

    def accept(self, token):
        if token in self.forbids:
            raise GrammarInvalid("forbidden")
        super().accept(token)


def budget(n_max, **more):
    fields = {"begin": "<think>", "end": "</think>", "closing": CLOSING, **more}
    return Thinking(n_max, **fields)


def told(text, thinking, *, inner=None, n=200):
    """Return what a chain with this budget says where the model would say `text`."""
    inner = inner or Scripted(text)
    closing = VOCAB.tokenize(thinking.closing, False, True)
    chain = ThinkingChain(inner, thinking, closing, VOCAB.piece)
    tokens = []
    while not tokens or tokens[-1] != IM_END and len(tokens) < n:
        tokens.append(chain.sample(None, 0))
    assert inner.accepted == tokens  # the chain inside has seen all of it
    return b"".join(PIECES[token] for token in tokens[:-1]).decode()


@pytest.mark.parametrize("n_max", [1, 3, 4])
def test_thoughts_end_after_their_budget_and_the_answer_goes_on(n_max):
    cut = "abcde"[:n_max]
    assert told("<think>abcde", budget(n_max)) == f"<think>{cut}{CLOSING}{'abcde'[n_max:]}"
    assert told("abcde", budget(n_max, opened=True)) == f"{cut}{CLOSING}{'abcde'[n_max:]}"


@pytest.mark.parametrize("text", ["<think>ab</think>cdefghijk", "\n<think>ab</think>c <think> d"])
def test_thoughts_within_their_budget_are_left_alone(text):
    assert told(text, budget(12)) == text


@pytest.mark.parametrize("text", ["no thoughts, but <think> in it", "<thinner>abcdefgh", "", "  "])
def test_an_answer_without_thoughts_has_no_budget(text):
    assert told(text, budget(2)) == text


def test_no_budget_at_all_closes_the_block_at_once():
    assert told("ab", budget(0, opened=True)) == CLOSING + "ab"
    assert told("<think>ab", budget(0)) == f"<think>{CLOSING}ab"


def test_blocks_that_may_come_again_share_one_budget():
    harmony = budget(8, begin="<a>", end="<end>", closing="<end>!", again=True)
    assert told("<a>xy<end>b<a>zzz", harmony) == "<a>xy<end>b<a>zz<end>!z"
    assert told("<a>12345678<a>w", harmony) == "<a>12345678<end>!<a><end>!w"


def test_an_end_that_the_model_is_writing_is_not_cut():
    assert told("<think>ab</think>cd", budget(4)) == "<think>ab</think>cd"
    assert told("<think>ab</thin cd", budget(4)) == f"<think>ab</thin {CLOSING}cd"


def test_where_a_grammar_forbids_the_end_the_model_goes_on():
    inner = Scripted("<think>abc", forbids=(ord("\n"),))
    assert told("", budget(1), inner=inner) == "<think>abc"


# --- inside the engine ---------------------------------------------------------------------------


def answers(text, **fields):
    bench = Bench(open_chain=lambda sampling: Scripted(text))
    bench.submit("a", max_tokens=60, keep_special=True, **fields)
    bench.run()
    said = [event for event in bench.events if isinstance(event, TokenEvent)]
    return "".join(e.text for e in said), [token for e in said for token in e.tokens], bench


def test_every_token_that_is_put_in_is_told_like_any_other():
    closing = f"<|im_start|>{CLOSING}"
    text, tokens, bench = answers("<think>abcde", thinking=budget(2, closing=closing))
    assert text == f"<think>ab{closing}cde"
    assert IM_START in tokens
    done = [event for event in bench.events if isinstance(event, RequestDone)]
    assert done[0].usage.n_completion == len(tokens)


@pytest.mark.parametrize("n_known", range(0, 20, 3))
def test_a_replay_goes_on_where_the_first_run_was(n_known):
    thinking = budget(2)
    text, tokens, _ = answers("<think>abcde", thinking=thinking)
    known = tuple(tokens[:n_known])
    n_put_in = sum(1 for i in range(n_known) if 9 <= i < 9 + len(CLOSING))

    def chain(sampling):
        made = Scripted("<think>abcde")
        made.n_said = n_known - n_put_in
        return made

    bench = Bench(open_chain=chain)
    bench.submit("a", max_tokens=60, keep_special=True, thinking=thinking, resume=(known,))
    bench.run()
    rest = "".join(event.text for event in bench.events if isinstance(event, TokenEvent))
    assert text.endswith(rest) and len(rest) == len(text) - n_known


def test_guessed_tokens_do_not_outrun_the_budget():
    """With lookup, several tokens come in one step; the one that is put in ends the guess."""
    said = "<think>" + "ab" * 20
    plain, _, _ = answers(said, thinking=budget(9))
    bench = Bench(open_chain=lambda sampling: Scripted(said), lookup=True)
    bench.submit("a", "abababababab", max_tokens=60, keep_special=True, thinking=budget(9))
    bench.run()
    text = "".join(event.text for event in bench.events if isinstance(event, TokenEvent))
    assert text == plain and text.startswith(f"<think>ababababa{CLOSING}")
