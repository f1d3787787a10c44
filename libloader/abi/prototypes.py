"""Every C function that igllama calls, as rows: one vocabulary, the newest llama.h's.

What an older build calls otherwise is in RENAMED; what it called the same but with other arguments
is in VARIANTS; what it may lack is in CAPABILITIES. Every function that belongs to no capability is
required. `binding.py` turns the rows into callables for one library; guards come on top
(`guards.py`).

Two old habits need no row: before b4463 the vocabulary functions took the model, so there
`llama_model_get_vocab` returns the model; before b5596 the cache functions took the context, as
ours do in every build.
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

# Opaque pointers, named for the reader; all of them are plain addresses (int or None) in Python.
HANDLES = ("model", "vocab", "ctx", "memory", "sampler", "adapter", "reg", "dev", "ptr", "pool")

# fmt: off
PROTOTYPES: tuple[tuple[str, str, str], ...] = (
    # C name                               returns   arguments
    ("llama_backend_init",                 "void",   ""),
    ("llama_backend_free",                 "void",   ""),
    ("llama_numa_init",                    "void",   "enum"),
    ("llama_log_set",                      "void",   "ptr ptr"),
    ("llama_print_system_info",            "str",    ""),
    ("llama_version",                      "str",    ""),
    ("llama_max_devices",                  "size",   ""),
    ("llama_max_parallel_sequences",       "size",   ""),
    ("llama_supports_mmap",                "bool",   ""),
    ("llama_supports_mlock",               "bool",   ""),
    ("llama_supports_gpu_offload",         "bool",   ""),
    # model
    ("llama_model_load_from_file",         "model",  "str model_params"),
    ("llama_model_load_from_splits",       "model",  "ptr size model_params"),
    ("llama_model_free",                   "void",   "model"),
    ("llama_model_get_vocab",              "vocab",  "model"),
    ("llama_model_n_ctx_train",            "i32",    "model"),
    ("llama_model_n_embd",                 "i32",    "model"),
    ("llama_model_n_embd_out",             "i32",    "model"),
    ("llama_model_n_layer",                "i32",    "model"),
    ("llama_model_n_head",                 "i32",    "model"),
    ("llama_model_n_head_kv",              "i32",    "model"),
    ("llama_model_n_swa",                  "i32",    "model"),
    ("llama_model_n_params",               "u64",    "model"),
    ("llama_model_size",                   "u64",    "model"),
    ("llama_model_desc",                   "i32",    "model ptr size"),
    ("llama_model_meta_count",             "i32",    "model"),
    ("llama_model_meta_key_by_index",      "i32",    "model i32 ptr size"),
    ("llama_model_meta_val_str",           "i32",    "model str ptr size"),
    ("llama_model_meta_val_str_by_index",  "i32",    "model i32 ptr size"),
    ("llama_model_chat_template",          "str",    "model str"),
    ("llama_model_has_encoder",            "bool",   "model"),
    ("llama_model_has_decoder",            "bool",   "model"),
    ("llama_model_decoder_start_token",    "i32",    "model"),
    ("llama_model_is_recurrent",           "bool",   "model"),
    ("llama_model_is_hybrid",              "bool",   "model"),
    ("llama_model_is_diffusion",           "bool",   "model"),
    ("llama_model_n_cls_out",              "u32",    "model"),
    ("llama_model_cls_label",              "str",    "model u32"),
    # vocabulary
    ("llama_vocab_type",                   "enum",   "vocab"),
    ("llama_vocab_n_tokens",               "i32",    "vocab"),
    ("llama_vocab_get_text",               "str",    "vocab i32"),
    ("llama_vocab_get_score",              "f32",    "vocab i32"),
    ("llama_vocab_get_attr",               "enum",   "vocab i32"),
    ("llama_vocab_is_eog",                 "bool",   "vocab i32"),
    ("llama_vocab_is_control",             "bool",   "vocab i32"),
    ("llama_vocab_bos",                    "i32",    "vocab"),
    ("llama_vocab_eos",                    "i32",    "vocab"),
    ("llama_vocab_eot",                    "i32",    "vocab"),
    ("llama_vocab_sep",                    "i32",    "vocab"),
    ("llama_vocab_nl",                     "i32",    "vocab"),
    ("llama_vocab_pad",                    "i32",    "vocab"),
    ("llama_vocab_mask",                   "i32",    "vocab"),
    ("llama_vocab_get_add_bos",            "bool",   "vocab"),
    ("llama_vocab_get_add_eos",            "bool",   "vocab"),
    ("llama_vocab_get_add_sep",            "bool",   "vocab"),
    ("llama_vocab_fim_pre",                "i32",    "vocab"),
    ("llama_vocab_fim_suf",                "i32",    "vocab"),
    ("llama_vocab_fim_mid",                "i32",    "vocab"),
    ("llama_vocab_fim_pad",                "i32",    "vocab"),
    ("llama_vocab_fim_rep",                "i32",    "vocab"),
    ("llama_vocab_fim_sep",                "i32",    "vocab"),
    ("llama_tokenize",                     "i32",    "vocab str i32 i32* i32 bool bool"),
    ("llama_token_to_piece",               "i32",    "vocab i32 ptr i32 i32 bool"),
    ("llama_detokenize",                   "i32",    "vocab i32* i32 ptr i32 bool bool"),
    # context
    ("llama_init_from_model",              "ctx",    "model context_params"),
    ("llama_free",                         "void",   "ctx"),
    ("llama_get_model",                    "model",  "ctx"),
    ("llama_n_ctx",                        "u32",    "ctx"),
    ("llama_n_ctx_seq",                    "u32",    "ctx"),
    ("llama_n_batch",                      "u32",    "ctx"),
    ("llama_n_ubatch",                     "u32",    "ctx"),
    ("llama_n_seq_max",                    "u32",    "ctx"),
    ("llama_n_threads",                    "i32",    "ctx"),
    ("llama_n_threads_batch",              "i32",    "ctx"),
    ("llama_pooling_type",                 "enum",   "ctx"),
    ("llama_set_n_threads",                "void",   "ctx i32 i32"),
    ("llama_set_embeddings",               "void",   "ctx bool"),
    ("llama_set_causal_attn",              "void",   "ctx bool"),
    ("llama_set_warmup",                   "void",   "ctx bool"),
    ("llama_set_abort_callback",           "void",   "ctx ptr ptr"),
    ("llama_attach_threadpool",            "void",   "ctx pool pool"),
    ("llama_synchronize",                  "void",   "ctx"),
    ("llama_perf_context",                 "perf_context", "ctx"),
    ("llama_perf_context_reset",           "void",   "ctx"),
    ("llama_batch_init",                   "batch",  "i32 i32 i32"),
    ("llama_batch_free",                   "void",   "batch"),
    ("llama_encode",                       "i32",    "ctx batch"),
    ("llama_decode",                       "i32",    "ctx batch"),
    ("llama_get_logits",                   "f32*",   "ctx"),
    ("llama_get_logits_ith",               "f32*",   "ctx i32"),
    ("llama_get_embeddings",               "f32*",   "ctx"),
    ("llama_get_embeddings_ith",           "f32*",   "ctx i32"),
    ("llama_get_embeddings_seq",           "f32*",   "ctx i32"),
    # the cache: in Python all of these take the context, see MEMORY
    ("llama_get_memory",                   "memory", "ctx"),
    ("llama_memory_clear",                 "void",   "memory bool"),
    ("llama_memory_seq_rm",                "bool",   "memory i32 i32 i32"),
    ("llama_memory_seq_cp",                "void",   "memory i32 i32 i32 i32"),
    ("llama_memory_seq_keep",              "void",   "memory i32"),
    ("llama_memory_seq_add",               "void",   "memory i32 i32 i32 i32"),
    ("llama_memory_seq_pos_min",           "i32",    "memory i32"),
    ("llama_memory_seq_pos_max",           "i32",    "memory i32"),
    ("llama_memory_can_shift",             "bool",   "memory"),
    # state
    ("llama_state_get_size",               "size",   "ctx"),
    ("llama_state_get_data",               "size",   "ctx ptr size"),
    ("llama_state_set_data",               "size",   "ctx ptr size"),
    ("llama_state_seq_get_size",           "size",   "ctx i32"),
    ("llama_state_seq_get_data",           "size",   "ctx ptr size i32"),
    ("llama_state_seq_set_data",           "size",   "ctx ptr size i32"),
    ("llama_state_seq_get_size_ext",       "size",   "ctx i32 u32"),
    ("llama_state_seq_get_data_ext",       "size",   "ctx ptr size i32 u32"),
    ("llama_state_seq_set_data_ext",       "size",   "ctx ptr size i32 u32"),
    # samplers
    ("llama_sampler_chain_init",           "sampler", "chain_params"),
    ("llama_sampler_chain_add",            "void",    "sampler sampler"),
    ("llama_sampler_chain_get",            "sampler", "sampler i32"),
    ("llama_sampler_chain_n",              "i32",     "sampler"),
    ("llama_sampler_free",                 "void",    "sampler"),
    ("llama_sampler_name",                 "str",     "sampler"),
    ("llama_sampler_accept",               "void",    "sampler i32"),
    ("llama_sampler_apply",                "void",    "sampler ptr"),
    ("llama_sampler_reset",                "void",    "sampler"),
    ("llama_sampler_clone",                "sampler", "sampler"),
    ("llama_sampler_sample",               "i32",     "sampler ctx i32"),
    ("llama_sampler_get_seed",             "u32",     "sampler"),
    ("llama_sampler_init_greedy",          "sampler", ""),
    ("llama_sampler_init_dist",            "sampler", "u32"),
    ("llama_sampler_init_top_k",           "sampler", "i32"),
    ("llama_sampler_init_top_p",           "sampler", "f32 size"),
    ("llama_sampler_init_min_p",           "sampler", "f32 size"),
    ("llama_sampler_init_typical",         "sampler", "f32 size"),
    ("llama_sampler_init_temp",            "sampler", "f32"),
    ("llama_sampler_init_temp_ext",        "sampler", "f32 f32 f32"),
    ("llama_sampler_init_xtc",             "sampler", "f32 f32 size u32"),
    ("llama_sampler_init_top_n_sigma",     "sampler", "f32"),
    ("llama_sampler_init_adaptive_p",      "sampler", "f32 f32 u32"),
    ("llama_sampler_init_mirostat",        "sampler", "i32 u32 f32 f32 i32"),
    ("llama_sampler_init_mirostat_v2",     "sampler", "u32 f32 f32"),
    ("llama_sampler_init_penalties",       "sampler", "i32 i32 f32 f32 f32"),
    ("llama_sampler_init_dry",             "sampler", "vocab f32 f32 i32 i32 ptr size"),
    ("llama_sampler_init_logit_bias",      "sampler", "i32 i32 ptr"),
    ("llama_sampler_init_grammar",         "sampler", "vocab str str"),
    ("llama_sampler_init_grammar_lazy_patterns", "sampler",
     "vocab str str ptr size i32* size"),
    ("llama_sampler_init_infill",          "sampler", "vocab"),
    ("llama_set_sampler",                  "bool",    "ctx i32 sampler"),
    ("llama_get_sampled_token_ith",        "i32",     "ctx i32"),
    # adapters
    ("llama_adapter_lora_init",            "adapter", "model str"),
    ("llama_adapter_lora_free",            "void",    "adapter"),
    ("llama_set_adapters_lora",            "i32",     "ctx ptr size f32*"),
    ("llama_set_adapter_cvec",             "i32",     "ctx f32* size i32 i32 i32"),
    # ggml
    ("ggml_backend_reg_count",             "size",    ""),
    ("ggml_backend_reg_get",               "reg",     "size"),
    ("ggml_backend_reg_name",              "str",     "reg"),
    ("ggml_backend_reg_get_proc_address",  "ptr",     "reg str"),
    ("ggml_backend_dev_count",             "size",    ""),
    ("ggml_backend_dev_get",               "dev",     "size"),
    ("ggml_backend_dev_name",              "str",     "dev"),
    ("ggml_backend_dev_description",       "str",     "dev"),
    ("ggml_backend_dev_type",              "enum",    "dev"),
    ("ggml_backend_dev_memory",            "void",    "dev ptr ptr"),
    ("ggml_backend_load_all",              "void",    ""),
    ("ggml_backend_load_all_from_path",    "void",    "str"),
    ("ggml_set_abort_callback",            "ptr",     "ptr"),
    ("ggml_version",                       "str",     ""),
    ("ggml_threadpool_params_init",        "void",    "ptr i32"),
)
# fmt: on

# Our name -> what older builds call it, newest first. The arguments are the same.
RENAMED: dict[str, tuple[str, ...]] = {
    "llama_model_load_from_file": ("llama_load_model_from_file",),  # b4424
    "llama_model_free": ("llama_free_model",),
    "llama_init_from_model": ("llama_new_context_with_model",),  # b4463
    "llama_model_n_ctx_train": ("llama_n_ctx_train",),
    "llama_model_n_embd": ("llama_n_embd",),
    "llama_model_n_layer": ("llama_n_layer",),
    "llama_model_n_head": ("llama_n_head",),
    "llama_vocab_n_tokens": ("llama_n_vocab",),
    "llama_vocab_get_text": ("llama_token_get_text",),
    "llama_vocab_get_score": ("llama_token_get_score",),
    "llama_vocab_get_attr": ("llama_token_get_attr",),
    "llama_vocab_is_eog": ("llama_token_is_eog",),
    "llama_vocab_is_control": ("llama_token_is_control",),
    "llama_vocab_bos": ("llama_token_bos",),
    "llama_vocab_eos": ("llama_token_eos",),
    "llama_vocab_eot": ("llama_token_eot",),
    "llama_vocab_sep": ("llama_token_sep",),
    "llama_vocab_nl": ("llama_token_nl",),
    "llama_vocab_pad": ("llama_token_pad",),
    "llama_vocab_get_add_bos": ("llama_add_bos_token",),
    "llama_vocab_get_add_eos": ("llama_add_eos_token",),
    "llama_vocab_fim_pre": ("llama_token_fim_pre", "llama_token_prefix"),  # b3909
    "llama_vocab_fim_suf": ("llama_token_fim_suf", "llama_token_suffix"),
    "llama_vocab_fim_mid": ("llama_token_fim_mid", "llama_token_middle"),
    "llama_vocab_fim_pad": ("llama_token_fim_pad",),
    "llama_vocab_fim_rep": ("llama_token_fim_rep",),
    "llama_vocab_fim_sep": ("llama_token_fim_sep",),
    "llama_adapter_lora_init": ("llama_lora_adapter_init",),
    "llama_adapter_lora_free": ("llama_lora_adapter_free",),
    "llama_set_adapter_cvec": ("llama_apply_adapter_cvec", "llama_control_vector_apply"),  # b8049
    # b5596; kv_cache_* went at b5435, kv_self_* came at b4881 and went at b6239
    "llama_memory_clear": ("llama_kv_self_clear", "llama_kv_cache_clear"),
    "llama_memory_seq_rm": ("llama_kv_self_seq_rm", "llama_kv_cache_seq_rm"),
    "llama_memory_seq_cp": ("llama_kv_self_seq_cp", "llama_kv_cache_seq_cp"),
    "llama_memory_seq_keep": ("llama_kv_self_seq_keep", "llama_kv_cache_seq_keep"),
    "llama_memory_seq_add": ("llama_kv_self_seq_add", "llama_kv_cache_seq_add"),
    "llama_memory_seq_pos_min": ("llama_kv_self_seq_pos_min",),
    "llama_memory_seq_pos_max": ("llama_kv_self_seq_pos_max", "llama_kv_cache_seq_pos_max"),
    "llama_memory_can_shift": ("llama_kv_self_can_shift", "llama_kv_cache_can_shift"),
}


class Variant(NamedTuple):
    """Other arguments under the same name in builds [since, until); `adapt` maps ours to theirs."""

    name: str
    since: str
    until: str
    arguments: str
    adapt: Callable[..., tuple[Any, ...]]


# llama_memory_clear and llama_model_chat_template need no row: each only got one more argument,
# and passing it to an older build is harmless.
# fmt: off
VARIANTS: tuple[Variant, ...] = (
    Variant(  # b10258 put n_vocab first
        "llama_sampler_init_penalties", "b4335", "b10258", "i32 f32 f32 f32",
        lambda n_vocab, last_n, repeat, freq, present: (last_n, repeat, freq, present),
    ),
    Variant(  # n_vocab, eos, newline, ..., penalize_nl, ignore_eos; -1: no such token
        "llama_sampler_init_penalties", "b3600", "b4335", "i32 i32 i32 i32 f32 f32 f32 bool bool",
        lambda n_vocab, *rest: (n_vocab, -1, -1, *rest, True, False),
    ),
    Variant(  # n_ctx_train bounded the window too; ours is always explicit
        "llama_sampler_init_dry", "b4463", "b10273", "vocab i32 f32 f32 i32 i32 ptr size",
        lambda vocab, mul, base, allowed, last_n, *breakers: (
            vocab, max(last_n, 0), mul, base, allowed, last_n, *breakers),
    ),
)
# fmt: on


class Capability(NamedTuple):
    """Something a build may lack: off unless all its functions are there, from build `since`."""

    name: str
    since: str
    functions: tuple[str, ...]
    meaning: str


# fmt: off
CAPABILITIES: tuple[Capability, ...] = (
    Capability("infill", "b3922", ("llama_sampler_init_infill",), "the infill sampler"),
    Capability("xtc", "b3920", ("llama_sampler_init_xtc",), "the XTC sampler"),
    Capability("dry", "b3978", ("llama_sampler_init_dry",), "the DRY sampler"),
    Capability("penalties", "b3681", ("llama_sampler_init_penalties",), "repetition penalties"),
    Capability("top_n_sigma", "b4705", ("llama_sampler_init_top_n_sigma",),
               "the top-n-sigma sampler"),
    Capability("adaptive_p", "b7748", ("llama_sampler_init_adaptive_p",), "the adaptive-p sampler"),
    Capability("grammar_lazy", "b4828", ("llama_sampler_init_grammar_lazy_patterns",),
               "grammars that wait for a trigger"),
    Capability("sampler_seed", "b3721", ("llama_sampler_get_seed",), "reading a sampler's seed"),
    Capability("backend_sampling", "b7627", ("llama_set_sampler", "llama_get_sampled_token_ith"),
               "sampling inside the compute graph"),
    Capability("lora", "b3600",
               ("llama_adapter_lora_init", "llama_adapter_lora_free", "llama_set_adapters_lora"),
               "LoRA adapters"),
    Capability("cvec", "b3600", ("llama_set_adapter_cvec",), "control vectors"),
    Capability("splits", "b4492", ("llama_model_load_from_splits",),
               "loading a split model from a list of files"),
    Capability("chat_template", "b4463", ("llama_model_chat_template",),
               "asking the library for the chat template"),
    Capability("n_ctx_seq", "b6925", ("llama_n_ctx_seq",), "reading the context of one sequence"),
    Capability("n_embd_out", "b7639", ("llama_model_n_embd_out",), "embeddings of another size"),
    Capability("n_head_kv", "b4771", ("llama_model_n_head_kv",), "reading the number of KV heads"),
    Capability("n_swa", "b5554", ("llama_model_n_swa",), "reading the sliding window's size"),
    Capability("classifier", "b5600", ("llama_model_n_cls_out", "llama_model_cls_label"),
               "labels of a classifier"),
    Capability("recurrent", "b3614", ("llama_model_is_recurrent",), "telling recurrent models"),
    Capability("hybrid", "b6685", ("llama_model_is_hybrid",), "telling hybrid models"),
    Capability("diffusion", "b6042", ("llama_model_is_diffusion",), "telling diffusion models"),
    Capability("vocab_mask", "b5912", ("llama_vocab_mask",), "the mask token"),
    Capability("add_sep", "b5718", ("llama_vocab_get_add_sep",), "whether a separator is added"),
    Capability("fim_extra", "b3909",
               ("llama_vocab_fim_pad", "llama_vocab_fim_rep", "llama_vocab_fim_sep"),
               "fill-in-the-middle markers for repositories"),
    Capability("warmup", "b4887", ("llama_set_warmup",), "warm-up runs"),
    Capability("abort_callback", "b4600", ("llama_set_abort_callback",),
               "stopping a decode from outside"),
    Capability("seq_pos_min", "b5429", ("llama_memory_seq_pos_min",),
               "the first position that a sequence still has"),
    Capability("can_shift", "b4131", ("llama_memory_can_shift",),
               "telling whether the cache can be shifted"),
    Capability("state_seq_ext", "b6160",
               ("llama_state_seq_get_size_ext", "llama_state_seq_get_data_ext",
                "llama_state_seq_set_data_ext"), "partial states of a sequence"),
    Capability("perf", "b3750", ("llama_perf_context", "llama_perf_context_reset"),
               "the library's own timings"),
    Capability("version", "b10394", ("llama_version",), "the library's own version"),
    Capability("sequence_limit", "b5485", ("llama_max_parallel_sequences",),
               "the largest number of sequences"),
    Capability("memory_object", "b5596", ("llama_get_memory",), "a memory handle of its own"),
    Capability("backend_registry", "b3889",
               ("ggml_backend_reg_count", "ggml_backend_reg_get", "ggml_backend_reg_name",
                "ggml_backend_dev_count", "ggml_backend_dev_get", "ggml_backend_dev_name",
                "ggml_backend_dev_description", "ggml_backend_dev_type", "ggml_backend_dev_memory"),
               "listing backends and devices"),
    Capability("backend_loading", "b4302",
               ("ggml_backend_load_all", "ggml_backend_load_all_from_path"),
               "backends in separate files"),
    Capability("fatal_text", "b5798", ("ggml_set_abort_callback",),
               "the text of a fatal error before the process dies"),
    Capability("threadpool", "b3889",
               ("llama_attach_threadpool", "ggml_threadpool_params_init",
                "ggml_backend_reg_count", "ggml_backend_reg_get",
                "ggml_backend_reg_get_proc_address"), "threads that stay between two steps"),
    Capability("ggml_release", "b5810", ("ggml_version",), "ggml's version"),
)
# fmt: on

OPTIONAL = frozenset(name for capability in CAPABILITIES for name in capability.functions)

# Before b8049 adapters were set one by one.
ADAPTER_SETTERS = (
    ("llama_clear_adapter_lora", "llama_set_adapter_lora"),  # b4463
    ("llama_lora_adapter_clear", "llama_lora_adapter_set"),
)

# The first argument list is called; a sampler that it switched off is named "?...". With floats in
# registers of their own (SysV, AAPCS64) the other list reads these values as harmless ones.
PROBES: dict[str, tuple[str, tuple[Any, ...], bytes]] = {
    # older: (last_n 1, repeat 1.5, ...); newer: (n_vocab 1, last_n 0, ...)
    "llama_sampler_init_penalties": ("i32 i32 f32 f32 f32", (1, 0, 1.5, 0.0, 0.0), b"penalties"),
    # older: (n_ctx_train 64, allowed 0, last_n 5); newer: (allowed 64, last_n 0)
    "llama_sampler_init_dry": (
        "vocab i32 f32 f32 i32 i32 ptr size",
        (None, 64, 0.8, 1.75, 0, 5, None, 0),
        b"dry",
    ),
}
