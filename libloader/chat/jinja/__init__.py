"""A Jinja interpreter for chat templates: jinja2's language, closed by construction.

    lexer         source -> tokens, white space control
    parser        tokens -> nodes (expressions.py, statements.py), which run themselves
    scope         the names at one place; where text goes
    operators, methods, filters, checks, functions, printf      what templates can call
    values        Undefined, namespaces, lists of the template's own
    limits        what one rendering may use
    measure       sizes of nodes, known before they run

Semantics are those of jinja2 3.1 with trim_blocks, lstrip_blocks, loop controls and transformers'
additions (tojson, raise_exception, strftime_now, generation blocks). It differs from it, on
purpose, in what templates need and a sandbox forbids: lists that a template made may be changed,
`safe` does nothing, and what jinja2 yields lazily is a list.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from libloader.chat.jinja.functions import GLOBALS, clock
from libloader.chat.jinja.limits import Budget
from libloader.chat.jinja.parser import parse
from libloader.chat.jinja.scope import Sink, root_scope
from libloader.chat.jinja.statements import run_inner
from libloader.errors import TemplateError, TemplateRaised

__all__ = ["Template", "TemplateError", "TemplateRaised", "render"]


class Template:
    """A parsed template. It keeps no state: threads may share it."""

    def __init__(self, source: str) -> None:
        """Parse `source`. TemplateError tells the line of a mistake."""
        self.source = source
        self._body = parse(source)

    def render(self, context: Mapping[str, Any], now: datetime.datetime | None = None) -> str:
        """Return the text for the variables in `context`, which it leaves unchanged.

        `now` is the time that strftime_now shows, the local time by default. TemplateRaised if
        the template calls raise_exception (`reason` is its message), else TemplateError.
        """
        budget = Budget(context)
        time = {"strftime_now": clock(now or datetime.datetime.now())}
        scope = root_scope(budget, GLOBALS, time, context)
        sink = Sink(budget)
        run_inner(self._body, scope, sink)
        return "".join(sink.chunks)


def render(source: str, context: Mapping[str, Any], now: datetime.datetime | None = None) -> str:
    """Parse and render `source` in one go; keep a Template to render more than once."""
    return Template(source).render(context, now)
