"""Whole templates, ours in the styles of the vendors, against jinja2; and the built-in ones."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from chat_scenarios import contexts
from jinja2 import TemplateError as Jinja2Error
from jinja_reference import FAILED, NOW, parse

from libloader.chat.builtin_templates import TEMPLATES
from libloader.chat.jinja import Template, TemplateError

FOLDER = Path(__file__).parent / "data" / "templates"
SOURCES = {path.stem: path.read_bytes().decode() for path in sorted(FOLDER.glob("*.jinja"))}
SOURCES.update({f"built-in {name}": source for name, source in TEMPLATES.items()})


@pytest.mark.parametrize("name", SOURCES)
def test_a_template_renders_every_conversation_as_jinja2_does(name):
    ours, reference = Template(SOURCES[name]), parse(SOURCES[name])
    n_texts = 0
    for scenario, context in contexts():
        values = copy.deepcopy(context)
        try:
            expected = reference(context)
        except (Jinja2Error, TypeError, ValueError, AttributeError):
            expected = FAILED
        try:
            text = ours.render(values, NOW)
        except TemplateError:
            text = FAILED
        assert text == expected, scenario
        assert values == context, scenario
        n_texts += text != FAILED
    assert n_texts >= 20


def test_the_template_folder_is_there():
    assert len(SOURCES) - len(TEMPLATES) >= 8
