"""--context-shift over HTTP, on the pocket model."""

from __future__ import annotations

import pytest
from serving import serving

pytestmark = pytest.mark.native
FLAGS = ("-c", "128", "-np", "2", "-t", "1")


@pytest.fixture(scope="module")
def shifting():
    with serving("--context-shift", *FLAGS) as server:
        yield server


def test_an_answer_goes_on_over_the_end_of_its_context_and_says_so(shifting):
    answer = shifting.chat("Tell me a story.", max_tokens=300, ignore_eos=True)
    assert answer["usage"]["completion_tokens"] == 300
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["timings"]["context_shifts"] > 2 and answer["timings"]["truncated"] is True


def test_what_was_shifted_changes_no_later_answer(shifting):
    before = shifting.chat("Count to five.", max_tokens=30)
    shifting.chat("Count to five.", max_tokens=300, ignore_eos=True, n_keep=-1)
    after = shifting.chat("Count to five.", max_tokens=30)
    assert after["choices"] == before["choices"]
    assert "context_shifts" not in after["timings"]


def test_n_keep_is_a_whole_number_from_minus_one(shifting):
    body = {"messages": [{"role": "user", "content": "Hi"}], "n_keep": -2}
    status, answer = shifting.post("/v1/chat/completions", body)
    assert (status, answer["error"]["param"]) == (400, "n_keep")


def test_without_the_flag_the_answer_ends_with_its_context():
    with serving(*FLAGS) as server:
        answer = server.chat("Tell me a story.", max_tokens=300, ignore_eos=True)
    assert answer["usage"]["total_tokens"] == 128
    assert answer["choices"][0]["finish_reason"] == "length"
