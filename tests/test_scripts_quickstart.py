"""quickstart.py: fetch if nothing is found, then become the server."""

from __future__ import annotations

import subprocess
import sys

import pytest

from scripts import quickstart

SERVER = [sys.executable, str(quickstart.ROOT / "igllama.py"), "api"]


class Became(Exception):
    """Stands for the moment when the process turns into the server."""


@pytest.fixture
def calls(monkeypatch):
    """Record what is run; `calls.returncode` is the fetch script's answer."""

    class Calls(list):
        returncode = 0

        def run(self, command):
            self.append(command)
            return subprocess.CompletedProcess(command, self.returncode)

        def execv(self, program, command):
            assert program == command[0]
            self.append(command)
            raise Became

    recorded = Calls()
    monkeypatch.setattr(quickstart.subprocess, "run", recorded.run)
    monkeypatch.setattr(quickstart.os, "execv", recorded.execv)
    return recorded


def test_a_missing_library_is_fetched_and_the_pocket_model_served(calls):
    with pytest.raises(Became):
        quickstart.main([])
    fetch, serve = calls
    assert fetch[1:] == [str(quickstart.ROOT / "scripts" / "fetch_libllama.py"), "--if-missing"]
    assert serve == [*SERVER, str(quickstart.POCKET_MODEL)]


def test_without_a_library_nothing_is_served(calls):
    calls.returncode = 1
    assert quickstart.main(["--port", "9000"]) == 1
    assert len(calls) == 1


def test_a_library_that_is_named_is_not_fetched(calls):
    with pytest.raises(Became):
        quickstart.main(["--lib=/opt/llama"])
    assert calls == [[*SERVER, str(quickstart.POCKET_MODEL), "--lib=/opt/llama"]]


@pytest.mark.parametrize(
    ("arguments", "added"),
    [
        (["--port", "9000"], [str(quickstart.POCKET_MODEL)]),
        (["mine.gguf", "-c", "512"], []),
        (["-m", "mine"], []),
        (["--model=mine"], []),
    ],
)
def test_flags_are_passed_on_and_a_model_of_ones_own_is_served(arguments, added):
    assert quickstart.serve_command(arguments) == [*SERVER, *added, *arguments]


def test_the_model_that_is_served_lies_in_the_repository():
    assert quickstart.POCKET_MODEL.relative_to(quickstart.ROOT).as_posix() == (
        "tests/models/pocket.gguf"
    )
