"""The fourteen misuses by which Python code ends its own process in libllama (F14).

Called directly, eleven of them abort and three are a segmentation fault. Here each is driven
through our own layer, on the real library, in this very process: it has to be refused in Python or
to be harmless, and the engine parts have to work on afterwards.
"""

from __future__ import annotations

from dataclasses import replace

import gguf_files as files
import pytest
from llama_rows import SETTINGS, decode, generate

from libloader.core import EngineSettings, Sampling
from libloader.errors import IgllamaError
from libloader.grammar import gbnf
from libloader.llama.context import Context
from libloader.llama.model import Model
from libloader.llama.sampler import SamplerChain

pytestmark = pytest.mark.native

PLAIN = Sampling(temperature=1.0)
FILES = []  # the model file, once it is written
HELLO = 'root ::= "hello" " world"'


@pytest.fixture(scope="module")
def context(native_library, tmp_path_factory):
    path = files.write(tmp_path_factory.mktemp("misuse") / "tiny.gguf", files.tiny_llama())
    FILES.append(path)
    model = Model.load(native_library, path, EngineSettings())
    with model, Context(model, SETTINGS) as context:
        yield context


def piece_beyond_the_vocabulary(context):
    context.model.vocab.piece(files.N_VOCAB)


def piece_of_a_negative_token(context):
    context.model.vocab.piece(-1)


def accept_of_a_token_beyond_the_vocabulary(context):
    with SamplerChain(context.model, PLAIN, 128) as chain:
        chain.accept(2**31 - 1)


def decode_of_a_token_beyond_the_vocabulary(context):
    decode(context, [files.N_VOCAB])


def batch_larger_than_n_batch(context):
    decode(context, [1] * (context.n_batch + 1))


def sampling_without_logits(context):
    decode(context, [1, 2, 3])
    with SamplerChain(context.model, PLAIN, 128) as chain:
        chain.sample(context, 0)


def grammar_that_no_candidate_fits(context):
    decode(context, [1, 2, 3])
    only_nul = replace(PLAIN, top_k=1, grammar=r"root ::= [\x00] [\x00]")
    with SamplerChain(context.model, only_nul, 128) as chain:
        chain.sample(context, 2)


def accept_of_what_the_grammar_forbids(context):
    with SamplerChain(context.model, replace(PLAIN, grammar=HELLO), 128) as chain:
        chain.accept(context.model.vocab.tokenize("x", False, False)[0])


def accept_of_the_end_before_the_grammar_ends(context):
    with SamplerChain(context.model, replace(PLAIN, grammar=HELLO), 128) as chain:
        chain.accept(context.model.vocab.eos)


def nested_groups(context):
    gbnf.check("root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000)


def chained_rules(context):
    gbnf.check("\n".join(f"r{n} ::= r{n + 1}" for n in range(100_000)) + "\nroot ::= r0")


def decode_after_the_model_is_freed(context):
    model = Model.load(context.model.lib, FILES[0], EngineSettings())
    other = Context(model, SETTINGS)
    model.close()
    decode(other, [1, 2, 3])


REFUSED = (
    piece_beyond_the_vocabulary,
    piece_of_a_negative_token,
    accept_of_a_token_beyond_the_vocabulary,
    decode_of_a_token_beyond_the_vocabulary,
    batch_larger_than_n_batch,
    sampling_without_logits,
    grammar_that_no_candidate_fits,
    accept_of_what_the_grammar_forbids,
    accept_of_the_end_before_the_grammar_ends,
    nested_groups,
    chained_rules,
    decode_after_the_model_is_freed,
)


def huge_windows(context):
    """Served: the windows are cut to the context before a buffer is made of them."""
    windows = {"repeat_last_n": 2**31 - 1, "repeat_penalty": 1.1}
    dry = {"dry_multiplier": 0.8, "dry_penalty_last_n": 2**31 - 1}
    generate(context, replace(PLAIN, **windows, **dry), 4)


def ending_twice(context):
    chain = SamplerChain(context.model, PLAIN, 128)
    chain.close()
    chain.close()


HARMLESS = (huge_windows, ending_twice)


def test_there_are_fourteen():
    assert len(REFUSED) + len(HARMLESS) == 14


@pytest.mark.parametrize("misuse", REFUSED, ids=lambda misuse: misuse.__name__)
def test_a_misuse_is_refused_in_python_and_all_goes_on(context, misuse):
    """F14"""
    context.seq_rm(0, -1, -1)
    with pytest.raises(IgllamaError):
        misuse(context)
    assert len(generate(context, PLAIN, 4)) >= 1


@pytest.mark.parametrize("misuse", HARMLESS, ids=lambda misuse: misuse.__name__)
def test_a_misuse_that_can_be_served_does_no_harm(context, misuse):
    """F14"""
    misuse(context)
    assert len(generate(context, PLAIN, 4)) >= 1
