"""The embeddings endpoint's JSON, and the models and health bodies."""

import math

import pytest

from libloader import core
from libloader.errors import FieldInvalid, FieldUnsupported, ModelNotFound
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


@pytest.mark.parametrize(("pooling", "hint"), [("none", "/embedding"), ("rank", "/v1/rerank")])
def test_a_pooling_without_one_vector_for_each_input_is_refused_with_the_way_out(pooling, hint):
    with pytest.raises(FieldUnsupported, match=hint):
        embeddings.read_request({"input": "hi"}, pooling=pooling)


def native(values, *, pooling="mean", n_embd=2, **body):
    request = embeddings.read_native({"content": "hi", **body}, pooling=pooling)
    vectors = [embeddings.encode(values)]
    return embeddings.native_answer(request, vectors, n_embd=n_embd, pooling=pooling)


@pytest.mark.parametrize(
    ("normalize", "expected"),
    [(-1, [3.0, -4.0]), (0, [24570.0, -32760.0]), (1, [3 / 7, -4 / 7]), (2, [0.6, -0.8]),
     (1000, [0.75, -1.0])],
)  # fmt: skip
def test_the_native_endpoint_scales_as_asked(normalize, expected):
    (item,) = native([3.0, -4.0], embd_normalize=normalize)
    assert item["index"] == 0
    assert item["embedding"] == [pytest.approx(expected)]


def test_the_native_endpoint_gives_length_one_unless_asked():
    assert native([3.0, -4.0])[0]["embedding"] == [pytest.approx([0.6, -0.8])]


def test_zeros_have_no_direction_and_stay_zeros():
    assert native([0.0, 0.0])[0]["embedding"] == [[0.0, 0.0]]


def test_with_pooling_none_each_token_has_a_vector_as_it_is():
    assert native([1.0, 2.0, 3.0, 4.0], pooling="none") == [
        {"index": 0, "embedding": [[1.0, 2.0], [3.0, 4.0]]}
    ]


def test_the_native_endpoint_has_no_vectors_of_a_model_that_ranks():
    with pytest.raises(FieldUnsupported, match="/v1/rerank"):
        native([1.0], pooling="rank")


@pytest.mark.parametrize("body", [{"content": None}, {"content": ["a", 1.5]}])
def test_the_native_endpoint_names_its_own_field(body):
    with pytest.raises(FieldInvalid) as caught:
        embeddings.read_native(body)
    assert caught.value.param.startswith("content")
