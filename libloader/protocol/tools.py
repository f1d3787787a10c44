"""The fields of a request that concern tools: which there are, and whether one must be called.

Sources: OpenAI's API reference (chat). The older `functions` and `function_call` mean the same,
and their answers have the older form (`ToolUse.is_legacy`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from libloader.protocol import fields
from libloader.protocol.fields import Field, boolean, list_of, mapping, one_of, string

MAX_TOOLS = 256
CHOICES = ("none", "auto", "required")
ALLOWED = "allowed_tools"

Tool = dict[str, Any]


class Choice(NamedTuple):
    """What tool_choice says. `names` are the only functions that may be called; () = any."""

    mode: str = "auto"
    names: tuple[str, ...] = ()


def _choice(value: Any, path: str) -> Choice:
    """One of CHOICES, the object that names a function, or the one that allows some."""
    if not isinstance(value, dict):
        return Choice(str(one_of(*CHOICES)(value, path)))
    if value.get("type") == ALLOWED:
        return _allowed(value, path)
    return Choice("required", (_function_name(value, path),))


def _allowed(value: Any, path: str) -> Choice:
    """OpenAI has the lists inside a member of that name (chat), or beside the type (responses)."""
    if ALLOWED in value:
        value, path = mapping(value[ALLOWED], f"{path}.{ALLOWED}"), f"{path}.{ALLOWED}"
    mode = one_of("auto", "required")(value.get("mode", "auto"), f"{path}.mode")
    tools = list_of(mapping, MAX_TOOLS, 1)(value.get("tools"), f"{path}.tools")
    names = (_function_name(tool, f"{path}.tools[{i}]") for i, tool in enumerate(tools))
    return Choice(str(mode), tuple(dict.fromkeys(names)))


def _function_name(value: Any, path: str) -> str:
    function = mapping(value.get("function", value), f"{path}.function")
    return _name(function.get("name"), f"{path}.function")


def _name(value: Any, path: str) -> str:
    return str(string(1024, 1)(value, f"{path}.name"))


TOOL_FIELDS = (
    Field("tools", list_of(mapping, MAX_TOOLS)),
    Field("tool_choice", _choice),
    Field("parallel_tool_calls", boolean, True),
    Field("functions", list_of(mapping, MAX_TOOLS)),
    Field("function_call", _choice),
)


@dataclass(frozen=True)
class ToolUse:
    """The tools that the model sees; `is_forced` says that it must call one."""

    tools: tuple[Tool, ...] = ()
    is_forced: bool = False
    names: tuple[str, ...] = ()  # the only ones that it may call; () = any
    parallel: bool = True
    is_legacy: bool = False  # asked for with `functions`: answered with `function_call`


def read_tools(values: fields.Values) -> ToolUse:
    """Check the tools and the choice together; with the choice none, the model sees no tools."""
    is_legacy = values["tools"] is None and values["functions"] is not None
    choice_field = "function_call" if is_legacy else "tool_choice"
    tools = _checked_tools(values, "functions" if is_legacy else "tools", is_legacy)
    choice = values[choice_field] or Choice()
    if choice.mode == "required" and not tools:
        raise fields.invalid(choice_field, "sent together with tools")
    known = {tool["function"]["name"] for tool in tools}
    if not known.issuperset(choice.names):
        raise fields.invalid(f"{choice_field}.function.name", "the name of one of the tools")
    return ToolUse(
        tools=() if choice.mode == "none" else tools,
        is_forced=choice.mode == "required",
        names=choice.names,
        parallel=values["parallel_tool_calls"] and not is_legacy,
        is_legacy=is_legacy,
    )


def _checked_tools(values: fields.Values, field: str, is_legacy: bool) -> tuple[Tool, ...]:
    given = values[field] or ()
    if is_legacy:
        given = tuple({"type": "function", "function": function} for function in given)
    for i, tool in enumerate(given):
        path = f"{field}[{i}]"
        one_of("function")(tool.get("type", "function"), f"{path}.type")
        inner = path if is_legacy else f"{path}.function"
        function = mapping(tool.get("function"), inner)
        _name(function.get("name"), inner)
        if function.get("parameters") is not None:
            mapping(function["parameters"], f"{inner}.parameters")
    return given
