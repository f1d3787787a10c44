"""Structs of llama.h that changed at b3600. Made by scripts/abi_check.py."""

from libloader.abi.structs import Table

SINCE = "b3600"

STRUCTS: Table = {
    "llama_model_params": (
        "M0",
        (
            # field, C type, default values seen (empty: not checked)
            ("n_gpu_layers", "i32", (0,)),
            ("split_mode", "enum", (1,)),
            ("main_gpu", "i32", (0,)),
            ("tensor_split", "ptr", (0,)),
            ("rpc_servers", "ptr", (0,)),
            ("progress_callback", "ptr", (0,)),
            ("progress_callback_user_data", "ptr", (0,)),
            ("kv_overrides", "ptr", (0,)),
            ("vocab_only", "bool", (0,)),
            ("use_mmap", "bool", (1,)),
            ("use_mlock", "bool", (0,)),
            ("check_tensors", "bool", (0,)),
        ),
    ),
    "llama_context_params": (
        "C0",
        (
            # field, C type, default values seen (empty: not checked)
            ("seed", "u32", ()),
            ("n_ctx", "u32", (512,)),
            ("n_batch", "u32", (2048,)),
            ("n_ubatch", "u32", (512,)),
            ("n_seq_max", "u32", (1,)),
            ("n_threads", "u32", (4,)),
            ("n_threads_batch", "u32", (4,)),
            ("rope_scaling_type", "enum", (-1,)),
            ("pooling_type", "enum", (-1,)),
            ("attention_type", "enum", (-1,)),
            ("rope_freq_base", "f32", (0.0,)),
            ("rope_freq_scale", "f32", (0.0,)),
            ("yarn_ext_factor", "f32", (-1.0,)),
            ("yarn_attn_factor", "f32", (1.0,)),
            ("yarn_beta_fast", "f32", (32.0,)),
            ("yarn_beta_slow", "f32", (1.0,)),
            ("yarn_orig_ctx", "u32", (0,)),
            ("defrag_thold", "f32", (-1.0,)),
            ("cb_eval", "ptr", (0,)),
            ("cb_eval_user_data", "ptr", (0,)),
            ("type_k", "enum", (1,)),
            ("type_v", "enum", (1,)),
            ("logits_all", "bool", (0,)),
            ("embeddings", "bool", (0,)),
            ("offload_kqv", "bool", (1,)),
            ("flash_attn", "bool", (0,)),
            ("abort_callback", "ptr", (0,)),
            ("abort_callback_data", "ptr", (0,)),
        ),
    ),
    "llama_batch": (
        "B0",
        (
            # field, C type, default values seen (empty: not checked)
            ("n_tokens", "i32", ()),
            ("token", "i32*", ()),
            ("embd", "f32*", ()),
            ("pos", "i32*", ()),
            ("n_seq_id", "i32*", ()),
            ("seq_id", "i32**", ()),
            ("logits", "i8*", ()),
            ("all_pos_0", "i32", ()),
            ("all_pos_1", "i32", ()),
            ("all_seq_id", "i32", ()),
        ),
    ),
    "llama_token_data": (
        "TD0",
        (
            # field, C type, default values seen (empty: not checked)
            ("id", "i32", ()),
            ("logit", "f32", ()),
            ("p", "f32", ()),
        ),
    ),
    "llama_token_data_array": (
        "TA0",
        (
            # field, C type, default values seen (empty: not checked)
            ("data", "ptr", ()),
            ("size", "size", ()),
            ("sorted", "bool", ()),
        ),
    ),
}
