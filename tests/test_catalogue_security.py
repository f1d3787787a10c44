"""Who can learn what: paths, other clients' prompts, keys in logs, connections outward (G, H11)."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from neighbours import CHAT, FLAGS, Home, chat_body, troubled, wait_for
from serving import POCKET, ROOT, serving
from web_client import Client

pytestmark = [
    pytest.mark.native,
    pytest.mark.usefixtures("native_library"),
    pytest.mark.skipif(sys.platform != "linux", reason="/proc and POSIX signals"),
]

HELLO = "Hello!"
PATHS = (
    "../../../../etc/passwd",
    "..%2f..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/etc/passwd",
    "..%5c..%5cwindows%5cwin.ini",
    "%2fetc%2fpasswd",
    "pocket%00.gguf",
    "CON",
)


def test_no_name_in_a_request_is_a_path(home: Home):
    """G08: the id of a model is the only name there is; it is compared, never opened."""
    with home.watched():
        for path in PATHS:
            with Client(("127.0.0.1", home.port)) as client:
                response = client.request("GET", "/v1/models/" + path)
            assert response.status in (400, 404), path
            assert response.error["type"] == "invalid_request_error"
            assert b"root:" not in response.body
        for name in ("../" * 8 + "etc/passwd", "/etc/passwd", "x\x00y"):
            status, _ = home.ask(HELLO, model=name, max_tokens=1)
            assert status in (200, 400, 404)


def test_no_client_hears_what_another_said(home: Home):
    """G09: 64 clients with a secret each; prefixes are shared, some hang up, the engine dies."""
    secrets = [f"zq{number:03d}x" for number in range(64)]
    with troubled(home) as shared:
        streams = []
        for number, secret in enumerate(secrets):
            text = f"My secret is {secret}. Say my secret: {secret}."
            fields = {"max_tokens": 40, "ignore_eos": True, "temperature": 0.7, "seed": number}
            streams.append(shared.stream(text, **fields))
            if number % 8 == 7:
                streams[-1].leave()
            if number == 40:
                os.kill(shared.engine_pid(), signal.SIGKILL)
        for stream in streams:
            wait_for(lambda stream=stream: stream.is_over)
        heard = {secret: stream.raw.decode() for secret, stream in zip(secrets, streams)}
    for own, answer in heard.items():
        assert not [secret for secret in secrets if secret in answer and secret != own]


def test_what_another_key_has_cached_changes_no_text(home: Home):
    """G10: prefixes are shared between keys, which their timing can show; texts do not."""
    with serving(*FLAGS, "--api-key", "one", "--api-key", "two") as served:
        body = chat_body("Tell me a story.", max_tokens=30)
        answers = [served.post(CHAT, body, {"X-Api-Key": key})[1] for key in ("one", "two")]
        texts = {answer["choices"][0]["message"]["content"] for answer in answers}
        assert len(texts) == 1


def test_keys_and_prompts_stay_out_of_logs_command_lines_and_crashes(home: Home, tmp_path):
    """G11: at the default level, over a crash whose request had a secret in it."""
    keys = tmp_path / "keys"
    keys.write_text("key-canary-1\n")
    prompt = "prompt-canary"
    env = {"IGLLAMA_API_KEY": "key-canary-2", "IGLLAMA_TEST_MODE": "1",
           "IGLLAMA_FAULT": "sample:segv:3:1"}  # fmt: skip
    with serving(*FLAGS, "--api-key-file", keys, env=env) as served:
        guarded = Home(served, home.expected)
        headers = {"Authorization": "Bearer key-canary-1", "X-Trace": "header-canary"}
        assert served.post(CHAT, chat_body(prompt), headers)[0] == 500
        assert served.post(CHAT, chat_body(prompt), headers)[0] == 200
        assert served.post(CHAT, chat_body(prompt), {"X-Api-Key": "wrong-canary"})[0] == 401
        engine = guarded.engine_pid()
        for pid in (guarded.pid, engine):
            assert b"canary" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert b"canary" not in Path(f"/proc/{engine}/environ").read_bytes()
        limits = Path(f"/proc/{engine}/limits").read_text(encoding="ascii")
        core_bytes = re.search(r"Max core file size +(\d+)", limits)
        assert core_bytes and int(core_bytes.group(1)) <= 1
        served.stop()
        wait_for(lambda: served.lines.queue and served.lines.queue[-1] is None)
        log = served.block + guarded.log()
    assert "SIGSEGV" in log
    assert "canary" not in log


def test_nothing_connects_to_anywhere_and_no_name_is_looked_up(home: Home):
    """G12: an audit hook in front and engine ends the process at the first attempt."""
    with troubled(home, figures={"offline": True}) as alone, alone.watched():
        assert alone.ask(HELLO)[0] == 200
        assert alone.served.post("/v1/embeddings", {"input": HELLO})[0] == 200
        assert alone.served.get("/v1/models")[0] == 200
        image = {"type": "image_url", "image_url": {"url": "http://example.invalid/x.png"}}
        assert alone.post(messages=[{"role": "user", "content": [image]}])[0] == 400


def test_the_hook_of_the_case_above_does_bite():
    """G12: planted, a look-up ends the process."""
    code = (
        "import altered, socket, sys; sys.addaudithook(altered.forbid_network); "
        "socket.getaddrinfo('localhost', 80)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "tests", capture_output=True, check=False
    )
    assert done.returncode == 99


def test_health_counts_restarts_and_says_how_the_engine_ended(home: Home):
    """H11: what /metrics counts is in /health for a person."""
    with troubled(home) as broken:
        for number, (name, kill) in enumerate((("SIGKILL", 9), ("SIGSEGV", 11), ("SIGABRT", 6)), 1):
            os.kill(broken.engine_pid(), kill)
            wait_for(lambda number=number: broken.health()["restarts"] == number)
            assert broken.health()["last_exit"] == name
            wait_for(lambda: broken.health()["status"] == "ok")
        body = broken.health()
        assert set(body) == {"status", "model", "running", "waiting", "restarts", "last_exit"}
        assert str(POCKET) not in json.dumps(body)


def test_every_refusal_is_counted_by_its_reason_and_every_answer_by_its_route(home: Home):
    """H11: also what was refused before it was a request."""
    before = metrics_of(home)
    home.served.request("POST", CHAT, b"{")
    home.ask(HELLO, temperature=-1)
    home.served.request("GET", "/nothing/here")
    with socket.create_connection(("127.0.0.1", home.port)) as plug:
        plug.sendall(b"GET / HTTP/9.9\r\n\r\n")
        plug.recv(4096)
    wait_for(lambda: metrics_of(home)['igllama_http_requests_total{route="none",status="505"}'])
    grown = {name: n - before.get(name, 0) for name, n in metrics_of(home).items()}
    assert grown['igllama_http_rejected_total{reason="invalid_json"}'] == 1
    assert grown['igllama_http_rejected_total{reason="invalid_value"}'] == 1
    assert grown[f'igllama_http_requests_total{{route="{CHAT}",status="400"}}'] == 2
    assert grown['igllama_http_requests_total{route="none",status="404"}'] == 1


def test_metrics_are_told_while_the_engine_is_down_and_name_its_end(home: Home):
    """H11"""
    with troubled(home) as broken:
        os.kill(broken.engine_pid(), signal.SIGKILL)
        wait_for(lambda: metrics_of(broken)['igllama_engine_restarts_total{reason="outside"}'] == 1)
        wait_for(lambda: broken.health()["status"] == "ok")
        assert metrics_of(broken)['igllama_engine_state{state="ok"}'] == 1


def metrics_of(home: Home) -> Counter[str]:
    status, headers, raw = home.served.request("GET", "/metrics")
    assert status == 200 and headers["Content-Type"].startswith("text/plain; version=0.0.4")
    lines = [line for line in raw.decode().splitlines() if not line.startswith("#")]
    return Counter({line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines})
