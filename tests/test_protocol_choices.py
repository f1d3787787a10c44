"""The fields `choices` and `dry_run`, and what their answers look like."""

import math
import random

import pytest

from libloader import core
from libloader.errors import FieldInvalid
from libloader.protocol import chat, choices, dry_run

HELLO = [{"role": "user", "content": "Hello!"}]
TOOL = {"type": "function", "function": {"name": "f"}}


def read(**body):
    return chat.read_request({"messages": HELLO, **body}, seed_source=random.Random(1))


@pytest.mark.parametrize("name", ["choices", "guided_choice"])
def test_labels_are_read_under_both_names(name):
    assert read(**{name: ["yes", "no"]}).labels == ("yes", "no")
    assert read().labels == ()


@pytest.mark.parametrize(
    ("labels", "param"),
    [
        ([], "choices"),
        ("yes", "choices"),
        (["yes", ""], "choices[1]"),
        (["yes", 1], "choices[1]"),
        (["yes", "no", "yes"], "choices[2]"),
        (["yes", "\ud800"], "choices[1]"),
        (["yes", "x" * 513], "choices[1]"),
        ([str(n) for n in range(257)], "choices"),
    ],
)
def test_wrong_labels_are_refused_by_their_place(labels, param):
    with pytest.raises(FieldInvalid) as caught:
        read(choices=labels)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"json_schema": {}}, "json_schema"),
        ({"grammar": 'root ::= "a"'}, "grammar"),
        ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
    ],
)
def test_what_else_shapes_the_answer_excludes_choices(fields, param):
    with pytest.raises(FieldInvalid) as caught:
        read(choices=["a"], **fields)
    assert caught.value.param == param


def test_tools_that_need_not_be_called_may_be_there():
    assert read(choices=["a"], tools=[TOOL]).labels == ("a",)


def test_fields_that_mean_nothing_for_a_choice_are_named_as_ignored():
    call = read(choices=["a"], top_p=0.5, temperature=0.3, seed=4, stop="x", max_tokens=3, n=2)
    assert set(call.generation.ignored) == {"top_p", "stop", "max_completion_tokens"}
    assert read(top_p=0.5).generation.ignored == ()


def test_probabilities_add_up_to_one_and_coverage_is_their_sum_before_that():
    shown = choices.probabilities(("a", "b"), (math.log(0.3), math.log(0.1)))
    assert [row["choice"] for row in shown["choice_probs"]] == ["a", "b"]
    assert [row["probability"] for row in shown["choice_probs"]] == pytest.approx([0.75, 0.25])
    assert shown["choice_coverage"] == pytest.approx(0.4)


def test_probabilities_of_the_very_unlikely_are_still_numbers():
    shown = choices.probabilities(("a", "b", "c"), (-2000.0, -2001.0, -1e4))
    assert sum(row["probability"] for row in shown["choice_probs"]) == pytest.approx(1.0)
    assert shown["choice_coverage"] == 0.0


def test_n_probs_is_llama_servers_name_for_logprobs():
    assert read(n_probs=5).top_logprobs == 5
    assert read(n_probs=5, logprobs=True, top_logprobs=2).top_logprobs == 2
    assert read(n_probs=0).top_logprobs == -1


# ---- dry runs ----


def dry(n_prompt=12, n_ctx=100, prompts=None, **body):
    wanted = read(dry_run=True, **body).generation
    prompts = prompts or (core.Prompt(segments=(("<|im_start|>", True), ("Hello!", False))),)
    request = core.Request("r", "generate", prompts, sampling=wanted.sampling)
    sizes = (n_prompt, n_ctx, n_ctx - n_prompt)
    found = [core.DryRunEvent("r", i, *sizes, (("ram", 7),)) for i in range(len(prompts))]
    return dry_run.answer(
        request,
        wanted,
        found,
        model="m",
        settings={"timeout": dry_run.Setting(60.0, "flag")},
        origins={"min_p": "model", "temperature": "flag"},
        warnings=["w"],
    )


def test_a_dry_run_shows_prompt_tokens_cache_and_room():
    body = dry()
    assert (body["object"], body["model"]) == ("dry_run", "m")
    assert body["prompt"] == "<|im_start|>Hello!"
    assert (body["prompt_tokens"], body["n_ctx_slot"], body["fits"]) == (12, 100, True)
    assert body["cached_tokens"] == {"kv": 0, "ram": 7, "disk": 0}
    assert body["max_tokens"] == 88
    assert (body["warnings"], body["grammar"]) == (["w"], None)


def test_a_dry_run_of_a_prompt_that_is_too_long_says_that_it_does_not_fit():
    body = dry(n_prompt=100)
    assert (body["fits"], body["max_tokens"]) == (False, 0)


def test_a_dry_run_says_where_each_value_comes_from():
    rows = dry(temperature=0.5, logit_bias={"5": -100}, unknown=1)["parameters"]
    assert rows["temperature"] == {"value": 0.5, "from": "request"}
    assert rows["top_k"] == {"value": 40, "from": "default"}
    assert rows["seed"] == {"value": -1, "from": "default"}
    assert rows["min_p"]["from"] == "model"
    assert dry()["parameters"]["temperature"]["from"] == "flag"
    assert rows["timeout"] == {"value": 60.0, "from": "flag"}
    assert rows["logit_bias"] == {"value": [[5, -100.0]], "from": "request"}
    assert "grammar" not in rows
    assert dry(unknown=1)["ignored"] == ["unknown"]


def test_a_forbidden_token_is_shown_as_llama_server_writes_it():
    rows = dry(logit_bias=[[5, False]])["parameters"]
    assert rows["logit_bias"]["value"] == [[5, False]]


def test_several_prompts_are_shown_one_by_one():
    prompts = (core.Prompt(tokens=(1, 2)), core.Prompt(segments=(("b", False),)))
    assert [row["prompt"] for row in dry(prompts=prompts)["prompts"]] == [[1, 2], "b"]
