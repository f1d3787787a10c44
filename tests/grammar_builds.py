"""Does a build of libllama read our grammars as we do? Run on its own for one build in one process:

    python3 tests/grammar_builds.py LIBRARY [N]     prints disagreements and a count

With N, every Nth of the schemas is tried.

An old build that cannot parse a grammar says so only in its log and then constrains nothing: so it
is not asked whether it parses, but which tokens it takes.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import schema_cases  # noqa: E402  (the path is set above, for a run on its own)

from libloader.abi import find, library  # noqa: E402
from libloader.core import EngineSettings, Sampling  # noqa: E402
from libloader.errors import GrammarInvalid  # noqa: E402
from libloader.grammar import gbnf, json_schema  # noqa: E402
from libloader.llama.model import Model  # noqa: E402
from libloader.llama.sampler import SamplerChain  # noqa: E402

POCKET = Path(__file__).resolve().parent / "models" / "pocket.gguf"
SYNTAX = {
    "every kind of repetition": 'root ::= [a-c]{2} "x"? [d]* [e]+ "f"{1,3} [g]{0,2} ("h" "i"){2,}',
    "groups and choices": 'root ::= ("a" | "b" ("c" | "d")) | "e" ("f" | "")',
    "escapes": r'root ::= "\"\\\n\t\x41é" [\x22\x5b\x5d\x5e\x2d\\] [^\x00-\x1f\x22\\]',
    "beyond the first plane": 'root ::= "😀" [\\U0001F600-\\U0001F64F] [à-ü]',
    "any character": 'root ::= "a" . "b"',
    "comments and line breaks": "# one\nroot ::= a # two\n\na ::= (\n  [a]\n  | [b]\n)\n",
}


def disagreements(model, pieces, text, seed):
    """Let the build read a document token by token; return where it differs from us, or "".

    `pieces` are the bytes of each token.
    """
    document = schema_cases.Writer(text, seed, size=60).document()[:200]
    matcher = gbnf.Matcher(gbnf.compile_text(text, max_bytes=json_schema.MAX_GRAMMAR_BYTES))
    rng, read, n_known = random.Random(seed), b"", 0
    with SamplerChain(model, Sampling(grammar=text), 4096) as chain:
        for token in model.vocab.tokenize(document, False, False):
            for other in rng.sample(range(len(pieces)), 2):
                if _is_forbidden(matcher, read[n_known:], pieces[other]) and _takes(chain, other):
                    return f"{pieces[other]} is taken after {read!r}"
            if not _takes(chain, token):
                return f"{pieces[token]} is not taken after {read!r}"
            read += pieces[token]
            n_known += _feed(matcher, read[n_known:])
        if matcher.is_complete and not _takes(chain, model.vocab.eos):
            return f"the end is not taken after {read!r}"
    return ""


def _feed(matcher, raw):
    """Let the matcher read what is whole characters; return how many bytes those were."""
    text = raw.decode("utf-8", "ignore")
    matcher.feed(text)
    return len(text.encode())


def _is_forbidden(matcher, rest, piece):
    """Whether the grammar lets no such token follow; parts of characters are not judged."""
    if rest or not piece.isascii():
        return False
    state = matcher.stacks, matcher.is_complete
    is_forbidden = matcher.feed(piece.decode()) < len(piece)
    matcher.stacks, matcher.is_complete = state
    return is_forbidden


def _takes(chain, token):
    try:
        chain.accept(token)
    except GrammarInvalid:
        return False
    return True


def pieces_of(vocab):
    return [vocab.piece(token) for token in range(vocab.n_tokens)]


def grammars(step=1):
    """Return all kinds of syntax, and the grammars of every `step`th schema, by name."""
    cases = schema_cases.load()[::step]
    made = {case.name: json_schema.to_grammar(case.schema).text for case in cases}
    return {**SYNTAX, "json_object": json_schema.json_object().text, **made}


def main():
    lib = find.find_library(sys.argv[1], library.load)
    found, step = [], int(sys.argv[2]) if len(sys.argv) > 2 else 1
    with Model.load(lib, str(POCKET), EngineSettings()) as model:
        texts, pieces = grammars(step), pieces_of(model.vocab)
        for seed, (name, text) in enumerate(texts.items()):
            problem = disagreements(model, pieces, text, seed)
            found += [f"{name}: {problem}"] if problem else []
    print("\n".join([*found[:20], f"{lib.release}: {len(texts)} grammars, {len(found)} disagree"]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
