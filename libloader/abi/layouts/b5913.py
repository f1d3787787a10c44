"""Structs of llama.h that changed at b5913. Made by scripts/abi_check.py."""

from libloader.abi.structs import Table

SINCE = "b5913"

STRUCTS: Table = {
    "llama_context_params": (
        "C7",
        (
            # field, C type, default values seen (empty: not checked)
            ("n_ctx", "u32", (512,)),
            ("n_batch", "u32", (2048,)),
            ("n_ubatch", "u32", (512,)),
            ("n_seq_max", "u32", (1,)),
            ("n_threads", "i32", (4,)),
            ("n_threads_batch", "i32", (4,)),
            ("rope_scaling_type", "enum", (-1,)),
            ("pooling_type", "enum", (-1,)),
            ("attention_type", "enum", (-1,)),
            ("rope_freq_base", "f32", (0.0,)),
            ("rope_freq_scale", "f32", (0.0,)),
            ("yarn_ext_factor", "f32", (-1.0,)),
            ("yarn_attn_factor", "f32", (-1.0, 1.0)),
            ("yarn_beta_fast", "f32", (-1.0, 32.0)),
            ("yarn_beta_slow", "f32", (-1.0, 1.0)),
            ("yarn_orig_ctx", "u32", (0,)),
            ("defrag_thold", "f32", (-1.0,)),
            ("cb_eval", "ptr", (0,)),
            ("cb_eval_user_data", "ptr", (0,)),
            ("type_k", "enum", (1,)),
            ("type_v", "enum", (1,)),
            ("abort_callback", "ptr", (0,)),
            ("abort_callback_data", "ptr", (0,)),
            ("embeddings", "bool", (0,)),
            ("offload_kqv", "bool", (1,)),
            ("flash_attn", "bool", (0,)),
            ("no_perf", "bool", (1,)),
            ("op_offload", "bool", (1,)),
            ("swa_full", "bool", (1,)),
            ("kv_unified", "bool", (0,)),
        ),
    ),
}
