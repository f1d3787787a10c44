"""Hostile templates end in a TemplateError, soon and in bounded memory (catalogue E12)."""

from __future__ import annotations

import tracemalloc

import pytest

from libloader.chat.jinja import Template, TemplateError, limits, render

NS = "{% set ns = namespace(s='x', l=[1], m=[1], t=(1,)) %}"
GROW = NS + "{% for i in range(60) %}"
DAG = GROW + "{% set ns.l = [ns.l, ns.l] %}{% set ns.t = (ns.t, ns.t) %}{% endfor %}"

LOOPS = {
    "a range of a billion": "{% for i in range(1000000000) %}x{% endfor %}",
    "a range beyond 2**64": "{{ range(-(2 ** 70), 2 ** 70)|length }}",
    "two nested loops": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}"
    "{% endfor %}",
    "an inline if that never holds": "{% for i in range(100000) if i < 0 %}{% endfor %}" * 60,
    "recursion that doubles": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
    "{% endmacro %}{{ f(50) }}",
    "a list that grows while it is read": "{% set l = [1] %}{% for x in l %}{% do l.append(1) %}"
    "{% endfor %}",
    "comparing long strings": "{% set a = 'x' * 4000000 %}{% set b = a[1:] ~ 'y' %}"
    "{% for i in range(100000) %}{% if a == b %}{% endif %}{% endfor %}",
    "searching long strings": "{% set a = 'x' * 4000000 %}{% set b = 'x' * 200000 ~ 'y' %}"
    "{% for i in range(1000) %}{{ b in a }}{{ a.find(b) }}{{ a.count(b) }}{% endfor %}",
    "searching long lists": "{% set l = ['x' * 100000 ~ 'y'] * 100000 %}{% set a = 'x' * 100001 %}"
    "{% for i in range(100000) %}{{ a in l }}{{ l.count(a) }}{% endfor %}",
    "upper of a long string": "{% set a = 'x' * 4000000 %}{% for i in range(100000) %}"
    "{% set b = a.upper() %}{% endfor %}",
    "slices of a long list": "{% set a = [1] * 200000 %}{% for i in range(100000) %}"
    "{% set b = a[1:] %}{% endfor %}",
    "JSON over and over": "{% set a = ['x' * 4000] * 900 %}{% for i in range(100000) %}"
    "{% set b = a|tojson %}{% endfor %}",
    "words of a long text": "{% set a = 'a ' * 99000 %}{% for i in range(10000) %}"
    "{{ a|wordcount }}{% endfor %}",
    "insertion at the front": "{% set l = [1] * 200000 %}{% for i in range(100000) %}"
    "{% do l.insert(0, 1) %}{% endfor %}",
    "a scope of many names": "".join(f"{{% set a{i} = 1 %}}" for i in range(1900))
    + "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
}

GROWTH = {
    "a string times a billion": "{{ 'a' * 10 ** 9 }}",
    "a list times a billion": "{{ [1] * 10 ** 9 }}",
    "doubling by ~": GROW + "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "doubling by +": GROW + "{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "doubling a list": GROW + "{% set ns.l = ns.l + ns.l %}{% endfor %}",
    "doubling by a macro": "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}"
    + GROW
    + "{% set ns.s = f(ns.s) %}{% endfor %}",
    "doubling by a block set": GROW + "{% set t %}{{ ns.s }}{{ ns.s }}{% endset %}"
    "{% set ns.s = t %}{% endfor %}",
    "doubling by join": GROW + "{% set ns.s = [ns.s, ns.s]|join %}{% endfor %}",
    "doubling by format": GROW + "{% set ns.s = '{0}{0}'.format(ns.s) %}{% endfor %}",
    "doubling by %": GROW + "{% set ns.s = '%s%s' % (ns.s, ns.s) %}{% endfor %}",
    "doubling by replace": GROW + "{% set ns.s = ns.s|replace('x', 'xx') %}{% endfor %}",
    "many long strings in names": "".join(
        f"{{% set v{i} = 'x' * 3000000 ~ {i} %}}" for i in range(100)
    ),
    "many long strings in a list": "{% set ns = namespace(l=[]) %}{% for i in range(1000) %}"
    "{% do ns.l.append('x' * 1000000 ~ i) %}{% endfor %}",
    "many long strings in one expression": "{{ [" + "'x' * 3000000 ~ 1," * 100 + "]|length }}",
    "many long strings in arguments": "{% macro f() %}{{ varargs|length }}{% endmacro %}{{ f("
    + "'x' * 3000000 ~ 1," * 100
    + ") }}",
    "many long strings in shadowed names": "{% for a in ['x' * 3000000 ~ 1] %}" * 30
    + "{% endfor %}" * 30,
    "upper of many references": "{{ (['x' * 1000000] * 1000)|map('upper')|list|length }}",
    "sorting many references": "{{ (['X' * 1000000] * 1000)|sort|length }}",
    "four bytes per character": "{{ ('\U0001f600' * 4000000) ~ ('\U0001f600' * 4000000) }}",
    "a list of characters": "{{ ('\u00e9' * 4000000)|list|length }}",
    "a split into millions": "{{ ('a ' * 2000000).split()|length }}",
    "a million lines": "{{ ('\n' * 4000000).splitlines()|length }}",
    "replace with a long text": "{{ ('a' * 100000)|replace('a', 'b' * 100000) }}",
    "replace of nothing": "{{ ('a' * 100000).replace('', 'b' * 100000) }}",
    "join with a long text": "{{ ('a' * 100000)|join('b' * 100000) }}",
    "a sum of lists": "{{ ([[1] * 1000] * 1000)|sum(start=[]) }}",
    "a wide center": "{{ 'a'.center(10 ** 9) }}",
    "a wide center filter": "{{ 'a'|center(10 ** 9) }}",
    "a wide ljust": "{{ 'a'.ljust(10 ** 9) }}",
    "a wide zfill": "{{ 'a'.zfill(10 ** 9) }}",
    "a wide %d": "{{ '%999999999d' % 1 }}",
    "a precise %f": "{{ '%.999999999f'|format(1.0) }}",
    "a wide format field": "{{ '{:>999999999}'.format(1) }}",
    "a wide indent": "{{ 'a\nb'|indent(10 ** 9) }}",
    "a wide JSON indent": "{{ [1, [2]]|tojson(indent=10 ** 9) }}",
    "a long JSON indent": "{{ ([1] * 1000)|tojson(indent='a' * 1000000) }}",
    "escaped JSON": "{{ ('\u00e9' * 4000000)|tojson(ensure_ascii=true)|length }}",
    "escaped repr": "{{ ['\\x00' * 3900000]|string|length }}",
    "a long output": "{% set a = 'x' * 1000000 %}{% for i in range(1000) %}{{ a }}{% endfor %}",
    "a long output of text": "{% for i in range(100000) %}" + "y" * 10000 + "{% endfor %}",
    "a long time": "{{ strftime_now('%Y' * 100000) }}",
    "JSON of many commas": "{{ ('[' ~ '1,' * 400000 ~ '1]')|from_json|length }}",
    "a giant rounding": "{{ 5|round(-1000000000) }}",
    "a giant power": "{{ 9 ** 9999 }}",
    "giant powers in a row": "{{ 2 ** 4000 ** 4000 }}",
    "giant products": GROW + "{% set ns.n = (ns.n or 3) * (ns.n or 3) %}{% endfor %}{{ ns.n }}",
    "a giant numeral": "{{ " + "9" * 100000 + " }}",
    "a float overflow": "{{ 10.0 ** 400 }}",
    "too many names": "".join(f"{{% set a{i} = 1 %}}" for i in range(5000)),
    "too many tokens": "{{ " + "a," * 400000 + " }}",
    "too many tags": "{%" * 200000,
}

NESTING = {
    "endless recursion": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "recursion of two macros": "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}"
    "{% endmacro %}{{ g() }}",
    "recursion in a default": "{% macro f(x=f()) %}{% endmacro %}{{ f() }}",
    "recursion by call": "{% macro f() %}{% call f() %}{{ caller() }}{% endcall %}{% endmacro %}"
    "{% call f() %}x{% endcall %}",
    "an endless recursive loop": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "recursion by map": "{% macro f(x) %}{{ [f]|map('string')|list }}{{ f(x) }}{% endmacro %}"
    "{{ f(1) }}",
    "parentheses": "{{ " + "(" * 50000 + "1" + ")" * 50000 + " }}",
    "brackets": "{{ " + "[" * 20000 + "]" * 20000 + " }}",
    "braces": "{{ " + "{1:" * 10000 + "1" + "}" * 10000 + " }}",
    "nots": "{{ " + "not " * 20000 + "1 }}",
    "minuses": "{{ " + "-" * 20000 + "1 }}",
    "filters": "{{ 'a'" + "|trim" * 20000 + " }}",
    "tests": "{{ a" + " is defined" * 20000 + " }}",
    "attributes": "{{ a" + ".b" * 20000 + " }}",
    "calls": "{{ a" + "()" * 15000 + " }}",
    "ternaries": "{{ " + "1 if 1 else " * 10000 + "1 }}",
    "powers of powers": "{{ " + "2 ** (" * 5000 + "1" + ")" * 5000 + " }}",
    "ifs": "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
    "loops": "{% for x in [1] %}" * 5000 + "{% endfor %}" * 5000,
    "targets": "{% for " + "(" * 5000 + "x" + ")" * 5000 + " in [1] %}{% endfor %}",
    "printing shared lists": DAG + "{{ ns.l }}",
    "JSON of shared lists": DAG + "{{ ns.l|tojson }}",
    "comparing shared lists": DAG + DAG.replace("ns", "os") + "{{ ns.l == os.l }}",
    "sorting shared lists": DAG + "{{ [ns.l, ns.l]|sort }}",
    "looking for shared lists": DAG + "{{ ns.l in [1] }}",
    "a key of shared tuples": DAG + "{{ {ns.t: 1} }}",
    "looking up shared tuples": DAG + "{{ {}[ns.t] }}",
    "getting shared tuples": DAG + "{{ {}.get(ns.t) }}",
    "popping shared tuples": DAG + "{{ {}.pop(ns.t, 1) }}",
    "a dict of shared tuples": DAG + "{{ dict([(ns.t, 1)]) }}",
    "an update by shared tuples": DAG + "{% set d = {} %}{{ d.update([(ns.t, 1)]) }}",
    "a deep list": NS + "{% for i in range(5000) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l }}",
    "a list in itself": "{% set l = [] %}{% do l.append(l) %}{{ l }}",
    "two lists in each other": "{% set l = [] %}{% set m = [l] %}{% do l.append(m) %}{{ l == m }}",
    "a dict in itself": "{% set d = {} %}{% do d.update({'a': d.items()}) %}{{ d }}",
    "JSON brackets": "{{ ('[' * 100000)|from_json }}",
}

UNFINISHED = {
    "a string": "{{ '" + "a" * 1000000,
    "a string of escapes": '{{ "' + "\\a" * 900000,
    "a comment": "{# " * 100000,
    "a raw block": "{% raw %}" + "{% " * 300000,
    "a tag of blanks": "{%" + " " * 1000000,
    "raw or not": "{%  raw" * 100000,
    "a bracket": "{{ (" + " " * 1000000,
}


def every(*groups: dict[str, str]) -> list[object]:
    return [pytest.param(source, id=name) for group in groups for name, source in group.items()]


@pytest.mark.parametrize("source", every(LOOPS, NESTING, UNFINISHED))
def test_a_template_that_would_take_for_ever_is_stopped(source, monkeypatch):
    monkeypatch.setattr(limits, "MAX_STEPS", 400_000)
    with pytest.raises(TemplateError) as caught:
        render(source, {"a": "x"})
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("source", every(GROWTH))
def test_a_template_that_would_take_all_memory_is_stopped_before(source, monkeypatch):
    monkeypatch.setattr(limits, "MAX_STEPS", 1_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(TemplateError):
            render(source, {})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20


def test_the_real_number_of_steps_is_enough_for_long_conversations():
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"turn {i}"} for i in range(10_000)]
    source = (
        "{% for m in messages %}{% if m.role == 'user' and m.content is string %}<u>{{ m.content"
        "|trim }}</u>{% elif m['role'] != 'system' or loop.first %}<a>{{ m.content.split('x')[0]"
        " + eos }}</a>{% endif %}{% endfor %}"
    )
    assert render(source, {"messages": turns, "eos": "$"}).count("turn") == 10_000


CONTROLS = {
    "a megabyte of output": ("{{ 'x' * 1048576 }}", 1 << 20),
    "a megabyte in small pieces": (
        "{% for i in range(65536) %}0123456789abcdef{% endfor %}",
        1 << 20,
    ),
    "loops of 250 by 250": (
        "{% for i in range(250) %}{% for j in range(250) %}x{% endfor %}{% endfor %}",
        62500,
    ),
    "recursion 30 deep": (
        "{% macro f(n) %}x{% if n > 1 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(30) }}",
        30,
    ),
    "recursion 30 deep through loops": (
        "{% macro f(n) %}x{% for i in [1] %}{% if n > 1 %}{% if i %}{{ f(n - 1)|trim ~ '' }}"
        "{% endif %}{% endif %}{% endfor %}{% endmacro %}{{ f(30) }}",
        30,
    ),
    "4096-fold repetition": ("{{ 'abc' * 4096 }}", 3 * 4096),
    "3000 concatenations": (
        "{% set ns = namespace(s='') %}{% for i in range(3000) %}{% set ns.s = ns.s ~ 'abc' %}"
        "{% endfor %}{{ ns.s }}",
        9000,
    ),
    "3000 long concatenations": (
        "{% set ns = namespace(s='') %}{% for i in range(3000) %}"
        "{% set ns.s = ns.s + '0123456789012345' %}{% endfor %}{{ ns.s }}",
        48000,
    ),
    "3000 operands of ~": ("{{ " + " ~ ".join(["'a'"] * 3000) + " }}", 3000),
    "3000 operands of +": ("{{ " + " + ".join(["'a'"] * 3000) + " }}", 3000),
    "long runs of blanks": (
        "a" + " " * 500000 + "{%- if 1 -%}" + "\n" * 500000 + "b{% endif %}",
        2,
    ),
    "blanks inside a tag": ("{{" + " " * 500000 + "'a'" + " " * 500000 + "}}", 1),
    "a list of 100000": ("{{ range(100000)|list|length }}", 6),
    "40 nested blocks": ("{% if 1 %}" * 40 + "x" + "{% endif %}" * 40, 1),
    "60 parentheses": ("{{ " + "(" * 60 + "1" + ")" * 60 + " }}", 1),
    "200 branches": ("{% if 0 %}" + "{% elif 0 %}" * 200 + "{% else %}x{% endif %}", 1),
    "a megabyte of JSON": ("{{ tools|tojson(indent=2) }}", 0),
}


@pytest.mark.parametrize(("source", "length"), CONTROLS.values(), ids=list(CONTROLS))
def test_what_real_templates_may_do_still_works(source, length):
    tools = [{"name": f"tool{i}", "text": "x" * 1000, "values": [1, 2]} for i in range(1000)]
    text = render(source, {"tools": tools})
    assert len(text) == length or length == 0 and len(text) > 1_000_000


def test_a_small_template_costs_few_steps():
    budget = limits.Budget({})
    assert budget.steps == limits.MAX_STEPS
    with pytest.raises(TemplateError, match="too many steps"):
        budget.spend(limits.MAX_STEPS + 1)


def test_the_callers_values_do_not_count_as_memory():
    long_text = "x" * (limits.MAX_MEMORY + 1)
    source = (
        "{% set a = m.content %}{% set ns = namespace(m=[m]) %}{% for i in range(200) %}"
        "{% set b = 'y' * 100000 %}{% endfor %}{{ ns.m[0].content|length }}"
    )
    assert render(source, {"m": {"content": long_text}}) == str(len(long_text))


def test_a_template_can_be_rendered_from_deep_inside_other_calls():
    template = Template(NESTING["endless recursion"])

    def call(depth):
        return call(depth - 1) if depth else template.render({})

    with pytest.raises(TemplateError):
        call(600)
