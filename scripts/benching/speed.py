"""Rows of throughput: tokens or texts per second over HTTP, as ratios."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from benching import arithmetic, client, processes, prose
from benching.arithmetic import middle
from benching.client import Call, Load, Target
from benching.common import Figures, RowMaker, Run, Sides, warm_up
from benching.table import Goal, Row, at_least, at_most, row

N_TOKENS = 128  # of each stream
PROMPT_WORDS = 12
USUAL_PROMPT = 29  # tokens of so many words in a chat
SAMPLED = {"temperature": None, "seed": 7}  # the server's defaults: 0.8, top-k, top-p, min-p
GRAMMAR = {
    "type": "json_schema",
    "json_schema": {
        "name": "note",
        "schema": {
            "type": "object",
            "properties": {"text": {"type": "string"}},
            "required": ["text"],
            "additionalProperties": False,
        },
    },
}


# ---- streams against the raw loop: against the mean of the loops before and after them ----


def streams(n_streams: int, model: str, goal: float = 0.0, **fields: Any) -> RowMaker:
    """Make the rows of `n_streams` at once, streamed and plain."""
    wanted = at_least(goal) if goal else None
    name = f"streams-{n_streams}{'-sampled' if fields else ''} {model}"

    def rows(run: Run) -> Iterator[Row]:
        if model in run.models:
            yield from streams_rows(run, model, name, n_streams, wanted, fields)

    return rows


def streams_rows(
    run: Run, model: str, name: str, n_streams: int, goal: Goal | None, fields: Mapping[str, Any]
) -> Iterator[Row]:
    n_servers = 1 if run.against is None else 2
    streamed, plain = Figures(n_servers), Figures(n_servers)
    rates: list[tuple[float, float]] = []
    cpu: list[float] = []
    for sides, numbers in run.pairs(model, "-np", str(n_streams), "-c", "512"):
        for target in sides.servers:
            warm_up(target, n_streams, **fields)
        raw_decode(sides, n_streams, USUAL_PROMPT, 8, fields)
        compared = Compared(sides, n_streams, run.tokens(N_TOKENS), fields)
        for number in numbers:
            for server, target in enumerate(sides.servers):
                served, alone = compared.streams(target, number)
                streamed.add(server, served.rate / alone.rate)
                plain.add(server, compared.plain(target, number))
                if server == 0:
                    rates.append((served.rate, alone.rate))
                    cpu.append(alone.cpu_s / served.cpu_s if served.cpu_s else float("nan"))
    ours, alone_rate = (middle(column) for column in zip(*rates))
    words = f"tok/s streamed / raw loop: {ours:.0f} of {alone_rate:.0f}"
    words += f"; CPU of the raw loop / of the engine child {middle(cpu):.3f}"
    yield row(name, streamed.ours, words, goal, streamed.against)
    words = "whole plain answers / raw prefill + decode"
    yield row(f"{name} plain", plain.ours, words, goal, plain.against)


class Compared:
    """Answers of a server, each with the mean of the raw loops before and after it."""

    def __init__(
        self, sides: Sides, n_streams: int, n_tokens: int, fields: Mapping[str, Any]
    ) -> None:
        self._sides, self._fields = sides, fields
        self._n_streams, self._n_tokens = n_streams, n_tokens
        self._before = self._alone(USUAL_PROMPT)

    def streams(self, target: Target, number: int) -> tuple[Served, Raw]:
        texts = self._texts(number)
        served = served_streams(target, texts, self._n_tokens, self._fields)
        return served, self._around(served.n_prompt)

    def plain(self, target: Target, number: int) -> float:
        """Return the ratio of whole answers."""
        texts = self._texts("plain", number)
        n_prompt, rate = served_plain(target, texts, self._n_tokens, self._fields)
        return rate / self._around(n_prompt).whole_rate

    def _texts(self, *seed: object) -> list[str]:
        return [prose.words(PROMPT_WORDS, (*seed, i)) for i in range(self._n_streams)]

    def _around(self, n_prompt: int) -> Raw:
        before, self._before = self._before, self._alone(n_prompt)
        return Raw(*(middle(pair) for pair in zip(before, self._before)))

    def _alone(self, n_prompt: int) -> Raw:
        return raw_decode(self._sides, self._n_streams, n_prompt, self._n_tokens, self._fields)


class Served(NamedTuple):
    n_prompt: int  # tokens of one prompt
    rate: float  # tok/s while streams come
    cpu_s: float  # of all processes behind the front


class Raw(NamedTuple):
    rate: float  # tok/s of decoding alone
    whole_rate: float  # with its prefill
    cpu_s: float


def served_streams(
    target: Target, texts: Sequence[str], n_tokens: int, fields: Mapping[str, Any]
) -> Served:
    clock = processes.CpuClock(processes.family(target.pid)[1:] if target.pid else [])
    calls = [client.chat(target, text, n_tokens, **fields) for text in texts]
    client.run_calls(calls)
    cpu_s = clock.elapsed_s()
    counts = [call.counts() for call in calls]
    n_each = [each["completion_tokens"] for each in counts]
    rate = arithmetic.rate_while_it_comes([call.text_times() for call in calls], n_each)
    return Served(counts[0]["prompt_tokens"], rate, cpu_s)


def served_plain(
    target: Target, texts: Sequence[str], n_tokens: int, fields: Mapping[str, Any]
) -> tuple[int, float]:
    """Return (tokens of one prompt, tok/s of whole answers)."""
    calls = [client.chat(target, text, n_tokens, stream=False, **fields) for text in texts]
    elapsed_s = client.run_calls(calls)
    counts = [call.counts() for call in calls]
    return counts[0]["prompt_tokens"], sum(each["completion_tokens"] for each in counts) / elapsed_s


def raw_decode(
    sides: Sides, n_streams: int, n_prompt: int, n_tokens: int, fields: Mapping[str, Any]
) -> Raw:
    clock = processes.CpuClock([sides.raw.pid])
    body = client.chat_body("x", n_tokens, **fields)
    times = sides.raw.ask(
        "decode", n_streams=n_streams, n_prompt=n_prompt, n_tokens=n_tokens, body=body
    )
    decode_s, whole_s = times["decode_s"], times["prefill_s"] + times["decode_s"]
    rates = n_streams * (n_tokens - 1) / decode_s, n_streams * n_tokens / whole_s
    return Raw(*rates, clock.elapsed_s())


# ---- ragged arrivals ----

RAGGED_SLOTS = 16
FULL_POINTS = (2, 4, 6, 8, 10, 12, 16)  # numbers of streams whose full-batch step is measured


def ragged(run: Run) -> Iterator[Row]:
    """16 clients with random lengths and pauses, so that about half of the slots are idle."""
    with run.server("S", "-np", str(RAGGED_SLOTS), "-c", "512") as ours:
        servers = [ours] if run.against is None else [ours, run.against]
        figures, n_busy = Figures(len(servers)), []
        for number in run.rounds():
            for server, target in enumerate(servers):
                full = {n: full_step_s(run, target, n) for n in FULL_POINTS}
                arrivals = ragged_arrivals(run, target, number, full[RAGGED_SLOTS // 2])
                ratio, busy = arithmetic.ragged_ratio(arrivals, full)
                figures.add(server, ratio)
                n_busy += [busy] if server == 0 else []
    words = (
        f"time per step / full-batch step of as many, {middle(n_busy):.1f} of {RAGGED_SLOTS} busy"
    )
    yield row("ragged", figures.ours, words, at_most(1.1), figures.against)


def full_step_s(run: Run, target: Target, n_streams: int) -> float:
    """Return the time of a step with `n_streams` that came together and stay together."""
    n_tokens = run.tokens(40)
    texts = [prose.words(PROMPT_WORDS, ("full", n_streams, i)) for i in range(n_streams)]
    calls = [client.chat(target, text, n_tokens) for text in texts]
    client.run_calls(calls)
    n_each = [call.counts()["completion_tokens"] for call in calls]
    return n_streams / arithmetic.rate_while_it_comes([call.text_times() for call in calls], n_each)


def ragged_arrivals(run: Run, target: Target, seed: int, step_s: float) -> list[arithmetic.Arrival]:
    """Let each client ask, rest about as long as its answer took, and ask again."""
    rng = random.Random(seed)
    n_left = [run.tokens(12) // 2 for _ in range(RAGGED_SLOTS)]
    client_of: dict[int, int] = {}

    def ask(number: int) -> Call:
        text = prose.words(PROMPT_WORDS, (seed, number, n_left[number]))
        call = client.chat(target, text, rng.randint(12, 60))
        client_of[id(call)] = number
        return call

    def go_on(call: Call) -> None:
        number = client_of[id(call)]
        n_left[number] -= 1
        if n_left[number] > 0:
            load.add_later(rng.uniform(12, 60) * step_s, lambda: ask(number))

    load = Load(go_on)
    for number in range(RAGGED_SLOTS):
        load.add_later(rng.uniform(0, 60) * step_s, lambda number=number: ask(number))
    load.run()
    return [(when, client_of[id(call)]) for call in load.calls for when in call.text_times()]


# ---- slots that only remember ----

IDLE_SLOTS, IDLE_WORDS = 3, 1000


def idle_slots(run: Run) -> Iterator[Row]:
    """One stream beside finished prompts of 1,000 words in the other slots / in an empty cache."""
    ratios = []
    n_tokens = run.tokens(N_TOKENS)
    for number in run.rounds():
        with run.server("S", "-np", str(IDLE_SLOTS + 1), "-c", "4096") as target:
            warm_up(target, 1)
            alone = stream_rate(target, prose.words(PROMPT_WORDS, (number, "a")), n_tokens)
            for i in range(IDLE_SLOTS):
                client.first_token_s(target, prose.words(IDLE_WORDS, (number, i)))
            beside = stream_rate(target, prose.words(PROMPT_WORDS, (number, "b")), n_tokens)
        ratios.append(alone / beside)
    words = f"time of one stream's token, {IDLE_SLOTS} other slots keep {IDLE_WORDS} words each"
    yield row("idle-slots", ratios, f"{words} / the cache is empty")


# ---- one server's flag or field against the same without ----


def grammar(run: Run) -> Iterator[Row]:
    """Constrained against free output: a JSON string that the model fills as it likes."""
    model = "M" if "M" in run.models else "S"
    n_tokens = run.tokens(N_TOKENS)
    with run.server(model, "-np", "1", "-c", "512") as ours:
        servers = [ours] if run.against is None else [ours, run.against]
        figures = Figures(len(servers))
        for target in servers:
            warm_up(target, 1, response_format=GRAMMAR)
        for number in run.rounds():
            for server, target in enumerate(servers):
                text = prose.words(PROMPT_WORDS, number)
                free = stream_rate(target, text, n_tokens)
                bound = stream_rate(target, text, n_tokens, response_format=GRAMMAR)
                figures.add(server, bound / free)
    words = f"tok/s under a JSON schema / free, one stream of {n_tokens}"
    yield row(f"grammar {model}", figures.ours, words, at_least(0.95), figures.against)


def stream_rate(target: Target, text: str, n_tokens: int, **fields: Any) -> float:
    call = client.chat(target, text, n_tokens, **fields)
    client.run_calls([call])
    return rate_of(call)


def rate_of(call: Call) -> float:
    n = call.counts()["completion_tokens"]
    return arithmetic.rate_while_it_comes([call.text_times()], [n])


WITH_LOOKUP, WITHOUT_LOOKUP = ("--lookup",), ()
LOOKUP_TOKENS = 256
# Random weights repeat nothing for long, so a grammar makes them copy a line of the prompt; at a
# high temperature nothing comes twice. To the model both are the same work.
COPY = f'root ::= "{prose.LINE}"*'
LOOKUP_KINDS: tuple[tuple[str, float, dict[str, Any], str], ...] = (
    ("lookup repetitive", 1.8, {"grammar": COPY}, "a line of the prompt, again and again"),
    ("lookup varied", 0.97, {"temperature": 1.5, "seed": 11, "top_k": 0, "top_p": 1, "min_p": 0},
     "text without repetition"),
)  # fmt: skip


def lookup(run: Run) -> Iterator[Row]:
    """Prompt lookup on against off, on text that repeats itself and on text that does not."""
    model = "M" if "M" in run.models else "S"
    flags = ("-np", "1", "-c", "1024")
    with (
        run.server(model, *flags, *WITH_LOOKUP) as on,
        run.server(model, *flags, *WITHOUT_LOOKUP) as off,
    ):
        for target in (on, off):
            warm_up(target, 1)
        for name, goal, fields, what in LOOKUP_KINDS:
            ratios, accepted = [], []
            for number in run.rounds():
                text = f"{number} {prose.LINE * 2}{prose.repetitive(12)}"
                with_it = client.chat(on, text, LOOKUP_TOKENS, **fields)
                client.run_calls([with_it])
                accepted.append(with_it.counts()["draft_n_accepted"] / LOOKUP_TOKENS)
                without = stream_rate(off, text, LOOKUP_TOKENS, **fields)
                ratios.append(rate_of(with_it) / without)
            words = f"tok/s with lookup / without, {what}; {middle(accepted):.0%} were guessed"
            yield row(f"{name} {model}", ratios, words, at_least(goal))


# Random weights agree with no other model, so these go the same walk (make_model.py), the draft
# model from eight in ten tokens. A walk repeats nothing, and no two of its logits are nearly equal.
# The gain is the machine's: 1.3 where a batch of four rows costs twice one of one row.
DRAFT_MODELS = ("MW", "DW", "D")
DRAFT_TOKENS = 256
DRAFT_KINDS = (
    ("draft agreeing", 1.1, "DW", "right eight times in ten"),
    ("draft stranger", 0.97, "D", "never right"),
)


def draft(run: Run) -> Iterator[Row]:
    """A draft model against none: one that mostly agrees, and one that never does."""
    if "MW" not in run.models:
        return
    flags = ("-np", "1", "-c", "1024")
    with run.server("MW", *flags) as without:
        warm_up(without, 1)
        for name, goal, model, what in DRAFT_KINDS:
            with run.server("MW", *flags, "--model-draft", run.models[model]) as with_it:
                warm_up(with_it, 1)
                ratios, counts = draft_ratios(run, with_it, without)
            words = f"tok/s with a draft model / without, {what}; of {DRAFT_TOKENS} tokens "
            words += " accepted, drafted ".join(f"{middle(column):.0f}" for column in zip(*counts))
            yield row(f"{name} M", ratios, words, at_least(goal))


def draft_ratios(
    run: Run, with_it: Target, without: Target
) -> tuple[list[float], list[tuple[int, int]]]:
    """Return of each repeat the ratio, and (tokens accepted, tokens drafted)."""
    ratios, counts = [], []
    for number in run.rounds():
        text = prose.words(PROMPT_WORDS, number)
        drafted, plain = (answered(target, text) for target in (with_it, without))
        ratios.append(rate_of(drafted) / rate_of(plain))
        if drafted.text != plain.text:
            raise SystemExit(f"drafting changed the text: {drafted.text!r}, not {plain.text!r}")
        n_of = drafted.counts()
        counts.append((n_of["draft_n_accepted"], n_of["draft_n"]))
    return ratios, counts


def answered(target: Target, text: str) -> Call:
    call = client.chat(target, text, DRAFT_TOKENS)
    client.run_calls([call])
    return call


# ---- embeddings ----


def embeddings(n_texts: int, n_words: int, goal: float = 0.0) -> RowMaker:
    """Make the rows of one request with `n_texts` inputs against the raw packed loop."""
    wanted = at_least(goal) if goal else None

    def rows(run: Run) -> Iterator[Row]:
        with run.sides("S", "-np", "4", "-c", "512") as sides:
            for form in ("base64", "float"):
                yield embeddings_row(run, sides, n_texts, n_words, form, wanted)

    return rows


def embeddings_row(
    run: Run, sides: Sides, n_texts: int, n_words: int, form: str, goal: Goal | None
) -> Row:
    figures = Figures(len(sides.servers))
    for target in sides.servers:
        embeddings_ratio(sides, target, ["warm", "up"], form)
    for number in run.rounds():
        texts = [prose.words(n_words, (number, i)) for i in range(n_texts)]
        for server, target in enumerate(sides.servers):
            figures.add(server, embeddings_ratio(sides, target, texts, form))
    words = f"texts/s over HTTP / raw packed loop, {n_texts} texts of {n_words} words, {form}"
    return row(f"embeddings-{n_texts} {form}", figures.ours, words, goal, figures.against)


def embeddings_ratio(sides: Sides, target: Target, texts: list[str], form: str) -> float:
    call = Call(target, "/v1/embeddings", {"input": texts, "encoding_format": form})
    served_s = client.run_calls([call])
    if call.data.count(b'"embedding":') != len(texts):
        raise SystemExit(f"no embeddings: {call.data[:600]!r}")
    raw_s: float = sides.raw.ask("embed", texts=texts)["seconds"]
    return raw_s / served_s
