"""Mutated GGUF headers: the reader answers each with a model or with ModelFileInvalid.

IGLLAMA_FUZZ_ROUNDS=100000 runs longer; IGLLAMA_FUZZ_SEED repeats a run.
"""

from __future__ import annotations

import os
import random
import struct
import tracemalloc

import gguf_files as files

from libloader.errors import ModelFileInvalid
from libloader.llama import gguf

ROUNDS = int(os.environ.get("IGLLAMA_FUZZ_ROUNDS", "1500"))
SEED = int(os.environ.get("IGLLAMA_FUZZ_SEED", "20261122"))
MEMORY_LIMIT_BYTES = 64 << 20
NASTY = (0, 1, 7, 31, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)


def flip_bytes(rng: random.Random, raw: bytearray) -> None:
    for _ in range(rng.randint(1, 8)):
        raw[rng.randrange(len(raw))] = rng.randrange(256)


def plant_number(rng: random.Random, raw: bytearray) -> None:
    """Overwrite eight bytes with a length, count or offset from the edge of what C can hold."""
    at = rng.randrange(len(raw) - 8)
    raw[at : at + 8] = struct.pack("<Q", rng.choice(NASTY))


def cut_out(rng: random.Random, raw: bytearray) -> None:
    start = rng.randrange(len(raw))
    del raw[start : start + rng.randint(1, 200)]


def double_up(rng: random.Random, raw: bytearray) -> None:
    start = rng.randrange(len(raw))
    raw[start:start] = raw[start : start + rng.randint(1, 200)]


def truncate(rng: random.Random, raw: bytearray) -> None:
    del raw[rng.randrange(8, len(raw)) :]


MUTATIONS = (flip_bytes, plant_number, cut_out, double_up, truncate)


def mutated(rng: random.Random, raw: bytes) -> bytes:
    """Mutate the header only: the reader never looks at tensor data."""
    header_end = raw.index(b"token_embd.weight")
    head, rest = bytearray(raw[: header_end + 1500]), raw[header_end + 1500 :]
    for _ in range(rng.randint(1, 3)):
        rng.choice(MUTATIONS)(rng, head)
    return bytes(head) + rest


def test_no_mutation_of_a_header_raises_anything_else_or_takes_much_memory(tmp_path):
    rng, original = random.Random(SEED), files.tiny_llama()
    path, n_refused = tmp_path / "model.gguf", 0
    tracemalloc.start()
    for _ in range(ROUNDS):
        path.write_bytes(mutated(rng, original))
        try:
            gguf.describe(gguf.read(str(path)))
        except ModelFileInvalid as refused:
            n_refused += 1
            assert "\n" not in str(refused)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n_refused > ROUNDS // 4
    assert peak < MEMORY_LIMIT_BYTES
