"""The embeddings endpoint's JSON, and the models and health bodies."""

import math

import pytest

from libloader import core
from libloader.errors import FieldInvalid, ModelNotFound
from libloader.protocol import embeddings, models


def read(**body):
    return embeddings.read_request(body, n_embd=8)


@pytest.mark.parametrize(
    ("value", "prompts"),
    [
        ("hi", (core.Prompt(segments=(("hi", False),)),)),
        (
            ["a", "b"],
            (core.Prompt(segments=(("a", False),)), core.Prompt(segments=(("b", False),))),
        ),
        ([1, 2], (core.Prompt(tokens=(1, 2), add_special=False),)),
        ([[1], [2, 3]], tuple(core.Prompt(tokens=t, add_special=False) for t in ((1,), (2, 3)))),
    ],
)
def test_input_is_text_or_token_ids_one_or_many(value, prompts):
    assert read(input=value).prompts == prompts


@pytest.mark.parametrize(
    "value", [None, "", [], [[]], [""], [1.5], [-1], [2**31], [True, "x"], {"a": 1}, ["a"] * 2049]
)
def test_a_wrong_input_is_refused_and_named(value):
    """D10"""
    with pytest.raises(FieldInvalid) as caught:
        read(input=value)
    assert caught.value.param.startswith("input")


@pytest.mark.parametrize("value", [0, 9, 2.0])
def test_dimensions_are_at_most_the_models_own(value):
    with pytest.raises(FieldInvalid) as caught:
        read(input="x", dimensions=value)
    assert caught.value.param == "dimensions"


VECTOR = embeddings.encode([0.6, 0.8, 0.0, 0.0])


def test_base64_vectors_pass_through_and_float_vectors_are_decoded():
    coded = embeddings.answer(
        read(input="x", encoding_format="base64"), [VECTOR], model="m", n_prompt=2
    )
    plain = embeddings.answer(read(input="x"), [VECTOR], model="m", n_prompt=2)
    assert coded["data"][0] == {"object": "embedding", "index": 0, "embedding": VECTOR}
    assert plain["data"][0]["embedding"] == pytest.approx([0.6, 0.8, 0.0, 0.0])
    assert plain["usage"] == {"prompt_tokens": 2, "total_tokens": 2}


def test_fewer_dimensions_are_normalised_again():
    body = embeddings.answer(read(input="x", dimensions=1), [VECTOR], model="m", n_prompt=2)
    vector = body["data"][0]["embedding"]
    assert len(vector) == 1 and math.isclose(vector[0], 1.0)


def test_health_is_ok_only_when_the_model_is_loaded():
    assert models.health(core.EngineStatus(state="ok"))[1]["model"] == "loaded"
    ok, body = models.health(core.EngineStatus(state="loading", progress=0.25))
    assert (ok, body["status"], body["progress"]) == (False, "loading model", 0.25)


@pytest.mark.parametrize("state", ["restarting", "stalled", "failed", "draining"])
def test_health_says_what_is_wrong_and_no_more(state):
    """G06, H06"""
    status = core.EngineStatus(state=state, restarts=3, last_exit="SIGSEGV", detail="/secret/path")
    ok, body = models.health(status)
    assert (ok, body["status"], body["restarts"], body["last_exit"]) == (False, state, 3, "SIGSEGV")
    assert "secret" not in str(body)


def test_an_unknown_model_is_named_beside_the_known_one():
    with pytest.raises(ModelNotFound, match="'other'.*'pocket'"):
        models.find_model("other", "pocket", 1, None)
    assert models.find_model("pocket", "pocket", 1, None)["object"] == "model"
