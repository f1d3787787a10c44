"""Structs of llama.h that changed at b5922. Made by scripts/abi_check.py."""

from libloader.abi.structs import Table

SINCE = "b5922"

STRUCTS: Table = {
    "llama_perf_context_data": (
        "PC1",
        (
            # field, C type, default values seen (empty: not checked)
            ("t_start_ms", "f64", ()),
            ("t_load_ms", "f64", ()),
            ("t_p_eval_ms", "f64", ()),
            ("t_eval_ms", "f64", ()),
            ("n_p_eval", "i32", ()),
            ("n_eval", "i32", ()),
            ("n_reused", "i32", ()),
        ),
    ),
}
