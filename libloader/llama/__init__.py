"""Owners of libllama's objects: freed once, in the right order, used only as C survives it.

    gguf, ggml_types, preflight   what a model file is, read in Python before C sees it
    handle                        the ownership that all below share
    model, vocab                  a loaded model and its vocabulary
    context, batch                decoding, the KV cache, logits, embeddings
    sampler, candidates           choosing tokens; log probabilities
    machine                       cores and memory that this process may use

Not here: how C is called (`abi`) and what is decoded when (`engine`).
"""
