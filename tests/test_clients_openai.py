"""The official Python client against the real server: what its users call works as they call it."""

import openai
import pytest

pytestmark = pytest.mark.native

HELLO = [{"role": "user", "content": "Hello!"}]


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as made:
        yield made


def test_a_chat_answer(client):
    answer = client.chat.completions.create(model="pocket", messages=HELLO, temperature=0)
    assert answer.choices[0].message.content == "Hi!"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_streamed_chat_answer_with_usage(client):
    stream = client.chat.completions.create(
        model="pocket",
        messages=HELLO,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "Hi!"
    assert chunks[-1].usage.completion_tokens >= 1


def test_logprobs_have_the_clients_shape(client):
    answer = client.chat.completions.create(
        model="pocket", messages=HELLO, temperature=0, logprobs=True, top_logprobs=3
    )
    entries = answer.choices[0].logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in entries).decode() == "Hi!"
    for entry in entries:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == pytest.approx(entry.top_logprobs[0].logprob)


def test_embeddings_which_the_client_asks_for_in_base64(client):
    answer = client.embeddings.create(model="pocket", input=["Hello!", "Bye!"])
    assert [item.index for item in answer.data] == [0, 1]
    assert sum(x * x for x in answer.data[0].embedding) == pytest.approx(1.0, abs=1e-4)


def test_models(client):
    assert client.models.list().data[0].id == "pocket"
    assert client.models.retrieve("pocket").id == "pocket"


def test_errors_become_the_clients_exceptions_with_field_and_code(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="pocket", messages=HELLO, temperature=9)
    assert (caught.value.param, caught.value.code) == ("temperature", "invalid_value")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
