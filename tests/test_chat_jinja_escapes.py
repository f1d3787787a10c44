"""Templates reach plain values only: known ways out of jinja2's sandboxes end here (E11)."""

from __future__ import annotations

import pytest

from libloader.chat.jinja import TemplateError, render

# Shapes that are published for jinja2 and its sandbox, CVE-2016-10745, -2019-10906, -2024-56326
# and -2025-27516 (format reached by other names) among them.
ESCAPES = [
    "{{ ''.__class__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ [].__class__.__base__.__subclasses__() }}",
    "{{ {}.__class__ }}",
    "{{ ().__class__.__bases__[0] }}",
    "{{ (1).__class__ }}",
    "{{ 1.5.__class__ }}",
    "{{ none.__class__ }}",
    "{{ true.__class__.__init__ }}",
    "{{ ''['__class__'] }}",
    "{{ []['__class__']['__base__'] }}",
    "{{ ''['__cla' ~ 'ss__'] }}",
    "{{ ''['\\x5f\\x5fclass\\x5f\\x5f'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ ''|attr('__cl' ~ 'ass__')|attr('__mro__') }}",
    "{{ ''|attr('\\x5f\\x5fclass__') }}",
    "{{ [''] | map(attribute='__class__') | list }}",
    "{{ [''] | map('attr', '__class__') | list }}",
    "{{ [''] | selectattr('__class__') | list }}",
    "{{ [''] | sort(attribute='__class__.__name__') }}",
    "{{ [''] | sum(attribute='__class__') }}",
    "{{ messages.__class__ }}",
    "{{ messages[0].__class__.__init__.__globals__ }}",
    "{{ range.__class__ }}",
    "{{ range.__globals__ }}",
    "{{ range.function.__globals__ }}",
    "{{ raise_exception.__globals__['os'].popen('id').read() }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ namespace().__class__ }}",
    "{{ namespace(a=1).__dict__ }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ joiner.__init__.__globals__.os }}",
    "{{ cycler('a').__class__ }}",
    "{{ dict.__base__ }}",
    "{{ dict.mro() }}",
    "{{ strftime_now.__closure__ }}",
    "{{ strftime_now.__self__ }}",
    "{% for x in [1] %}{{ loop.__class__ }}{% endfor %}",
    "{% for x in [1] %}{{ loop._iterator.gi_frame }}{% endfor %}",
    "{% macro m() %}{% endmacro %}{{ m.__class__ }}",
    "{% macro m() %}{% endmacro %}{{ m._func.__code__ }}",
    "{% macro m() %}{{ caller.__globals__ }}{% endmacro %}{% call m() %}{% endcall %}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ url_for.__globals__ }}",
    "{{ config.items() }}",
    "{{ request.application.__globals__ }}",
    "{{ get_flashed_messages.__globals__ }}",
    "{{ __import__('os').system('id') }}",
    "{{ eval('1') }}",
    "{{ open('/etc/passwd').read() }}",
    "{{ '{0.__class__}'.format('') }}",
    "{{ '{0[__class__]}'.format({}) }}",
    "{{ '{a.__class__.__init__.__globals__}'.format(a=range) }}",
    "{{ '{!r}'.format(1) }}",
    "{{ ''.format_map({}) }}",
    "{{ ('{0.__class__}'|attr('format'))('') }}",
    "{{ ['{0.__class__}']|map('format', '')|list }}{{ '{0.__class__}'.format('') }}",
    "{% set f = '{0.__class__.__base__}'.format %}{{ f(1) }}",
    "{{ '{0.__class__}'['format']('') }}",
    "{{ ''.encode('utf-8').decode }}{{ ''.encode() }}",
    "{{ ''.join.__self__.x }}",
    "{{ 'x'.translate({120: 'y'}) }}",
    "{{ (1).to_bytes(9, 'big') }}",
    "{{ (1).real.imag.x }}",
    "{{ [].sort(key=range) }}",
    "{{ {}.fromkeys([1]) }}",
    "{{ messages|map('nope.os')|list }}",
    "{{ '%(__class__)s' % {} }}",
    "{{ '%(a.__class__)s' % {'a': 1} }}",
    "{{ x|attr }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% from 'os' import system %}",
    "{% extends '/etc/passwd' %}",
    "{% block x %}{% endblock %}",
    "{% set namespace.__init__ = 1 %}",
    "{% set range.x = 1 %}",
    "{% set messages.x = 1 %}",
    "{% set loop.index = 1 %}",
    "{% python %}{% endpython %}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_no_way_out(source):
    with pytest.raises(TemplateError):
        render(source, {"messages": [{"role": "user", "content": "hi"}]})


def test_a_dunder_key_of_the_caller_is_only_data():
    assert render("{{ d.__class__ }}{{ d['__class__'] }}", {"d": {"__class__": "x"}}) == "xx"


def test_an_object_that_is_no_plain_value_stays_closed():
    class Secret:
        word = "hidden"

        def __str__(self):
            return "a secret"

    for source in ("{{ x.word }}", "{{ x['word'] }}", "{{ x|attr('word') }}", "{{ x() }}"):
        try:
            text = render(source, {"x": Secret()})
        except TemplateError:
            text = ""
        assert text == ""


def test_the_interpreter_reads_no_attribute_by_a_name_from_a_template():
    """`getattr`, `setattr`, `eval` and their like do not occur in its source at all."""
    import ast
    from pathlib import Path

    from libloader.chat import jinja

    forbidden = {"getattr", "setattr", "delattr", "eval", "exec", "compile", "__import__", "open"}
    for path in Path(jinja.__file__).parent.glob("*.py"):
        calls = [n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Call)]
        names = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
        assert not names & forbidden, path.name
