"""Makes Python callables from the rows of `prototypes.py` for one library.

What a build calls otherwise, or calls with other arguments, is hidden here: each callable takes the
arguments of the newest llama.h. Nothing is checked here; guards come on top (`guards.py`).
"""

from __future__ import annotations

import ctypes
import os
from typing import Any, Callable, Optional

from libloader.abi import builds, prototypes, structs
from libloader.abi.builds import Bracket
from libloader.abi.prototypes import Variant

Find = Callable[[str], Optional[Any]]  # a function's ctypes object by its C name, None if absent

# Two argument lists are possible, and nothing tells which one this build has.
UNDECIDED = Variant("", "b0000", "b0000", "", lambda: ())


class Binder:
    """Makes callables from the rows for one library: `find` looks a symbol up in it."""

    def __init__(
        self, find: Find, bracket: Bracket, types: dict[str, type[ctypes.Structure]]
    ) -> None:
        self._find = find
        self._bracket = bracket
        self._types = types

    def bind(self) -> tuple[dict[str, Callable[..., Any]], list[str]]:
        """Return callables by our names, and the names for which this library has nothing."""
        bound: dict[str, Callable[..., Any]] = {}
        for name, result, arguments in prototypes.PROTOTYPES:
            function = self._function(name, result, arguments)
            if function is not None:
                bound[name] = function
        self._adapt_old_habits(bound)
        return bound, [row[0] for row in prototypes.PROTOTYPES if row[0] not in bound]

    def c_type(self, word: str) -> Any:
        """Return the ctypes type of a word in a row."""
        if word in prototypes.HANDLES:
            return ctypes.c_void_p
        return self._types.get(word) or structs.C_TYPES[word]

    def raw(self, name: str, result: str, arguments: str) -> Any | None:
        """Return the C function under exactly this name, with its types set; None if absent."""
        function = self._find(name)
        if function is not None:
            function.restype = self.c_type(result)
            function.argtypes = [self.c_type(word) for word in arguments.split()]
        return function

    def _function(self, name: str, result: str, arguments: str) -> Callable[..., Any] | None:
        variant = self._variant(name)
        if variant is UNDECIDED:
            return None
        for spelling in (name, *prototypes.RENAMED.get(name, ())):
            words = variant.arguments if variant else arguments
            function = self.raw(spelling, result, words)
            if function is None:
                continue
            if variant:
                return adapted(function, variant.adapt)
            through_memory = spelling == name and arguments.startswith("memory")
            return self._through_memory(function) if through_memory else function
        return None

    def _through_memory(self, function: Any) -> Callable[..., Any]:
        """Let a function of the memory object take the context, as older builds have it."""
        get_memory = self.raw("llama_get_memory", "memory", "ctx")
        assert get_memory is not None, "llama_memory_* without llama_get_memory"
        return lambda ctx, *rest: function(get_memory(ctx), *rest)

    def _variant(self, name: str) -> Variant | None:
        """Return the older argument list that this build has; None for the newest."""
        meeting = [
            row
            for row in prototypes.VARIANTS
            if row.name == name
            and self._bracket.meets(builds.order(row.since), builds.order(row.until))
        ]
        if not meeting:
            return None
        row = meeting[0]
        low, high = builds.order(row.since), builds.order(row.until)
        if low <= self._bracket.low and self._bracket.high <= high:
            return row
        return self._probe(name, row) if len(meeting) == 1 else UNDECIDED

    def _probe(self, name: str, older: Variant) -> Variant | None:
        """Tell two argument lists apart by a harmless call; see prototypes.PROBES."""
        if name not in prototypes.PROBES or not separate_float_registers():
            return UNDECIDED
        arguments, values, plain_name = prototypes.PROBES[name]
        create = self.raw(name, "sampler", arguments)
        read_name = self.raw("llama_sampler_name", "str", "sampler")
        free = self.raw("llama_sampler_free", "void", "sampler")
        if create is None or read_name is None or free is None:
            return None
        sampler = create(*values)
        is_older = read_name(sampler) == plain_name
        free(sampler)
        return older if is_older else None

    def _adapt_old_habits(self, bound: dict[str, Callable[..., Any]]) -> None:
        bound.setdefault("llama_model_get_vocab", lambda model: model)
        if "llama_set_adapters_lora" in bound:
            return
        for clear_name, set_name in prototypes.ADAPTER_SETTERS:
            clear = self.raw(clear_name, "void", "ctx")
            set_one = self.raw(set_name, "i32", "ctx adapter f32")
            if clear is not None and set_one is not None:
                bound["llama_set_adapters_lora"] = one_by_one(clear, set_one)


def adapted(function: Any, adapt: Callable[..., tuple[Any, ...]]) -> Callable[..., Any]:
    return lambda *arguments: function(*adapt(*arguments))


def one_by_one(clear: Any, set_one: Any) -> Callable[..., int]:
    """Return llama_set_adapters_lora made of the older setters; 0 if all went well."""

    def set_adapters(ctx: int, adapters: Any, n_adapters: int, scales: Any) -> int:
        clear(ctx)
        results = [set_one(ctx, adapters[i], scales[i]) for i in range(n_adapters)]
        return min(results, default=0)

    return set_adapters


def separate_float_registers() -> bool:
    """Tell whether floats and integers travel in registers counted apart: not so on Windows x64."""
    return os.name != "nt"
