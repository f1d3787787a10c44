"""What several test files share. Kept tiny: helpers live in modules of their own."""

import gguf_files
import pytest
from neighbours import running_home
from serving import serving

from libloader.abi import find, library
from libloader.core import EngineSettings
from libloader.errors import LibraryNotFound
from libloader.llama.model import Model


@pytest.fixture(scope="session")
def server():
    """The real server on the pocket model, started as a user would; shared by read-only tests."""
    with serving("-t", "1") as served:  # one thread: a busy machine stalls two at every barrier
        yield served


@pytest.fixture(scope="session")
def home():
    """A server of eight slots for the catalogue, and its four neighbours; see neighbours.py."""
    with running_home() as running:
        yield running


@pytest.fixture(scope="session")
def native_library():
    """The libllama that igllama itself would choose; IGLLAMA_LIB names another."""
    try:
        return find.find_library("", library.load)
    except LibraryNotFound as error:
        pytest.skip(str(error).splitlines()[0])


@pytest.fixture(scope="session")
def tiny_model(native_library, tmp_path_factory):
    """A llama of random numbers, see gguf_files: for tests that need no sense in the text."""
    path = gguf_files.write(tmp_path_factory.mktemp("tiny") / "tiny.gguf", gguf_files.tiny_llama())
    with Model.load(native_library, path, EngineSettings()) as model:
        yield model
