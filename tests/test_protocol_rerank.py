"""The rerank endpoint's JSON: two shapes in, two shapes out."""

import pytest

from libloader import core
from libloader.errors import FieldInvalid, FieldUnsupported
from libloader.protocol import embeddings, rerank

DOCUMENTS = ["cats purr", "dogs bark", "fish swim"]


def read(**body):
    return rerank.read_request({"query": "who barks?", **body})


def answer(request, scores=(0.5, 2.0, -1.0)):
    return rerank.answer(request, [embeddings.encode([s]) for s in scores], model="m", n_prompt=9)


def test_the_best_document_comes_first_with_its_place_in_the_request():
    body = answer(read(documents=DOCUMENTS))
    assert body == {
        "object": "list",
        "model": "m",
        "results": [
            {"index": 1, "relevance_score": 2.0},
            {"index": 0, "relevance_score": 0.5},
            {"index": 2, "relevance_score": -1.0},
        ],
        "usage": {"prompt_tokens": 9, "total_tokens": 9},
    }


def test_only_the_best_are_told_and_their_text_if_asked():
    body = answer(read(documents=DOCUMENTS, top_n=1, return_documents=True))
    assert body["results"] == [
        {"index": 1, "relevance_score": 2.0, "document": {"text": "dogs bark"}}
    ]


def test_texts_are_answered_as_text_embeddings_inference_does():
    body = answer(read(texts=DOCUMENTS, return_text=True, top_n=2))
    assert body == [
        {"index": 1, "score": 2.0, "text": "dogs bark"},
        {"index": 0, "score": 0.5, "text": "cats purr"},
    ]


def test_equal_scores_keep_the_order_of_the_documents():
    body = answer(read(documents=DOCUMENTS), scores=(1.0, 1.0, 1.0))
    assert [result["index"] for result in body["results"]] == [0, 1, 2]


def test_documents_may_be_objects():
    request = read(documents=[{"text": "a", "title": "x"}, "b"])
    assert request.documents == ("a", "b")


def test_an_empty_document_is_ranked_like_any_other():
    assert read(documents=["", "b"]).documents == ("", "b")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"documents": DOCUMENTS, "query": ""}, "query"),
        ({"documents": DOCUMENTS, "query": None}, "query"),
        ({"documents": DOCUMENTS, "query": 5}, "query"),
        ({}, "documents"),
        ({"documents": []}, "documents"),
        ({"documents": "a"}, "documents"),
        ({"documents": ["a"] * 2049}, "documents"),
        ({"documents": ["a", 5]}, "documents[1]"),
        ({"documents": [{"title": "x"}]}, "documents[0].text"),
        ({"texts": [None]}, "texts[0]"),
        ({"documents": DOCUMENTS, "top_n": 0}, "top_n"),
        ({"documents": DOCUMENTS, "return_documents": 1}, "return_documents"),
    ],
)
def test_a_wrong_field_is_refused_and_named(body, param):
    """D10"""
    with pytest.raises(FieldInvalid) as caught:
        rerank.read_request({"query": "q", **body})
    assert caught.value.param == param


def test_a_model_that_does_not_rank_says_how_to_get_one_that_does():
    with pytest.raises(FieldUnsupported, match="--pooling rank"):
        rerank.read_request({"query": "q", "documents": ["d"]}, pooling="mean")


def test_without_a_template_query_and_document_are_a_pair():
    assert rerank.prompts(read(documents=["d"]), "") == (
        core.Prompt(segments=(("who barks?", False), ("d", False)), is_pair=True),
    )


def test_a_models_own_template_is_trusted_and_what_the_client_sent_is_not():
    (prompt,) = rerank.prompts(read(documents=["{query}"]), "<s>{query}</s>{document}!{query}")
    assert prompt == core.Prompt(
        segments=(
            ("<s>", True), ("who barks?", False), ("</s>", True), ("{query}", False), ("!", True),
            ("who barks?", False),
        ),
        add_special=False,
    )  # fmt: skip
