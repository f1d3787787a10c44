"""Models that only embed or rank, small and random, on the real library: engine and server."""

from __future__ import annotations

import array
import base64
import contextlib
import os

import gguf_files
import pytest
from serving import POCKET, serving

from libloader.core import EmbeddingEvent, EngineSettings, Prompt, Request, RequestFailed
from libloader.engine.build import build_engine
from libloader.errors import ModelLoadFailed

pytestmark = pytest.mark.native

CLS, SEP, HELLO, WORLD, A, B = 2, 3, 5, 6, 7, 8


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    bodies = {
        "bert": gguf_files.tiny_bert(gguf_files.POOLING_CLS),
        "ranker": gguf_files.tiny_bert(gguf_files.POOLING_RANK, ranks=True),
    }
    return {name: gguf_files.write(folder / f"{name}.gguf", body) for name, body in bodies.items()}


@contextlib.contextmanager
def engine_of(path, **settings):
    lib = os.environ.get("IGLLAMA_LIB", "")
    engine = build_engine(EngineSettings(model=path, lib=lib, n_threads=1, **settings))
    try:
        yield engine
    finally:
        engine.close()


def embed(engine, *prompts, **fields):
    """Return the vectors of a request by index, or its error."""
    engine.submit(Request("a", "embed", prompts, **fields))
    events = []
    while not engine.idle:
        events += engine.step()
    errors = [event.error for event in events if isinstance(event, RequestFailed)]
    found = {e.index: floats(e.vector) for e in events if isinstance(e, EmbeddingEvent)}
    return errors[0] if errors else [found[index] for index in sorted(found)]


def floats(encoded):
    return array.array("f", base64.b64decode(encoded)).tolist()


def tokens(*ids):
    return Prompt(tokens=ids, add_special=False)


def text(words):
    return Prompt(segments=((words, False),))


def pair(query, document):
    return Prompt(segments=((query, False), (document, False)), is_pair=True)


def near(vector):
    return pytest.approx(vector, abs=2e-3)


def test_each_input_gets_the_vector_it_gets_alone_whatever_is_packed_with_it(paths):
    inputs = [tokens(CLS, *[A, B, HELLO][:n], SEP) for n in range(4)] * 12
    with engine_of(paths["bert"]) as engine:
        alone = [embed(engine, item)[0] for item in inputs[:4]]
        packed = embed(engine, *inputs)
    assert packed == [near(alone[number % 4]) for number in range(len(inputs))]
    assert alone[0] != near(alone[1])


def test_an_input_may_have_all_tokens_that_the_model_was_trained_on(paths):
    """Although --ubatch-size is smaller: pooling sees one micro-batch, so that is raised."""
    longest = gguf_files.N_CTX
    with engine_of(paths["bert"], n_batch=64, n_ubatch=64) as engine:
        assert engine.info.n_ctx_slot == longest
        assert len(embed(engine, tokens(*[A] * longest))[0]) == gguf_files.N_EMBD
        error = embed(engine, tokens(*[A] * (longest + 1)))
    assert error["name"] == "PromptTooLong" and str(longest) in error["message"]


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_pooling_is_as_asked(paths, pooling, native_library):
    if pooling == "mean" and native_library.hazard("mean_pooling"):
        pytest.skip("this build aborts on mean pooling")
    given = tokens(CLS, A, B, SEP)
    with engine_of(paths["bert"], pooling="none") as engine:
        assert engine.info.pooling == "none"
        flat = embed(engine, tokens(CLS, SEP), given)[1]
    rows = [flat[at : at + gguf_files.N_EMBD] for at in range(0, len(flat), gguf_files.N_EMBD)]
    assert len(rows) == 4
    means = [sum(column) / 4 for column in zip(*rows)]
    expected = {"mean": means, "cls": rows[0], "last": rows[-1]}[pooling]
    with engine_of(paths["bert"], pooling=pooling) as engine:
        assert embed(engine, given, raw_vectors=True)[0] == near(expected)


def test_a_ranker_scores_each_pair_and_its_scores_are_not_brought_to_length_one(paths):
    with engine_of(paths["ranker"]) as engine:
        assert (engine.info.pooling, engine.info.generates) == ("rank", False)
        documents = ["a", "b", "a b", "hello world", "world"]
        together = embed(engine, *[pair("hello", document) for document in documents])
        alone = [embed(engine, pair("hello", document))[0] for document in documents]
    assert [len(score) for score in together] == [1] * 5
    assert together == [near(score) for score in alone]
    assert not all(abs(abs(score[0]) - 1) < 1e-3 for score in together)


def test_a_pair_is_put_together_as_llama_cpp_does(paths):
    with engine_of(paths["ranker"]) as engine:
        by_hand = embed(engine, tokens(CLS, HELLO, SEP, A, B))
        assert embed(engine, pair("hello", "a b")) == [near(by_hand[0])]


def test_what_a_user_types_is_no_control_token(paths):
    with engine_of(paths["ranker"]) as engine:
        typed = embed(engine, pair("hello", "[SEP] a"))[0]
        by_hand = embed(engine, tokens(CLS, HELLO, SEP, SEP, A))[0]
    assert typed != near(by_hand)


def test_a_model_without_a_classifier_cannot_be_made_to_rank(paths):
    for path in (paths["bert"], str(POCKET)):
        with pytest.raises(ModelLoadFailed, match="classifier"), engine_of(path, pooling="rank"):
            pass


RERANK_TEMPLATE = "<|im_start|>Query: {query} Document: {document}<|im_end|>"


def test_a_model_that_writes_text_may_rank_too_by_its_own_template(native_library, tmp_path):
    if not native_library.has("version"):
        pytest.skip("this build does not know such a model")
    model = gguf_files.write(tmp_path / "q.gguf", gguf_files.tiny_qwen_ranker(RERANK_TEMPLATE))
    with serving("-t", "1", "-c", "256", model=model) as served:
        body = {"query": "hello", "documents": ["world", "other <|im_end|>", "third"]}
        status, answer = served.post("/v1/rerank", body)
        scores = [result["relevance_score"] for result in answer["results"]]
        assert status == 200 and len(set(scores)) == 3
        assert all(0 < score < 1 for score in scores) and scores == sorted(scores, reverse=True)
        assert served.chat("hello", max_tokens=4)["usage"]["completion_tokens"] > 0


@pytest.fixture(scope="module")
def ranker(paths):
    with serving("-t", "1", model=paths["ranker"]) as served:
        yield served


@pytest.mark.parametrize("path", ["/v1/rerank", "/v1/reranking", "/rerank", "/reranking"])
def test_documents_are_ranked_under_all_names(ranker, path):
    body = {"query": "hello", "documents": ["a", "b", "a b", "world"], "top_n": 3}
    status, answer = ranker.post(path, body)
    assert status == 200
    scores = [result["relevance_score"] for result in answer["results"]]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    assert answer["usage"]["prompt_tokens"] == 4 * 3 + 5  # [CLS] query [SEP] and the words


def test_a_ranker_refuses_vectors_and_text_with_the_way_out(ranker):
    for path, body, hint in (
        ("/v1/embeddings", {"input": "a"}, "/v1/rerank"),
        ("/embedding", {"content": "a"}, "/v1/rerank"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}, "embeddings"),
    ):
        status, answer = ranker.post(path, body)
        assert status == 400 and hint in answer["error"]["message"]


def test_a_server_that_ranks_says_so_when_it_starts(ranker):
    assert "/v1/rerank" in ranker.block


def test_a_generating_model_refuses_to_rank_and_names_the_flag(server):
    status, answer = server.post("/v1/rerank", {"query": "a", "documents": ["b"]})
    assert status == 400 and "--pooling rank" in answer["error"]["message"]


def test_the_native_endpoint_gives_the_vector_of_openais(server):
    status, answer = server.post("/embedding", {"content": ["Hello!", [5, 6]]})
    assert status == 200 and [item["index"] for item in answer] == [0, 1]
    coded = server.post("/v1/embeddings", {"input": "Hello!"})[1]["data"][0]["embedding"]
    assert answer[0]["embedding"] == [near(coded)]


def test_without_pooling_only_the_native_endpoint_answers():
    with serving("-t", "1", "--pooling", "none", "-c", "256") as served:
        status, answer = served.post("/embedding", {"content": [5, 6, 7]})
        assert (status, len(answer[0]["embedding"])) == (200, 3)
        status, answer = served.post("/v1/embeddings", {"input": "Hello!"})
        assert status == 400 and "/embedding" in answer["error"]["message"]
        assert served.chat("Hello!", max_tokens=4)["choices"]
