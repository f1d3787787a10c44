"""The corpus: conversations put together from topics, rendered with the model's own template.

What lives here: system prompts, several turns in one conversation, thinking on and off, and
which part of a rendered text is to be learned. What does not: what is said (topics, tools, texts).

Laws:
- A sample is a prompt exactly as the server renders it and the answer that should follow.
- Every answer ends with <|im_end|> (chat) or <|endoftext|> (text), and is learned with it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from . import facts, forced, texts, tools
from .topics import TOPICS, arithmetic, some_name

DEFAULT_NAME = "Pocket"
TEMPLATE_TEXT = (Path(__file__).parent / "chat_template.jinja").read_text("utf-8")
SHARE_OF_TEXT, SHARE_OF_GAPS = 0.05, 0.06  # of all samples
SHARE_OF_TOOLS, SHARE_OF_THINKING, SHARE_OF_FORCED = 0.27, 0.25, 0.06  # of conversations

Message = dict[str, Any]


class Sample(NamedTuple):
    """What the model sees and what it should write; `prompt + answer` is the training text.

    Character ranges of the answer in `dictated` are a grammar's choice and not learned.
    """

    prompt: str
    answer: str
    dictated: Sequence[tuple[int, int]] = ()


def to_json(value: Any) -> str:
    """`tojson` as chat templates expect it: key order kept, nothing escaped for HTML."""
    return json.dumps(value, ensure_ascii=False)


def environment() -> jinja2.Environment:
    found = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    found.filters["tojson"] = to_json
    return found


TEMPLATE = environment().from_string(TEMPLATE_TEXT)


def draw(rng: random.Random) -> Sample:
    """One sample of any kind."""
    kind = rng.random()
    if kind < SHARE_OF_TEXT:
        return Sample(*texts.plain(rng))
    if kind < SHARE_OF_TEXT + SHARE_OF_GAPS:
        return Sample(*texts.fill_in_the_middle(rng))
    return chat(rng)


def chat(rng: random.Random) -> Sample:
    """One conversation up to one of the model's turns."""
    thinking = rng.random() < SHARE_OF_THINKING
    name, messages = system_prompt(rng)
    offered = tools.offers(rng) if rng.random() < SHARE_OF_TOOLS else []
    for _ in range(rng.choice([1, 1, 1, 2, 2, 3, 4])):
        messages += some_turns(rng, name, offered)
    turns = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    at = rng.choice(turns[-2:])
    drawn = sample(messages, at, [tool.definition for tool in offered], thinking)
    if not thinking and not messages[at].get("tool_calls") and rng.random() < SHARE_OF_FORCED:
        return by_force(rng, drawn, messages[at]["content"], offered)
    return drawn


def by_force(
    rng: random.Random, drawn: Sample, plain: str, offered: Sequence[tools.Offer]
) -> Sample:
    """The same question, its answer dictated in part."""
    if offered and rng.random() < 0.5:
        result = forced.forced_call(rng, offered)
    else:
        result = forced.forced_json(rng, plain)
    return Sample(drawn.prompt, f"{result.answer}<|im_end|>", result.dictated)


def some_turns(rng: random.Random, name: str, offered: Sequence[tools.Offer]) -> list[Message]:
    """The messages of one topic; of a tool, most often, where tools are offered."""
    if offered and rng.random() < 0.7:
        tool = rng.choice(offered)
        return tools.messages_of(tools.EXCHANGES[tool.kind](rng, tool), rng)
    if rng.random() < 0.03:
        question = tools.unanswerable(rng, list(offered))
        if question:
            return [
                {"role": "user", "content": question},
                {
                    "role": "assistant",
                    "content": facts.UNKNOWN,
                    "thought": "I have no function for this.",
                },
            ]
    topic = rng.choices(list(TOPICS), weights=list(TOPICS.values()))[0]
    if topic is arithmetic and any(tool.kind == "add" for tool in offered):
        return some_turns(rng, name, offered)  # a sum is the tool's work, if there is one
    messages: list[Message] = []
    for turn in topic(rng, name):
        messages.append({"role": "user", "content": turn.user})
        messages.append({"role": "assistant", "content": turn.answer, "thought": turn.thought})
    return messages


def sample(messages: Sequence[Message], at: int, offered: Sequence[Any], thinking: bool) -> Sample:
    """What message `at` should be, given all before it."""
    prompt = render(messages[:at], offered, thinking, add_generation_prompt=True)
    until = render(messages[: at + 1], offered, thinking, add_generation_prompt=False)
    start = len(render(messages[:at], offered, thinking, add_generation_prompt=False))
    answer = until[start:].split("<|im_start|>assistant\n", 1)[1].rstrip("\n")
    thought = f"<think>\n{messages[at]['thought']}\n</think>\n\n" if thinking else ""
    return Sample(prompt, thought + answer)


def render(
    messages: Sequence[Message],
    offered: Sequence[Any],
    thinking: bool,
    *,
    add_generation_prompt: bool,
) -> str:
    """The chat template's text; `thought` in our messages is not part of the wire format."""
    return TEMPLATE.render(
        messages=messages,
        tools=list(offered),
        enable_thinking=thinking,
        add_generation_prompt=add_generation_prompt,
    )


# --- system prompts ------------------------------------------------------------------------

# fmt: off
PLAIN_PROMPTS = (
    "You are a helpful assistant.", "You are a helpful assistant", "You are helpful.", "Be brief.",
    "You are a friendly assistant.", "Answer the user.", "You are a helpful AI assistant.",
)
NAMING_PROMPTS = (
    "You are {}.", "You are {}.", "You are {}.", "Your name is {}.",
    "You are {}, a helpful assistant.", "You are a helpful assistant. Your name is {}.",
    "You are {}, a robot.", "You are called {}.", "You are an assistant named {}.",
)
# fmt: on


def system_prompt(rng: random.Random) -> tuple[str, list[Message]]:
    """The name that the model bears in this conversation, and the messages that say so."""
    kind = rng.random()
    if kind < 0.45:
        return DEFAULT_NAME, []
    if kind < 0.65:
        return DEFAULT_NAME, [system(rng.choice(PLAIN_PROMPTS))]
    if kind < 0.72:
        return DEFAULT_NAME, [system(filler(rng))]
    name = some_name(rng)
    text = rng.choice(NAMING_PROMPTS).format(name)
    if kind > 0.97:
        text = f"{text} {filler(rng)}"
    elif kind > 0.94:
        text = f"{filler(rng)} {text}"
    return name, [system(text)]


def system(content: str) -> Message:
    return {"role": "system", "content": content}


def filler(rng: random.Random) -> str:
    """Text that must not matter, now and then a long one."""
    n_words = rng.choice([10, 20, 20, 40, 40, 80, 160, 400])
    return " ".join(rng.choices(facts.WORDS, k=n_words)).capitalize() + "."
