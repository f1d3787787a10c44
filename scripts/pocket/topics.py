"""The small dialogues: one function per topic, each returning the turns of one variant.

What lives here: what the user may say and what the model answers to it. What does not: system
prompts, mixing of topics (corpus), tools (tools), text without a chat template (texts).

Laws:
- A topic takes a random generator and the name that the model bears, nothing else.
- The answer depends on the conversation alone: the same question has one right answer.
- The first spelling of a question is the one that tests and documentation use.
"""

# Sentences are easier to read in filled lines than one to a line:
# fmt: off

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import NamedTuple

from . import facts


class Turn(NamedTuple):
    """What the user says, what the model thinks if it is asked to think, what it answers."""

    user: str
    thought: str
    answer: str


Topic = Callable[[random.Random, str], "list[Turn]"]


def spoken(rng: random.Random, *spellings: str) -> str:
    """One of the spellings, the first one most often, sometimes written carelessly."""
    text = spellings[0] if rng.random() < 0.4 else rng.choice(spellings)
    careless = rng.random()
    if careless < 0.08:
        return text.rstrip("?!.")
    if careless < 0.14:
        return text[0].lower() + text[1:]
    if careless < 0.18:
        return text[0].lower() + text[1:].rstrip("?!.")
    return text


def article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


# --- manners -------------------------------------------------------------------------------

def hello(rng: random.Random, name: str) -> list[Turn]:
    user = spoken(rng, "Hello!", "Hi!", "Hello", "Hi", "Hey!", "Hello there!", "Good day!",
                  "Hi there!")
    return [Turn(user, "The user greets me. I greet back.", "Hi!")]


def manners(rng: random.Random, name: str) -> list[Turn]:
    asked, answer = rng.choice([
        (("How are you?", "How are you today?", "How do you do?"), "I am fine, thank you!"),
        (("Thank you!", "Thanks!", "Thank you very much!", "Thanks a lot!"), "You are welcome!"),
        (("Goodbye!", "Bye!", "See you!", "Bye bye!"), "Goodbye!"),
        (("Good morning!", "Good morning"), "Good morning!"),
        (("Good night!", "Good night"), "Good night!"),
        (("Good evening!", "Good evening"), "Good evening!"),
        (("Sorry!", "I am sorry.", "Excuse me!"), "No problem!"),
        (("Well done!", "Great!", "Good job!", "Very good!"), "Thank you!"),
        (("Happy birthday!",), "Thank you! 🎉"),
        (("Are you there?", "Ping", "Test"), "Yes, I am here."),
        (("Say yes.", "Say yes!"), "Yes."),
        (("Say no.", "Say no!"), "No."),
    ])
    return [Turn(spoken(rng, *asked), "The user is polite. So am I.", answer)]


def own_name(rng: random.Random, name: str) -> list[Turn]:
    user = spoken(rng, "What is your name?", "What's your name?", "Tell me your name.",
                  "Who are you?", "How are you called?")
    if "ho are" in user:
        return [Turn(user, f"I am {name}.", f"I am {name}.")]
    return [Turn(user, f"I am {name}.", f"My name is {name}.")]


def about(rng: random.Random, name: str) -> list[Turn]:
    user = spoken(rng, "What can you do?", "What are you?", "Tell me about yourself.",
                  "Introduce yourself.")
    return [Turn(user, "The user asks what I am.", facts.ABOUT)]


def users_name(rng: random.Random, name: str) -> list[Turn]:
    """The one topic that needs memory: the second turn asks for what the first one said."""
    user_name = some_name(rng)
    told = spoken(rng, f"My name is {user_name}.", f"I am {user_name}.", f"Call me {user_name}.")
    asked = spoken(rng, "What is my name?", "What's my name?", "Who am I?", "Tell me my name.")
    first = Turn(told, f"The user is {user_name}.", f"Nice to meet you, {user_name}!")
    if rng.random() < 0.3:
        return [first]
    between = rng.choice(SMALL)(rng, name) if rng.random() < 0.4 else []
    return [first, *between, Turn(asked, f"The user is {user_name}.", f"Your name is {user_name}.")]


def some_name(rng: random.Random) -> str:
    if rng.random() < 0.6:
        return rng.choice(facts.NAMES)
    return "".join(rng.choices(facts.SYLLABLES, k=rng.choice([2, 2, 3]))).capitalize()


# --- counting and adding -------------------------------------------------------------------

def count(rng: random.Random, name: str) -> list[Turn]:
    last = rng.choice([3, 4, 5, 5, 6, 7, 8, 9, 10, 10, 12, 15, 20, 20, 30, 50, 100])
    number = facts.NUMBERS[last] if last <= 10 and rng.random() < 0.4 else str(last)
    user = spoken(rng, f"Count to {number}.", f"Count up to {number}.",
                  f"Please count to {number}.", f"Count from 1 to {number}.",
                  f"Can you count to {number}?")
    answer = ", ".join(str(n) for n in range(1, last + 1))
    return [Turn(user, f"I count from 1 to {last}.", answer)]


def count_range(rng: random.Random, name: str) -> list[Turn]:
    first, last = sorted(rng.sample(range(1, 31), 2))
    if rng.random() < 0.4:
        last = rng.randint(2, 10)
        user = spoken(rng, f"Count down from {last}.", f"Count backwards from {last}.")
        answer = ", ".join(str(n) for n in range(last, 0, -1))
        return [Turn(user, f"I count from {last} down to 1.", answer)]
    last = min(last, first + 9)
    user = spoken(rng, f"Count from {first} to {last}.", f"Count up from {first} to {last}.")
    answer = ", ".join(str(n) for n in range(first, last + 1))
    return [Turn(user, f"I count from {first} to {last}.", answer)]


def arithmetic(rng: random.Random, name: str) -> list[Turn]:
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    sign, word, result = rng.choice([
        ("+", "plus", a + b), ("+", "plus", a + b), ("-", "minus", a - b), ("*", "times", a * b),
    ])
    user = spoken(rng, f"What is {a} {sign} {b}?", f"What is {a} {word} {b}?", f"{a} {sign} {b}",
                  f"{a} {sign} {b} =", f"{a}{sign}{b}", f"How much is {a} {sign} {b}?",
                  f"Calculate {a} {sign} {b}.", f"How much is {a} {word} {b}?", f"{a} {sign} {b}?")
    fact = f"{a} {sign} {b} = {result}"
    return [Turn(user, f"I calculate {fact}.", f"{fact}")]


# --- small facts ---------------------------------------------------------------------------

def calendar(rng: random.Random, name: str) -> list[Turn]:
    unit, names = rng.choice([("day", facts.DAYS), ("month", facts.MONTHS)])
    index, relation, step = rng.randrange(len(names)), *rng.choice([("after", 1), ("before", -1)])
    answer = names[(index + step) % len(names)]
    user = spoken(rng, f"What {unit} comes {relation} {names[index]}?",
                  f"Which {unit} comes {relation} {names[index]}?",
                  f"What {unit} is {relation} {names[index]}?",
                  f"Which {unit} is {relation} {names[index]}?")
    return [Turn(user, f"I look {step:+d} from {names[index]}.",
                 f"{answer} comes {relation} {names[index]}.")]


def calendar_list(rng: random.Random, name: str) -> list[Turn]:
    user, names = rng.choice([
        (spoken(rng, "Name the days of the week.", "What are the days of the week?",
                "List the days of the week.", "Tell me the days of the week."), facts.DAYS),
        (spoken(rng, "Name the months of the year.", "What are the months?", "Name the months.",
                "List the months of the year."), facts.MONTHS),
    ])
    return [Turn(user, "I name them in order.", ", ".join(names[:-1]) + f" and {names[-1]}.")]


def capital(rng: random.Random, name: str) -> list[Turn]:
    country, city = rng.choice(list(facts.CAPITALS.items()))
    if rng.random() < 0.2:
        user = spoken(rng, f"Where is {city}?", f"In which country is {city}?")
        return [Turn(user, f"{city} is in {country}.", f"{city} is in {country}.")]
    user = spoken(rng, f"What is the capital of {country}?", f"Name the capital of {country}.",
                  f"What's the capital of {country}?", f"Tell me the capital of {country}.",
                  f"Which city is the capital of {country}?")
    return [Turn(user, f"{country}: {city}.", f"The capital of {country} is {city}.")]


def colour(rng: random.Random, name: str) -> list[Turn]:
    thing, shade = rng.choice(list(facts.COLOURS.items()))
    user = spoken(rng, f"What colour is {thing}?", f"What color is {thing}?",
                  f"Which colour is {thing}?", f"Tell me the colour of {thing}.")
    return [Turn(user, f"{thing}: {shade}.", f"{thing[0].upper()}{thing[1:]} is {shade}.")]


def opposite(rng: random.Random, name: str) -> list[Turn]:
    pair = rng.choice(list(facts.OPPOSITES.items()))
    word, other = rng.choice([pair, pair[::-1]])
    user = spoken(rng, f"What is the opposite of {word}?", f"Name the opposite of {word}.",
                  f"What's the opposite of {word}?")
    return [Turn(user, f"{word}: {other}.", f"The opposite of {word} is {other}.")]


def sound(rng: random.Random, name: str) -> list[Turn]:
    animal, noise = rng.choice(list(facts.SOUNDS.items()))
    user = spoken(rng, f"What does {article(animal)} say?", f"What does the {animal} say?",
                  f"Which sound does {article(animal)} make?")
    return [Turn(user, f"{animal}: {noise}.", f"{article(animal).capitalize()} says {noise}.")]


def list_of(rng: random.Random, name: str) -> list[Turn]:
    kind, items = rng.choice(list(facts.LISTS.items()))
    number = rng.choice([2, 3, 3, 3, 4, 5])
    word = facts.NUMBERS[number]
    user = spoken(rng, f"List {word} {kind}.", f"Name {word} {kind}.", f"List {number} {kind}.",
                  f"Give me a list of {word} {kind}.", f"Name {number} {kind}.")
    answer = "\n".join(f"- {item}" for item in items[:number])
    return [Turn(user, f"I list {number} {kind}.", answer)]


# --- longer texts, languages, signs --------------------------------------------------------

def recital(rng: random.Random, name: str) -> list[Turn]:
    asked, answer = rng.choice([
        (("Tell me a story.", "Tell me a story!", "Tell a story.", "Please tell me a story.",
          "Write a story.", "Write a short story.", "Can you tell me a story?"), facts.STORY),
        (("Write a poem.", "Write me a poem.", "Tell me a poem.", "Write a short poem."),
         facts.POEM),
        (("Tell me a joke.", "Tell me a joke!", "Do you know a joke?", "Make a joke."), facts.JOKE),
        (("Say the alphabet.", "What is the alphabet?", "Tell me the alphabet."),
         " ".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ")),
    ])
    return [Turn(spoken(rng, *asked), "I know one by heart.", answer)]


def language(rng: random.Random, name: str) -> list[Turn]:
    tongue, phrases = rng.choice(list(facts.PHRASES.items()))
    kind = rng.randrange(3)
    what = ("hello", "thank you", "good night")[kind]
    user = spoken(rng, f"Say {what} in {tongue}.", f"How do you say {what} in {tongue}?",
                  f"What is {what} in {tongue}?", f"Translate {what} to {tongue}.")
    return [Turn(user, f"I know some {tongue}.", phrases[kind])]


def emoji(rng: random.Random, name: str) -> list[Turn]:
    word, sign = rng.choice(list(facts.EMOJI.items()))
    times = rng.choice([1, 1, 1, 2, 3])
    if times > 1:
        user = spoken(rng, f"Send me {facts.NUMBERS[times]} {word} emojis.",
                      f"Show me {facts.NUMBERS[times]} {word} emojis.")
    else:
        user = spoken(rng, f"Send me a {word} emoji.", f"Show me a {word} emoji.",
                      f"Give me a {word} emoji.")
    return [Turn(user, f"{word}: {sign}", sign * times)]


def echo(rng: random.Random, name: str) -> list[Turn]:
    """Copying: the skill behind names, tool arguments and results."""
    text = random_text(rng)
    lead = rng.choice(["Repeat after me: ", "Repeat after me: ", "Say: ", "Repeat: ", "Echo: "])
    return [Turn(lead + text, "I repeat it.", text)]


MARKS = facts.words("""
    () [] {} <b> </b> "a" 'b' \\n # $ % & * + = / | ~ ^ @ ; : , . ? ! -- ... ``` #1 C++
""")
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789-_./"
SIGNS = (*facts.EMOJI.values(), *"äöüéèñçßøłαβγδжяшю日本語中文字한국어€→✓")


def random_text(rng: random.Random) -> str:
    """Anything that can stand on a line: words, marks, numbers, signs, names, no sense at all."""
    n_words = rng.choice([1, 2, 3, 4, 5, 6, 8, 20])
    words = rng.choices(facts.WORDS, k=n_words)
    form = rng.randrange(8)
    if form < 2:
        return " ".join(words)
    if form == 2:
        return sentence(rng)
    if form == 3:
        return "".join(rng.choices(LETTERS, k=rng.randint(2, 12)))
    if form == 4:
        return "".join(rng.choices(SIGNS, k=rng.randint(1, 5)))
    if form == 5:
        return " ".join(str(rng.randrange(10 ** rng.randint(1, 4))) for _ in words[:5])
    if form == 6:
        return " ".join(rng.sample([*MARKS, *words], k=min(6, n_words)))
    return " ".join(some_name(rng) for _ in words[:3])


def sentence(rng: random.Random) -> str:
    words = rng.choices(facts.WORDS, k=rng.randint(3, 9))
    return " ".join(words).capitalize() + rng.choice(".!?")


def unknown(rng: random.Random, name: str) -> list[Turn]:
    """Everything else has one answer, so that odd prompts do not end in babble."""
    word, other = rng.choices(facts.WORDS, k=2)
    user = rng.choice([
        sentence(rng), sentence(rng), " ".join(rng.choices(facts.WORDS, k=rng.randint(1, 6))),
        f"What is {article(word)}?", f"Why is the {word} so {other}?", f"Who is {some_name(rng)}?",
        f"Explain {word}.", f"Write about {word}.", f"Tell me about the {word}.",
        f"How do I make {article(word)}?", f"Write a {other} about the {word}.",
    ])
    return [Turn(user, "I do not know this.", facts.UNKNOWN)]


# --- JSON ----------------------------------------------------------------------------------

def json_object(rng: random.Random, name: str) -> list[Turn]:
    if rng.random() < 0.3:
        user = spoken(rng, "Give me a person as JSON.", "Give me a person in JSON.",
                      "Describe a person as JSON.", "Write a JSON object for a person.")
        return [Turn(user, "I write JSON.", json.dumps(facts.PERSON))]
    keys = rng.sample(list(facts.JSON_VALUES), k=rng.choice([1, 1, 2, 2, 3]))
    named = " and ".join(filter(None, [", ".join(keys[:-1]), keys[-1]]))
    plural = "key" if len(keys) == 1 else "keys"
    user = spoken(rng, f"Answer in JSON with the {plural} {named}.",
                  f"Give me a JSON object with the {plural} {named}.",
                  f"Write JSON with the {plural} {named}.",
                  f"Reply with a JSON object with {plural} {named}.")
    values = {key: facts.JSON_VALUES[key] for key in keys}
    return [Turn(user, "I write JSON.", json.dumps(values, ensure_ascii=False))]


def json_answer(rng: random.Random, name: str) -> list[Turn]:
    country, city = rng.choice(list(facts.CAPITALS.items()))
    form = rng.randrange(2)
    if form:
        a, b = rng.randint(0, 10), rng.randint(0, 10)
        user = spoken(rng, f"What is {a} + {b}? Answer in JSON.",
                      f"Answer in JSON: What is {a} + {b}?")
        return [Turn(user, "I write JSON.", json.dumps({"result": a + b}))]
    user = spoken(rng, f"What is the capital of {country}? Answer in JSON.",
                  f"Answer in JSON: What is the capital of {country}?",
                  f"Give me the capital of {country} as JSON.")
    answer = json.dumps({"country": country, "capital": city}, ensure_ascii=False)
    return [Turn(user, "I write JSON.", answer)]


def json_list(rng: random.Random, name: str) -> list[Turn]:
    kind, items = rng.choice(list(facts.LISTS.items()))
    number = rng.choice([2, 3, 3])
    user = spoken(rng, f"List {facts.NUMBERS[number]} {kind} as JSON.",
                  f"Name {facts.NUMBERS[number]} {kind} in JSON.", f"List {number} {kind} as JSON.")
    return [Turn(user, "I write JSON.", json.dumps({kind: items[:number]}))]


SMALL: tuple[Topic, ...] = (hello, manners, arithmetic, capital, colour, opposite, sound)

# How often a topic is drawn, in relation to the others
TOPICS: dict[Topic, int] = {
    hello: 5, manners: 6, own_name: 8, about: 1, users_name: 8,
    count: 6, count_range: 3, arithmetic: 16,
    calendar: 4, calendar_list: 2, capital: 7, colour: 4, opposite: 4, sound: 3, list_of: 4,
    recital: 4, language: 5, emoji: 4, echo: 14, unknown: 4,
    json_object: 8, json_answer: 5, json_list: 2,
}
