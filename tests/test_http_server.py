"""The other endpoints, start-up and shut-down, on a real library and the pocket model."""

import os
import signal
import subprocess
import sys

import pytest
from serving import POCKET, ROOT, serving
from web_client import wait_until

from libloader.protocol import embeddings

pytestmark = pytest.mark.native


def vector(server, text, **fields):
    status, answer = server.post("/v1/embeddings", {"input": text, **fields})
    assert status == 200, answer
    return answer["data"][0]["embedding"]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


def test_health_is_ok_once_the_model_is_loaded(server):
    status, body = server.get("/health")
    assert (status, body["status"], body["model"]) == (200, "ok", "loaded")


def test_the_model_is_listed_and_found_by_its_id(server):
    listed = server.get("/v1/models")[1]["data"][0]
    assert listed["id"] == "pocket"
    assert server.get("/v1/models/pocket")[1]["id"] == "pocket"
    status, answer = server.get("/v1/models/other")
    assert (status, answer["error"]["code"]) == (404, "model_not_found")


def test_help_at_the_root_pastes_as_it_is(server):
    status, headers, body = server.request("GET", "/")
    assert (status, headers.get_content_type()) == (200, "text/plain")
    assert f"curl {server.url}/v1/chat/completions".encode() in body


def test_embeddings_are_normalised_and_the_same_in_both_encodings(server):
    plain = vector(server, "Hello!")
    coded = embeddings.decode(vector(server, "Hello!", encoding_format="base64"))
    assert dot(plain, plain) == pytest.approx(1.0, abs=1e-4)
    assert coded == pytest.approx(plain, abs=1e-5)


def test_embeddings_keep_the_order_of_their_inputs(server):
    texts = ["Hello!", "What is the capital of France?", "one two three"]
    answer = server.post("/v1/embeddings", {"input": texts})[1]
    assert [d["index"] for d in answer["data"]] == [0, 1, 2]
    for item, text in zip(answer["data"], texts):
        assert dot(item["embedding"], vector(server, text)) == pytest.approx(1.0, abs=1e-3)


def test_embeddings_take_token_ids(server):
    status, answer = server.post("/v1/embeddings", {"input": [[5, 6, 7], [8]]})
    assert (status, len(answer["data"]), answer["usage"]["prompt_tokens"]) == (200, 2, 4)


def test_a_token_id_outside_the_vocabulary_is_a_400(server):
    """D10"""
    status, answer = server.post("/v1/embeddings", {"input": [10**6]})
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/v1/chat/completions", 405), ("PUT", "/health", 405)],
)
def test_unknown_paths_and_wrong_methods_are_json_errors_with_cors(server, method, path, status):
    got, headers, body = server.request(method, path)
    assert (got, headers.get_content_type()) == (status, "application/json")
    assert headers["Access-Control-Allow-Origin"] == "*"
    assert (headers["Allow"] is not None) == (status == 405)
    assert b'"error"' in body


def test_a_404_says_where_the_urls_are_listed(server):
    status, answer = server.post("/chat/completions", {})
    meant = "(did you mean /v1/chat/completions?); GET / lists what there is"
    assert (status, answer["error"]["code"]) == (404, "unknown_url")
    assert answer["error"]["message"] == f"unknown URL: /chat/completions {meant}"


def test_options_is_answered_on_everything(server):
    status, headers, _ = server.request("OPTIONS", "/v1/chat/completions")
    assert status == 204
    assert headers["Access-Control-Allow-Methods"] == "GET, POST, OPTIONS"


def test_the_start_block_names_library_layout_model_and_a_curl_line(server):
    for word in ("library", "layout", "model", "context", "memory", "listening", "curl http"):
        assert word in server.block


def test_an_api_key_is_required_everywhere_but_at_health():
    with serving("--api-key", "secret") as server:
        assert server.get("/health")[0] == 200
        status, answer = server.get("/v1/models")
        assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        assert server.get("/v1/models", {"Authorization": "Bearer secret"})[0] == 200
        assert server.get("/v1/models", {"X-Api-Key": "secret"})[0] == 200


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_hangup_reads_the_key_file_again_and_sigterm_ends_with_0(tmp_path):
    """H03"""
    keys = tmp_path / "keys"
    keys.write_text("old\n")
    with serving("--api-key-file", keys) as server:
        keys.write_text("new\n")
        server.process.send_signal(signal.SIGHUP)
        new = {"Authorization": "Bearer new"}
        wait_until(lambda: server.get("/v1/models", new)[0] == 200)
        assert server.stop() == 0


def test_the_engine_in_a_thread_gives_the_same_answers():
    with serving("--isolation", "none") as server:
        assert server.chat("Hello!")["choices"][0]["message"]["content"] == "Hi!"


def run(*arguments, **kwargs):
    command = [sys.executable, str(ROOT / "igllama.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **kwargs)


def test_show_describes_a_file_without_a_library():
    done = run("show", POCKET, env={**os.environ, "IGLLAMA_LIB": "/nowhere"})
    assert done.returncode == 0
    assert "llama" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["bogus"],
        ["api"],
        ["api", "m.gguf", "--bogus"],
        ["api", "m.gguf", "-p", "x"],
        ["api", "m.gguf", "-fa", "perhaps"],
        ["show"],
    ],
)
def test_wrong_usage_is_one_clear_line_and_exit_code_2(arguments):
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("igllama: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + b"\xff" * 64, b"<html>"])
def test_a_broken_model_file_is_one_clear_line_and_exit_code_1(tmp_path, content):
    """F07"""
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    for command in ("api", "show"):
        done = run(command, path)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert "broken.gguf" in done.stderr


def test_help_lists_the_host_as_dash_h():
    done = run("--help")
    assert done.returncode == 0
    assert "-h HOST" in done.stdout.replace("--host, ", "") or "--host, -h" in done.stdout


def test_an_option_can_come_from_the_environment():
    done = run("api", "m.gguf", env={**os.environ, "IGLLAMA_PORT": "x"})
    assert done.returncode == 2
    assert "IGLLAMA_PORT" in done.stderr
