"""Detection: which build, which layouts, and the refusal that names the field."""

from __future__ import annotations

import ctypes

import pytest
from abi_blobs import NEWEST, exports_of, probe_of

from libloader.abi import builds, detect, layouts, structs
from libloader.abi.layouts.exports import EXPORTS
from libloader.errors import LayoutMismatch, LibraryRefused

PARAMS = tuple(detect.DEFAULT_FUNCTIONS)
# One build of every group that exports the same functions.
GROUPS = sorted({builds.order(n) for _, first, end in EXPORTS for n in (first, end) if n})


def newest(struct: str) -> layouts.Layout:
    return layouts.of(struct)[-1]


# --- how the bytes are taken ---


class FakeHandle(dict):
    """A library as `handle[function]`; the function takes attributes as ctypes' do."""


def test_on_x86_64_the_hidden_result_pointer_is_our_own_block(monkeypatch):
    monkeypatch.setattr(detect.platform, "machine", lambda: "AMD64")  # as Windows spells it

    def fill(address):
        ctypes.memset(address, 0x11, 4)
        ctypes.memset(address + 8, 0, 2)
        return address

    call = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(fill)
    probe = detect.probe_defaults(FakeHandle(llama_model_default_params=call), CALL)
    assert probe.data[:10] == b"\x11" * 4 + bytes(6)
    assert [i for i, written in enumerate(probe.written) if written] == [0, 1, 2, 3, 8, 9]


def test_on_arm64_the_bytes_come_as_a_result_and_nobody_knows_which_were_written(monkeypatch):
    monkeypatch.setattr(detect.platform, "machine", lambda: "arm64")

    class Call:
        def __call__(self):
            return self.restype.from_buffer_copy(b"\x07" * structs.BLOCK_BYTES)

    probe = detect.probe_defaults(FakeHandle(llama_model_default_params=Call()), CALL)
    assert probe == (b"\x07" * structs.BLOCK_BYTES, None)


CALL = "llama_model_default_params"


# --- step 1: the bracket ---


@pytest.mark.parametrize("build", GROUPS, ids=[builds.label(build) for build in GROUPS])
def test_the_exports_of_a_build_bracket_exactly_its_group(build):
    names = exports_of(build)
    bracket = detect.bracket(lambda name: name in names)
    assert bracket.low <= build < bracket.high
    edges = [edge for edge in GROUPS if bracket.low < edge < bracket.high]
    assert not edges


def test_ggml_functions_narrow_a_bracket_but_never_contradict_it():
    names = exports_of(4291)
    assert detect.bracket(lambda name: name in names) == (4242, 4302)
    hidden = names - {"ggml_init"}
    assert detect.bracket(lambda name: name in hidden) == (4242, 4357)
    other_ggml = names | {"ggml_version"}  # a newer ggml, from a distribution
    assert detect.bracket(lambda name: name in other_ggml) == (4242, 4302)


def test_a_build_that_dropped_old_functions_counts_as_newer_than_the_newest():
    names = exports_of(NEWEST.low) - {"llama_backend_free", "llama_sampler_get_seed"}
    assert detect.bracket(lambda name: name in names).high == builds.NEVER


@pytest.mark.parametrize(
    ("added", "removed", "words"),
    [
        (set(), {"llama_sampler_accept"}, "lacks llama_sampler_accept"),
        ({"llama_control_vector_apply"}, set(), "has llama_control_vector_apply"),
    ],
)
def test_functions_that_fit_no_release_are_refused_by_name(added, removed, words):
    names = exports_of(7000) - removed | added
    with pytest.raises(LibraryRefused, match=words):
        detect.bracket(lambda name: name in names)


# --- steps 2 to 4: the layouts ---


def every_layout():
    return [pytest.param(item, id=item.id) for struct in PARAMS for item in layouts.of(struct)]


@pytest.mark.parametrize("written", [True, False], ids=["x86-64", "arm64"])
@pytest.mark.parametrize("layout", every_layout())
def test_every_layout_is_recognised_in_the_first_and_last_build_that_had_it(layout, written):
    for build in (layout.since, min(layout.until - 1, NEWEST.low)):
        names = exports_of(build)
        bracket = detect.bracket(lambda name, names=names: name in names)
        chosen = detect.choose(layout.struct, bracket, probe_of(layout.rows, written=written))
        assert same_places(chosen.rows, layout.rows)


def same_places(chosen, true) -> bool:
    """The promise of the rule: never a moved field; at most a trailing one named too early."""
    places = dict(zip([row[0] for row in true], structs.offsets(true)))
    ours = dict(zip([row[0] for row in chosen], structs.offsets(chosen)))
    return all(ours.get(name) == place for name, place in places.items())


def test_a_moved_default_names_the_field_its_offset_and_what_was_expected():
    rows = changed(newest("llama_context_params").rows, "n_ubatch", 777)
    with pytest.raises(LayoutMismatch) as caught:
        detect.choose("llama_context_params", NEWEST, probe_of(rows))
    assert "llama_context_params: n_ubatch (offset 8) is 777 by default, expected 512" in str(
        caught.value
    )


def changed(rows, name, default):
    return tuple((n, t, (default,)) if n == name else (n, t, v) for n, t, v in rows)


def test_a_field_that_the_library_does_not_write_is_refused():
    probe = probe_of(newest("llama_model_params").rows)
    written = list(probe.written)
    written[16:20] = [False] * 4
    with pytest.raises(LayoutMismatch, match=r"n_gpu_layers \(offset 16\) is not written"):
        detect.choose("llama_model_params", NEWEST, probe._replace(written=tuple(written)))


def test_a_struct_that_grew_is_refused_where_the_new_field_begins():
    rows = (*newest("llama_context_params").rows, ("ctx_third", "ptr", (0,)))
    with pytest.raises(LayoutMismatch, match="an unknown field follows ctx_other at offset 160"):
        detect.choose("llama_context_params", NEWEST, probe_of(rows))


def test_a_compiler_that_zeroes_the_padding_too_is_no_reason_to_refuse():
    layout = newest("llama_model_params")
    probe = probe_of(layout.rows)
    written = [index < 80 for index in range(structs.BLOCK_BYTES)]
    assert detect.choose("llama_model_params", NEWEST, probe._replace(written=tuple(written)))


def test_in_a_known_build_padding_that_was_partly_written_is_taken_for_padding():
    layout = next(item for item in layouts.of("llama_model_params") if item.id == "M7")
    probe = probe_of(layout.rows)
    written = list(probe.written)
    written[28] = True
    bracket = builds.Bracket(8049, 8238)
    chosen = detect.choose("llama_model_params", bracket, probe._replace(written=tuple(written)))
    assert chosen.id == "M7"


def test_where_a_bracket_spans_a_change_of_a_returned_struct_the_longer_one_is_taken():
    probes = {name: probe_of(layouts.at(name, 3943).rows) for name in PARAMS}
    spanning = builds.Bracket(3935, 3978)
    assert detect.all_layouts(spanning, probes)["llama_batch"].id == "B0"
    probes = {name: probe_of(layouts.at(name, 5922).rows) for name in PARAMS}
    spanning = builds.Bracket(5913, 6042)
    assert detect.all_layouts(spanning, probes)["llama_perf_context_data"].id == "PC1"


# --- planted defects: a table of ours that is wrong by one field ---

# Pairs of neighbours that are equally wide and have the same default; nothing can tell them apart.
BLIND_SWAPS = {"llama_model_params": 9, "llama_context_params": 17}


def refuses(rows, struct: str, *, written=True) -> bool:
    probe = probe_of(newest(struct).rows, written=written)
    return detect.first_difference(rows, probe, exact=True) is not None


def without(rows, index):
    return rows[:index] + rows[index + 1 :]


def with_extra(rows, index, c_type):
    return (*rows[:index], ("extra", c_type, ()), *rows[index:])


def swapped(rows, index):
    return (*rows[:index], rows[index + 1], rows[index], *rows[index + 2 :])


@pytest.mark.parametrize("struct", PARAMS)
def test_the_true_table_is_accepted(struct):
    assert not refuses(newest(struct).rows, struct)


@pytest.mark.parametrize("struct", PARAMS)
def test_a_table_with_any_one_field_left_out_is_refused(struct):
    rows = newest(struct).rows
    missed = [rows[i][0] for i in range(len(rows)) if not refuses(without(rows, i), struct)]
    assert missed == []


@pytest.mark.parametrize("c_type", ["u32", "bool", "ptr"])
@pytest.mark.parametrize("struct", PARAMS)
def test_a_table_with_a_field_inserted_anywhere_is_refused(struct, c_type):
    rows = newest(struct).rows
    places = range(len(rows) + 1)
    assert [i for i in places if not refuses(with_extra(rows, i, c_type), struct)] == []


@pytest.mark.parametrize("struct", PARAMS)
def test_two_neighbours_swapped_are_refused_unless_they_look_the_same(struct):
    rows = newest(struct).rows
    probe = probe_of(rows)
    data = [probe.data[offset : offset + size] for offset, size in structs.offsets(rows)]
    alike = [i for i in range(len(rows) - 1) if data[i] == data[i + 1]]
    missed = [i for i in range(len(rows) - 1) if not refuses(swapped(rows, i), struct)]
    assert set(missed) <= set(alike)
    assert len(missed) == BLIND_SWAPS[struct]


@pytest.mark.parametrize(
    ("struct", "blind"),
    [
        ("llama_model_params", {"no_host", "no_alloc", "load_mtp"}),
        (
            "llama_context_params",
            {
                "defrag_thold", "type_k", "type_v", "kv_unified",
                "samplers", "n_samplers", "ctx_other",
            },
        ),
    ],
)  # fmt: skip
def test_on_arm64_only_these_fields_may_be_missing_unseen(struct, blind):
    rows = newest(struct).rows
    missed = [i for i in range(len(rows)) if not refuses(without(rows, i), struct, written=False)]
    assert {rows[i][0] for i in missed} == blind


@pytest.mark.native
@pytest.mark.parametrize("struct", PARAMS)
def test_the_real_library_refuses_every_table_that_lacks_a_field(native_library, struct):
    opened = native_library._alive[0]
    probe = detect.probe_defaults(opened.handle, detect.DEFAULT_FUNCTIONS[struct])
    rows = native_library.layouts[struct].rows
    assert detect.first_difference(rows, probe, exact=True) is None
    short = {rows[i][0]: without(rows, i) for i in range(len(rows))}
    missed = {
        name
        for name, table in short.items()
        if detect.first_difference(table, probe, exact=True) is None
    }
    if probe.written is None:
        pytest.skip("nobody can tell here which bytes were written")
    # Up to b5590 the padding was zeroed too: there a last flag that is off looks like padding.
    zeroed = builds.Bracket(0, builds.order("b5914")).meets(*native_library.bracket)
    assert missed <= ({rows[-1][0], rows[-2][0]} if zeroed else set())
