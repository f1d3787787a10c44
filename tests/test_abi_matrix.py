"""The matrix: its table and verdict, a build that dies, and a real build through all of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf_files
import pytest

from scripts import abi_matrix
from scripts.abi_matrix import Row

GOOD = {"release": "b1", "text": "Hi!", "margins": (2.0, 3.0), "vector": (1.0, 0.0)}


def test_builds_that_agree_pass_and_the_table_says_so():
    rows = [Row("3.1.1", **GOOD), Row("3.22.1", **GOOD)]
    assert abi_matrix.passed(rows)
    lines = abi_matrix.table(rows)
    assert lines[1].startswith("3.1.1") and "same" in lines[1] and "1.000000" in lines[1]
    assert "2 of 2 builds work; 2 of 2 give the text" in lines


def test_a_build_that_says_something_else_is_named_with_how_close_it_was():
    odd = Row("3.1.1", **{**GOOD, "text": "Ho!", "margins": (2.0, 0.001)})
    rows = [odd, Row("3.22.1", **GOOD)]
    assert not abi_matrix.passed(rows)
    (line,) = [line for line in abi_matrix.table(rows) if line.startswith("3.1.1 differs")]
    assert "after 'H'" in line and "token 2, with 0.0010 against 3.0000" in line


def test_another_vector_is_named_but_another_rounding_is_not():
    close = Row("3.1.1", **{**GOOD, "vector": (0.999999, 0.001)})
    other = Row("3.2.0", **{**GOOD, "vector": (0.6, 0.8)})
    text = "\n".join(abi_matrix.table([close, other, Row("3.22.1", **GOOD)]))
    assert "3.2.0: its embedding differs" in text and "3.1.1: its" not in text


def test_a_failed_build_is_a_row_and_fails_the_run():
    rows = [Row("3.1.1", error="signal 6: GGML_ASSERT"), Row("3.22.1", **GOOD)]
    assert not abi_matrix.passed(rows)
    assert "1 of 2 builds work" in "\n".join(abi_matrix.table(rows))
    assert not abi_matrix.passed([])


def test_a_row_survives_its_trip_between_processes():
    row = Row("3.1.1", **GOOD)
    assert abi_matrix.row_from(json.loads(json.dumps(row._asdict()))) == row


def test_versions_are_run_oldest_first():
    versions = ["3.10.0", "3.9.0", "3.22.1", "3.1.1", "local"]
    ordered = ["local", "3.1.1", "3.9.0", "3.10.0", "3.22.1"]
    assert sorted(versions, key=abi_matrix._version_key) == ordered


def test_a_process_that_dies_leaves_its_last_words_in_the_table(tmp_path):
    row = abi_matrix.run("3.1.1", tmp_path, tmp_path / "no-model.gguf")
    assert row.error.startswith("exit code 1: LibraryNotFound: no usable libllama")


def test_without_builds_nothing_is_run(tmp_path, capsys):
    assert abi_matrix.main(["--builds", str(tmp_path)]) == 2
    assert "holds no builds" in capsys.readouterr().err


@pytest.fixture
def model(tmp_path):
    return gguf_files.write(tmp_path / "tiny.gguf", gguf_files.tiny_llama())


@pytest.mark.native
def test_the_installed_build_runs_through_the_matrix(native_library, model, tmp_path, capsys):
    (tmp_path / "builds").mkdir()
    (tmp_path / "builds" / "here").symlink_to(os.path.dirname(native_library.path))
    options = ["--builds", str(tmp_path / "builds"), "-m", str(model), "here"]
    assert abi_matrix.main(options) == 0
    assert "1 of 1 builds work; 1 of 1 give the text" in capsys.readouterr().out


# --- hazards of old builds, on the builds that lie in the matrix's folder ---

BUILDS = Path(os.environ.get("IGLLAMA_BUILDS", Path(tempfile.gettempdir(), "igllama-builds")))
HERE = sorted(p.name for p in BUILDS.glob("*") if p.is_dir())

BROKEN_GRAMMARS = ("root ::= (", 'foo ::= "a"', 'root ::= root "a"', "root ::= bar")
TRY_GRAMMARS = """
import json, sys
from libloader.abi import find, library
from libloader.core import EngineSettings
from libloader.llama.model import Model

folder, model, grammars = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
lib = find.find_library(folder, library.load)
with Model.load(lib, model, EngineSettings(n_threads=1)) as loaded:
    made = [
        bool(lib.llama_sampler_init_grammar(loaded.vocab.pointer, text.encode(), b"root"))
        for text in grammars
    ]
print(json.dumps(made))
"""


@pytest.mark.native
@pytest.mark.parametrize("build", HERE)
def test_a_grammar_that_does_not_parse_is_refused_in_every_build(build, model):
    grammars = ['root ::= "a" | [b-z]+', *BROKEN_GRAMMARS]
    command = [sys.executable, "-c", TRY_GRAMMARS, str(BUILDS / build), model, json.dumps(grammars)]
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [True, False, False, False, False]
