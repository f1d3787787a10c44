"""Opens one libllama, proves that we understand it, and offers its functions under one vocabulary.

    lib = library.load("/opt/llama/libllama.so")
    params = lib.context_params()
    params.set("n_ctx", 4096)
    ctx = lib.llama_init_from_model(model, params)

Every C function is an attribute under its newest name, whatever this build calls it
(`prototypes.py`), guarded where a build is known to die (`guards.py`). Handles are plain ints.
Laws: one libllama per process, because a second one would bind to the first one's ggml; the ggml
functions are called through libllama's own handle, never through a copy opened beside it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, Callable, NamedTuple, NoReturn

from libloader import errors
from libloader.abi import (
    binding,
    builds,
    detect,
    guards,
    hazards,
    layouts,
    nativelog,
    prototypes,
    structs,
)
from libloader.abi.builds import Bracket
from libloader.abi.layouts import Layout

# Structs that appear in prototypes under a short word.
_WORDS = {"batch": "llama_batch", "perf_context": "llama_perf_context_data"}

# ggml before libllama: builds before b4234 do not find it themselves.
_GGML_STEMS = ("ggml-base", "ggml-cpu", "ggml")

_loaded: Library | None = None


class Opened(NamedTuple):
    """An open library; `ggml` is where ggml_* functions are looked up, `parts` what came before."""

    path: str
    handle: ctypes.CDLL
    ggml: tuple[ctypes.CDLL, ...]
    parts: tuple[ctypes.CDLL, ...]


class Library:
    """One loaded libllama. Attributes beside the C functions:

    log                 its native log
    release, layout     what it is ("b9842", "M7/C12"); path, backends, warnings
    missing             names of capabilities that this build lacks
    Batch, TokenData, TokenDataArray, LogitBias, SequenceSampler   its struct types
    """

    def __init__(self, opened: Opened, log: nativelog.NativeLog) -> None:
        self.path = opened.path
        self.log = log
        self.bracket = _bracket_of(opened)
        log.set_build(self.bracket.low)
        probes = _probes(opened)
        self.layouts: dict[str, Layout] = detect.all_layouts(self.bracket, probes)
        self.types = {n: structs.struct_type(n, item.rows) for n, item in self.layouts.items()}
        self.layout = "/".join(self.layouts[name].id for name in detect.DEFAULT_FUNCTIONS)
        self._defaults = {name: probe.data for name, probe in probes.items()}
        self.missing = self._bind(opened)
        self.Batch = self.types["llama_batch"]
        self.TokenData = self.types["llama_token_data"]
        self.TokenDataArray = self.types["llama_token_data_array"]
        self.LogitBias = self.types["llama_logit_bias"]
        self.SequenceSampler = self.types.get("llama_sampler_seq_config")
        self.release = self._release()
        self.warnings: tuple[str, ...] = tuple(self._newer_than_known())
        self.backends: tuple[str, ...] = ()
        self._alive: list[Any] = [opened]

    def __getattr__(self, name: str) -> Any:
        """Only for the type checker and for typing errors: C functions are set when bound."""
        raise AttributeError(f"libllama has no function {name} in prototypes.py")

    # --- what this build can do ---

    def has(self, name: str) -> bool:
        """Tell whether a capability or a function is there; KeyError for a name nobody knows."""
        if name in self._functions:
            return self._functions[name]
        return name not in self.missing if self._capability(name) else False

    def require(self, name: str) -> None:
        """Raise CapabilityMissing with the reason unless the capability is there."""
        if not self.has(name):
            raise errors.CapabilityMissing(self._lacks(self._capability(name)))

    def hazard(self, name: str) -> bool:
        """Tell whether something of `hazards.HAZARDS` may be wrong with this build."""
        return hazards.present(name, self.bracket)

    def keep_alive(self, value: Any) -> None:
        """Hold on to something whose address C has been given."""
        self._alive.append(value)

    def _capability(self, name: str) -> prototypes.Capability:
        return {item.name: item for item in prototypes.CAPABILITIES}[name]

    def _lacks(self, capability: prototypes.Capability) -> str:
        why = f"it came with {capability.since}"
        if self.bracket.low >= builds.order(capability.since):
            why = "its arguments changed about this build, and nothing tells which ones it has"
        return f"this libllama ({self.release}) cannot do {capability.meaning}; {why}"

    # --- parameters ---

    def model_params(self) -> structs.Params:
        """Return llama_model_params with the library's defaults."""
        older = self.hazard("load_mode_3_is_direct_io")
        modes = structs.OLDER_LOAD_MODES if older else structs.LOAD_MODES
        return self._params("llama_model_params", modes)

    def context_params(self) -> structs.Params:
        """Return llama_context_params with the library's defaults."""
        return self._params("llama_context_params")

    def chain_params(self, no_perf: bool = True) -> structs.ChainParams:
        return structs.ChainParams(no_perf)

    def _params(self, name: str, modes: Any = None) -> structs.Params:
        return structs.Params(self.types[name], self._defaults[name], modes)

    def check_context(self, ctx: int, params: structs.Params) -> None:
        """Read sizes back from a new context: the cheap proof that every offset was right.

        Raises LayoutMismatch naming the first one that is not what we asked for.
        """
        for name, read in (
            ("n_threads", self.llama_n_threads),
            ("n_threads_batch", self.llama_n_threads_batch),
            ("n_batch", self.llama_n_batch),
            ("n_ubatch", self.llama_n_ubatch),
        ):
            asked, got = params.get(name), read(ctx)
            if got not in self._acceptable(name, asked, ctx):
                raise errors.LayoutMismatch(
                    f"asked for {name}={asked}, the new context says {got}: "
                    f"layout {self.layout} is wrong for {self.path}"
                )

    def _acceptable(self, name: str, asked: int, ctx: int) -> tuple[int, ...]:
        """Return the values libllama may turn an asked one into (sizes are clamped)."""
        if name == "n_batch":
            floors = (0, 32, 64) if self.hazard("n_batch_raised") else (0,)
            raised = [max(asked, floor) for floor in floors]
            return (*raised, min(raised[-1], self.llama_n_ctx(ctx)))
        if name == "n_ubatch":
            n_batch = self.llama_n_batch(ctx)
            return (min(asked or n_batch, n_batch),)
        return (asked,)

    # --- backends ---

    def load_backends(self) -> None:
        """Load CPU and GPU backends that ship as separate files beside the library.

        Without them b4435..b4980 crash in the model load. `ggml_backend_load_all` also trusts the
        current directory, so it is only asked when the library's own folder held nothing
        (Homebrew and distributions keep them elsewhere), and then from inside that folder.
        """
        folder = os.path.dirname(os.path.realpath(self.path))
        if self.has("backend_loading") and not self.ggml_backend_reg_count():
            self.ggml_backend_load_all_from_path(os.fsencode(folder))
            if not self.ggml_backend_reg_count():
                with _inside(folder):
                    self.ggml_backend_load_all()
        if not self.has("backend_registry"):
            return
        registered = range(self.ggml_backend_reg_count())
        names = [self.ggml_backend_reg_name(self.ggml_backend_reg_get(i)) for i in registered]
        self.backends = tuple(name.decode() for name in names)
        if not names:
            raise errors.LibraryRefused(
                f"no backend (libggml-cpu-*) lies beside {self.path}: copy the whole folder"
            )

    # --- making of ---

    def _bind(self, opened: Opened) -> tuple[str, ...]:
        """Set one attribute per C function; return the capabilities that are off."""
        types: dict[str, Any] = {word: self.types.get(name) for word, name in _WORDS.items()}
        types.update(model_params=structs.Block, context_params=structs.Block)
        types.update(chain_params=structs.ChainParams)
        binder = binding.Binder(lambda name: _symbol(opened, name), self.bracket, types)
        bound, absent = binder.bind()
        required = [name for name in absent if name not in prototypes.OPTIONAL]
        if required:
            raise errors.SymbolsMissing(
                f"{self.path} lacks {', '.join(required)}: use llama.cpp b3750 or newer"
            )
        if self.hazard("abort_hangs"):
            bound.pop("llama_set_abort_callback", None)
        self._functions = {row[0]: row[0] in bound for row in prototypes.PROTOTYPES}
        off = [c for c in prototypes.CAPABILITIES if not set(c.functions) <= set(bound)]
        bound.update(guards.Guards(bound, self.hazard, self.types).guarded())
        for capability in off:
            for name in capability.functions:
                bound.setdefault(name, self._refusing(capability))
        self.__dict__.update(bound)
        return tuple(capability.name for capability in off)

    def _refusing(self, capability: prototypes.Capability) -> Callable[..., NoReturn]:
        def refuse(*_arguments: Any) -> NoReturn:
            raise errors.CapabilityMissing(self._lacks(capability))

        return refuse

    def _release(self) -> str:
        """Return the build as exactly as the file's name, its version or its functions tell."""
        named = builds.named_in(os.path.basename(os.path.realpath(self.path)))
        if named and self.bracket.meets(builds.order(named), builds.order(named) + 1):
            return named
        if self._functions["llama_version"]:
            return str(self.llama_version().decode())
        return str(self.bracket)

    def _newer_than_known(self) -> Iterator[str]:
        tested = builds.order(layouts.TESTED_UP_TO)
        try:
            release = builds.order(self.release)
        except ValueError:
            release = self.bracket.low
        if release > tested:
            yield (
                f"libllama {self.release} is newer than {layouts.TESTED_UP_TO}, the newest that "
                "igllama was tested with; its struct layouts fit"
            )


def load(
    path: str,
    *,
    log: Callable[[int, str], None] | None = None,
    on_fatal: Callable[[str], None] | None = None,
) -> Library:
    """Open and check a libllama file; load the backends beside it.

    `log` gets each line of the native log with a `logging` level, from any thread; by default the
    lines go to the logger "libllama". `on_fatal` gets the text of a failed assertion just before
    the process dies (b5798+). Raises LibraryRefused, LayoutMismatch or SymbolsMissing; a refused
    file is closed again, so that another one can be tried. The same file twice is one Library.
    """
    global _loaded
    real = os.path.realpath(path)
    if _loaded is not None:
        if os.path.realpath(_loaded.path) == real:
            return _loaded
        raise errors.LibraryRefused(f"{_loaded.path} is loaded already: one libllama per process")
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # else a failed assertion forks a debugger
    native_log = nativelog.NativeLog(log)
    opened = open_library(path)
    try:
        library = _checked(opened, native_log, on_fatal)
    except errors.LibraryRefused:
        _set_log(opened, None)
        close_library(opened)
        raise
    _loaded = library
    return library


def _checked(
    opened: Opened, native_log: nativelog.NativeLog, on_fatal: Callable[[str], None] | None
) -> Library:
    _set_log(opened, native_log.callback)
    library = Library(opened, native_log)
    library.llama_backend_init()
    library.load_backends()
    if library.has("fatal_text"):
        _set_fatal(library, native_log, on_fatal)
    # At exit the interpreter takes the callback away; C must have forgotten it by then.
    atexit.register(_set_log, opened, None)
    return library


def _set_log(opened: Opened, callback: Any) -> None:
    set_log = _symbol(opened, "llama_log_set")
    if set_log is not None:
        set_log.restype, set_log.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p]
        set_log(ctypes.cast(callback, ctypes.c_void_p) if callback else None, None)


def _set_fatal(
    library: Library, log: nativelog.NativeLog, on_fatal: Callable[[str], None] | None
) -> None:
    callback = structs.FatalCallback(log.fatal(on_fatal))
    library.ggml_set_abort_callback(callback)
    library.keep_alive(callback)  # C keeps its address


# --- opening and closing files ------------------------------------------------------------------


def open_library(path: str) -> Opened:
    """Open libllama and the ggml libraries of its own folder, in the order they need each other.

    Raises LibraryRefused with the system loader's own words.
    """
    if not os.path.isfile(path):
        raise errors.LibraryRefused(f"{path} is not a file")
    path = os.path.abspath(path)
    folder = os.path.dirname(path)
    if sys.platform == "win32":
        os.add_dll_directory(folder)
    parts: list[ctypes.CDLL] = []
    for name in ggml_files(os.listdir(folder), os.path.basename(path)):
        # One that fails may not be needed; if it is, libllama's own failure says so.
        with contextlib.suppress(OSError):
            parts.append(ctypes.CDLL(os.path.join(folder, name), mode=ctypes.RTLD_GLOBAL))
    try:
        handle = ctypes.CDLL(path)
    except OSError as error:
        _close(parts)
        raise errors.LibraryRefused(f"{path} cannot be loaded: {error}") from error
    # dlsym searches what libllama itself is bound to; GetProcAddress does not search dependencies.
    ggml = tuple(reversed(parts)) if sys.platform == "win32" else (handle,)
    return Opened(path, handle, ggml, tuple(parts))


def ggml_files(names: list[str], libllama: str) -> list[str]:
    """Return the ggml files of a folder that belong to a libllama, in load order.

    A folder may hold one library under several names (libggml.so, .so.0, .so.0.9.4), all copies of
    one another when a packager resolved the links: one name per library is enough, and more would
    load it twice.
    """
    tag = builds.named_in(libllama)
    chosen = []
    for stem in _GGML_STEMS:
        pattern = rf"(lib)?{stem}(\.[bv][\d.]+)?\.(so|dylib|dll)(\.\d+)*\Z"
        matching = [name for name in names if re.match(pattern, name)]
        matching.sort(key=lambda name: (tag not in name, len(name), name))
        chosen += matching[:1]
    return chosen


def close_library(opened: Opened) -> None:
    """Close a refused library, so that the next candidate does not bind to its ggml."""
    _close([*opened.parts, opened.handle])


def _close(parts: list[ctypes.CDLL]) -> None:
    import _ctypes  # CPython's own; elsewhere a refused library simply stays open

    close = getattr(_ctypes, "dlclose", None) or getattr(_ctypes, "FreeLibrary", None)
    for part in reversed(parts):
        if close is not None:
            close(part._handle)


def _symbol(opened: Opened, name: str) -> Any | None:
    """Return a fresh function object for a symbol; None if the library does not export it."""
    for handle in opened.ggml if name.startswith("ggml") else (opened.handle,):
        with contextlib.suppress(AttributeError):
            return handle[name]
    return None


def _bracket_of(opened: Opened) -> Bracket:
    if _symbol(opened, "llama_decode") is None:
        raise errors.LibraryRefused(f"{opened.path} is not a libllama: it has no llama_decode")
    try:
        return detect.bracket(lambda name: _symbol(opened, name) is not None)
    except errors.LibraryRefused as error:
        raise errors.LibraryRefused(f"{opened.path}: {error}") from None


def _probes(opened: Opened) -> dict[str, detect.Probe]:
    return {
        name: detect.probe_defaults(opened.handle, function)
        for name, function in detect.DEFAULT_FUNCTIONS.items()
    }


@contextlib.contextmanager
def _inside(folder: str) -> Iterator[None]:
    """Make a folder the current directory for a moment (contextlib.chdir is Python 3.11)."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
