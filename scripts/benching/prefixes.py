"""Rows of what is not computed twice: time to first token with a known prefix, counts of tokens.

A time to first token is that of a plain answer of one token. Where a prefix should come from a
cache, the server's own `cached_tokens` must say so, else the figure is NaN and the row a miss.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from benching import arithmetic, client, prose
from benching.arithmetic import middle
from benching.client import Target
from benching.common import Figures, RowMaker, Run, warm_up
from benching.processes import raw_loop
from benching.table import Row, at_most, row

PREFIX_TOKENS = 2000
TAIL_WORDS = 8
KNOWN_PART = 0.95  # of the prefix at least must come from the cache
ROOMY = ("-c", "2560")
RAM_MIB = "512"  # two prefixes of M; a third one takes memory that was used before


class Prefix:
    """A prompt of about PREFIX_TOKENS tokens, and others that only share it."""

    def __init__(self, n_words: int, seed: object) -> None:
        self.seed = seed
        self.text = prose.words(n_words, seed)

    def with_tail(self, tail: object) -> str:
        return f"{self.text} {prose.words(TAIL_WORDS, (self.seed, tail))}"


def words_for(target: Target, n_tokens: int) -> int:
    """Return how many words make about `n_tokens` with this model's tokenizer."""
    _, counts = client.first_token_s(target, prose.words(200, "how long"))
    return int(n_tokens * 200 / counts["prompt_tokens"])


def known_ratio(target: Target, prefix: Prefix, tail: object, cold_s: float) -> tuple[float, float]:
    """Return (time to first token / cold, part of the prompt that was cached); NaN if it wasn't."""
    seconds, counts = client.first_token_s(target, prefix.with_tail(tail))
    part = counts["cached_tokens"] / counts["prompt_tokens"]
    return (seconds / cold_s if part >= KNOWN_PART else float("nan")), part


def prefix_rows(name: str, model: str, what: str, goal: float, source: Any) -> RowMaker:
    """`source(run, model)` yields (ratio, cold seconds, cached part) for each repeat."""

    def rows(run: Run) -> Iterator[Row]:
        if model in run.models:
            ratios, colds, parts = zip(*source(run, model))
            words = f"first token, known prefix / cold, {what}; cold {middle(colds) * 1e3:.0f} ms"
            words += f", {middle(parts):.0%} cached"
            yield row(f"{name} {model}", ratios, words, at_most(goal))

    return rows


Found = Iterator[tuple[float, float, float]]


def from_live(run: Run, model: str) -> Found:
    """The first stream is still running when the second comes with the same prefix."""
    with run.server(model, "-np", "2", *ROOMY, "--cache-ram", "0") as target:
        warm_up(target, 1)
        n_words = words_for(target, PREFIX_TOKENS)
        for number in run.rounds():
            prefix = Prefix(n_words, ("live", number))
            cold_s, _ = client.first_token_s(target, Prefix(n_words, ("cold", number)).text)
            yield live_ratio(target, prefix, cold_s)


def live_ratio(target: Target, prefix: Prefix, cold_s: float) -> tuple[float, float, float]:
    running = client.chat(target, prefix.with_tail("running"), 96)
    load = client.Load()
    load.add(running)
    # Made when it is sent: a connection that says nothing for long is closed.
    load.add_when(
        lambda: running.has_begun,
        lambda: client.chat(target, prefix.with_tail("second"), 1, stream=False),
    )
    load.run()
    second = load.calls[1]
    counts = second.counts()
    part = counts["cached_tokens"] / counts["prompt_tokens"]
    alive = running.text_times()[0] < second.sent_at and second.ended_at < running.ended_at
    known = part >= KNOWN_PART and alive
    return (second.seconds / cold_s if known else float("nan")), cold_s, part


def from_ram(run: Run, model: str) -> Found:
    """There is one slot, and another prompt has taken it meanwhile."""
    with run.server(model, "-np", "1", *ROOMY, "--cache-ram", RAM_MIB) as target:
        warm_up(target, 1)
        n_words = words_for(target, PREFIX_TOKENS)
        for number in run.rounds():
            prefix = Prefix(n_words, ("ram", number))
            cold_s, _ = client.first_token_s(target, prefix.with_tail("first"))
            client.first_token_s(target, Prefix(n_words, ("other", number)).text)
            ratio, part = known_ratio(target, prefix, "second", cold_s)
            yield ratio, cold_s, part


def from_disk(run: Run, model: str) -> Found:
    """The server was stopped and started again with the same --cache-dir."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ("-np", "1", *ROOMY, "--cache-dir", folder, "--cache-disk", "8192")
        for number in run.rounds():
            with run.server(model, *flags) as target:
                warm_up(target, 1)
                prefix = Prefix(words_for(target, PREFIX_TOKENS), ("disk", number))
                cold_s, _ = client.first_token_s(target, prefix.with_tail("first"))
            with run.server(model, *flags) as target:
                warm_up(target, 1)
                ratio, part = known_ratio(target, prefix, "second", cold_s)
            yield ratio, cold_s, part


# ---- the same prefix from many clients at once ----

N_CLIENTS = 16


def shared(run: Run) -> Iterator[Row]:
    """16 clients come at once with the same prefix and different ends."""
    flags = ("-np", str(N_CLIENTS), *ROOMY)
    with run.server("S", *flags) as ours, raw_loop(run.flags("S")) as raw:
        servers = [ours] if run.against is None else [ours, run.against]
        figures, computed = Figures(len(servers)), []
        n_words = words_for(ours, PREFIX_TOKENS)
        for number in run.rounds():
            prefix = Prefix(n_words, ("shared", number))
            texts = [prefix.with_tail(i) for i in range(N_CLIENTS)]
            least = raw.ask("distinct", texts=[rendered(text) for text in texts])["n"]
            for server, target in enumerate(servers):
                calls = [client.chat(target, text, 4) for text in texts]
                client.run_calls(calls)
                n = arithmetic.computed_tokens([call.counts() for call in calls])
                figures.add(server, n / least)
                computed += [n] if server == 0 else []
    words = f"prompt tokens computed / one prefix + the tails; {middle(computed):.0f} computed"
    yield row("shared", figures.ours, words, at_most(1.1), figures.against)


def rendered(text: str) -> str:
    """Return the prompt that make_model.py's chat template makes of one user message."""
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


# ---- a chat that grows ----

N_TURNS = 6
TURN_WORDS = 60


def turns(run: Run) -> Iterator[Row]:
    """Time to first token of the later turns of a chat, with and without what is known of it."""
    with run.server("S", "-np", "2", *ROOMY) as ours:
        servers = [ours] if run.against is None else [ours, run.against]
        figures = Figures(len(servers))
        for target in servers:
            warm_up(target, 1)
        for number in run.rounds():
            for server, target in enumerate(servers):
                figures.add(server, chat_ratio(target, number))
    words = f"first token of turns 3..{N_TURNS} of a chat / the same with cache_prompt false"
    yield row("turns", figures.ours, words, None, figures.against)


def chat_ratio(target: Target, number: int) -> float:
    messages: list[dict[str, str]] = []
    ratios = []
    for turn in range(N_TURNS):
        messages += said(number, turn)
        # In this order: what the other computes would be known to this one.
        with_s, _ = client.first_token_s(target, "", messages=messages)
        without_s, _ = client.first_token_s(target, "", messages=messages, cache_prompt=False)
        ratios.append(with_s / without_s)
    return middle(ratios[2:])


def said(number: int, turn: int) -> Sequence[dict[str, str]]:
    """Return what is new in a turn: the answer to the last, written by us, and a question."""
    question = {"role": "user", "content": prose.words(TURN_WORDS, ("q", number, turn))}
    answer = {"role": "assistant", "content": prose.words(TURN_WORDS, ("a", number, turn))}
    return [answer, question] if turn else [question]


def turns_after_restart(run: Run) -> Iterator[Row]:
    """The next turn after the server was started again with the same --cache-dir."""
    ratios, parts = [], []
    with tempfile.TemporaryDirectory() as folder:
        flags = ("-np", "2", *ROOMY, "--cache-dir", folder)
        for number in run.rounds():
            messages: list[dict[str, str]] = []
            with run.server("S", *flags) as target:
                for turn in range(N_TURNS):
                    messages += said(number, turn)
                    client.first_token_s(target, "", messages=messages)
            messages += said(number, N_TURNS)
            with run.server("S", *flags) as target:
                warm_up(target, 1)
                with_s, counts = client.first_token_s(target, "", messages=messages)
                without_s, _ = client.first_token_s(
                    target, "", messages=messages, cache_prompt=False
                )
            ratios.append(with_s / without_s)
            parts.append(counts["cached_tokens"] / counts["prompt_tokens"])
    words = f"first token of turn {N_TURNS + 1} after a restart / with cache_prompt false"
    yield row("turns-restart", ratios, f"{words}, {middle(parts):.0%} cached")
