"""What is wrong in some builds of libllama, as data: (name, first build, first build without it).

Measured on the prebuilt builds; an edge lies somewhere between two of them, and is set so that
every build in doubt counts as affected. Guards in `guards.py` act on those marked "guarded"; the
rest is for the layers above, which ask `library.hazard(name)`.
"""

from __future__ import annotations

from typing import NamedTuple

from libloader.abi import builds
from libloader.abi.builds import Bracket


class Hazard(NamedTuple):
    name: str
    since: str
    until: str  # "": still there in the newest build
    meaning: str


# fmt: off
HAZARDS: tuple[Hazard, ...] = (
    # guarded
    Hazard("decode_lock", "b4390", "b5684",
           "two contexts that decode at once give wrong logits (a static counter in a CPU matmul)"),
    Hazard("mean_pooling", "b3990", "b4000",
           "a context with mean pooling aborts on llama models; use none, cls or last"),
    Hazard("abort_hangs", "b3600", "b4599",
           "an abort callback is ignored with one thread and hangs forever with two"),
    Hazard("grammar_silent", "b3600", "b5590",
           "a grammar that does not parse gives a sampler that constrains nothing"),
    Hazard("kv_full_minus_3", "b4881", "b5502",
           "llama_decode returns -3, not 1, when the cache is full"),
    Hazard("outputs_per_batch", "b9460", "",
           "n_seq_max above n_batch aborts in context creation"),
    Hazard("streams_copy_whole", "b5913", "",
           "without kv_unified only whole sequences can be copied; else the process aborts"),
    Hazard("load_mode_3_is_direct_io", "b10105", "b10145",
           "load_mode 3 is direct I/O, not mmap with mlock"),
    # for the layers above
    Hazard("dist_reads_p", "b3600", "b3988",
           "the dist sampler draws by the p that the sampler before it left, temperature or not"),
    Hazard("state_garbage", "b3600", "b6122",
           "llama_state_seq_set_data hangs or takes gigabytes on damaged data"),
    Hazard("pos_max_zero", "b3600", "b5590",
           "llama_memory_seq_pos_max of an empty sequence is 0, not -1"),
    Hazard("n_seq_max_is_kv_size", "b3600", "b4881",
           "llama_n_seq_max returns the size of the cache"),
    Hazard("n_batch_raised", "b3600", "b6846",
           "n_batch below 64 is raised to 64, before b4753 to 32 if below"),
    Hazard("adapters_unnoticed", "b5641", "b7836",
           "a batch shaped like the one before is computed with that one's LoRA adapters"),
    Hazard("no_auto_flash_attn", "b3600", "b6325", "flash attention is on or off, never auto"),
    Hazard("shared_tokens_diverge", "b5913", "",
           "without kv_unified, two sequences that share tokens of one batch cannot diverge"),
    Hazard("gpu_by_default", "b6123", "", "n_gpu_layers is not 0 by default"),
)
# fmt: on


def present(name: str, span: Bracket) -> bool:
    """Tell whether a hazard may be in the builds of a bracket; KeyError if nobody knows it."""
    hazard = {item.name: item for item in HAZARDS}[name]
    until = builds.order(hazard.until) if hazard.until else builds.NEVER
    return span.meets(builds.order(hazard.since), until)
