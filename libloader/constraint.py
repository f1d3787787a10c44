"""The grammar of one chat answer, from what its request asks: a shape, a call, or neither.

Composes chat (how a model writes calls and thoughts) and grammar (what JSON Schemas allow), which
do not know each other. Where the model may think first, the grammar lets it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from libloader.chat.reasoning import Tags
from libloader.chat.template import ChatTemplate, RenderedPrompt
from libloader.chat.tools import forcing
from libloader.grammar import gbnf, json_schema, validate
from libloader.protocol.shape import Shape
from libloader.protocol.tools import ToolUse

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
    _check_strict_functions(use)
    tags = _thinking_tags(template, prompt) if split_reasoning else None
    opened = prompt.thinking is not None
    if use.is_forced:
        return _forced_call(template, use, tags, opened)
    if shape is None:
        return FREE
    if shape.grammar:
        gbnf.check(shape.grammar, param=shape.param)
        return Constraint(shape.grammar)
    return _shaped(template, use, shape, tags, opened)


def _thinking_tags(template: ChatTemplate, prompt: RenderedPrompt) -> Tags | None:
    """Return the tags of the think block that the answer may begin with, or is inside of."""
    tags = prompt.thinking or template.tags
    is_over = tags is not None and prompt.text.rstrip().endswith(tags.end)
    return None if is_over else tags


def _forced_call(
    template: ChatTemplate, use: ToolUse, tags: Tags | None, opened: bool
) -> Constraint:
    forced = forcing.force(
        template.format,
        use.tools,
        parallel=use.parallel,
        names=use.names,
        tags=tags,
        opened=opened,
    )
    rules = json_schema.embed(forced.schemas, strict=_are_strict(use), param="tools")
    text = f"{forced.text}\n{rules.text}"
    gbnf.check(text, max_bytes=json_schema.MAX_GRAMMAR_BYTES, param="tools")
    return Constraint(text, rules.warnings, None, _to_check(use) if rules.needs_check else {})


def _to_check(use: ToolUse) -> dict[str, Any]:
    """Return the schemas of arguments by function."""
    return {f["name"]: f["parameters"] for f in _functions(use) if f.get("parameters")}


def _functions(use: ToolUse) -> list[dict[str, Any]]:
    return [tool["function"] for tool in use.tools]


def _check_strict_functions(use: ToolUse) -> None:
    """GrammarInvalid, with its path, for what a strict function says and no grammar can."""
    for i, function in enumerate(_functions(use)):
        if function.get("strict") is True and function.get("parameters"):
            path = f"functions[{i}]" if use.is_legacy else f"tools[{i}].function"
            schemas = {"strict-tool": {"type": "object", **function["parameters"]}}
            json_schema.embed(schemas, strict=True, param=f"{path}.parameters")


def _are_strict(use: ToolUse) -> bool:
    """Whether every function that may be called says `"strict": true`."""
    return all(
        f.get("strict") is True for f in _functions(use) if not use.names or f["name"] in use.names
    )


def _shaped(
    template: ChatTemplate, use: ToolUse, shape: Shape, tags: Tags | None, opened: bool
) -> Constraint:
    """The answer has its shape, or is calls where the request has tools."""
    rules = json_schema.embed({"answer": shape.schema}, strict=shape.strict, param=shape.param)
    root, texts, warnings = "answer", [rules.text], rules.warnings
    arguments: Mapping[str, Any] = {}
    if use.tools:
        calls, its_warnings = _calls(template, use)
        root, texts, warnings = f"answer | {CALLS}", [rules.text, calls], warnings + its_warnings
        arguments = _to_check(use) if its_warnings else {}
    frame = {"root": root} if tags is None else forcing.after_thought(root, tags, opened)
    text = _joined(forcing.written(frame), *texts)
    gbnf.check(text, max_bytes=json_schema.MAX_GRAMMAR_BYTES, param=shape.param)
    return Constraint(text, warnings, shape.schema if rules.needs_check else None, arguments)


def _calls(template: ChatTemplate, use: ToolUse) -> tuple[str, tuple[str, ...]]:
    """Return rules for calls of any tool, with CALLS in the place of the root, and warnings."""
    forced = forcing.force(template.format, use.tools, parallel=use.parallel, names=use.names)
    rules = json_schema.embed(forced.schemas, strict=_are_strict(use), param="tools")
    # No literal holds a line break as it is, so a line that begins so is the root's own.
    frame = f"\n{forced.text}".replace("\nroot ::= ", f"\n{CALLS} ::= ", 1)
    return f"{frame}\n{rules.text}", rules.warnings


def _joined(*texts: str) -> str:
    """Put grammars together that share rules: of equal lines the first stays."""
    lines = (line for text in texts for line in text.splitlines() if line)
    return "\n".join(dict.fromkeys(lines))
