"""What the handlers share: the template that fits a request."""

from __future__ import annotations

import os
import random
from types import SimpleNamespace

import pytest

import igllama
from libloader import core, options, service
from libloader.protocol import chat

PLAIN, WITH_TOOLS = "plain {{ messages }}", "tools {{ tools }} {{ messages }}"


def app(*flags, **info):
    status = SimpleNamespace(info=core.ModelInfo(**info))
    parsed = options.parse(["model.gguf", *flags], {})
    return igllama.App(parsed, SimpleNamespace(status=lambda: status))


def test_a_named_template_for_tools_serves_requests_with_tools():
    served = app(chat_template=PLAIN, tool_template=WITH_TOOLS)
    assert served.template().source == PLAIN
    assert served.template(with_tools=True).source == WITH_TOOLS
    assert served.template(with_tools=True) is served.template(with_tools=True)


def test_without_one_all_requests_have_the_same_template():
    served = app(chat_template=PLAIN)
    assert served.template(with_tools=True) is served.template()


def test_a_template_that_the_user_chose_is_for_all(tmp_path):
    path = os.fspath(tmp_path / "own.jinja")
    (tmp_path / "own.jinja").write_text("own {{ messages }}")
    served = app("--chat-template", path, chat_template=PLAIN, tool_template=WITH_TOOLS)
    assert served.template().source == served.template(with_tools=True).source
    assert served.template().source.startswith("own")


def test_what_a_model_file_advises_is_shown_and_used_only_when_asked_for():
    advice = {"temperature": 0.6, "top_k": 20}
    for flags, holds, words in (
        ((), core.Sampling().temperature, "not used without --model-sampling"),
        (("--model-sampling",), 0.6, "(used)"),
        (("--model-sampling", "--temp", "0.2"), 0.2, "(used)"),
    ):
        parsed = options.parse(["model.gguf", *flags], {})
        assert igllama.sampling_defaults(parsed, advice).sampling.temperature == holds
        block = service.start_block("m", core.ModelInfo(), parsed, ["http://x"], advice)
        assert "advice     temperature 0.6, top_k 20" in block and words in block
    assert "advice" not in service.start_block("m", core.ModelInfo(), parsed, ["http://x"], {})


def asked_of_the_engine(path, body=b"", api_key="key1"):
    """Return what the front asks the engine before it reads a body, and stop there."""
    asked = []

    class Refused(Exception):
        pass

    def check_open(*place):
        asked.append(place)
        raise Refused

    served = igllama.App(options.parse(["model.gguf"], {}), SimpleNamespace(check_open=check_open))
    exchange = SimpleNamespace(method="POST", body=body, api_key=api_key)
    with pytest.raises(Refused):
        igllama.bind_routes(served)["POST", path](exchange)
    return asked


def test_room_is_asked_for_by_kind_and_key_before_a_body_is_read():
    assert asked_of_the_engine("/v1/chat/completions", b"{") == [("generate", "key1")]
    assert asked_of_the_engine("/v1/embeddings", b"{", "key2") == [("embed", "key2")]
    assert asked_of_the_engine("/v1/rerank", b"{") == [("embed", "key1")]


def test_what_may_be_a_dry_run_needs_no_slot_and_a_template_alone_no_engine():
    dry = b'{"dry_run": true}'
    assert asked_of_the_engine("/v1/chat/completions", dry) == [("dry_run", "key1")]
    assert asked_of_the_engine("/apply-template", dry) == [("", "key1")]


@pytest.mark.parametrize("is_streamed", [True, False])
def test_the_engine_knows_whether_somebody_watches_the_tokens_come(is_streamed):
    served = app(chat_template="{{ messages[0].content }}")
    body = {"messages": [{"role": "user", "content": "Hi"}], "stream": is_streamed}
    call = chat.read_request(body, seed_source=random.Random(1))
    work = igllama.chat_work(served, SimpleNamespace(api_key=""), call)
    assert work.request.streamed is is_streamed
