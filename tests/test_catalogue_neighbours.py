"""The catalogue's own harness: a neighbour that is hurt is noticed."""

from __future__ import annotations

import json
import os
import signal
import sys
from email.message import Message

import pytest
from neighbours import Home, check_health, troubled, wait_for


@pytest.mark.native
@pytest.mark.usefixtures("native_library")
def test_one_other_character_in_one_stream_is_noticed(home: Home):
    question, text = next(iter(home.expected.items()))
    other = Home(home.served, {**home.expected, question: text[:-1] + "?"})
    with pytest.raises(AssertionError), other.watched():
        pass


@pytest.mark.native
@pytest.mark.usefixtures("native_library")
@pytest.mark.skipif(sys.platform != "linux", reason="POSIX signals")
def test_a_server_that_ends_beside_its_neighbours_is_noticed(home: Home):
    with troubled(home) as mortal, pytest.raises((OSError, AssertionError)), mortal.watched():
        os.kill(mortal.pid, signal.SIGKILL)
        wait_for(lambda: mortal.served.process.poll() is not None)


def answer(code: int, **changes: object) -> tuple[int, Message, bytes]:
    """An answer of /health that is right for `code`, with changes."""
    headers = Message()
    headers["Content-Type"] = "application/json"
    if code != 200:
        headers["Retry-After"] = "1"
    word = "ok" if code == 200 else "restarting"
    body = {"status": word, "running": 0, "waiting": 0, "restarts": 0, **changes}
    return code, headers, json.dumps(body).encode()


def test_right_answers_of_health_pass():
    assert check_health(*answer(200)) == "ok"
    assert check_health(*answer(503)) == "restarting"


@pytest.mark.parametrize(
    "wrong",
    [
        answer(200, status="restarting"),
        answer(503, status="ok"),
        answer(200, restarts=None),
        answer(503, running="many"),
        (503, answer(200)[1], answer(503)[2]),  # no Retry-After
    ],
)
def test_a_wrong_answer_of_health_is_noticed(wrong):
    with pytest.raises(AssertionError):
        check_health(*wrong)
