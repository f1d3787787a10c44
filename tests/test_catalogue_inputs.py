"""Hostile and extreme requests to the whole server, with four neighbours beside each (B, D)."""

from __future__ import annotations

import codecs
import json
import math

import gguf_files
import pytest
from neighbours import (
    CHAT,
    ENDLESS,
    MODEL,
    N_TOKENS,
    Home,
    chat_body,
    troubled,
    vitals,
    wait_for,
)
from serving import serving, text_of

from libloader.llama import gguf

pytestmark = [pytest.mark.native, pytest.mark.usefixtures("native_library")]

HELLO = "Hello!"
N_CTX = 256  # of a slot at `small_home`

REFUSED = [
    # case, field that the answer names, fields of the body
    *(("D02", "top_k", {"top_k": k}) for k in (-1, 2**31, 1.5)),
    *(("D02", "top_p", {"top_p": p}) for p in (-0.1, 1.1)),
    *(("D02", "min_p", {"min_p": p}) for p in (-1, 2)),
    *(("D02", "typical_p", {"typical_p": p}) for p in (-1, 1.01)),
    *(("D03", "n", {"n": n}) for n in (0, -1, 10**6)),
    *(("D04", "max_tokens", {"max_tokens": n}) for n in (0, -2, 2**31, 2**63)),
    *(("D05", "repeat_last_n", {"repeat_last_n": n}) for n in (-2, 2**31)),
    *(("D05", "dry_penalty_last_n", {"dry_penalty_last_n": n}) for n in (-2, 2**63)),
    *(("D06", "top_logprobs", {"logprobs": True, "top_logprobs": n}) for n in (21, 10**9, -1)),
    ("D07", "logit_bias.-1", {"logit_bias": {"-1": 1}}),
    ("D07", "logit_bias.abc", {"logit_bias": {"abc": 1}}),
    ("D07", "logit_bias", {"logit_bias": [[5, 1]] * 100_000}),
    *(("D08", "stop", {"stop": ["x"] * n}) for n in (65, 200, 10_000, 200_000)),
    ("D08", "stop", {"stop": ""}),
    ("D08", "stop", {"stop": "x" * 2**20}),
    ("D08", "stop[1]", {"stop": ["x", ""]}),
    ("D09", "messages", {"messages": []}),
    ("D09", "messages", {"messages": None}),
    ("D09", "messages[0]", {"messages": [[]]}),
]


def test_a_value_out_of_range_is_a_400_that_names_its_field(home: Home):
    """D02 D03 D04 D05 D06 D07 D08 D09"""
    with home.watched():
        for case, param, fields in REFUSED:
            status, answer = home.post(**{**chat_body(HELLO), **fields})
            found = (case, status, answer["error"]["type"], answer["error"]["param"])
            assert found == (case, 400, "invalid_request_error", param)


# What is served although it is at the edge.
ACCEPTED = [
    {"top_k": 0},
    {"top_k": 2**31 - 1, "temperature": 1},
    {"top_p": 0, "min_p": 1, "typical_p": 0, "temperature": 1},
    {"logprobs": True, "top_logprobs": 20},
    {"logit_bias": {"5": 1e308}},
    {"messages": [{"role": "user", "content": ""}]},
]


def test_a_value_at_the_edge_is_served(home: Home):
    """D02 D06 D07 D09"""
    with home.watched():
        for fields in ACCEPTED:
            status, answer = home.post(**{**chat_body(HELLO), "max_tokens": 8, **fields})
            assert status == 200, answer
            assert answer["usage"]["completion_tokens"] >= 1


def test_more_choices_than_slots_take_turns_and_all_arrive(home: Home):
    """D03: slots + 1"""
    with home.watched():
        status, answer = home.ask(HELLO, n=9)
    assert status == 200
    assert [choice["index"] for choice in answer["choices"]] == list(range(9))
    assert len({choice["message"]["content"] for choice in answer["choices"]}) == 1


def test_a_huge_penalty_window_takes_no_memory(home: Home):
    """D05"""

    def ask(window: int) -> int:
        fields = {"repeat_last_n": window, "dry_penalty_last_n": window}
        return home.ask(HELLO, **fields, dry_multiplier=0.8, repeat_penalty=1.1, max_tokens=8)[0]

    with home.watched():
        assert ask(64) == 200
        before = engine_bytes(home)
        assert [ask(window) for window in (2**31 - 1, -1, 0)] == [200] * 3
        assert engine_bytes(home) - before <= 10e6


def engine_bytes(home: Home) -> int:
    return vitals(home.engine_pid()).resident_bytes


def test_forbidding_every_token_is_a_400(home: Home):
    """D07: libllama would say token 0 without end."""
    n_vocab = home.served.get("/v1/models")[1]["data"][0]["meta"]["n_vocab"]
    assert n_vocab <= 4096, "more than one request may forbid"
    with home.watched():
        status, answer = home.ask(HELLO, logit_bias=[[t, False] for t in range(n_vocab)])
    assert (status, answer["error"]["param"]) == (400, "logit_bias")


def test_a_bias_beyond_the_vocabulary_is_a_400(home: Home):
    """D07"""
    n_vocab = home.served.get("/v1/models")[1]["data"][0]["meta"]["n_vocab"]
    with home.watched():
        for token in (n_vocab, 2**31 - 1):
            status, answer = home.ask(HELLO, logit_bias={str(token): 1})
            assert (status, answer["error"]["param"]) == (400, "logit_bias")


def test_text_held_back_for_a_stop_string_is_told_at_the_end(home: Home):
    """D08"""
    with home.watched():
        text = home.ask(HELLO)[1]["choices"][0]["message"]["content"]
        events = home.stream(HELLO, stop=[text[-2:] + "and no more"]).events()
    assert text_of(events) == text


# ---- prompts ----


IMPOSSIBLE = [
    *([], [[]], "", [""], [-1], [2**40], [1.5], [[5], [-1]], [None], [True], [10**6]),
    [5] * 300_000,
]


def test_a_prompt_of_no_tokens_or_of_impossible_ones_is_a_400(home: Home):
    """D09 D10: over /v1/embeddings, the endpoint that takes token ids."""
    with home.watched():
        for given in IMPOSSIBLE:
            status, answer = home.served.post("/v1/embeddings", {"input": given})
            error = answer["error"]
            assert (status, error["type"]) == (400, "invalid_request_error"), given[:5]
            assert error["param"].startswith("input"), error


@pytest.fixture(scope="module")
def small_home(home: Home):
    """A server whose slots hold 256 tokens."""
    with troubled(home, "", "-c", str(N_CTX)) as small:
        yield small


def prompt_of(home: Home, n_tokens: int) -> str:
    """A message with which the whole prompt has just so many tokens."""

    def measured(text: str) -> int:
        usage = home.ask(text, max_tokens=1)[1]["usage"]
        return int(usage["prompt_tokens"])

    return "\x01" * (n_tokens - measured("\x01") + 1)  # a byte without merges is one token


def test_a_prompt_may_fill_the_context_but_for_one_token(small_home: Home):
    """D11"""
    with small_home.watched():
        text = prompt_of(small_home, N_CTX - 1)
        status, answer = small_home.ask(text)
        assert (status, answer["usage"]["prompt_tokens"]) == (200, N_CTX - 1)
        assert answer["choices"][0]["finish_reason"] == "length"
        for longer in (text + "\x01", text + "\x01" * 2):
            status, answer = small_home.ask(longer)
            assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")


def test_a_prompt_of_fifty_megabytes_is_refused_unread(home: Home):
    """D11"""
    body = json.dumps(chat_body("x" * 50_000_000)).encode()
    with home.watched():
        status, headers, raw = home.served.request("POST", CHAT, body)
    assert status == 413
    assert json.loads(raw)["error"]["type"] == "invalid_request_error"
    assert headers["Connection"] == "close"


def test_the_end_of_the_context_is_a_finish_reason_and_the_usage_is_right(small_home: Home):
    """D12 D04"""
    fields = {"ignore_eos": True, "stream_options": {"include_usage": True}}
    limits = ({}, {"max_tokens": -1}, {"max_tokens": 2**31 - 1})
    with small_home.watched():
        for stream in [small_home.stream(HELLO, **fields, **limit) for limit in limits]:
            *_, ended, counted, done = stream.events()
            assert done == "[DONE]"
            assert ended["choices"][0]["finish_reason"] == "length"
            usage = counted["usage"]
            assert usage["prompt_tokens"] + usage["completion_tokens"] == N_CTX


# ---- characters of several tokens: the two bytes of an "é", drawn at random ----

SEEDS = range(4)
BYTES = b"\xc3\xa9"


@pytest.fixture(scope="module")
def wild() -> dict[str, object]:
    """Fields with which an answer is the two bytes of BYTES in any order."""
    tokens = gguf.read(str(MODEL)).strings("tokenizer.ggml.tokens")
    ids = [tokens.index(gguf_files.byte_tokens()[byte].encode()) for byte in BYTES]
    return {"logit_bias": {str(token): 100 for token in ids}, "temperature": 5, "top_k": 0,
            "top_p": 1, "min_p": 0, "cache_prompt": False, "max_tokens": 40,
            "logprobs": True}  # fmt: skip


def test_a_character_of_several_tokens_is_told_whole(home: Home, wild):
    """D16: an event holds whole characters; what is no character is told as U+FFFD."""
    with home.watched():
        for seed in SEEDS:
            pieces, deltas = answer_of(home, {**wild, "seed": seed})
            assert split_characters(pieces)
            assert "".join(deltas) == b"".join(pieces).decode("utf-8", "replace")


def test_a_stop_string_that_is_a_split_character_leaves_nothing_of_it(home: Home, wild):
    """D16"""
    for seed in SEEDS:
        text = "".join(answer_of(home, {**wild, "seed": seed})[1])
        cut = "".join(answer_of(home, {**wild, "seed": seed, "stop": ["é"]})[1])
        assert cut == text[: text.index("é")]


def test_hanging_up_inside_a_character_is_no_trouble(home: Home, wild):
    """D16: cut off after any event, what arrived is whole characters."""
    with home.watched():
        for n_events in range(1, 20, 3):
            stream = home.stream(HELLO, **wild, seed=1)
            wait_for(lambda stream=stream, n=n_events: stream.n_events >= n or stream.is_over)
            stream.leave()
            stream.raw.rpartition(b"\n\n")[0].decode("utf-8")


def answer_of(home: Home, fields: dict[str, object]) -> tuple[list[bytes], list[str]]:
    """Return the bytes of each token and the text of each event."""
    events = home.stream(HELLO, **fields).events()[:-1]
    choices = [event["choices"][0] for event in events]
    entries = [e for c in choices if c.get("logprobs") for e in c["logprobs"]["content"]]
    deltas = [choice["delta"].get("content") or "" for choice in choices]
    return [bytes(entry["bytes"]) for entry in entries], deltas


def split_characters(pieces: list[bytes]) -> list[str]:
    """Return the characters that began in one token and ended in another."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    found = []
    for piece in pieces:
        held = decoder.getstate()[0]
        text = decoder.decode(piece)
        if held and text and text[0] != "\ufffd":
            found.append(text[0])
    return found


# ---- too much at once ----


@pytest.fixture(scope="module")
def slow_home(home: Home):
    """Four slots of 50 ms a step, and room for 50 that wait."""
    with troubled(home, "decode:slow", "-np", "4", "--queue", "50") as slow:
        yield slow


@pytest.fixture
def busy(slow_home: Home):
    """`slow_home` with a stream in each slot, which ends with the test."""
    streams = [slow_home.stream(text, **ENDLESS) for text in slow_home.expected]
    wait_for(lambda: all(stream.has_begun() for stream in streams))
    yield streams
    for stream in streams:
        stream.leave()
        said = stream.partial_text()
        assert said.startswith(slow_home.expected[stream.text][: len(said)])
    slow_home.wait_until_free()


def test_who_hangs_up_while_waiting_never_reaches_the_engine(slow_home: Home, busy):
    """B08: all four slots stay with those who have them, from before until after."""
    waiting = [slow_home.stream(f"Wait {n}.", **ENDLESS) for n in range(50)]
    wait_for(lambda: slow_home.health()["waiting"] == 50)
    for stream in waiting:
        stream.leave()
    wait_for(lambda: slow_home.health()["waiting"] == 0)
    assert slow_home.health()["running"] == 4
    assert not any(stream.is_over for stream in busy)
    assert not any(stream.n_events for stream in waiting)


def test_one_more_than_the_queue_holds_is_told_to_come_again(slow_home: Home, busy):
    """B10: at once, while all slots and all places in the queue are taken."""
    waiting = [slow_home.stream(f"Wait {n}.", **ENDLESS) for n in range(50)]
    wait_for(lambda: slow_home.health()["waiting"] == 50)
    status, headers, raw = slow_home.served.request("POST", CHAT, chat_body(HELLO))
    assert (status, json.loads(raw)["error"]["code"]) == (429, "queue_full")
    assert int(headers["Retry-After"]) >= 1
    status, _, raw = slow_home.served.request("POST", CHAT, b"{")
    assert status == 429, "work was spent on a body that cannot be taken"
    assert not any(stream.is_over for stream in busy)
    for stream in waiting:
        stream.leave()


# ---- models and sizes of other kinds ----


def test_a_model_of_nan_weights_is_a_500_with_its_own_code(tmp_path):
    """D15"""
    raw = gguf_files.tiny_llama(norm=math.nan)
    model = gguf_files.write(tmp_path / "nan.gguf", raw)
    with serving("-t", "1", model=model) as served:
        status, answer = served.post(CHAT, chat_body(HELLO))
        assert (status, answer["error"]["code"]) == (500, "nan_logits")
        assert served.get("/health")[1]["restarts"] == 0


def test_a_full_cache_lets_the_youngest_wait_and_nobody_fails(home: Home):
    """D13: eight streams of 200 tokens in 1,024 cells that all of them share."""
    with troubled(home, "", "--kv-unified", "on", figures={"n_cells": 1024}) as cramped:
        fields = {"max_tokens": N_TOKENS, "ignore_eos": True}
        streams = [cramped.stream(text, **fields) for text in [*home.expected] * 2]
        for stream in streams:
            assert text_of(stream.events()) == home.expected[stream.text]
        assert cramped.health()["restarts"] == 0


@pytest.fixture(scope="module")
def long_home(home: Home):
    """Slots that hold as much as the model was trained for."""
    with troubled(home, "", "-c", "4096") as roomy:
        yield roomy


def test_a_long_prompt_does_not_stop_the_streams(long_home: Home):
    """D18, without a clock: each neighbour gets several tokens while the prompt is computed."""
    with long_home.watched() as watch:
        long = long_home.stream("\x01" * 1500, max_tokens=1)
        before = watch.n_events()
        wait_for(long.has_begun)
        gained = [now - then for now, then in zip(watch.n_events(), before)]
        assert long.events()[-1] == "[DONE]"
    print(f"D18: neighbours got {gained} events during a prefill of 1,500 tokens")
    assert min(gained) >= 4


def test_hanging_up_during_the_prefill_ends_it_there(long_home: Home):
    """D19: the same prompt again finds a part of itself in the cache, not the whole."""
    prompt = "\x02" * 3000
    with long_home.watched():
        long = long_home.stream(prompt, max_tokens=1)
        wait_for(lambda: long_home.health()["running"] == 5)
        long.leave()
        wait_for(lambda: long_home.health()["running"] <= 4)
        usage = long_home.ask(prompt, max_tokens=1)[1]["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"] - 1
