"""What a template error says: a short reason and the line."""

from __future__ import annotations

import datetime

import pytest

from libloader import errors
from libloader.chat.jinja import Template, TemplateError, TemplateRaised, render

BROKEN = [
    ("{{ a", 1, "this tag is never closed"),
    ("x\n{% if a %}\nb", 2, "expected {% endif %} for the block that begins"),
    ("x\n\n{% for x in y %}{% endif %}", 3, "'endif' closes nothing here"),
    ("{% for x y %}{% endfor %}", 1, "expected 'in' and found 'y'"),
    ("\n{{ 1 + }}", 2, "expected a value and found the end of the tag"),
    ("\n\n\n{{ 'abc }}", 4, "this string is never closed"),
    ("{{ [1, 2) }}", 1, "unexpected ')'"),
    ("{{ (1 }}", 1, "unexpected '}'"),
    ("{{ a ? b }}", 1, "unexpected character '?'"),
    ("{# never", 1, "this comment is never closed"),
    ("{% raw %} x", 1, "this raw block is never closed"),
    ("a\n{% nope %}", 2, "'nope' is not a known tag"),
    ("a\n{% endmacro %}", 2, "'endmacro' closes nothing here"),
    ("{% include 'x' %}", 1, "'include' is not available in chat templates"),
    ("a\n{{ a|nope }}", 2, "there is no filter named 'nope'"),
    ("a\n{{ a is nope }}", 2, "there is no test named 'nope'"),
    ("{% break %}", 1, "'break' outside of a loop"),
    (
        "{% for x in y %}{% macro m() %}{% break %}{% endmacro %}{% endfor %}",
        1,
        "outside of a loop",
    ),
    ("{% set true = 1 %}", 1, "cannot assign to 'true'"),
    ("{% set x y %}", 1, "expected the end of the tag and found 'y'"),
    ("{{ f(a=1, 2) }}", 1, "a positional argument follows a named one"),
    ("{% macro f(a=1, b) %}{% endmacro %}", 1, "parameter 'b' needs a default"),
    ("{{ a[1:2:3:4] }}", 1, "a slice has at most three parts"),
    ("{{ a[] }}", 1, "expected an index"),
    ("{{ '\\xg' }}", 1, "bad \\x escape"),
    ("{{ 0777 }}", 1, "is not a number"),
    ("{% call f %}{% endcall %}", 1, "expected a call of a macro"),
]

FAILING = [
    ("a\n{{ x.y.z }}", 2, "'y' is undefined"),
    ("a\n{{ nope.x }}", 2, "'nope' is undefined"),
    ("{{ nope() }}", 1, "'nope' is undefined"),
    ("\n{{ 'a' + 1 }}", 2, "cannot calculate with str and int; ~ joins any values"),
    ("\n{{ 'a' + nope }}", 2, "'nope' is undefined"),
    ("{% if 1 %}\n{% for i in [1] %}\n{{ 1 / 0 }}\n{% endfor %}\n{% endif %}", 3, "by zero"),
    ("{% macro m() %}\n\n{{ x.y.z }}{% endmacro %}\n{{ m() }}", 3, "'y' is undefined"),
    ("{% for i in 5 %}{% endfor %}", 1, "int is not iterable"),
    ("{% for i in none %}{% endfor %}", 1, "none is not iterable"),
    ("{{ x() }}", 1, "dict is not a function"),
    ("{{ nope|tojson }}", 1, "'nope' is undefined"),
    ("{{ range|tojson }}", 1, "<function range> cannot be written as JSON"),
    ("{% set a, b = [1, 2, 3] %}", 1, "expected 2 values, got 3"),
    ("{% set x.y = 1 %}", 1, "cannot set a field of 'x': it is not a namespace"),
    ("{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}", 1, "m() got too many arguments"),
    ("{% macro m(a) %}{% endmacro %}{{ m(b=2) }}", 1, "m() has no parameter 'b'"),
    ("{{ messages.append(1) }}", 1, "may only change the lists and dicts that it made itself"),
    ("{{ {'a': 1}['a'].b.c }}", 1, "'b' is undefined"),
    ("{% if 1 %}\n{{ 'a'|nope }}{% endif %}", 2, "there is no filter named 'nope'"),
]


@pytest.mark.parametrize(("source", "line", "reason"), BROKEN)
def test_a_broken_template_is_reported_with_its_line(source, line, reason):
    with pytest.raises(TemplateError) as caught:
        Template(source)
    assert caught.value.line == line
    assert reason in caught.value.reason


@pytest.mark.parametrize(("source", "line", "reason"), FAILING)
def test_a_failing_template_is_reported_with_its_line(source, line, reason):
    template = Template(source)
    with pytest.raises(TemplateError) as caught:
        template.render({"x": {"a": 1}, "messages": []})
    assert not isinstance(caught.value, TemplateRaised)
    assert caught.value.line == line
    assert reason in caught.value.reason


def test_the_message_of_raise_exception_is_kept_as_it_is():
    with pytest.raises(TemplateRaised) as caught:
        render(
            "a\n{% macro m() %}{{ raise_exception('No ' ~ 1 ~ '!') }}{% endmacro %}{{ m() }}", {}
        )
    assert caught.value.reason == "No 1!"
    assert str(caught.value) == "No 1!"


def test_both_errors_are_the_clients_to_know():
    assert issubclass(TemplateRaised, TemplateError)
    assert issubclass(TemplateError, errors.RequestError)


def test_no_value_makes_a_message_long():
    long_text = "x" * 100_000
    for source in ("{{ m[s] }}{{ nope[s] }}", "{{ {}[s].x }}", "{{ s|int + s }}", "{{ s.x.y }}"):
        with pytest.raises(TemplateError) as caught:
            render(source, {"s": long_text, "m": {}})
        assert len(str(caught.value)) < 300


def test_the_clock_is_the_callers_or_now():
    now = datetime.datetime(2024, 2, 3)
    assert render("{{ strftime_now('%d %b %Y') }}", {}, now) == "03 Feb 2024"
    assert render("{{ strftime_now('%-d/%-m') }}", {}, now) == "3/2"
    year = str(datetime.datetime.now().year)
    assert render("{{ strftime_now('%Y') }}", {}) == year
