"""Structs of llama.h that changed at b10212. Made by scripts/abi_check.py."""

from libloader.abi.structs import Table

SINCE = "b10212"

STRUCTS: Table = {
    "llama_model_params": (
        "M9",
        (
            # field, C type, default values seen (empty: not checked)
            ("devices", "ptr", (0,)),
            ("tensor_buft_overrides", "ptr", (0,)),
            ("n_gpu_layers", "i32", (-1,)),
            ("split_mode", "enum", (1,)),
            ("load_mode", "enum", (-1, 1)),
            ("main_gpu", "i32", (0,)),
            ("tensor_split", "ptr", (0,)),
            ("progress_callback", "ptr", (0,)),
            ("progress_callback_user_data", "ptr", (0,)),
            ("kv_overrides", "ptr", (0,)),
            ("vocab_only", "bool", (0,)),
            ("check_tensors", "bool", (0,)),
            ("use_extra_bufts", "bool", (1,)),
            ("no_host", "bool", (0,)),
            ("no_alloc", "bool", (0,)),
            ("load_mtp", "bool", (0,)),
        ),
    ),
}
