"""Random templates, seeded: the same text as jinja2, or an error in both; and never a crash.

IGLLAMA_FUZZ_ROUNDS=10 is ten times as many of each kind.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_scenarios import contexts
from jinja_reference import FAILED, actual, expected

from libloader.chat.jinja import TemplateError, limits, render
from libloader.chat.jinja.checks import TESTS as ALL_TESTS
from libloader.chat.jinja.filters import FILTERS as ALL_FILTERS
from libloader.chat.jinja.functions import GLOBALS
from libloader.chat.jinja.methods import METHODS

ROUNDS = int(os.environ.get("IGLLAMA_FUZZ_ROUNDS", "1"))
CONTEXT = {
    **{"a": 1, "b": -3, "f": 2.5, "s": "one two", "e": "", "z": None, "t": True},
    **{"l": [3, 1, 2], "w": ["b", "A", "a"], "d": {"x": 1, "y": [1, 2], "items": "i"}},
    "m": [{"role": "user", "n": 2}, {"role": "tool", "n": 1}],
}
NAMES = [*CONTEXT, "nope", "x", "y", "ns.v"]
LITERALS = ["0", "1", "2", "-1", "1.5", "'a'", "'one'", '"x\\n"', "true", "none", "[]", "{}"]
OPERATORS = ["+", "-", "*", "~", "%", "//", "==", "!=", "<", ">", "<=", "in", "and", "or"]
FILTERS = [
    *("length", "upper", "lower", "trim", "string", "list", "first", "last", "join", "join('-')"),
    *("default('q')", "default('q', true)", "tojson", "sort", "int", "abs", "reverse|list", "sum"),
    *("items|list", "unique|list", "map('upper')|list", "select|list", "replace('o', 'u')"),
    *("title", "capitalize", "selectattr('n', 'gt', 1)|list", "map(attribute='role')|list"),
    *("min", "max", "round", "dictsort", "indent(2)", "tojson(indent=1)", "float", "count"),
]
TESTS = [
    *("defined", "undefined", "none", "string", "number", "mapping", "iterable", "sequence"),
    *("true", "boolean", "integer", "float", "odd", "even", "eq(1)", "in [1, 2]", "lower"),
]
POSTFIX = [".x", "['x']", "[0]", "[-1]", "[1:]", "[::-1]", ".items", ".upper()", ".split()", ".n"]
SHAPES = ["({0} if {1} else {2})", "({0} if {1})", "[{0}, {1}]", "not ({0})", "{{'k': {0}}}"]


class Writer:
    """Writes random templates of the language that real ones use."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.pick = self.random.choice

    def expression(self, depth: int = 3) -> str:
        if depth == 0 or self.random.random() < 0.2:
            return self.pick(NAMES + LITERALS)
        kinds = (self._binary, self._filter, self._test, self._postfix, self._other)
        return self.pick(kinds)(depth - 1)

    def _binary(self, depth: int) -> str:
        text = f"{self.expression(depth)} {self.pick(OPERATORS)} {self.expression(depth)}"
        return self.pick((text, f"({text})"))

    def _filter(self, depth: int) -> str:
        return f"{self.expression(depth)}|{self.pick(FILTERS)}"

    def _test(self, depth: int) -> str:
        return f"({self.expression(depth)} is {self.pick(('', '', 'not '))}{self.pick(TESTS)})"

    def _postfix(self, depth: int) -> str:
        if depth < 2:
            return self.pick(NAMES) + self.pick(POSTFIX)
        # No slices of constants: jinja2 folds those by other rules.
        return f"({self.expression(depth)})" + self.pick([p for p in POSTFIX if ":" not in p])

    def _other(self, depth: int) -> str:
        return self.pick(SHAPES).format(*(self.expression(depth) for _ in range(3)))

    def template(self) -> str:
        return "{% set ns = namespace(v=1) %}" + self.body(3)

    def body(self, depth: int) -> str:
        return "".join(self._piece(depth) for _ in range(self.random.randint(1, 3)))

    def _piece(self, depth: int) -> str:
        leaves = (self._text, self._print, self._print, self._comment, self._set)
        blocks = (self._if, self._for, self._block_set, self._macro)
        written = self.pick(leaves + blocks)(depth - 1) if depth else self.pick(leaves)(0)
        return self._space() + written + self._space()

    def _space(self) -> str:
        return self.pick(("", "", " ", "\n", "\n  ", "  \n\n"))

    def _tag(self, text: str) -> str:
        return f"{{%{self.pick(('', '-'))} {text} {self.pick(('', '-'))}%}}"

    def _text(self, depth: int) -> str:
        return self.pick(("text", "a b\n", "  \n"))

    def _print(self, depth: int) -> str:
        return f"{{{{{self.pick(('', '-'))} {self.expression()} {self.pick(('', '-'))}}}}}"

    def _comment(self, depth: int) -> str:
        return f"{{#{self.pick(('', '-'))} c {self.pick(('', '-'))}#}}"

    def _set(self, depth: int) -> str:
        return self._tag(f"set {self.pick(('x', 'y', 'a', 'ns.v'))} = {self.expression()}")

    def _if(self, depth: int) -> str:
        branches = f"{self.body(depth)}{self._tag('elif ' + self.expression(1))}e"
        rest = f"{self._tag('else')}n{self._tag('endif')}"
        return self._tag("if " + self.expression()) + branches + rest

    def _for(self, depth: int) -> str:
        values = self.pick(("l", "w", "m", "d", self.expression(1)))
        body = self.body(depth) + "{{ loop.index }}"
        return self._tag("for x in " + values) + body + self._tag("endfor")

    def _block_set(self, depth: int) -> str:
        return self._tag("set y") + self.body(depth) + self._tag("endset")

    def _macro(self, depth: int) -> str:
        macro = self._tag("macro y(x, t=1)") + self.body(depth) + self._tag("endmacro")
        return macro + "{{ y(" + self.expression(1) + ") }}"


def random_templates(seed: int, count: int) -> Iterator[str]:
    writer = Writer(seed)
    return (writer.template() for _ in range(count))


def prints_an_object(text: str) -> bool:
    """Methods and generators print as Python's objects in jinja2; nobody wants their addresses."""
    return " object" in text or "<method" in text or "<built-in" in text


@pytest.mark.parametrize("seed", range(12 * ROUNDS))
def test_random_templates_render_as_in_jinja2(seed):
    n_texts = 0
    for source in random_templates(seed, 60):
        wanted = expected(source, CONTEXT)
        got = actual(source, CONTEXT)
        if prints_an_object(wanted) or prints_an_object(got):
            continue
        assert got == wanted, source
        n_texts += got != FAILED
    assert n_texts >= 5


PIECES = [
    *("{{", "}}", "{%", "%}", "-%}", "{%-", "{#", "#}", "'", '"', "(", ")", "[", "]", "{", "}"),
    *("|", ".", "if", "for", "endfor", "endif", "set", "\\", "\n", "\x00", "\ud800", "é"),
]
FOLDER = Path(__file__).parent / "data" / "templates"


@pytest.mark.parametrize("seed", range(8 * ROUNDS))
def test_damaged_templates_end_in_a_template_error_or_a_text(seed, monkeypatch):
    monkeypatch.setattr(limits, "MAX_STEPS", 50_000)
    chance = random.Random(seed)
    sources = [path.read_text("utf-8") for path in sorted(FOLDER.glob("*.jinja"))]
    conversations = [context for _, context in contexts()]
    for _ in range(60):
        source = chance.choice(sources)
        for _ in range(chance.randint(1, 4)):
            at, length = chance.randrange(len(source)), chance.choice((0, 0, 1, 2, 30))
            source = source[:at] + chance.choice(PIECES) + source[at + length :]
        try:
            assert isinstance(render(source, chance.choice(conversations)), str)
        except TemplateError as error:
            assert len(str(error)) < 500


VALUES = [
    *("none", "true", "0", "-1", "3", "10 ** 30", "1.5", "1e308 * 10", "''", "'a b'", "'%s{0}'"),
    *("[]", "[1, 'a']", "[[1], [2]]", "(1, 2)", "{}", "{'a': 1}", "d", "l", "nope", "range(3)"),
    *("namespace(a=1)", "range", "l|map('string')", "d.items()", "'\\n\\u2028'", "l.append", "m"),
]
NAMED = ["", "a=1", "attribute='a'", "attribute=3", "case_sensitive=true", "default=1", "width=2"]


@pytest.mark.parametrize("seed", range(6 * ROUNDS))
def test_whatever_is_called_with_whatever_ends_in_a_text_or_a_template_error(seed, monkeypatch):
    monkeypatch.setattr(limits, "MAX_STEPS", 50_000)
    chance = random.Random(seed)
    methods = sorted({name for table in METHODS.values() for name in table})
    tests = [name for name in ALL_TESTS if name.isalpha()]
    for _ in range(1500):
        args = [chance.choice(VALUES) for _ in range(chance.randint(0, 3))]
        given = ", ".join([*args, *filter(None, [chance.choice(NAMED)])])
        value = chance.choice(VALUES)
        source = chance.choice(
            [
                f"{{{{ ({value})|{chance.choice(sorted(ALL_FILTERS))}({given}) }}}}",
                f"{{{{ ({value}).{chance.choice(methods)}({given}) }}}}",
                f"{{{{ ({value}) is {chance.choice(tests)}({given}) }}}}",
                f"{{{{ {chance.choice(sorted(GLOBALS))}({given}) }}}}",
                f"{{{{ strftime_now({given}) }}}}",
                f"{{{{ ({value}) {chance.choice(OPERATORS)} ({chance.choice(VALUES)}) }}}}",
                f"{{{{ ({value})[{chance.choice(VALUES)}:{chance.choice(VALUES)}] }}}}",
                f"{{{{ ({value})[{chance.choice(VALUES)}] }}}}",
                f"{{% for x, y in {value} if x %}}{{{{ loop.changed(x) }}}}{{% endfor %}}",
            ]
        )
        try:
            assert isinstance(render(source, CONTEXT), str), source
        except TemplateError as error:
            assert len(str(error)) < 500


GROWTH = [
    *("{% set ns.s = ns.s ~ ns.s %}", "{% set ns.s = ns.s * 99 %}", "{% set ns.l = ns.l + ns.l %}"),
    *("{% set ns.s = ns.s|replace('a', 'aaaa') %}", "{% set ns.l = [ns.l, ns.l, ns.l] %}"),
    *("{% set ns.s = ns.s|indent(900) %}", "{% set ns.s = ns.l|tojson(indent=9) %}", "{{ ns.s }}"),
    *("{% set ns.s = ns.l|string %}", "{% set ns.l = ns.s|list %}", "{% set ns.n = ns.n * ns.n %}"),
    *(
        "{% set ns.l = ns.l|sort|unique|list %}",
        "{% set ns.s = '%900s'|format(ns.s) %}",
        "{{ f(3) }}",
    ),
    *("{% set ns.s = ns.l|join(ns.s) %}", "{% set ns.l = ns.s.split('a') %}", "{{ ns.l == ns.l }}"),
    *(
        "{% set ns.l = range(99999)|list %}",
        "{% set ns.s = ns.s.replace('', ns.s) %}",
        "{{ ns.l }}",
    ),
    *(
        "{% set ns.d = {'a': ns.d, 'b': ns.d} %}",
        "{{ ns.d|tojson }}",
        "{% set ns.l = ns.l[::-1] %}",
    ),
    *("{% set ns.n = ns.n ** 9 %}", "{{ ns.s in ns.s }}", "{% set ns.s = ns.s|title|trim %}"),
]
START = (
    "{% macro f(n) %}a{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{% set ns = namespace(s='a', l=[1], n=3, d={}) %}"
)
SLOWEST_S = 10.0  # of one core; all steps that a template may take are a fifth of it


@pytest.mark.parametrize("seed", range(6 * ROUNDS))
def test_a_template_that_grows_whatever_it_can_ends_soon(seed):
    """E12: whichever of the limits it meets first."""
    chance = random.Random(seed)
    for _ in range(2):
        body = "".join(chance.choices(GROWTH, k=chance.randint(1, 5)))
        for _ in range(chance.randint(1, 4)):
            values = chance.choice(("range(9)", "range(99999)", "ns.l", "ns.s"))
            body = f"{{% for x in {values} %}}{body}{{% endfor %}}"
        start = time.process_time()
        try:
            text = render(START + body, CONTEXT)
        except TemplateError as error:
            text = str(error)
        assert len(text) <= limits.MAX_OUTPUT
        assert time.process_time() - start < SLOWEST_S, body
