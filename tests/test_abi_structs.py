"""Parameter blocks: fields by their newest names, whatever the layout, and passing them to C."""

from __future__ import annotations

import ctypes

import pytest

from libloader.abi import layouts, structs

LAYOUTS = {
    item.id: item
    for struct in ("llama_model_params", "llama_context_params")
    for item in layouts.of(struct)
}


def params(layout_id: str, load_modes=None) -> structs.Params:
    layout = LAYOUTS[layout_id]
    made = structs.struct_type(layout.struct, layout.rows)
    return structs.Params(made, bytes(structs.BLOCK_BYTES), load_modes)


def raw(value: structs.Params) -> bytes:
    return bytes(value._as_parameter_.data)


def test_a_set_field_lies_at_the_offset_of_its_layout():
    for layout_id, offset in (("C3", 28), ("C10", 36), ("C13", 44)):
        made = params(layout_id)
        assert made.set("pooling_type", 3)
        assert raw(made)[offset : offset + 4] == (3).to_bytes(4, "little")


def test_a_field_that_a_build_lacks_is_refused_quietly():
    made = params("C3")
    assert not made.set("kv_unified", True)
    assert raw(made) == bytes(structs.BLOCK_BYTES)
    assert made.get("kv_unified") is None
    assert "kv_unified" not in made and "n_ctx" in made


@pytest.mark.parametrize(("newest", "older"), [(-1, False), (0, False), (1, True)])
def test_flash_attention_is_a_flag_in_old_builds_and_an_enum_in_new_ones(newest, older):
    old, new = params("C7"), params("C8")
    assert old.set("flash_attn_type", newest) and new.set("flash_attn_type", newest)
    assert old.get("flash_attn") is older
    assert new.get("flash_attn_type") == newest


@pytest.mark.parametrize(
    ("mmap", "mlock", "mode"),
    [(False, False, 0), (True, False, 1), (False, True, 2), (True, True, 3)],
)
def test_loading_is_two_flags_in_old_builds_and_a_mode_in_new_ones(mmap, mlock, mode):
    old, new = params("M7"), params("M10")
    old.set_loading(mmap, mlock)
    new.set_loading(mmap, mlock)
    assert (old.get("use_mmap"), old.get("use_mlock")) == (mmap, mlock)
    assert new.get("load_mode") == mode


def test_mode_3_is_avoided_where_it_meant_direct_io():
    made = params("M8", structs.OLDER_LOAD_MODES)
    made.set_loading(True, True)
    assert made.get("load_mode") == 2


def test_a_callback_given_to_a_block_can_be_called_by_address_as_long_as_the_block_lives():
    seen = []
    made = params("M10")
    made.set("progress_callback", structs.ProgressCallback(lambda done, _: not seen.append(done)))
    address = made.get("progress_callback")
    assert structs.ProgressCallback(address)(0.5, None)
    assert seen == [0.5]


def test_defaults_beyond_the_known_fields_are_handed_back_to_c():
    layout = LAYOUTS["M10"]
    defaults = bytes(range(256)) * 2
    made = structs.Params(structs.struct_type("m", layout.rows), defaults)
    made.set("n_gpu_layers", 7)
    assert raw(made)[:16] == defaults[:16] and raw(made)[80:] == defaults[80:]


def test_two_blocks_do_not_share_their_bytes():
    first, second = params("C13"), params("C13")
    first.set("n_ctx", 99)
    assert second.get("n_ctx") == 0


def test_a_block_is_passed_by_value_in_its_full_length():
    take = ctypes.CFUNCTYPE(ctypes.c_int, structs.Block)(lambda block: block.data[511])
    made = structs.Params(structs.struct_type("m", LAYOUTS["M10"].rows), bytes(511) + b"\x2a")
    assert take(made._as_parameter_) == 42


def test_the_one_byte_struct_is_one_byte():
    assert ctypes.sizeof(structs.ChainParams) == 1
