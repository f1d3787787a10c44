"""Choices, dry runs and rendered prompts over HTTP, on a real library and the pocket model."""

import json

import pytest
from serving import serving

pytestmark = pytest.mark.native

CHAT = "/v1/chat/completions"
LABELS = ["Hi!", "Hello!", "No", "No way", "Nothing at all", "1", "🙂"]


def shares(choice):
    return [row["probability"] for row in choice["choice_probs"]]


def test_the_answer_is_one_of_the_labels_with_probabilities_of_all(server):
    answer = server.chat("Hello!", choices=LABELS)
    choice = answer["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "Hi!"}
    assert choice["finish_reason"] == "stop"
    assert [row["choice"] for row in choice["choice_probs"]] == LABELS
    assert sum(shares(choice)) == pytest.approx(1.0)
    assert shares(choice)[0] == max(shares(choice))
    assert 0.0 < choice["choice_coverage"] <= 1.0
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens"] == server.chat("Hello!")["usage"]["prompt_tokens"]


def test_a_label_has_the_chances_of_its_own_tokens(server):
    """`Hi!` is what the model says by itself: its logprobs add up to the label's share."""
    free = server.chat("Hello!", logprobs=True)["choices"][0]["logprobs"]["content"]
    choice = server.chat("Hello!", choices=["Hi!"], logprobs=True)["choices"][0]
    told = choice["logprobs"]["content"]
    assert [entry["id"] for entry in told] == [entry["id"] for entry in free]
    assert [e["logprob"] for e in told] == pytest.approx([e["logprob"] for e in free], abs=2e-3)
    assert shares(choice) == [1.0]


def test_a_label_that_begins_with_another_takes_only_from_that_one(server):
    alone = server.chat("Hello!", choices=["Hi", "Hello"])["choices"][0]
    more = server.chat("Hello!", choices=["Hi", "Hello", "Hi!"])["choices"][0]
    ratio = shares(more)[1] / (shares(more)[0] + shares(more)[1] + shares(more)[2])
    assert ratio == pytest.approx(shares(alone)[1], rel=0.02)
    assert more["message"]["content"] == "Hi!"


def test_a_temperature_draws_by_seed_and_choices_differ(server):
    fields = {"choices": LABELS, "temperature": 5, "n": 12}
    texts = [
        [c["message"]["content"] for c in server.chat("Hello!", seed=seed, **fields)["choices"]]
        for seed in (7, 7, 8)
    ]
    assert texts[0] == texts[1]
    assert set(texts[0]) <= set(LABELS)
    assert len(set(texts[0] + texts[2])) > 1


def test_a_streamed_choice_is_the_plain_one(server):
    plain = server.chat("Hello!", choices=LABELS, logprobs=True)["choices"][0]
    events = server.stream(
        "Hello!", choices=LABELS, logprobs=True, stream_options={"include_usage": True}
    )
    assert events[-1] == "[DONE]"
    text = [e["choices"][0]["delta"].get("content") for e in events[:-2]]
    assert "".join(filter(None, text)) == plain["message"]["content"]
    (end,) = [e["choices"][0] for e in events[:-2] if e["choices"][0]["finish_reason"]]
    assert shares(end) == pytest.approx(shares(plain), abs=2e-3)
    assert events[-2]["usage"]["completion_tokens"] == len(plain["logprobs"]["content"])


def test_a_label_that_looks_like_a_call_or_a_thought_is_content(server):
    labels = ["<think>a</think>", '<tool_call>\n{"name": "f"}\n</tool_call>', "<|im_end|>"]
    tool = {"type": "function", "function": {"name": "f"}}
    for label in labels:
        message = server.chat("Hello!", choices=[label], tools=[tool])["choices"][0]["message"]
        assert message == {"role": "assistant", "content": label}


def test_wrong_choices_are_a_400_that_names_the_field(server):
    body = {"messages": [{"role": "user", "content": "Hello!"}]}
    for fields, param in (
        ({"choices": ["a", "a"]}, "choices[1]"),
        ({"choices": ["a"], "grammar": 'root ::= "a"'}, "grammar"),
    ):
        status, answer = server.post(CHAT, {**body, **fields})
        assert (status, answer["error"]["param"]) == (400, param)


def test_a_grammar_leaves_logprobs_the_models_own(server):
    free = server.chat("Hello!", logprobs=True, top_logprobs=1, max_tokens=1)["choices"][0]
    forced = server.chat(
        "Hello!", grammar='root ::= "zq"', logprobs=True, top_logprobs=1, max_tokens=1
    )["choices"][0]
    (own,), (other,) = free["logprobs"]["content"], forced["logprobs"]["content"]
    assert other["top_logprobs"][0]["id"] == own["id"]
    assert other["id"] != own["id"]
    assert other["logprob"] < other["top_logprobs"][0]["logprob"]


# ---- rendered prompts and dry runs ----


def test_apply_template_gives_the_prompt_that_a_chat_request_gets(server):
    body = {"messages": [{"role": "user", "content": "Hello!"}]}
    status, answer = server.post("/apply-template", body)
    assert status == 200
    assert "Hello!" in answer["prompt"]
    assert answer["prompt"] == server.chat("Hello!", dry_run=True)["prompt"]
    _, without = server.post("/apply-template", {**body, "add_generation_prompt": False})
    assert answer["prompt"].startswith(without["prompt"])
    assert len(answer["prompt"]) > len(without["prompt"])


def test_apply_template_shows_tools_and_refuses_what_chat_refuses(server):
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {}}}
    body = {"messages": [{"role": "user", "content": "Hello!"}], "tools": [tool]}
    assert "get_weather" in server.post("/apply-template", body)[1]["prompt"]
    status, answer = server.post("/apply-template", {"messages": []})
    assert (status, answer["error"]["param"]) == (400, "messages")


def test_a_dry_run_says_what_the_request_would_meet(server):
    real = server.chat("Tell me a story.", max_tokens=3)
    body = server.chat("Tell me a story.", max_tokens=3, top_k=7, dry_run=True, stream=True)
    assert body["object"] == "dry_run"
    assert body["prompt_tokens"] == real["usage"]["prompt_tokens"]
    assert body["cached_tokens"]["kv"] == real["usage"]["prompt_tokens"] - 1
    assert (body["fits"], body["max_tokens"]) == (True, 3)
    rows = body["parameters"]
    assert rows["top_k"] == {"value": 7, "from": "request"}
    assert rows["max_tokens"] == {"value": 3, "from": "request"}
    assert rows["min_p"]["from"] == "default"
    assert rows["chat_template"] == {"value": "the model file", "from": "model"}
    assert rows["n_ctx_slot"] == {"value": body["n_ctx_slot"], "from": "model"}


def test_a_dry_run_shows_the_grammar_in_force_and_what_it_cannot_say(server):
    schema = {"type": "integer", "not": {"const": 5}}
    body = server.chat("Hello!", json_schema=schema, dry_run=True, what=1)
    assert "root ::=" in body["grammar"]
    assert body["warnings"][0].startswith("not at #")
    assert body["ignored"] == ["what"]


def test_a_dry_run_of_what_is_too_long_says_so(server):
    body = server.chat("one two three " * 1000, dry_run=True)
    assert body["fits"] is False
    assert body["prompt_tokens"] > body["n_ctx_slot"]


def test_flags_are_named_as_where_a_value_comes_from():
    with serving("-t", "1", "-c", "256", "--no-think", "--timeout", "50", "--top-k", "3") as own:
        rows = own.chat("Hello!", dry_run=True)["parameters"]
        assert rows["n_ctx_slot"] == {"value": 256, "from": "flag"}
        assert rows["enable_thinking"] == {"value": False, "from": "flag"}
        assert rows["top_k"] == {"value": 3, "from": "flag"}
        assert rows["timeout"] == {"value": 50.0, "from": "flag"}
        rows = own.chat("Hello!", dry_run=True, timeout=9, enable_thinking=True)["parameters"]
        assert rows["timeout"]["from"] == rows["enable_thinking"]["from"] == "request"


def test_a_label_is_read_behind_the_channel_of_the_content():
    with serving("-t", "1", "--tool-format", "harmony") as own:
        free = own.chat("Hello!", dry_run=True)
        body = own.chat("Hello!", choices=["a", "b"], dry_run=True)
        assert body["prompt"] == free["prompt"] + "<|channel|>final<|message|>"
        assert body["parameters"]["tool_format"] == {"value": "harmony", "from": "flag"}
        assert own.chat("Hello!", choices=["a", "b"])["choices"][0]["message"]["content"] in (
            "a",
            "b",
        )


def test_a_thinking_models_label_is_read_behind_its_thought(server):
    body = server.chat("Hello!", choices=["a"], dry_run=True)
    plain = server.chat("Hello!", dry_run=True, enable_thinking=False)
    assert body["prompt"] == plain["prompt"]
    assert json.dumps(body["parameters"]["choices"]) == '{"value": ["a"], "from": "request"}'
