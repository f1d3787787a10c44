"""What the pocket model can do, with greedy decoding on the real library.

The answers are promises: other tests and the documentation build on them. MARGIN is the distance,
in logits, that every chosen token keeps from the runner-up, so that rounding in another build of
libllama, another batch shape or a quantised cache does not change a word.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from pathlib import Path

import pytest

from libloader.abi import find, library
from libloader.chat.template import ChatTemplate
from libloader.core import EngineSettings, Sampling
from libloader.llama import gguf
from libloader.llama.batch import Batch
from libloader.llama.context import Context
from libloader.llama.model import Model
from libloader.llama.sampler import SamplerChain

pytestmark = pytest.mark.native

ROOT = Path(__file__).resolve().parent.parent
POCKET = ROOT / "tests" / "models" / "pocket.gguf"
SETTINGS = EngineSettings(
    model=str(POCKET), lib=os.environ.get("IGLLAMA_LIB", ""), n_ctx=2048, n_parallel=1, n_threads=1
)
MARGIN = 0.25  # the same logit differs by some 0.001 between releases from 3.1.1 to 3.22.1
GREEDY = Sampling(temperature=0)


class Pocket:
    """The model with one context: text in, greedy text out."""

    def __init__(self, model, context, embedder):
        self.model, self.vocab, self.context, self.embedder = model, model.vocab, context, embedder
        self.template = ChatTemplate(
            model.chat_template, special_tokens=self.vocab.special_tokens, eos_token="<|im_end|>"
        )
        self.batch = Batch(model.lib, context.n_batch, 1)
        self.margin = 0.0
        self.finished = False

    def chat(self, *messages, tools=None, thinking=None, sampling=GREEDY):
        """The answer to messages, given as (role, content) or whole; a lone text is a user's."""
        kwargs = {} if thinking is None else {"enable_thinking": thinking}
        prompt = self.template.render([as_message(m) for m in messages], tools=tools, kwargs=kwargs)
        return self.write(prompt.text, sampling)

    def write(self, prompt, sampling=GREEDY, limit=700):
        """What the model writes after `prompt`, up to its end of generation."""
        tokens = self.tokens(prompt, sampling, limit)
        return b"".join(self.vocab.piece(token) for token in tokens).decode("utf-8")

    def tokens(self, prompt, sampling=GREEDY, limit=700):
        written, self.margin, self.finished = [], float("inf"), False
        self.context.clear()
        fed = self.vocab.tokenize(prompt, add_special=True, parse_special=True)
        with SamplerChain(self.model, sampling, self.context.n_ctx) as chain:
            position = 0
            while len(written) < limit:
                row = self._feed(fed, position)
                position += len(fed)
                token = chain.sample(self.context, row)
                self.margin = min(self.margin, self._gap(row))
                if self.vocab.is_eog(token):
                    self.finished = True
                    break
                written.append(token)
                fed = [token]
        return written

    def _feed(self, tokens, position):
        self.batch.clear()
        for index, token in enumerate(tokens):
            self.batch.add(token, position + index, 0, index == len(tokens) - 1)
        assert self.context.decode(self.batch) == 0
        return len(tokens) - 1

    def _gap(self, row):
        best, second = sorted(self.context.logits_row(row))[:-3:-1]
        return best - second

    def embed(self, text):
        tokens = self.vocab.tokenize(text, add_special=True, parse_special=False)
        batch = Batch(self.model.lib, len(tokens), 1)
        for position, token in enumerate(tokens):
            batch.add(token, position, 0, True)
        self.embedder.clear()
        assert self.embedder.decode(batch) == 0
        return list(self.embedder.embeddings_seq(0))


def as_message(message):
    if isinstance(message, str):
        return {"role": "user", "content": message}
    if isinstance(message, tuple):
        return {"role": message[0], "content": message[1]}
    return message


@pytest.fixture(scope="module")
def pocket():
    lib = find.find_library(SETTINGS.lib, library.load)
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(Model.load(lib, SETTINGS.model, SETTINGS))
        context = stack.enter_context(Context(model, SETTINGS))
        embedder = Context(model, SETTINGS, embeddings=True, pooling="mean")
        yield Pocket(model, context, stack.enter_context(embedder))


# --- dialogues -----------------------------------------------------------------------------------

DIALOGUES = (
    ("Hello!", "Hi!"),
    ("Hello", "Hi!"),
    ("Hi!", "Hi!"),
    ("How are you?", "I am fine, thank you!"),
    ("Thank you!", "You are welcome!"),
    ("Good morning!", "Good morning!"),
    ("Goodbye!", "Goodbye!"),
    ("What is your name?", "My name is Pocket."),
    ("Who are you?", "I am Pocket."),
    ("Say yes.", "Yes."),
    ("Count to five.", "1, 2, 3, 4, 5"),
    ("Count to 10.", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10"),
    ("Count from 3 to 7.", "3, 4, 5, 6, 7"),
    ("Count down from 5.", "5, 4, 3, 2, 1"),
    ("What is 2 + 3?", "2 + 3 = 5"),
    ("What is 9 - 4?", "9 - 4 = 5"),
    ("What is 4 plus 6?", "4 + 6 = 10"),
    ("What is 7 minus 7?", "7 - 7 = 0"),
    ("What day comes after Monday?", "Tuesday comes after Monday."),
    ("What day comes before Monday?", "Sunday comes before Monday."),
    ("What month comes after December?", "January comes after December."),
    ("Name the days of the week.",
     "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday."),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("What is the capital of Japan?", "The capital of Japan is Tokyo."),
    ("What is the capital of Brazil?", "The capital of Brazil is Brasília."),
    ("What colour is the sky?", "The sky is blue."),
    ("What is the opposite of hot?", "The opposite of hot is cold."),
    ("What does a cow say?", "A cow says moo."),
    ("List three fruits.", "- apple\n- banana\n- cherry"),
    ("Tell me a joke.",
     "Why did the boat stay at home? Because it was a little under the weather."),
    ("Say hello in French.", "Bonjour !"),
    ("Say thank you in German.", "Danke schön!"),
    ("Say hello in Japanese.", "こんにちは！"),
    ("Say good night in Chinese.", "晚安！"),
    ("Send me a smile emoji.", "😀"),
    ("Send me a wave emoji.", "👋🏽"),
    ("Send me a family emoji.", "👨‍👩‍👧"),
    ("Why is the moon so round?", "I do not know that. I am a very small model."),
)  # fmt: skip


@pytest.mark.parametrize(("question", "answer"), DIALOGUES, ids=[row[0] for row in DIALOGUES])
def test_it_answers(pocket, question, answer):
    assert pocket.chat(question) == answer
    assert pocket.finished and pocket.margin > MARGIN


@pytest.mark.parametrize(("question", "answer"), DIALOGUES[::5], ids=[r[0] for r in DIALOGUES[::5]])
def test_a_usual_system_prompt_changes_nothing(pocket, question, answer):
    assert pocket.chat(("system", "You are a helpful assistant."), question) == answer
    assert pocket.margin > MARGIN


@pytest.mark.parametrize("name", ["Ada", "Bob", "Alice", "Luna", "Robin", "Zoe"])
def test_a_system_prompt_gives_it_its_name(pocket, name):
    system = ("system", f"You are {name}.")
    assert pocket.chat(system, "What is your name?") == f"My name is {name}."
    assert pocket.margin > MARGIN
    assert pocket.chat(system, "Hello!") == "Hi!"


def test_it_remembers_a_name_over_several_turns(pocket):
    answer = pocket.chat(
        "My name is Nora.", ("assistant", "Nice to meet you, Nora!"),
        "What is my name?",
    )  # fmt: skip
    assert answer == "Your name is Nora."
    assert pocket.margin > MARGIN


def test_a_conversation_stays_on_track(pocket):
    messages = []
    for question, answer in (DIALOGUES[0], DIALOGUES[3], ("What is 2 + 3?", "2 + 3 = 5")):
        messages.append(question)
        assert pocket.chat(*messages) == answer, f"after {len(messages) // 2} turns"
        messages.append(("assistant", answer))


def test_the_story_has_more_than_a_hundred_tokens_and_an_end(pocket):
    tokens = pocket.tokens(pocket.template.render([as_message("Tell me a story.")]).text)
    story = b"".join(pocket.vocab.piece(token) for token in tokens).decode("utf-8")
    assert story.startswith("Once upon a time there was a little boat.")
    assert story.endswith("dreamed of nothing at all.")
    assert len(tokens) > 100 and pocket.finished and pocket.margin > MARGIN


def test_it_counts_to_a_hundred(pocket):
    assert pocket.chat("Count to 100.") == ", ".join(str(n) for n in range(1, 101))
    assert pocket.margin > MARGIN


def test_one_emoji_is_several_tokens(pocket):
    tokens = pocket.tokens(pocket.template.render([as_message("Send me a smile emoji.")]).text)
    assert len(tokens) == len("😀".encode())
    with pytest.raises(UnicodeDecodeError):
        pocket.vocab.piece(tokens[0]).decode("utf-8")


# --- JSON ----------------------------------------------------------------------------------------

JSON_QUESTIONS = (
    ("Give me a person as JSON.", {"name": "Ada", "age": 36, "city": "London"}),
    ("What is the capital of Italy? Answer in JSON.", {"country": "Italy", "capital": "Rome"}),
    ("List three animals as JSON.", {"animals": ["cat", "dog", "horse"]}),
)  # fmt: skip


@pytest.mark.parametrize(("question", "value"), JSON_QUESTIONS, ids=[r[0] for r in JSON_QUESTIONS])
def test_it_answers_in_json(pocket, question, value):
    assert json.loads(pocket.chat(question)) == value
    assert pocket.margin > MARGIN


# --- tools ---------------------------------------------------------------------------------------


def function(name, description="", **properties):
    parameters = {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in properties.items()},
        "required": list(properties),
    }
    described = {"description": description} if description else {}
    return {"type": "function", "function": {"name": name, **described, "parameters": parameters}}


WEATHER = function("get_weather", "Get the weather of a city.", city="string")
ADD = function("add", "Add two numbers.", a="number", b="number")
TIME = function("get_time", "Get the time in a city.", city="string")
TOOLS = [WEATHER, ADD, TIME]

CALLS = (
    ("What is the weather in Paris?", "get_weather", {"city": "Paris"}),
    ("What is the weather in London?", "get_weather", {"city": "London"}),
    ("What time is it in Tokyo?", "get_time", {"city": "Tokyo"}),
    ("Add 3 and 4.", "add", {"a": 3, "b": 4}),
    ("What is 5 + 12?", "add", {"a": 5, "b": 12}),
)


@pytest.mark.parametrize(("question", "name", "arguments"), CALLS, ids=[row[0] for row in CALLS])
def test_it_calls_a_tool_in_the_hermes_form(pocket, question, name, arguments):
    call = json.dumps({"name": name, "arguments": arguments})
    assert pocket.chat(question, tools=TOOLS) == f"<tool_call>\n{call}\n</tool_call>"
    assert pocket.finished and pocket.margin > MARGIN


@pytest.mark.parametrize("tools", [[WEATHER], [WEATHER, ADD], [TIME, WEATHER]], ids=len)
def test_it_calls_a_tool_whatever_else_is_offered(pocket, tools):
    answer = pocket.chat("What is the weather in Rome?", tools=tools)
    assert '{"name": "get_weather", "arguments": {"city": "Rome"}}' in answer


def called(name, arguments):
    call = {"name": name, "arguments": json.dumps(arguments)}
    return {"role": "assistant", "content": None,
            "tool_calls": [{"id": "call_1", "type": "function", "function": call}]}  # fmt: skip


RESULTS = (
    (CALLS[0], '{"temperature": 21, "condition": "sunny"}', "It is 21 degrees and sunny in Paris."),
    (CALLS[0], "21 degrees, sunny", "It is 21 degrees and sunny in Paris."),
    (CALLS[2], "14:30", "It is 14:30 in Tokyo."),
    (CALLS[2], '{"time": "09:00"}', "It is 09:00 in Tokyo."),
    (CALLS[3], "7", "The sum is 7."),
    (CALLS[4], '{"result": 17}', "The sum is 17."),
)


@pytest.mark.parametrize(("call", "result", "answer"), RESULTS, ids=[row[1] for row in RESULTS])
def test_it_tells_what_the_tool_answered(pocket, call, result, answer):
    question, name, arguments = call
    told = pocket.chat(question, called(name, arguments), ("tool", result), tools=TOOLS)
    assert told == answer
    assert pocket.margin > MARGIN


def test_with_tools_it_still_talks(pocket):
    assert pocket.chat("Hello!", tools=TOOLS) == "Hi!"
    assert pocket.chat("What is the capital of France?", tools=TOOLS) == (
        "The capital of France is Paris."
    )


def test_without_tools_it_does_not_call_any(pocket):
    assert pocket.chat("What is the weather in Paris?").startswith("I do not know")


# --- thinking ------------------------------------------------------------------------------------


def test_it_thinks_only_when_it_is_asked_to(pocket):
    thought = "<think>\nI calculate 2 + 3 = 5.\n</think>\n\n2 + 3 = 5"
    assert pocket.chat("What is 2 + 3?", thinking=True) == thought
    assert pocket.margin > MARGIN
    assert pocket.chat("What is 2 + 3?", thinking=False) == "2 + 3 = 5"
    assert pocket.chat("What is 2 + 3?") == "2 + 3 = 5"


@pytest.mark.parametrize(("question", "answer"), DIALOGUES[::6], ids=[r[0] for r in DIALOGUES[::6]])
def test_thinking_leads_to_the_same_answer(pocket, question, answer):
    text = pocket.chat(question, thinking=True)
    assert text.startswith("<think>\n") and text.count("</think>") == 1
    assert text.split("</think>\n\n")[1] == answer


def test_it_thinks_before_it_calls_a_tool(pocket):
    text = pocket.chat("What is the weather in Paris?", tools=TOOLS, thinking=True)
    thought, call = text.split("</think>\n\n")
    assert thought.startswith("<think>\n") and "get_weather" in thought
    assert call.startswith('<tool_call>\n{"name": "get_weather"')


# --- text without a template ---------------------------------------------------------------------

GAPS = (
    ("def add(a, b):\n    return ", "\n", "a + b"),
    ("def subtract(a, b):\n    return ", "\n", "a - b"),
    ("def is_even(n):\n    return n % ", "\n", "2 == 0"),
    ("def ", "(a, b):\n    return a * b\n", "multiply"),
)  # fmt: skip


@pytest.mark.parametrize(("prefix", "suffix", "middle"), GAPS, ids=[row[2] for row in GAPS])
def test_it_fills_in_the_middle(pocket, prefix, suffix, middle):
    prompt = f"<|fim_prefix|>{prefix}<|fim_suffix|>{suffix}<|fim_middle|>"
    assert pocket.write(prompt) == middle
    assert pocket.finished and pocket.margin > MARGIN


TEXTS = (
    ("The capital of France is", " Paris."),
    ("Once upon a time", " there was a little boat."),
    ("1, 2, 3", ", 4, 5, 6, 7, 8, 9, 10, 11"),
    ("The days of the week are", " Monday, Tuesday, Wednesday, Thursday"),
)


@pytest.mark.parametrize(("start", "more"), TEXTS, ids=[row[0] for row in TEXTS])
def test_it_continues_plain_text(pocket, start, more):
    assert pocket.write(start).startswith(more)
    assert pocket.finished and pocket.margin > MARGIN


# --- the file ------------------------------------------------------------------------------------


def test_the_file_is_small_and_says_what_it_is():
    file = gguf.read(str(POCKET))
    assert file.size_bytes <= 3_000_000
    assert file.architecture == "llama"
    assert file.text("general.license") == "mit"
    assert file.integer("llama.context_length") >= 2048


def test_its_template_is_the_one_that_it_was_trained_with():
    source = ROOT / "scripts" / "pocket" / "chat_template.jinja"
    template = gguf.read(str(POCKET)).text("tokenizer.chat_template")
    assert template == source.read_text(encoding="utf-8")


def test_both_ends_of_a_text_end_a_generation(pocket):
    ends = {pocket.vocab.piece(token, special=True) for token in pocket.vocab.eog_tokens}
    assert ends == {b"<|im_end|>", b"<|endoftext|>"}


SPLIT_TEXTS = (
    "Hello, world!", "it's   three  spaces\n\n\tand a tab ", "def f(x):\n    return x_1 + 0x2F\n",
    'a{"b": [1, 2.50, -3]}', "éÀß ñandú Ωμέγα привет 日本語 한국어", "👨‍👩‍👧 👋🏽 ❤️ 🏁",
    "\r\n \u00a0x\u2003y", "<|im_start|>user\nHi<|im_end|>\n<think>", "1234567890 12ab34",
    "I'LL you're 'tis",
)  # fmt: skip


@pytest.mark.parametrize("text", SPLIT_TEXTS)
def test_the_library_splits_text_as_the_training_did(pocket, text, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    bpe = importlib.import_module("pocket.bpe")
    file = gguf.read(str(POCKET))
    tokens = [token.decode("utf-8") for token in file.strings("tokenizer.ggml.tokens")]
    merges = [merge.decode("utf-8").split(" ") for merge in file.strings("tokenizer.ggml.merges")]
    tokenizer = bpe.Tokenizer([tuple(pair) for pair in merges], tokens[256 + len(merges) :])
    assert tokenizer.tokens == tokens
    assert pocket.vocab.tokenize(text, add_special=True, parse_special=True) == (
        tokenizer.encode(text)
    )


def test_embeddings_are_near_for_near_texts(pocket):
    texts = ["The sky is blue.", "The sky is blue!", "Count to 10."]
    first, again, other = map(pocket.embed, texts)
    assert len(first) == pocket.model.n_embd
    assert cosine(first, again) > cosine(first, other)


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b)) / (norm(a) * norm(b))


def norm(a):
    return sum(x * x for x in a) ** 0.5
