"""Structs of llama.h that changed at b3943. Made by scripts/abi_check.py."""

from libloader.abi.structs import Table

SINCE = "b3943"

STRUCTS: Table = {
    "llama_batch": (
        "B1",
        (
            # field, C type, default values seen (empty: not checked)
            ("n_tokens", "i32", ()),
            ("token", "i32*", ()),
            ("embd", "f32*", ()),
            ("pos", "i32*", ()),
            ("n_seq_id", "i32*", ()),
            ("seq_id", "i32**", ()),
            ("logits", "i8*", ()),
        ),
    ),
}
