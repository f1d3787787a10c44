"""The chat endpoint: what is taken, what is refused in which words, the bytes that go out."""

import json
import random

import pytest

from libloader import core
from libloader.errors import FieldInvalid, FieldUnsupported
from libloader.protocol import chat, sampling

SEEDS = random.Random(7)
HELLO = {"messages": [{"role": "user", "content": "Hello!"}]}


def read(**body):
    return chat.read_request({**HELLO, **body}, seed_source=SEEDS)


def refused(**body):
    with pytest.raises((FieldInvalid, FieldUnsupported)) as caught:
        read(**body)
    return caught.value


def test_a_plain_request_gets_llama_servers_defaults():
    call = read()
    sampling = call.generation.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (
        0.8,
        40,
        0.95,
        0.05,
    )
    assert (call.generation.max_tokens, call.generation.n, call.generation.stop) == (-1, 1, ())


def test_a_clients_zero_is_a_value_and_null_is_absent():
    assert read(temperature=0).generation.sampling.temperature == 0.0
    assert read(temperature=None).generation.sampling.temperature == 0.8


@pytest.mark.parametrize("value", [-1, 1e9, "0.5", True, [], {}])
def test_a_wrong_temperature_is_refused_in_words_that_say_what_is_right(value):
    """D01"""
    error = refused(temperature=value)
    assert (error.param, error.message) == (
        "temperature",
        "temperature must be a number from 0 to 5",
    )


def test_max_completion_tokens_wins_over_max_tokens_and_n_predict_is_an_alias():
    assert read(max_tokens=5, max_completion_tokens=7).generation.max_tokens == 7
    assert read(n_predict=3).generation.max_tokens == 3


@pytest.mark.parametrize("value", [0, -2, 2**31, 2**63, 5.0, "5", True])
def test_a_wrong_max_tokens_is_refused_and_named(value):
    """C03, D04"""
    assert refused(max_tokens=value).param == "max_tokens"


@pytest.mark.parametrize("value", [0, -1, 10**6, 1.0])
def test_a_wrong_number_of_choices_is_refused(value):
    """D03"""
    assert refused(n=value).param == "n"


def test_stop_is_a_string_or_a_short_list_of_strings():
    """D08"""
    assert read(stop="a").generation.stop == ("a",)
    assert read(stop=["a", "bc"]).generation.stop == ("a", "bc")
    for wrong in ("", [""], ["x"] * 65, ["x" * 257], [1], {"a": 1}):
        assert refused(stop=wrong).param.startswith("stop")


@pytest.mark.parametrize(("seed", "kept"), [(0, 0), (5, 5), (2**32 + 5, 5), (2**64 - 2, 2**32 - 2)])
def test_seeds_of_any_size_have_a_defined_meaning(seed, kept):
    """D14"""
    assert read(seed=seed).generation.sampling.seed == kept


def test_an_absent_or_negative_seed_is_drawn():
    """D14"""
    drawn = {read().generation.sampling.seed, read(seed=-1).generation.sampling.seed}
    assert len(drawn) == 2 and all(0 <= seed < 2**32 for seed in drawn)


def test_logit_bias_takes_both_dialects_and_clamps():
    """D07"""
    assert read(logit_bias={"5": 1e308, "6": -1}).generation.sampling.logit_bias == (
        (5, 100.0),
        (6, -1.0),
    )
    biases = read(logit_bias=[[7, False]]).generation.sampling.logit_bias
    assert biases == ((7, float("-inf")),)


@pytest.mark.parametrize("value", [{"-1": 1}, {"abc": 1}, {"5": "x"}, [[1]], 3, {"99999999999": 1}])
def test_a_wrong_logit_bias_is_refused(value):
    """D07"""
    assert refused(logit_bias=value).param.startswith("logit_bias")


@pytest.mark.parametrize("messages", [None, [], "Hello", [1], [None]])
def test_messages_must_be_a_list_of_objects_that_is_not_empty(messages):
    """D09"""
    assert refused(messages=messages).param.startswith("messages")


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"content": "x"}, "messages[0].role"),
        ({"role": {"a": 1}, "content": "x"}, "messages[0].role"),
        ({"role": "robot", "content": "x"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": 5}, "messages[0].content"),
        ({"role": "user", "content": [5]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[0].content[0].type"),
        ({"role": "assistant", "tool_calls": [{}]}, "messages[0].tool_calls[0].function"),
    ],
)
def test_a_broken_message_is_refused_by_its_path(message, param):
    assert refused(messages=[message]).param == param


def test_every_field_refuses_every_wrong_json_type_by_name():
    """C08"""
    samples = [True, 3, 2.5, "text", [[]], {"a": []}]
    rows = (*chat.CHAT_FIELDS, *chat.sampling.SAMPLING_FIELDS, *chat.sampling.GENERATION_FIELDS)
    n_refused = 0
    for row in rows:
        for sample in samples:
            try:
                read(**{row.name: sample})
            except (FieldInvalid, FieldUnsupported) as error:
                n_refused += 1
                assert error.param.startswith((row.name, *row.aliases)), (row.name, sample)
    assert n_refused > 3 * len(rows)


def test_unknown_fields_are_ignored_and_named():
    """C11"""
    assert read(__proto__=1, bogus=2).generation.ignored == ("__proto__", "bogus")


def test_strict_handling_refuses_unknown_fields():
    with pytest.raises(FieldUnsupported) as caught:
        chat.read_request({**HELLO, "bogus": 1}, seed_source=SEEDS, strict=True)
    assert caught.value.param == "bogus"


def test_a_chat_template_in_the_request_is_refused():
    """E14"""
    error = refused(chat_template_kwargs={"chat_template": "x"})
    assert error.param == "chat_template_kwargs.chat_template"


def test_top_logprobs_need_logprobs_and_have_a_limit():
    """D06"""
    assert read(logprobs=True, top_logprobs=20).top_logprobs == 20
    assert read(logprobs=True).top_logprobs == 0
    assert read().top_logprobs == -1
    assert refused(logprobs=True, top_logprobs=21).param == "top_logprobs"
    assert refused(top_logprobs=3).param == "top_logprobs"


def test_the_plain_answer_has_the_documented_shape():
    body = chat.completion(
        id="chatcmpl-1",
        created=5,
        model="pocket",
        choices=[chat.Choice({"role": "assistant", "content": "Hi!"}, "stop")],
        usage=core.Usage(3, 1, 2),
        timings={"prompt_n": 2},
    )
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hi!"},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def test_warnings_are_said_only_if_there_are_any():
    choices = [chat.Choice({"role": "assistant", "content": ""}, "stop")]
    common = {"id": "i", "created": 5, "model": "m", "choices": choices, "timings": {}}
    assert "warnings" not in chat.completion(usage=core.Usage(), **common)
    said = chat.completion(usage=core.Usage(), warnings=("careful",), n_reasoning=2, **common)
    assert said["warnings"] == ["careful"]
    assert said["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}
    first = json.loads(chunks(True).first(0, ("careful",)))
    assert (first["warnings"], first["choices"][0]["index"]) == (["careful"], 0)


def chunks(include_usage=False):
    return chat.Chunks(id="chatcmpl-1", created=5, model="pocket", include_usage=include_usage)


def test_a_text_chunk_is_these_bytes():
    assert chunks().text(0, 'Hé"') == (
        b'{"id":"chatcmpl-1","object":"chat.completion.chunk","created":5,"model":"pocket",'
        b'"choices":[{"index":0,"delta":{"content":"H\xc3\xa9\\""},"finish_reason":null}]}'
    )


def test_every_chunk_is_json_and_says_usage_null_only_when_usage_is_wanted():
    for wanted in (False, True):
        made = chunks(wanted)
        for raw in (made.first(0), made.text(1, "x", {"content": []}), made.delta(0, {}, "stop")):
            chunk = json.loads(raw)
            assert ("usage" in chunk) == wanted
            assert chunk["id"] == "chatcmpl-1"


def test_the_usage_chunk_has_no_choices():
    chunk = json.loads(chunks(True).usage(core.Usage(3, 0, 2), {"predicted_n": 2.0}))
    assert (chunk["choices"], chunk["usage"]["total_tokens"]) == ([], 5)


def test_logprobs_carry_the_bytes_of_split_characters():
    entry = (9, "\xc3", -0.5, ((9, "\xc3", -0.5), (4, "a", -1.5)))
    content = chat.logprobs_dict([entry])["content"][0]
    assert content["bytes"] == [0xC3]
    assert [top["token"] for top in content["top_logprobs"]] == ["\ufffd", "a"]


def test_flags_go_before_the_models_advice_and_that_before_our_defaults():
    found = sampling.defaults_of({"temperature": 0.6, "top_k": 20}, {"top_k": 5})
    assert (found.sampling.temperature, found.sampling.top_k) == (0.6, 5)
    assert found.sampling.min_p == core.Sampling().min_p
    assert found.origins == {"temperature": "model", "top_k": "flag"}


def test_advice_of_a_model_file_that_makes_no_sense_is_not_taken():
    found = sampling.defaults_of({"temperature": -3.0, "top_k": 2.5, "top_p": 0.9}, {})
    assert found.origins == {"top_p": "model"}
    assert found.sampling.temperature == core.Sampling().temperature


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ({"id": 0, "scale": 1}, "lora"),
        ([1], "lora[0]"),
        ([{"scale": 1}], "lora[0].id"),
        ([{"id": -1, "scale": 1}], "lora[0].id"),
        ([{"id": 0}], "lora[0].scale"),
        ([{"id": 0, "scale": "1"}], "lora[0].scale"),
        ([{"id": 0, "scale": 1001}], "lora[0].scale"),
        ([{"id": 0, "scale": 1}, {"id": 0, "scale": 2}], "lora[1].id"),
        ([{"id": i, "scale": 1} for i in range(65)], "lora"),
    ],
)
def test_a_wrong_choice_of_adapters_is_refused_and_named(value, param):
    """D10"""
    with pytest.raises(FieldInvalid) as caught:
        read(lora=value)
    assert caught.value.param == param


def test_adapters_are_chosen_by_number_and_scale():
    given = [{"id": 1, "scale": 0.5, "path": "as listed"}, {"id": 0, "scale": -1}]
    assert read(lora=given).generation.lora == ((1, 0.5), (0, -1.0))
    assert read(lora=[]).generation.lora == ()
    assert read().generation.lora is None
