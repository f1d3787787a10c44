"""Structs of llama.h that changed at b6049. Made by scripts/abi_check.py."""

from libloader.abi.structs import Table

SINCE = "b6049"

STRUCTS: Table = {
    "llama_model_params": (
        "M4",
        (
            # field, C type, default values seen (empty: not checked)
            ("devices", "ptr", (0,)),
            ("tensor_buft_overrides", "ptr", (0,)),
            ("n_gpu_layers", "i32", (0, 999)),
            ("split_mode", "enum", (1,)),
            ("main_gpu", "i32", (0,)),
            ("tensor_split", "ptr", (0,)),
            ("progress_callback", "ptr", (0,)),
            ("progress_callback_user_data", "ptr", (0,)),
            ("kv_overrides", "ptr", (0,)),
            ("vocab_only", "bool", (0,)),
            ("use_mmap", "bool", (1,)),
            ("use_mlock", "bool", (0,)),
            ("check_tensors", "bool", (0,)),
            ("use_extra_bufts", "bool", (1,)),
        ),
    ),
}
