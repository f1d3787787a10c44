"""Grammar rules (GBNF) of formats: calls and nothing else, or calls in the midst of free text.

The rules of a function's arguments come from libloader.grammar, by name: this package only puts
the format's own text around them.

Free text is a machine of rules, one for each beginning of a call's beginning that has been seen.
None of them lets such a beginning become complete; but the calls' own rule may start anywhere. So
until a call begins every text fits, and from then on nothing but the call does:

    free    ::= "" | calls | "<" free-1 | [^<] free         calls begin with "<c>"
    free-1  ::= "" | calls | "c" free-2 | "<" free-1 | [^c<] free
    free-2  ::= "" | calls | "<" free-1 | [^<>] free         no ">": only `calls` knows that way
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# Rules of a format are named so; those of libloader.grammar keep clear of these names.
CALL, TEXT, THOUGHT = "format-call", "format-text", "format-thought"
FREE, SPACES = "format-free", "format-spaces"

Rules = dict[str, str]  # rule name -> its right side; "root" is the answer


class Parameter(NamedTuple):
    """One property of a function's arguments.

    `rule` is the rule of its JSON value. `text` is for formats that write strings bare: an
    expression of the strings that it may be, TEXT for any, "" if it is no string.
    """

    name: str
    rule: str
    required: bool
    text: str = ""


class Forced(NamedTuple):
    """A function that may be called. `arguments` is the rule of its arguments as a JSON object."""

    name: str
    arguments: str
    parameters: tuple[Parameter, ...] = ()


class Begins(NamedTuple):
    """How calls begin in free text, and the expressions of the calls that begin so.

    `anywhere` are texts that begin calls wherever they stand; `at_start` only where they are the
    first text that is no white space. Without any of these, free text cannot be told from calls.
    """

    anywhere: tuple[str, ...] = ()
    calls: str = ""
    at_start: tuple[str, ...] = ()
    first_calls: str = ""


def literal(text: str) -> str:
    """Return `text` as a GBNF literal."""
    return json.dumps(text, ensure_ascii=False)


def alternatives(choices: Iterable[str]) -> str:
    return " | ".join(choices)


def repeated(rule: str, separator: str, parallel: bool) -> str:
    """Return one `rule`, or where calls may be parallel several with `separator` between."""
    return f"{rule} ({literal(separator)} {rule})*" if parallel else rule


LINE = '"\\n"?'  # a line feed that models may leave out


def one_of(before: str, options: Iterable[str]) -> str:
    """Return `before` and one of the options: text that all share is read once, not once each."""
    return f"{literal(before)} ({alternatives(options)})"


def json_name(name: str) -> str:
    """Return the text of a call as a JSON object, up to its name."""
    return f'{{"name": {json.dumps(name)}'


def json_head(name: str, name_key: str = "name", arguments_key: str = "arguments") -> str:
    """Return the text of a call as a JSON object, up to its arguments."""
    return f'{{"{name_key}": {json.dumps(name)}, "{arguments_key}": '


def json_object(function: Forced, name_key: str = "name", arguments_key: str = "arguments") -> str:
    """Return the expression of `{"name": ..., "arguments": {...}}`."""
    head = json_head(function.name, name_key, arguments_key)
    return f'{literal(head)} {function.arguments} "}}"'


def json_objects(functions: Sequence[Forced], parallel: bool) -> Rules:
    """The rules of one object, or of several on lines of their own."""
    calls = alternatives(map(json_object, functions))
    return {"root": repeated(CALL, "\n", parallel), CALL: calls}


def text_before(name: str, end: str, *, then: str = "", may_end: bool = False) -> Rules:
    """Return rules, the first called `name`, for any text and then `end`, its first occurrence.

    `then` is the expression of what follows; with `may_end` the text may end before `end` comes.
    One rule per character of `end` that has been seen: an automaton that falls back to the longest
    beginning of `end` that the text still ends in.
    """
    rules: Rules = {}
    for seen in range(len(end)):
        steps: dict[int, str] = {}
        for character in sorted(set(end)):
            length = _longest_beginning(end[:seen] + character, end)
            steps[length] = steps.get(length, "") + character
        options = ['""'] if may_end else []
        for length, characters in steps.items():
            # Characters that fall back to the start are part of "any other character".
            if length == len(end):
                options.append(f"{_set(characters)} {then}".rstrip())
            elif length:
                options.append(f"{_set(characters)} {_state(name, length)}")
        others = "".join(text for length, text in steps.items() if length)
        options.append(f"{_set(others, inverted=True)} {_state(name, 0)}")
        rules[_state(name, seen)] = alternatives(options)
    return rules


def free_text(name: str, begins: Begins) -> Rules:
    """Return rules, the first called `name`, for any text with calls where they begin."""
    machine = _FreeText(begins)
    number = {state: _state(name, i) for i, state in enumerate(machine.states())}
    rules: Rules = {}
    for state, rule in number.items():
        options = ['""', *([f"{name}-calls"] if begins.anywhere else [])]
        options += [begins.first_calls] if state == (True, "") else []
        steps, ways = machine.steps(state), Rules()
        for character, after in steps.items():
            if after is not None:
                ways[number[after]] = ways.get(number[after], "") + character
        options += (f"{_set(characters)} {after}" for after, characters in ways.items())
        options.append(f"{_set(''.join(steps), inverted=True)} {number[_NOTHING_SEEN]}")
        rules[rule] = alternatives(options)
    return {**rules, f"{name}-calls": begins.calls} if begins.anywhere else rules


_Seen = tuple[bool, str]  # whether nothing else came before, and the beginning that was seen
_NOTHING_SEEN: _Seen = (False, "")


class _FreeText:
    """Where each character leads in free text."""

    def __init__(self, begins: Begins) -> None:
        self._begins = begins
        self._after = _next_characters(begins.anywhere)
        self._after_at_start = _next_characters(begins.at_start)

    def states(self) -> list[_Seen]:
        """Return all states, the one that text starts in first."""
        found = dict.fromkeys([(bool(self._begins.at_start), ""), _NOTHING_SEEN])
        waiting = list(found)
        while waiting:
            for after in self.steps(waiting.pop()).values():
                if after is not None and after not in found:
                    found[after] = None
                    waiting.append(after)
        return list(found)

    def steps(self, state: _Seen) -> dict[str, _Seen | None]:
        """Return the ways out of a state; None where a beginning would become complete.

        What is not listed leads back to where nothing was seen.
        """
        at_start, seen = state
        found: dict[str, _Seen | None] = {}
        for character in sorted(self._after_at_start.get(seen, ())) if at_start else ():
            text = seen + character
            found[character] = None if text in self._begins.at_start else (True, text)
        if state == (True, ""):
            found.update(dict.fromkeys(" \t\r\n", state))
        complete = set()
        for start in range(len(seen) + 1):  # the longest beginning that the text still ends in
            for character in sorted(self._after.get(seen[start:], ())):
                text = seen[start:] + character
                found.setdefault(character, (False, text))
                if text in self._begins.anywhere:
                    complete.add(character)
        return {**found, **dict.fromkeys(complete)}


def _next_characters(texts: Iterable[str]) -> dict[str, set[str]]:
    """Return, for each beginning of the texts, the characters that may follow."""
    found: dict[str, set[str]] = {}
    for text in texts:
        for length, character in enumerate(text):
            found.setdefault(text[:length], set()).add(character)
    return found


def _state(name: str, seen: int) -> str:
    return f"{name}-{seen}" if seen else name


def _longest_beginning(text: str, end: str) -> int:
    return next(n for n in range(min(len(text), len(end)), -1, -1) if text.endswith(end[:n]))


def _set(characters: str, inverted: bool = False) -> str:
    characters = characters or "\0"  # an empty set is no GBNF, and no text holds a NUL
    escaped = "".join(c if c.isalnum() else f"\\U{ord(c):08X}" for c in characters)
    return f"[{'^' if inverted else ''}{escaped}]"
