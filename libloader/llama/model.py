"""A loaded model: the file, checked, in libllama's memory; its vocabulary and its figures.

Laws:
- libllama sees a file only after `gguf.read` and `preflight.check` have.
- What the file says is read from its header in Python; C is asked for what it computes itself.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any, Callable

from libloader.abi import structs
from libloader.core import EngineSettings
from libloader.errors import ModelLoadFailed
from libloader.llama import gguf, preflight
from libloader.llama.handle import Handle
from libloader.llama.vocab import Vocab

DESCRIPTION_BYTES = 256
CLASSIFIER = ("cls.weight", "cls.output.weight")
# Keys of architectures that carry a state through the text: Mamba's kind, RWKV's, LFM2's.
STATE_KEYS = ("ssm.conv_kernel", "wkv.head_size", "shortconv.l_cache")


class Model(Handle):
    """Owner of a llama_model. Contexts and sampler chains made from it are closed before it."""

    def __init__(self, lib: Any, file: gguf.GGUFFile, pointer: Any) -> None:
        super().__init__("model", pointer, lib.llama_model_free)
        self.lib, self.file = lib, file
        self.vocab = Vocab(lib, self, file)
        self.n_embd: int = lib.llama_model_n_embd(pointer)
        self.n_layer: int = lib.llama_model_n_layer(pointer)
        self.n_ctx_train: int = lib.llama_model_n_ctx_train(pointer)
        self.n_params = file.n_params  # b3889 itself counts tied input and output weights twice
        self.size_bytes = file.total_bytes
        self.adapters: list[Any] = []  # LoRA, by number; see lora.py
        self.has_encoder: bool = bool(lib.llama_model_has_encoder(pointer))
        self.has_decoder: bool = bool(lib.llama_model_has_decoder(pointer))

    @classmethod
    def load(
        cls,
        lib: Any,
        path: str,
        settings: EngineSettings,
        progress: Callable[[float], None] = lambda done: None,
    ) -> Model:
        """Check and load `path`; `progress` gets 0.0..1.0, on this thread.

        Raises ModelFileInvalid before C has seen the file, ModelLoadFailed after. An exception
        from `progress` stops the loading and is raised again here.
        """
        file = gguf.read(path)
        preflight.check(file)
        watch = _Progress(progress)
        params = lib.model_params()
        params.set("n_gpu_layers", settings.n_gpu_layers)
        params.set_loading(settings.use_mmap, settings.use_mlock)
        params.set("progress_callback", watch.callback)
        pointer = lib.llama_model_load_from_file(os.fsencode(path), params)
        if watch.error is not None:
            if pointer:
                lib.llama_model_free(pointer)
            raise watch.error
        if not pointer:
            raise ModelLoadFailed(f"{path}: libllama {lib.release} cannot load this model")
        return cls(lib, file, pointer)

    def metadata(self, key: str) -> gguf.Value | None:
        return self.file.metadata.get(key)

    @property
    def chat_template(self) -> str:
        return self.file.text(gguf.TEMPLATE_KEY)

    @property
    def tool_template(self) -> str:
        """The chat template for requests with tools, "" if the file has none of its own."""
        return self.file.text(gguf.TOOL_TEMPLATE_KEY)

    @property
    def architecture(self) -> str:
        return self.file.architecture

    @property
    def description(self) -> str:
        """libllama's own words, e.g. "llama 15M F16"."""
        buffer = ctypes.create_string_buffer(DESCRIPTION_BYTES)
        self.lib.llama_model_desc(self.pointer, buffer, DESCRIPTION_BYTES)
        return buffer.value.decode("utf-8", "replace")

    @property
    def is_encoder_decoder(self) -> bool:
        """T5 and its kind: the prompt goes through llama_encode first, which aborts elsewhere."""
        return self.has_encoder and self.has_decoder

    @property
    def generates(self) -> bool:
        """Whether it continues text; BERT and its kind look both ways and only embed."""
        is_causal = self.file.metadata.get(f"{self.architecture}.attention.causal", True)
        return bool(is_causal) and not self.is_encoder_decoder

    @property
    def n_swa(self) -> int:
        """Tokens that a sliding window of attention spans; 0 if there is none."""
        if self.lib.has("n_swa"):
            return int(self.lib.llama_model_n_swa(self.pointer))
        return self.file.of_architecture("attention.sliding_window")

    @property
    def has_classifier(self) -> bool:
        """Whether it can rank: pooling rank aborts in most builds where these are missing."""
        return any(tensor.name in CLASSIFIER for tensor in self.file.all_tensors)

    @property
    def pooling(self) -> int:
        """llama_pooling_type that the file asks for; -1 if it does not say."""
        return self.file.integer(f"{self.architecture}.pooling_type", -1)

    @property
    def has_state(self) -> bool:
        """Whether a past, or a part of it, is one state: it can be copied whole, but never cut."""
        if self.lib.has("recurrent") and self.lib.llama_model_is_recurrent(self.pointer):
            return True
        if self.lib.has("hybrid"):
            return bool(self.lib.llama_model_is_hybrid(self.pointer))
        return any(f"{self.architecture}.{key}" in self.file.metadata for key in STATE_KEYS)

    def kv_elements_per_token(self) -> tuple[int, int]:
        """Return how many numbers one token takes in the K and in the V cache, over all layers.

        An upper bound: sliding windows and shared layers take less.
        """
        file, n_heads = self.file, self.file.of_architecture("attention.head_count")
        per_layer = list(file.numbers(f"{self.architecture}.attention.head_count_kv"))
        n_kv_heads = per_layer or [
            file.of_architecture("attention.head_count_kv", n_heads)
        ] * file.of_architecture("block_count")
        head = file.of_architecture("embedding_length") // max(1, n_heads)
        lengths = (
            file.of_architecture(f"attention.{which}_length", head) for which in ("key", "value")
        )
        key, value = (int(sum(n_kv_heads)) * length for length in lengths)
        return key, value

    def state_elements(self) -> int:
        """Return how many numbers the state of one sequence takes, over all layers.

        An upper bound, for hybrid models: not all of their layers have a state.
        """
        of = self.file.of_architecture
        n_embd, n_inner, n_state = map(of, ("embedding_length", "ssm.inner_size", "ssm.state_size"))
        n_convolved = max(0, of("ssm.conv_kernel") - 1)
        n_mamba = n_convolved * (n_inner + 2 * of("ssm.group_count") * n_state) + n_inner * n_state
        n_rwkv = (2 + of("wkv.head_size")) * n_embd if of("wkv.head_size") else 0
        n_short = max(0, of("shortconv.l_cache") - 1) * n_embd
        return of("block_count") * (n_mamba + n_rwkv + n_short)


class _Progress:
    """Bridges libllama's progress callback to a Python one, and an exception back."""

    def __init__(self, report: Callable[[float], None]) -> None:
        self._report = report
        self.error: BaseException | None = None
        self.callback = structs.ProgressCallback(self._on_progress)

    def _on_progress(self, done: float, _user_data: Any) -> bool:
        """Return False to make libllama stop. An exception may not cross C, so it is kept."""
        try:
            self._report(done)
        except BaseException as error:  # also KeyboardInterrupt: the caller raises it again
            self.error = error
        return self.error is None
