"""The generated layout tables, and the script that makes them from a llama.h."""

from __future__ import annotations

import ctypes

import pytest

from libloader.abi import builds, layouts, structs
from libloader.abi.layouts.modules import MODULES
from scripts import abi_check

# (struct, layout id) -> size, and offsets of some fields: measured with a C compiler, see abi.md.
MEASURED = {
    ("llama_model_params", "M0"): (64, {"main_gpu": 8, "tensor_split": 16, "check_tensors": 59}),
    ("llama_model_params", "M3"): (72, {"n_gpu_layers": 16, "tensor_split": 32, "use_mlock": 66}),
    ("llama_model_params", "M7"): (72, {"use_direct_io": 66, "no_host": 70, "no_alloc": 71}),
    ("llama_model_params", "M10"): (80, {"load_mode": 24, "main_gpu": 32, "load_mtp": 77}),
    ("llama_context_params", "C3"): (120, {"type_k": 88, "logits_all": 96, "abort_callback": 104}),
    ("llama_context_params", "C8"): (120, {"flash_attn_type": 36, "kv_unified": 117}),
    ("llama_context_params", "C9"): (136, {"samplers": 120, "pooling_type": 28}),
    ("llama_context_params", "C11"): (152, {"n_outputs_max": 20, "type_v": 108}),
    ("llama_context_params", "C13"): (160, {"n_outputs_max_per_seq": 24, "ctx_other": 152}),
    ("llama_batch", "B0"): (72, {"logits": 48, "all_seq_id": 64}),
    ("llama_batch", "B1"): (56, {"token": 8, "pos": 24, "logits": 48}),
    ("llama_token_data_array", "TA1"): (32, {"selected": 16, "sorted": 24}),
}


@pytest.mark.parametrize(("struct", "id"), MEASURED)
def test_natural_alignment_gives_the_offsets_that_a_c_compiler_gave(struct, id):
    size, offsets = MEASURED[struct, id]
    layout = next(item for item in layouts.of(struct) if item.id == id)
    made = structs.struct_type(struct, layout.rows)
    assert ctypes.sizeof(made) == size
    assert {name: getattr(made, name).offset for name in offsets} == offsets


def test_there_are_eleven_model_and_fourteen_context_layouts_numbered_by_age():
    for struct, letter, count in (
        ("llama_model_params", "M", 11),
        ("llama_context_params", "C", 14),
    ):
        known = layouts.of(struct)
        assert [item.id for item in known] == [f"{letter}{i}" for i in range(count)]
        assert [item.since for item in known] == sorted(item.since for item in known)


def test_each_layout_ends_where_the_next_begins():
    for module in MODULES:
        for struct in module.STRUCTS:
            known = layouts.of(struct)
            ends = [item.until for item in known]
            assert ends == [item.since for item in known[1:]] + [builds.NEVER]


@pytest.mark.parametrize("name", ["b3889", "v0.4.0", "v0.5.12"])
def test_a_build_is_ordered_and_named_back(name):
    assert builds.label(builds.order(name)) == name


def test_versions_come_after_every_build_number():
    names = ["b3600", "b9999", "b10470", "v0.4.0", "0.5.0-dev", "0.6.0-dev"]
    assert sorted(names, key=builds.order) == names


@pytest.mark.parametrize(
    ("file", "build"),
    [
        ("libllama.b9842.so", "b9842"),
        ("libllama.v0.5.0.so", "v0.5.0"),
        ("libllama.b7324.so.0.0.1", "b7324"),
        ("libllama.so.0.0.7021", "b7021"),
        ("llama.v0.4.0.dll", "v0.4.0"),
        ("libllama.so.0", ""),
        ("libllama.dylib", ""),
    ],
)
def test_a_file_name_tells_the_build_if_it_carries_one(file, build):
    assert builds.named_in(file) == build


def test_a_bracket_reads_like_a_release():
    assert str(builds.Bracket(3773, 3905)) == "b3773..b3904"
    assert str(builds.Bracket(100_500, 100_600)) == "v0.5.0"
    assert str(builds.Bracket(10_394, 100_500)) == "b10394 or newer, before v0.5.0"
    assert str(builds.Bracket(100_600, builds.NEVER)) == "v0.6.0 or newer"


# --- scripts/abi_check.py -----------------------------------------------------------------------

C_NAMES = {
    "u32": "uint32_t", "i64": "int64_t", "i32": "int32_t", "i8": "int8_t",
    "f32": "float", "f64": "double",
    "enum": "enum llama_kind", "size": "size_t", "bool": "bool", "ptr": "void *",
    "i32*": "llama_token *", "i32**": "llama_seq_id **", "f32*": "float *", "i8*": "int8_t *",
}  # fmt: skip


def header_text(*members, functions="") -> str:
    """Write a llama.h of our own with the given (struct, rows)."""
    parts = ['#include "ggml.h"', "#ifdef __cplusplus", 'extern "C" {', "#endif"]
    for struct, rows in members:
        fields = [f"    {C_NAMES[c_type]} {name}; // about {name}" for name, c_type, _ in rows]
        parts += [f"struct {struct} {{", *fields, "};"]
    return "\n".join([*parts, functions, ""])


EVERY_LAYOUT = [
    pytest.param(struct, rows, id=id)
    for module in MODULES
    for struct, (id, rows) in module.STRUCTS.items()
]


@pytest.mark.parametrize(("struct", "rows"), EVERY_LAYOUT)
def test_the_parser_reads_every_layout_back_from_a_header(struct, rows):
    header = abi_check.read_header(header_text((struct, rows)))
    assert header.structs[struct] == abi_check.layout_fields(rows)
    assert not abi_check.changed_structs(header)


def test_the_parser_takes_c_as_people_write_it():
    header = abi_check.read_header(
        """
        /* struct llama_model_params { int gone; }; */
        typedef struct llama_batch {
            int32_t n_tokens;   // how many
            llama_token  *  token;
            float *embd; llama_pos*pos;
            int32_t * n_seq_id;
            llama_seq_id ** seq_id;
            int8_t * logits; // TODO: rename
        } llama_batch;
        struct llama_context_params {
            #define IGNORED \\
                uint32_t no;
            uint32_t n_ctx, n_batch;
            enum ggml_type type_k; // [EXPERIMENTAL]
            bool (*abort_callback)(void * data, int n);
            ggml_backend_sched_eval_callback cb_eval;
            const struct llama_model_kv_override * kv_overrides;
        };
        LLAMA_API struct llama_model * llama_load(
                         const char * path,
          struct llama_model_params   params);
        DEPRECATED(LLAMA_API int32_t llama_old(void), "use llama_new instead");
        LLAMA_API DEPRECATED(void llama_older(llama_token t, float p[2]), "no");
        """
    )
    assert header.structs["llama_batch"] == abi_check.layout_fields(
        layouts.of("llama_batch")[-1].rows
    )
    assert header.structs["llama_context_params"] == (
        ("n_ctx", "u32"),
        ("n_batch", "u32"),
        ("type_k", "enum"),
        ("abort_callback", "ptr"),
        ("cb_eval", "ptr"),
        ("kv_overrides", "ptr"),
    )
    assert header.functions["llama_load"] == ("ptr", ("str", "llama_model_params"))
    assert header.functions["llama_old"] == ("i32", ())


def test_a_type_of_unknown_size_is_not_guessed():
    text = "struct llama_logit_bias { llama_token token; llama_wide bias; };"
    with pytest.raises(abi_check.UnknownType, match="llama_wide"):
        abi_check.read_header(text)


def test_a_header_that_changed_nothing_is_reported_as_such(tmp_path, capsys):
    header = tmp_path / "llama.h"
    newest = [(struct, layouts.of(struct)[-1].rows) for struct in abi_check.TRACKED]
    header.write_text(header_text(*newest, functions=declared_prototypes()))
    assert abi_check.main(["--header", str(header)]) == 0
    assert capsys.readouterr().out == "nothing changed\n"


def declared_prototypes() -> str:
    """Declare every function of PROTOTYPES as it is there."""
    c_names = {"str": "const char *", "u64": "uint64_t", "void": "void", **C_NAMES}
    c_names.update(dict.fromkeys(abi_check.prototypes.HANDLES, "struct llama_thing *"))
    c_names.update(
        batch="struct llama_batch",
        model_params="struct llama_model_params",
        context_params="struct llama_context_params",
        chain_params="struct llama_sampler_chain_params",
        perf_context="struct llama_perf_context_data",
    )
    lines = []
    for name, result, arguments in abi_check.prototypes.PROTOTYPES:
        parameters = [f"{c_names[word]} a{i}" for i, word in enumerate(arguments.split())]
        lines.append(f"LLAMA_API {c_names[result]} {name}({', '.join(parameters) or 'void'});")
    return "\n".join(lines)


def test_a_changed_function_and_a_changed_struct_are_named(tmp_path, capsys):
    rows = list(layouts.of("llama_logit_bias")[-1].rows)
    members = [(struct, layouts.of(struct)[-1].rows) for struct in abi_check.TRACKED]
    members = [m for m in members if m[0] != "llama_logit_bias"]
    members.append(("llama_logit_bias", [*rows, ("scale", "f32", ())]))
    functions = declared_prototypes().replace(
        "llama_sampler_init_temp(float a0)", "llama_sampler_init_temp(double a0)"
    )
    header = tmp_path / "llama.h"
    header.write_text(header_text(*members, functions=functions))
    assert abi_check.main(["--header", str(header)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "llama_logit_bias differs from LB0: new: scale",
        "llama_sampler_init_temp changed from ptr(f32) to ptr(f64)",
    ]


@pytest.mark.parametrize("since", ["b4501", "b9549", "b10355", "v0.4.0"])
def test_a_header_regenerates_the_very_layout_file_that_is_here(since, tmp_path, monkeypatch):
    forget_from(since, monkeypatch)
    module = next(m for m in MODULES if since == m.SINCE)
    header = tmp_path / "llama.h"
    members = [(struct, rows) for struct, (_, rows) in module.STRUCTS.items()]
    header.write_text(header_text(*members))
    observed = {row[0]: row[2] for _, rows in members for row in rows}
    monkeypatch.setattr(
        abi_check, "inherit", lambda struct, fields, _: tuple((*f, observed[f[0]]) for f in fields)
    )
    write = ["--header", str(header), "--since", since, "--write", "--folder", str(tmp_path)]
    assert abi_check.main(write) == 1
    name = f"{abi_check.module_name(since)}.py"
    assert (tmp_path / name).read_text() == (abi_check.LAYOUT_FOLDER / name).read_text()


def forget_from(since: str, monkeypatch) -> None:
    """Let this test live before a build: layouts from then on are unknown."""
    past = tuple(m for m in MODULES if builds.order(m.SINCE) < builds.order(since))
    monkeypatch.setattr(layouts, "MODULES", past)
    monkeypatch.setattr(layouts, "of", layouts.of.__wrapped__)


def test_a_new_layout_inherits_defaults_and_leaves_new_fields_unchecked(tmp_path, monkeypatch):
    forget_from("b10355", monkeypatch)
    rows = next(m for m in MODULES if m.SINCE == "b10355").STRUCTS["llama_context_params"][1]
    header = abi_check.read_header(header_text(("llama_context_params", rows)))
    (made,) = abi_check.new_layouts(header, "b10355")
    assert made.id == "C13"
    values = {row[0]: row[2] for row in made.rows}
    assert values["n_batch"] == (2048,)
    assert values["n_outputs_max_per_seq"] == ()


def test_the_index_lists_a_new_layout_after_all_others(tmp_path, monkeypatch):
    forget_from("v0.4.0", monkeypatch)
    text = abi_check.render_index([m.SINCE for m in MODULES])
    assert text == (abi_check.LAYOUT_FOLDER / "modules.py").read_text()


@pytest.mark.native
def test_a_library_at_hand_gives_a_new_layout_its_defaults(native_library, monkeypatch):
    newest = layouts.of("llama_model_params")[-1]
    if native_library.layouts["llama_model_params"].id != newest.id:
        pytest.skip(f"this library has no {newest.id}")
    forget_from(builds.label(newest.since), monkeypatch)
    header = abi_check.read_header(header_text(("llama_model_params", newest.rows)))
    (made,) = abi_check.new_layouts(header, "v0.4.0", native_library.path)
    values = {row[0]: row[2] for row in made.rows}
    assert values["lazy_mode"] == (1,)
    assert values["load_mode"] == (-1, 1)
