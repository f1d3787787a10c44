"""What is written without a chat template: plain text to continue, and code with a gap."""

# Sentences are easier to read in filled lines than one to a line:
# fmt: off

from __future__ import annotations

import random

from . import facts

FUNCTIONS = (
    "def add(a, b):\n    return a + b\n",
    "def subtract(a, b):\n    return a - b\n",
    "def multiply(a, b):\n    return a * b\n",
    "def divide(a, b):\n    return a / b\n",
    "def square(x):\n    return x * x\n",
    "def double(x):\n    return 2 * x\n",
    "def is_even(n):\n    return n % 2 == 0\n",
    "def is_odd(n):\n    return n % 2 == 1\n",
    "def greet(name):\n    return \"Hello, \" + name\n",
    "def first(items):\n    return items[0]\n",
    "def last(items):\n    return items[-1]\n",
    "def largest(a, b):\n    if a > b:\n        return a\n    return b\n",
    "def smallest(a, b):\n    if a < b:\n        return a\n    return b\n",
    "def total(items):\n    result = 0\n    for item in items:\n        result += item\n"
    "    return result\n",
    "def factorial(n):\n    if n < 2:\n        return 1\n    return n * factorial(n - 1)\n",
    "def absolute(x):\n    return -x if x < 0 else x\n",
    "def is_empty(items):\n    return len(items) == 0\n",
    "function add(a, b) {\n  return a + b;\n}\n",
    "int add(int a, int b) {\n    return a + b;\n}\n",
    "print(\"Hello, world!\")\n",
)


def fill_in_the_middle(rng: random.Random) -> tuple[str, str]:
    """Prompt and answer; half of the gaps are the rest of a line, as an editor asks."""
    code = rng.choice(FUNCTIONS)
    if rng.random() < 0.5:
        start = rng.randint(1, len(code) - 2)
        end = code.index("\n", start)
    else:
        start, end = sorted(rng.sample(range(1, len(code)), 2))
        end = min(end, start + 30)
    prefix, middle, suffix = code[:start], code[start:end], code[end:]
    prompt = f"<|fim_prefix|>{prefix}<|fim_suffix|>{suffix}<|fim_middle|>"
    return prompt, f"{middle}<|endoftext|>"


def plain(rng: random.Random) -> tuple[str, str]:
    """A text cut into what is given and what is to be continued."""
    text, shortest = rng.choice([
        (facts.STORY, 16), (facts.POEM, 11), capital(rng), capital(rng), capital(rng),
        ("The days of the week are " + ", ".join(facts.DAYS[:-1]) + " and Sunday.", 24),
        ("The months are " + ", ".join(facts.MONTHS[:-1]) + " and December.", 14),
        (", ".join(str(n) for n in range(1, 21)), 4),
        (rng.choice(FUNCTIONS), 12), arithmetic(rng), arithmetic(rng), colour(rng),
    ])
    cut = rng.choice([shortest, rng.randint(shortest, max(shortest, len(text) // 2))])
    if text[cut - 1] == " ":
        cut -= 1
    return text[:cut], f"{text[cut:]}<|endoftext|>"


def capital(rng: random.Random) -> tuple[str, int]:
    country, city = rng.choice(list(facts.CAPITALS.items()))
    start = f"The capital of {country} is"
    return f"{start} {city}.", len(start)


def colour(rng: random.Random) -> tuple[str, int]:
    thing, shade = rng.choice(list(facts.COLOURS.items()))
    return f"{thing[0].upper()}{thing[1:]} is {shade}.", len(thing) + 3


def arithmetic(rng: random.Random) -> tuple[str, int]:
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    return f"{a} + {b} = {a + b}", len(f"{a} + {b} =")
