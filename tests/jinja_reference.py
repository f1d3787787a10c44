"""jinja2 set up as transformers sets it up: what templates must render as."""

from __future__ import annotations

import datetime
from typing import Any

from jinja2 import TemplateError as Jinja2Error

from libloader.chat.jinja import TemplateError, render
from scripts.check_templates import jinja2_parser

NOW = datetime.datetime(2026, 1, 5, 14, 7, 9)
parse = jinja2_parser(NOW)
FAILED = "(an error)"


def expected(source: str, context: dict[str, Any]) -> str:
    """Return jinja2's text, FAILED if it raises what a template can make it raise."""
    try:
        return parse(source)(context)
    except (
        Jinja2Error,
        ArithmeticError,
        LookupError,
        TypeError,
        ValueError,
        RuntimeError,
        AttributeError,
    ):
        return FAILED


def actual(source: str, context: dict[str, Any]) -> str:
    try:
        return render(source, context, NOW)
    except TemplateError:
        return FAILED
