"""The grammar of one chat answer, from what its request asks: a shape, a call, or neither.

Composes chat (how a model writes calls and thoughts) and grammar (what JSON Schemas allow), which
do not know each other. Where the model may think first, the grammar lets it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Callable, NamedTuple, TypeVar

from libloader.chat.reasoning import Tags
from libloader.chat.template import ChatTemplate, RenderedPrompt
from libloader.chat.tools import forcing, format_named
from libloader.chat.tools.format import Format
from libloader.chat.tools.gbnf import literal
from libloader.errors import GrammarInvalid
from libloader.grammar import gbnf, json_schema, validate, vocabulary
from libloader.protocol.shape import Shape
from libloader.protocol.tools import ToolUse

G = TypeVar("G")
CACHED = 16  # grammars of allowed calls; a large one has 256 KiB
# What says nothing of a value, and what a notation by parameter can say of the whole and of texts.
NOTES = frozenset(
    ("$comment", "$schema", "title", "description", "default", "examples", "deprecated")
)
PARTS = frozenset(("properties", "required", "additionalProperties", "$defs", "definitions"))
OF_OBJECTS = NOTES | PARTS | {"type"}
OF_BARE_TEXTS = NOTES | {"type", "enum", "const"}
CALLS = "format-calls"  # rules of schemas keep clear of names that begin so


class Constraint(NamedTuple):
    """What the finished answer must be checked against, where its grammar does not suffice:

    `schema` its content, `arguments` those of the calls, by function.
    """

    grammar: str = ""
    warnings: tuple[str, ...] = ()
    schema: Any = None
    arguments: Mapping[str, Any] = {}

    @property
    def needs_check(self) -> bool:
        return self.schema is not None or bool(self.arguments)

    def problems(self, message: Mapping[str, Any]) -> list[str]:
        """Say what is wrong with a finished message that the grammar let pass."""
        calls = [call["function"] for call in message.get("tool_calls") or ()]
        if message.get("function_call"):
            calls.append(message["function_call"])
        found = [
            f"the arguments of {call['name']} do not match their schema: {problem}"
            for call in calls
            if call["name"] in self.arguments
            for problem in validate.text_problems(self.arguments[call["name"]], call["arguments"])
        ]
        if self.schema is not None and not calls:
            problems = validate.text_problems(self.schema, message.get("content") or "")
            found += [f"the answer does not match its schema: {problem}" for problem in problems]
        return found


FREE = Constraint()


def constraint(
    template: ChatTemplate,
    prompt: RenderedPrompt,
    use: ToolUse,
    shape: Shape | None,
    *,
    split_reasoning: bool = True,
) -> Constraint:
    """Return what constrains the answer. GrammarInvalid or FieldUnsupported name the field.

    A call that is forced goes before a shape: such an answer has no content to be shaped.
    """
    tags = _thinking_tags(template, prompt, split_reasoning=split_reasoning)
    opened = prompt.thinking is not None
    use = _possible(template, use)
    if template.format.by_parameter:
        _judge_parameters(use)
    if use.is_forced:
        return _forced_call(template, use, tags, opened)
    if shape is None:
        return _allowed_calls(template, use, tags, opened) if use.tools else FREE
    if shape.grammar:
        gbnf.check(shape.grammar, param=shape.param)
        return Constraint(shape.grammar)
    return _shaped(template, use, shape, tags, opened)


def _thinking_tags(
    template: ChatTemplate, prompt: RenderedPrompt, *, split_reasoning: bool
) -> Tags | None:
    """Return the tags of the think block that the answer may begin with, or is inside of."""
    own = template.format.thought
    if own is not None:  # read apart whatever is asked for
        return own._replace(end=own.end + template.format.resumes)
    tags = prompt.thinking or template.tags
    is_over = tags is not None and prompt.text.rstrip().endswith(tags.end)
    return None if is_over or not split_reasoning else tags


def _possible(template: ChatTemplate, use: ToolUse) -> ToolUse:
    """One call an answer is enough for models that make no more, whatever the request says."""
    one_call = template.format.one_call or template.capabilities.one_call
    return replace(use, parallel=use.parallel and not one_call)


def _allowed_calls(
    template: ChatTemplate, use: ToolUse, tags: Tags | None, opened: bool
) -> Constraint:
    """Free text; where a call begins in it, the rest is what a forced one would be.

    Schemas too large for a grammar are said to be held to less, rather than refused: clients with
    many tools leave the choice to the model, and most answers are no calls.
    """
    text = json.dumps(use.tools)
    rest = replace(use, tools=())
    return _allowed_calls_of(template.format.name, text, rest, tags, opened)


@lru_cache(CACHED)
def _allowed_calls_of(
    format: str, tools: str, use: ToolUse, tags: Tags | None, opened: bool
) -> Constraint:
    """Agents send the same tools with every turn: a grammar is made once for them."""
    use = replace(use, tools=tuple(json.loads(tools)))
    allowed = _asked(forcing.allow, format_named(format), use, tags, opened)
    checked = Constraint(arguments=_to_check(use))
    if allowed is None:
        _check_strict_functions(use, {})
        return checked
    try:
        return _of_calls(format_named(format), allowed, use)
    except GrammarInvalid as error:
        if any(f.get("strict") is True for f in _functions(use)):
            raise
        for schema in allowed.schemas.values():
            vocabulary.Document(schema, param="tools")  # raises what is wrong, not just too much
        reason = error.message
    try:
        loose = {name: _only_type(schema) for name, schema in allowed.schemas.items()}
        text = _of_calls(format_named(format), allowed._replace(schemas=loose), use).grammar
        warning = f"tools: arguments are held to their types only: {reason}"
        return checked._replace(grammar=text, warnings=(warning,))
    except GrammarInvalid:
        return checked._replace(warnings=(f"tools: calls are not constrained: {reason}",))


def _only_type(schema: Any) -> Any:
    return {"type": schema["type"]} if isinstance(schema, dict) and "type" in schema else True


def _forced_call(
    template: ChatTemplate, use: ToolUse, tags: Tags | None, opened: bool
) -> Constraint:
    calls = _asked(forcing.force, template.format, use, tags, opened)
    return _of_calls(template.format, calls, use)


def _asked(
    grammar: Callable[..., G], format: Format, use: ToolUse, tags: Tags | None, opened: bool
) -> G:
    """Return what `grammar`, forcing.force or forcing.allow, makes of a request's tools."""
    return grammar(
        format, use.tools, parallel=use.parallel, names=use.names, tags=tags, opened=opened
    )


def _of_calls(format: Format, calls: forcing.Grammar, use: ToolUse) -> Constraint:
    """Join the rules of a format with those of the schemas."""
    rules = _schema_rules(format, calls, use)
    text = f"{calls.text}\n{rules.text}"
    gbnf.check(text, max_bytes=json_schema.MAX_GRAMMAR_BYTES, param="tools")
    return Constraint(text, rules.warnings, None, _to_check(use) if rules.needs_check else {})


def _schema_rules(format: Format, calls: forcing.Grammar, use: ToolUse) -> json_schema.Grammar:
    """Return the rules of arguments, with warnings of what neither they nor the format can say.

    GrammarInvalid, with its path, if a strict function says such a thing.
    """
    rules = json_schema.Grammar("")
    if calls.schemas:  # none where no function has a parameter
        rules = json_schema.embed(calls.schemas, param="tools")
    lost = _lost(calls.text, use) if format.by_parameter else {}
    if rules.warnings or lost:
        _check_strict_functions(use, lost)
    more = [f"{what} of {name} {json_schema.NOT_ENFORCED}" for name in lost for what in lost[name]]
    return json_schema.Grammar(
        rules.text, (*rules.warnings, *more), rules.needs_check or bool(lost)
    )


def _judge_parameters(use: ToolUse) -> None:
    """GrammarInvalid, with its path, for what is no schema: rules are made of its parts alone."""
    for i, function in enumerate(_functions(use)):
        if function.get("parameters"):
            vocabulary.Document(function["parameters"], param=_path(use, i))


def _path(use: ToolUse, number: int) -> str:
    """Return the request field of a function's schema."""
    function = f"functions[{number}]" if use.is_legacy else f"tools[{number}].function"
    return f"{function}.parameters"


def _lost(text: str, use: ToolUse) -> dict[str, list[str]]:
    """Return what a notation by parameter leaves out of each function's schema, with its place.

    Such a format has no rule for the object as a whole, and may write strings without quotes: then
    it does not refer to the rule of their schema.
    """
    found: dict[str, list[str]] = {}
    for i, function in enumerate(_callable(use)):
        schema = function.get("parameters") or {}
        lost = [f"{keyword} at #" for keyword in schema if keyword not in OF_OBJECTS]
        for j, (name, inner) in enumerate((schema.get("properties") or {}).items()):
            if not re.search(rf"(?<![\w-])tool-{i}-{j}(?![\w-])", text):
                said = inner if isinstance(inner, dict) else ()
                keywords = (keyword for keyword in said if keyword not in OF_BARE_TEXTS)
                lost += [f"{keyword} at #/properties/{name}" for keyword in keywords]
        if lost:
            found[function["name"]] = lost
    return found


def _callable(use: ToolUse) -> list[dict[str, Any]]:
    return [f for f in _functions(use) if not use.names or f["name"] in use.names]


def _to_check(use: ToolUse) -> dict[str, Any]:
    """Return the schemas of arguments by function."""
    return {f["name"]: f["parameters"] for f in _functions(use) if f.get("parameters")}


def _functions(use: ToolUse) -> list[dict[str, Any]]:
    return [tool["function"] for tool in use.tools]


def _check_strict_functions(use: ToolUse, lost: Mapping[str, Sequence[str]]) -> None:
    """GrammarInvalid, with its path, for what a strict function says and no grammar can."""
    for i, function in enumerate(_functions(use)):
        if function.get("strict") is not True or not function.get("parameters"):
            continue
        schemas = {"strict-tool": {"type": "object", **function["parameters"]}}
        json_schema.embed(schemas, strict=True, param=_path(use, i))
        for what in lost.get(function["name"], ()):
            reason = "cannot be enforced while generating, as strict demands"
            raise GrammarInvalid(f"{what} {reason}", param=_path(use, i))


def _shaped(
    template: ChatTemplate, use: ToolUse, shape: Shape, tags: Tags | None, opened: bool
) -> Constraint:
    """The answer has its shape, or is calls where the request has tools."""
    rules = json_schema.embed({"answer": shape.schema}, strict=shape.strict, param=shape.param)
    root, texts, warnings = "answer", [rules.text], rules.warnings
    arguments: Mapping[str, Any] = {}
    if template.format.content:
        root = f"{literal(template.format.content)} answer"
    if use.tools:
        calls, its_warnings = _calls(template, use)
        root, texts, warnings = f"{root} | {CALLS}", [rules.text, calls], warnings + its_warnings
        arguments = _to_check(use) if its_warnings else {}
    frame = {"root": root} if tags is None else forcing.after_thought(root, tags, opened)
    text = _joined(forcing.written(frame), *texts)
    gbnf.check(text, max_bytes=json_schema.MAX_GRAMMAR_BYTES, param=shape.param)
    return Constraint(text, warnings, shape.schema if rules.needs_check else None, arguments)


def _calls(template: ChatTemplate, use: ToolUse) -> tuple[str, tuple[str, ...]]:
    """Return rules for calls of any tool, with CALLS in the place of the root, and warnings."""
    forced = forcing.force(template.format, use.tools, parallel=use.parallel, names=use.names)
    rules = _schema_rules(template.format, forced, use)
    # No literal holds a line break as it is, so a line that begins so is the root's own.
    frame = f"\n{forced.text}".replace("\nroot ::= ", f"\n{CALLS} ::= ", 1)
    return f"{frame}\n{rules.text}", rules.warnings


def _joined(*texts: str) -> str:
    """Put grammars together that share rules: of equal lines the first stays."""
    lines = (line for text in texts for line in text.splitlines() if line)
    return "\n".join(dict.fromkeys(lines))
