"""One vocabulary over all builds: renamed functions, changed arguments, what is missing."""

from __future__ import annotations

import pytest

from libloader.abi import binding, builds, prototypes, structs
from libloader.abi.builds import Bracket
from libloader.abi.prototypes import CAPABILITIES, PROTOTYPES, RENAMED, VARIANTS

NAMES = [row[0] for row in PROTOTYPES]
TYPES = {
    "batch": structs.Block,
    "model_params": structs.Block,
    "context_params": structs.Block,
    "chain_params": structs.ChainParams,
    "perf_context": structs.Block,
}


class FakeFunction:
    """Stands for a C function: remembers its types and every call, answers with `result`."""

    def __init__(self, name: str, result=0) -> None:
        self.name, self.result, self.calls = name, result, []
        self.restype = self.argtypes = None

    def __call__(self, *arguments):
        assert len(arguments) == len(self.argtypes), f"{self.name} got {arguments}"
        self.calls.append(arguments)
        return self.result(*arguments) if callable(self.result) else self.result


class FakeLibrary:
    """A library that exports the given names; looking one up twice gives the same function."""

    def __init__(self, *names: str, **results) -> None:
        self.functions = {n: FakeFunction(n, results.get(n, 0)) for n in (*names, *results)}

    def bind(self, low: int, high: int = 0):
        bracket = Bracket(low, high or low + 1)
        return binding.Binder(self.functions.get, bracket, TYPES).bind()

    def __getitem__(self, name: str) -> FakeFunction:
        return self.functions[name]


# --- the tables ---


def test_every_function_has_one_row_of_known_types():
    assert len(NAMES) == len(set(NAMES))
    binder = binding.Binder(lambda name: None, Bracket(0, 1), TYPES)
    for name, result, arguments in PROTOTYPES:
        words = [result, *arguments.split()]
        assert all(word == "void" or binder.c_type(word) for word in words), name


def test_the_other_tables_speak_of_functions_that_have_rows():
    assert set(RENAMED) <= set(NAMES)
    assert {variant.name for variant in VARIANTS} <= set(NAMES)
    assert {name for item in CAPABILITIES for name in item.functions} <= set(NAMES)
    assert set(prototypes.PROBES) <= {variant.name for variant in VARIANTS}


def test_an_older_name_belongs_to_one_function_only():
    older = [name for names in RENAMED.values() for name in names]
    assert len(older) == len(set(older))
    assert not set(older) & set(NAMES)


def test_capabilities_have_names_of_their_own_and_real_builds():
    names = [item.name for item in CAPABILITIES]
    assert len(names) == len(set(names)) and not set(names) & set(NAMES)
    assert all(builds.order(item.since) >= 3600 for item in CAPABILITIES)


# --- binding ---


def test_a_renamed_function_is_reached_by_its_newest_name_in_every_build():
    old = FakeLibrary("llama_kv_cache_seq_rm", "llama_token_bos", "llama_new_context_with_model")
    bound, _ = old.bind(4000)
    bound["llama_memory_seq_rm"](11, 0, 4, -1)
    bound["llama_vocab_bos"](22)
    assert old["llama_kv_cache_seq_rm"].calls == [(11, 0, 4, -1)]
    assert old["llama_token_bos"].calls == [(22,)]
    assert "llama_init_from_model" in bound


def test_the_newest_name_wins_where_a_build_has_both():
    both = FakeLibrary("llama_vocab_bos", "llama_token_bos")
    both.bind(9000)[0]["llama_vocab_bos"](1)
    assert both["llama_vocab_bos"].calls and not both["llama_token_bos"].calls


def test_memory_functions_take_the_context_in_every_build():
    new = FakeLibrary("llama_memory_seq_cp", llama_get_memory=lambda ctx: ctx + 1000)
    new.bind(9000)[0]["llama_memory_seq_cp"](7, 0, 1, -1, -1)
    assert new["llama_memory_seq_cp"].calls == [(1007, 0, 1, -1, -1)]


def test_before_the_vocabulary_had_a_handle_the_model_is_the_handle():
    bound, _ = FakeLibrary("llama_n_vocab").bind(4000)
    assert bound["llama_model_get_vocab"](77) == 77


OURS = (1000, 64, 1.1, 0.2, 0.3)  # n_vocab, last_n, repeat, frequency, presence


@pytest.mark.parametrize(
    ("build", "theirs"),
    [
        (3889, (1000, -1, -1, 64, 1.1, 0.2, 0.3, True, False)),
        (4435, (64, 1.1, 0.2, 0.3)),
        (10_361, (1000, 64, 1.1, 0.2, 0.3)),
    ],
)
def test_penalties_get_the_arguments_that_their_build_wants(build, theirs):
    library = FakeLibrary("llama_sampler_init_penalties")
    library.bind(build)[0]["llama_sampler_init_penalties"](*OURS)
    assert library["llama_sampler_init_penalties"].calls == [theirs]


@pytest.mark.parametrize(
    ("build", "theirs"),
    [
        (3995, (5, 0.8, 1.75, 2, 64, None, 0)),
        (4529, (5, 64, 0.8, 1.75, 2, 64, None, 0)),
        (10_361, (5, 0.8, 1.75, 2, 64, None, 0)),
    ],
)
def test_dry_gets_the_arguments_that_its_build_wants(build, theirs):
    library = FakeLibrary("llama_sampler_init_dry")
    library.bind(build)[0]["llama_sampler_init_dry"](5, 0.8, 1.75, 2, 64, None, 0)
    assert library["llama_sampler_init_dry"].calls == [theirs]


def test_a_bracket_over_an_undecided_change_leaves_the_function_out():
    library = FakeLibrary("llama_sampler_init_penalties")
    bound, absent = library.bind(4327, 4357)
    assert "llama_sampler_init_penalties" in absent
    assert not library["llama_sampler_init_penalties"].calls


@pytest.mark.parametrize(("name", "n_arguments"), [(b"penalties", 4), (b"?penalties", 5)])
def test_where_the_bracket_cannot_tell_the_samplers_own_name_does(name, n_arguments, monkeypatch):
    monkeypatch.setattr(binding, "separate_float_registers", lambda: True)
    library = FakeLibrary(
        "llama_sampler_free",
        llama_sampler_init_penalties=42,
        llama_sampler_name=lambda sampler: name,
    )
    bound, _ = library.bind(10_182, 10_355)
    library["llama_sampler_init_penalties"].calls.clear()
    assert library["llama_sampler_free"].calls == [(42,)]
    bound["llama_sampler_init_penalties"](*OURS)
    (call,) = library["llama_sampler_init_penalties"].calls
    assert len(call) == n_arguments


def test_the_name_probe_is_not_tried_where_floats_share_registers(monkeypatch):
    monkeypatch.setattr(binding, "separate_float_registers", lambda: False)
    library = FakeLibrary("llama_sampler_init_dry", "llama_sampler_name", "llama_sampler_free")
    _, absent = library.bind(10_182, 10_355)
    assert "llama_sampler_init_dry" in absent
    assert not library["llama_sampler_init_dry"].calls


def test_adapters_are_set_one_by_one_where_the_build_has_no_list():
    old = FakeLibrary("llama_clear_adapter_lora", "llama_set_adapter_lora")
    set_adapters = old.bind(7000)[0]["llama_set_adapters_lora"]
    assert set_adapters(9, [101, 102], 2, [0.5, 1.0]) == 0
    assert old["llama_clear_adapter_lora"].calls == [(9,)]
    assert old["llama_set_adapter_lora"].calls == [(9, 101, 0.5), (9, 102, 1.0)]


def test_what_no_name_of_reaches_is_reported_absent():
    bound, absent = FakeLibrary("llama_decode").bind(9000)
    assert set(bound) == {"llama_decode", "llama_model_get_vocab"}
    assert set(absent) == set(NAMES) - set(bound)


def test_pointers_come_back_whole_not_cut_to_an_int():
    library = FakeLibrary("llama_model_load_from_file")
    library.bind(9000)
    assert library["llama_model_load_from_file"].restype is binding.ctypes.c_void_p
