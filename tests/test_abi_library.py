"""Opening a libllama: files in order, one Library over any build, refusals that say why."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from abi_blobs import exports_of, probe_of

from libloader import errors
from libloader.abi import binding, builds, detect, layouts, library, nativelog
from libloader.abi.prototypes import CAPABILITIES, PROTOTYPES, RENAMED

NPM_COPIES = [
    "libggml-base.so", "libggml-base.so.0", "libggml-base.so.0.9.4", "libggml-cpu-x64.so",
    "libggml.b7324.so", "libggml.b7324.so.0", "libggml.b7324.so.0.9.4", "libllama.b7324.so",
]  # fmt: skip


# --- names of files ---


@pytest.mark.parametrize(
    ("names", "libllama", "order"),
    [
        (["libggml.so", "libllama.so"], "libllama.so", ["libggml.so"]),
        (
            ["libllama.so", "libggml.so", "libggml-cpu.so", "libggml-base.so"],
            "libllama.so",
            ["libggml-base.so", "libggml-cpu.so", "libggml.so"],
        ),
        (NPM_COPIES, "libllama.b7324.so", ["libggml-base.so", "libggml.b7324.so"]),
        (
            ["libggml.b7324.so", "libggml.b7347.so", "libggml-base.so"],
            "libllama.b7347.so",
            ["libggml-base.so", "libggml.b7347.so"],
        ),
        (
            ["libllama.0.dylib", "libggml.dylib", "libggml-base.dylib", "libggml-metal.dylib"],
            "libllama.0.dylib",
            ["libggml-base.dylib", "libggml.dylib"],
        ),
        (
            ["ggml.dll", "llama.dll", "ggml-base.dll", "ggml-cpu-haswell.dll", "ggml-vulkan.dll"],
            "llama.dll",
            ["ggml-base.dll", "ggml.dll"],
        ),
        (["libllama.so.0", "libggml.so.0"], "libllama.so.0", ["libggml.so.0"]),
        (["libllama.so"], "libllama.so", []),
    ],
)
def test_ggml_is_opened_base_first_one_file_per_library(names, libllama, order):
    assert library.ggml_files(names, libllama) == order


def test_a_file_that_is_no_library_is_refused_in_the_loaders_words(tmp_path):
    path = tmp_path / "libllama.so"
    path.write_text("not a library")
    with pytest.raises(errors.LibraryRefused, match=r"libllama\.so cannot be loaded: .+"):
        library.open_library(str(path))
    with pytest.raises(errors.LibraryRefused, match="is not a file"):
        library.open_library(str(tmp_path))


# --- a library made of Python ---


class FakeFunction:
    def __init__(self, result) -> None:
        self.result = result

    def __call__(self, *arguments):
        return self.result(*arguments) if callable(self.result) else self.result


class FakeHandle:
    """Stands for a CDLL: `handle[name]` is a function if the name is exported."""

    def __init__(self, names, **results) -> None:
        self.names, self.results = set(names) | set(results), results

    def __getitem__(self, name):
        if name not in self.names:
            raise AttributeError(name)
        return FakeFunction(self.results.get(name, 0))


def names_of(build: int) -> set[str]:
    """Names that a build exports: what marks it, and the functions of its time, by any name."""
    since = {name: builds.order(c.since) for c in CAPABILITIES for name in c.functions}
    since.update({name: 5596 for name in RENAMED if name.startswith("llama_memory_")})
    ours = {row[0] for row in PROTOTYPES if since.get(row[0], 0) <= build}
    older = {old for olds in RENAMED.values() for old in olds}
    marked = {name for name, _, _ in detect.EXPORTS}
    return (ours | older) - marked | exports_of(build)


@pytest.fixture
def make(monkeypatch):
    """Make a Library of one build from fakes."""

    def made(build="0.6.0-dev", file="libllama.so", without=(), **results):
        place = builds.order(build)
        results.setdefault("llama_version", b"0.6.0-dev")
        if place < builds.order("b10394"):
            del results["llama_version"]
        handle = FakeHandle(names_of(place) - set(without), **results)
        monkeypatch.setattr(
            library.detect,
            "probe_defaults",
            lambda _, function: probe_of(layouts.at(STRUCT_OF[function], place).rows),
        )
        opened = library.Opened(file, handle, (handle,), ())
        return library.Library(opened, nativelog.NativeLog())

    return made


STRUCT_OF = {function: struct for struct, function in detect.DEFAULT_FUNCTIONS.items()}


@pytest.mark.parametrize(
    ("build", "layout"),
    [("b3889", "M0/C3"), ("b5590", "M3/C6"), ("b8390", "M7/C9"), ("0.6.0-dev", "M10/C13")],
)
def test_a_library_says_what_it_is(make, build, layout):
    lib = make(build, file=f"libllama.{build}.so")
    assert lib.layout == layout
    assert lib.bracket.low <= builds.order(build) < lib.bracket.high


def test_the_release_is_the_files_name_if_the_functions_agree(make):
    assert make("b8390", file="libllama.b8390.so").release == "b8390"
    assert make("b8390", file="libllama.b4000.so").release == "b8238..b8516"
    assert make("b8390").release == "b8238..b8516"


def test_the_release_is_the_librarys_own_version_where_the_file_says_nothing(make):
    assert make("v0.5.0", llama_version=b"0.5.0-dev").release == "0.5.0-dev"


def test_a_newer_build_whose_defaults_fit_runs_with_a_warning(make):
    assert make("0.6.0-dev", llama_version=b"0.6.0-dev").warnings == ()
    (warning,) = make("0.6.0-dev", llama_version=b"0.7.0-dev").warnings
    assert "0.7.0-dev is newer than 0.6.0-dev" in warning


def test_a_newer_build_whose_defaults_do_not_fit_is_refused(make, monkeypatch):
    newest = layouts.of("llama_model_params")[-1]
    grown = newest._replace(rows=(*newest.rows, ("new_flag", "bool", (0,))))
    known = layouts.at
    monkeypatch.setattr(
        layouts,
        "at",
        lambda struct, place: grown if struct == newest.struct else known(struct, place),
    )
    with pytest.raises(errors.LayoutMismatch, match="an unknown field follows load_mtp"):
        make("0.6.0-dev", llama_version=b"0.7.0-dev")


def test_a_missing_function_is_a_capability_that_is_off_with_its_reason(make):
    lib = make("b3889")
    assert not lib.has("xtc") and "xtc" in lib.missing
    assert lib.has("llama_decode") and not lib.has("llama_sampler_init_xtc")
    for call in (lambda: lib.require("xtc"), lambda: lib.llama_sampler_init_xtc(0.1, 0.1, 1, 0)):
        with pytest.raises(errors.CapabilityMissing, match=r"the XTC sampler; it came with b3920"):
            call()


def test_a_function_whose_arguments_cannot_be_told_is_off_and_says_so(make, monkeypatch):
    monkeypatch.setattr(binding, "separate_float_registers", lambda: False)  # as on Windows
    lib = make("b10300")
    assert {"dry", "penalties"} <= set(lib.missing)
    with pytest.raises(errors.CapabilityMissing, match="nothing tells which ones it has"):
        lib.require("dry")


def test_a_build_that_has_everything_misses_nothing(make):
    lib = make("0.6.0-dev")
    assert lib.missing == ()
    assert lib.has("backend_sampling")
    lib.require("dry")


def test_a_name_that_nobody_knows_is_our_own_mistake(make):
    lib = make()
    with pytest.raises(KeyError):
        lib.has("teleportation")
    with pytest.raises(AttributeError, match="llama_teleport"):
        lib.llama_teleport()


def test_missing_functions_that_we_need_are_all_named(make):
    with pytest.raises(errors.SymbolsMissing, match="llama_tokenize, llama_init_from_model"):
        make("b9000", without=("llama_tokenize", "llama_init_from_model",
                               "llama_new_context_with_model"))  # fmt: skip


def test_an_abort_callback_is_off_in_builds_where_it_hangs(make):
    assert not make("b4435").has("abort_callback")
    assert make("b4600").has("abort_callback")


def test_something_else_is_not_taken_for_libllama():
    handle = FakeHandle({"sqrt"})
    with pytest.raises(errors.LibraryRefused, match="is not a libllama"):
        library.Library(library.Opened("libm.so", handle, (handle,), ()), nativelog.NativeLog())


def test_sizes_read_back_from_a_context_must_be_those_asked_for(make):
    sizes = {"llama_n_threads": 3, "llama_n_threads_batch": 5, "llama_n_ctx": 512}
    lib = make("b9842", llama_n_batch=256, llama_n_ubatch=128, **sizes)
    params = lib.context_params()
    asked = {"n_threads": 3, "n_threads_batch": 5, "n_batch": 256, "n_ubatch": 128}
    for name, value in asked.items():
        params.set(name, value)
    lib.check_context(1, params)
    params.set("n_threads_batch", 4)
    with pytest.raises(errors.LayoutMismatch, match="n_threads_batch=4, the new context says 5"):
        lib.check_context(1, params)


def test_clamped_sizes_are_no_contradiction(make):
    lib = make("b9842", llama_n_batch=512, llama_n_ubatch=512, llama_n_ctx=512,
               llama_n_threads=4, llama_n_threads_batch=4)  # fmt: skip
    params = lib.context_params()
    params.set("n_batch", 2048)
    params.set("n_ubatch", 1024)
    lib.check_context(1, params)


# --- backends and symbols ---


class FakeBackends:
    """ggml's registry: which call registers a backend, and what was asked, from which folder."""

    def __init__(self, registers_on: str) -> None:
        self.n, self.registers_on = int(registers_on == "start"), registers_on
        self.asked: list[tuple[str, str]] = []

    def functions(self) -> dict:
        return {
            "ggml_backend_reg_count": lambda: self.n,
            "ggml_backend_reg_name": b"CPU",
            "ggml_backend_load_all": lambda: self.load("load_all", os.getcwd()),
            "ggml_backend_load_all_from_path": lambda p: self.load("from_path", os.fsdecode(p)),
        }

    def load(self, how: str, folder: str) -> None:
        self.asked.append((how, folder))
        self.n += how == self.registers_on


@pytest.mark.parametrize(
    ("registers_on", "asked"),
    [("start", []), ("from_path", ["from_path"]), ("load_all", ["from_path", "load_all"])],
)
def test_backends_are_looked_for_beside_the_library_and_never_in_the_users_folder(
    make, tmp_path, registers_on, asked
):
    backends = FakeBackends(registers_on)
    lib = make("b9842", file=str(tmp_path / "libllama.so"), **backends.functions())
    before = os.getcwd()
    lib.load_backends()
    assert lib.backends == ("CPU",)
    assert backends.asked == [(how, os.path.realpath(tmp_path)) for how in asked]
    assert os.getcwd() == before


def test_a_library_without_any_backend_says_that_the_folder_is_incomplete(make, tmp_path):
    lib = make("b9842", file=str(tmp_path / "libllama.so"), **FakeBackends("never").functions())
    with pytest.raises(errors.LibraryRefused, match="copy the whole folder"):
        lib.load_backends()


def test_a_static_build_without_loading_functions_needs_none(make, tmp_path):
    backends = FakeBackends("start").functions()
    lib = make("b3889", file=str(tmp_path / "libllama.so"),
               **{k: v for k, v in backends.items() if "load" not in k})  # fmt: skip
    lib.load_backends()
    assert lib.backends == ("CPU",)


def test_ggml_is_asked_where_the_system_finds_it():
    llama, ggml, base = FakeHandle({"llama_free"}), FakeHandle({"g"}), FakeHandle({"ggml_init"})
    windows = library.Opened("llama.dll", llama, (ggml, base), (base, ggml))
    assert library._symbol(windows, "ggml_init") is not None
    assert library._symbol(windows, "llama_free") is not None
    assert library._symbol(windows, "llama_missing") is None
    assert library._symbol(windows, "ggml_missing") is None


# --- the real one ---


@pytest.mark.native
def test_a_real_library_is_understood_to_the_last_field(native_library):
    assert native_library.layout.count("/") == 1
    assert native_library.backends
    defaults = native_library.context_params()
    assert (defaults.get("n_batch"), defaults.get("n_ubatch")) == (2048, 512)


@pytest.mark.native
def test_the_same_file_twice_is_one_library_and_another_file_is_refused(native_library, tmp_path):
    assert library.load(native_library.path) is native_library
    with pytest.raises(errors.LibraryRefused, match="one libllama per process"):
        library.load(str(tmp_path / "libllama.so"))


@pytest.mark.native
def test_a_refused_library_leaves_no_trace_and_the_next_candidate_loads(native_library):
    run_alone(
        native_library,
        """
        real, library.detect.choose = library.detect.choose, refuse
        for _ in range(2):
            try:
                library.load(path)
            except errors.LayoutMismatch as error:
                assert "planted" in str(error), error
        library.detect.choose = real
        assert library.load(path).backends
        """,
    )


@pytest.mark.native
def test_the_native_log_is_quiet_and_its_errors_arrive_with_their_level(native_library):
    run_alone(
        native_library,
        """
        lines = []
        lib = library.load(path, log=lambda level, line: lines.append((level, line)))
        assert not lib.llama_model_load_from_file(b"/no/such/model", lib.model_params())
        errors = [line for level, line in lines if level == logging.ERROR]
        assert any("/no/such/model" in line for line in errors), lines
        """,
    )


SCRIPT = """
import logging, sys
from libloader import errors
from libloader.abi import library

path = sys.argv[1]

def refuse(*arguments):
    raise errors.LayoutMismatch("planted")
"""


def run_alone(lib, body: str) -> None:
    """Run code on the same library in a process of its own; it must end well and quietly."""
    lines = [line[8:] for line in body.splitlines()]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + "\n".join(lines), lib.path],
        capture_output=True,
        text=True,
        cwd=os.getcwd(),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    native_noise = [x for x in done.stderr.splitlines() if "gguf_init" not in x]
    assert native_noise == [], done.stderr
