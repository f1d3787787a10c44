"""What a saved state is bound to: another model or library never gets it."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from libloader.core import EngineSettings
from libloader.engine import build

SIZE = 4 * build.N_SAMPLES * build.SAMPLE_BYTES
BETWEEN_SAMPLES = SIZE // build.N_SAMPLES * 3 // 2


@pytest.fixture
def parts(tmp_path):
    """A model in two files, each larger than its samples."""
    paths = [tmp_path / f"model-0000{number}-of-00002.gguf" for number in (1, 2)]
    for path in paths:
        path.touch()
        os.truncate(path, SIZE)
        os.utime(path, ns=(10**18, 10**18))
    return paths


@pytest.fixture
def binding(tmp_path, parts):
    """Return the binding of the model as it is now."""
    library = tmp_path / "libllama.so"
    library.write_bytes(b"code" * 1000)
    first, second = (SimpleNamespace(path=str(path), parts=()) for path in parts)
    first.parts = (second,)
    lib = SimpleNamespace(path=str(library), release="b1", layout="b1", backends=("CPU",))
    settings = EngineSettings(model=first.path)
    context = SimpleNamespace(kv_unified=True, model=SimpleNamespace(file=first))
    return lambda: build._binding(settings, lib, context)


def patch(path):
    with open(path, "r+b") as file:
        file.seek(BETWEEN_SAMPLES)
        file.write(b"x")


def test_an_untouched_model_keeps_its_binding(binding, parts):
    before = binding()
    os.utime(parts[0], ns=(10**17, 10**18))  # it was read
    os.chmod(parts[0], 0o600)
    assert binding() == before


@pytest.mark.parametrize("number", [0, 1])
def test_one_byte_that_no_sample_sees_changes_the_binding(binding, parts, number):
    before = binding()
    patch(parts[number])
    assert binding() != before


def test_a_model_put_in_the_place_of_another_with_its_time_kept_changes_the_binding(binding, parts):
    before = binding()
    other = parts[0].with_name("other.gguf")
    other.write_bytes(parts[0].read_bytes())
    patch(other)
    os.utime(other, ns=(10**18, 10**18))
    os.replace(other, parts[0])
    assert binding() != before


def test_a_library_that_is_unpacked_anew_keeps_the_binding_and_another_does_not(binding, tmp_path):
    before, library = binding(), tmp_path / "libllama.so"
    data = library.read_bytes()
    library.unlink()
    library.write_bytes(data)
    os.utime(library, (1, 1))
    assert binding() == before
    library.write_bytes(data[:-1] + b"?")
    assert binding() != before
