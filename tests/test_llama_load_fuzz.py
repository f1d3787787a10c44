"""Models whose meaning was changed at random: those that pass the preflight do not kill libllama.

Each is loaded, asked to tokenize and to decode in a process of its own, which a crash may end. For
the newest build that we fetch the number of crashes is none. IGLLAMA_FUZZ_ROUNDS=5000 runs longer.
"""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

import gguf_files as files
import pytest
from gguf_files import F32, STRING, U32
from llama_rows import SETTINGS, decode

from libloader.abi import find, library
from libloader.core import EngineSettings
from libloader.errors import IgllamaError
from libloader.llama import gguf, preflight
from libloader.llama.context import Context
from libloader.llama.model import Model

ROUNDS = min(int(os.environ.get("IGLLAMA_FUZZ_ROUNDS", "150")), 20_000)
SEED = int(os.environ.get("IGLLAMA_FUZZ_SEED", "20261122"))
# Exit codes of one trial; a signal is a negative one.
LOADED, REFUSED, STOPPED, BROKEN = 0, 1, 2, 3
TRIAL_S = 20

INTEGERS = (0, 1, 2, 3, 5, 31, 33, 64, 65, 256, 269, 512, 1000, 2**20, 2**31 - 1, 2**31, 2**32 - 1)
NUMBERS = (0.0, -1.0, 1e-5, 1.0, 1e30, float("inf"), float("nan"))
WORDS = {
    "general.architecture": "llama bert gpt2 qwen2 qwen3 gemma gemma2 gemma3 mamba phi3 deepseek2",
    "tokenizer.ggml.model": "gpt2 llama bert t5 rwkv no_vocab plamo2 none x",
    "tokenizer.ggml.pre": "gpt-2 default llama-bpe qwen2 deepseek-llm tekken gpt-4o bert-bge x",
}
TOKENS = ("", "a b", "\n", "<0x0A>", "x" * 300, "▁a", "<|endoftext|>", "Ā", "a\0b")
EXTRA_KEYS = {
    U32: (
        "attention.key_length", "attention.value_length", "expert_count", "expert_used_count",
        "attention.sliding_window", "pooling_type", "expert_feed_forward_length",
        "leading_dense_block_count", "ssm.state_size", "attention.q_lora_rank",
    ),
    F32: (
        "rope.freq_base", "rope.scaling.factor", "attention.scale", "logit_scale",
        "attention.max_alibi_bias", "attn_logit_softcapping",
    ),
}  # fmt: skip
TENSOR_TYPES = {0: 4, 1: 2, 24: 1, 25: 2, 26: 4, 27: 8, 28: 8, 30: 2}  # bytes per number


def changed_item(rng: random.Random, name: str, kind: int, item):
    if isinstance(item, list):
        items = list(item)
        items[rng.randrange(len(items))] = changed_item(rng, name, kind, items[0])
        return items[: rng.choice((len(items), len(items), 3))]
    if kind == STRING:
        return rng.choice(WORDS[name].split()) if name in WORDS else rng.choice(TOKENS)
    if kind == F32:
        return rng.choice(NUMBERS)
    return rng.choice((True, False)) if isinstance(item, bool) else rng.choice(INTEGERS) % 2**31


def mutated(rng: random.Random) -> bytes:
    """Return the tiny llama with one to three of its keys or tensor types changed."""
    keys, types = files.tiny_keys(), {}
    for _ in range(rng.randint(1, 3)):
        choice = rng.random()
        if choice < 0.7:
            name = rng.choice(list(keys))
            kind, item = keys[name]
            keys[name] = (kind, changed_item(rng, name, kind, item))
        elif choice < 0.85:
            kind = rng.choice((U32, F32))
            values = INTEGERS if kind == U32 else NUMBERS
            keys["llama." + rng.choice(EXTRA_KEYS[kind])] = (kind, rng.choice(values))
        else:
            types[rng.choice(list(files.tiny_shapes()))] = rng.choice(list(TENSOR_TYPES))
    return whole_file(keys, types)


@functools.lru_cache
def weights() -> dict:
    return files.random_tensors(files.tiny_shapes(), 1, 1.0)


def whole_file(keys, types) -> bytes:
    infos, data = [], b""
    for name, (shape, numbers) in weights().items():
        kind = types.get(name, 0)
        infos.append(files.tensor_info(name, shape, kind, len(data)))
        data += files.padded((numbers.tobytes() * 2)[: len(numbers) * TENSOR_TYPES[kind]])
    return files.padded(files.header(files.encoded(keys), infos)) + data


def try_model(lib, path: str) -> int:
    """Load, tokenize and decode; all that may raise is our own."""
    try:
        preflight.check(gguf.read(path))
    except IgllamaError:
        return REFUSED
    try:
        model = Model.load(lib, path, EngineSettings())
        tokens = model.vocab.tokenize("hello wörld <|im_end|>\n", True, True)
        assert all(isinstance(model.vocab.piece(token, True), bytes) for token in tokens)
        for embeddings in (False, True):
            if embeddings or model.generates:
                decode(Context(model, SETTINGS, embeddings=embeddings), tokens[:8])
    except IgllamaError:
        return STOPPED
    return LOADED


def exit_with_outcome(lib, path: str) -> NoReturn:
    """End a forked process, whatever happens in it."""
    signal.alarm(TRIAL_S)
    code = BROKEN
    try:
        code = try_model(lib, path)
    finally:
        os._exit(code)


def trials(n_rounds: int, seed: int) -> None:
    """Print one JSON line per trial: (round, exit code). Runs as the main program."""
    lib = find.find_library("", lambda path: library.load(path, log=lambda level, line: None))
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(n_rounds):
            path = files.write(Path(folder) / "model.gguf", mutated(rng))
            process = os.fork()
            if not process:
                exit_with_outcome(lib, path)
            _, status = os.waitpid(process, 0)
            print(json.dumps([number, os.waitstatus_to_exitcode(status)]), flush=True)


@pytest.mark.native
@pytest.mark.skipif(not hasattr(os, "fork"), reason="each trial is a fork")
def test_no_model_that_passes_the_preflight_kills_the_process(native_library):
    command = [sys.executable, __file__, str(ROUNDS), str(SEED)]
    paths = os.pathsep.join((str(Path(__file__).parent.parent), str(Path(__file__).parent)))
    environment = {**os.environ, "PYTHONPATH": paths, "IGLLAMA_LIB": native_library.path}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    outcomes = [json.loads(line) for line in ran.stdout.splitlines()]
    codes = [code for _, code in outcomes]
    assert len(outcomes) == ROUNDS, ran.stderr[-2000:]
    assert {LOADED, REFUSED} <= set(codes)
    assert [outcome for outcome in outcomes if outcome[1] not in (LOADED, REFUSED, STOPPED)] == []


if __name__ == "__main__":
    trials(int(sys.argv[1]), int(sys.argv[2]))
