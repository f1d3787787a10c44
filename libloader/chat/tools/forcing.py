"""Grammars of calls: forced ones (tool_choice required or a named function), allowed ones (auto).

The schemas of the arguments become rules in libloader.grammar, which this package does not know:
`force` and `allow` return the format's rules with the schemas that they refer to, and the caller,
who knows both, joins the texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from libloader.chat.reasoning import Tags
from libloader.chat.tools.format import Format
from libloader.chat.tools.gbnf import (
    FREE,
    SPACES,
    TEXT,
    THOUGHT,
    Forced,
    Parameter,
    Rules,
    alternatives,
    free_text,
    literal,
    text_before,
)

MAX_BARE_TEXTS = 200  # values of an enum


class Grammar(NamedTuple):
    """`text` has the root; it refers to a rule for each of `schemas`, by name."""

    text: str
    schemas: dict[str, dict[str, Any]]


def force(
    format: Format,
    tools: Sequence[dict[str, Any]],
    *,
    parallel: bool = True,
    names: Sequence[str] = (),
    tags: Tags | None = None,
    opened: bool = False,
) -> Grammar:
    """Return the grammar of an answer that is a call of a tool, or several.

    `names` leaves only these functions. With `tags` a think block may come first, and with `opened`
    the rest of one must: the prompt ends inside it.
    """
    forced, schemas = _chosen(format, tools, names)
    rules = dict(format.grammar(forced, parallel))
    if tags is not None:
        rules.update(after_thought(rules["root"], tags, opened))
    return Grammar(written(rules), schemas)


def allow(
    format: Format,
    tools: Sequence[dict[str, Any]],
    *,
    parallel: bool = True,
    names: Sequence[str] = (),
    tags: Tags | None = None,
    opened: bool = False,
) -> Grammar | None:
    """Return the grammar of free text that may turn into calls: then they are as `force` has them.

    None where the format's calls begin with nothing that free text does not hold as well.
    """
    forced, schemas = _chosen(format, tools, names)
    rules = dict(format.grammar(forced, parallel))
    begins = format.beginnings(forced, rules.pop("root"))
    if not begins.anywhere and not begins.at_start:
        return None
    root = {"root": FREE}
    if tags is not None:
        root = {
            "root": THOUGHT if opened else f"{SPACES} {literal(tags.begin)} {THOUGHT} | {FREE}",
            SPACES: f"([ \\t\\r\\n] {SPACES})?",
            **text_before(THOUGHT, tags.end, then=FREE, may_end=True),
        }
    return Grammar(written({**root, **free_text(FREE, begins), **rules}), schemas)


def _chosen(
    format: Format, tools: Sequence[dict[str, Any]], names: Sequence[str]
) -> tuple[list[Forced], dict[str, dict[str, Any]]]:
    """Return the functions that may be called, and the schemas that their rules are to be of."""
    functions = [tool.get("function", tool) for tool in tools]
    chosen = [each for each in functions if not names or each.get("name") in names]
    schemas: dict[str, dict[str, Any]] = {}
    return [_forced(format, f"tool-{i}", each, schemas) for i, each in enumerate(chosen)], schemas


def after_thought(root: str, tags: Tags, opened: bool) -> Rules:
    """Return the rules of `root` after a think block: the rest of one if it is open already."""
    rest = f"{THOUGHT} [ \\n]? [ \\n]? ({root})"
    whole = rest if opened else f"({literal(tags.begin)} {rest}) | ({root})"
    return {"root": whole, **text_before(THOUGHT, tags.end)}


def written(rules: Rules) -> str:
    return "\n".join(f"{rule} ::= {text}" for rule, text in rules.items())


def _forced(
    format: Format, rule: str, function: dict[str, Any], schemas: dict[str, dict[str, Any]]
) -> Forced:
    schema = function.get("parameters")
    if not isinstance(schema, dict) or not schema:
        schema = {"type": "object", "properties": {}, "additionalProperties": False}
    if not format.by_parameter:
        schemas[rule] = {"type": "object", **schema}
        return Forced(str(function.get("name")), rule)
    return Forced(str(function.get("name")), rule, _parameters(rule, schema, schemas))


def _parameters(
    rule: str, schema: dict[str, Any], schemas: dict[str, dict[str, Any]]
) -> tuple[Parameter, ...]:
    """One rule per property; definitions go along, for its references."""
    found = []
    required = schema.get("required") or ()
    shared: dict[str, Any] = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    for number, (name, value) in enumerate((schema.get("properties") or {}).items()):
        value_rule = f"{rule}-{number}"
        schemas[value_rule] = {**value, **shared} if isinstance(value, dict) else value
        found.append(Parameter(name, value_rule, name in required, _bare_text(value)))
    return tuple(found)


def _bare_text(schema: Any) -> str:
    """Return the expression of a string written without quotes, "" if the value is none."""
    if not isinstance(schema, dict):
        return ""
    texts = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(texts, list) and 0 < len(texts) <= MAX_BARE_TEXTS:
        all_texts = all(isinstance(text, str) for text in texts)
        return f"({alternatives(map(literal, texts))})" if all_texts else ""
    return TEXT if schema.get("type") == "string" else ""
