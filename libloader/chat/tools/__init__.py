"""Tool calls in the text of models: one file per format, one table of all.

    reader        reads an answer that comes in pieces; json_scan, json_calls, python_calls,
                  xml_calls and members read what several formats share
    deltas        what comes out: content, reasoning, calls
    gbnf          the rules that force calls in a format
    format        what a format consists of

A new format is a file and a row here. Rows are tried in order, the most special first.
"""

from __future__ import annotations

from collections.abc import Iterable

from libloader.chat.tools.command_r import COMMAND_R, COMMAND_R7B
from libloader.chat.tools.deepseek import DEEPSEEK_V3, DEEPSEEK_V31
from libloader.chat.tools.deepseek_dsml import DEEPSEEK_DSML
from libloader.chat.tools.format import Format
from libloader.chat.tools.functionary import FUNCTIONARY_V31, FUNCTIONARY_V32
from libloader.chat.tools.gemma import FUNCTION_GEMMA, GEMMA4
from libloader.chat.tools.generic import GENERIC
from libloader.chat.tools.gigachat import GIGACHAT3, GIGACHAT31
from libloader.chat.tools.glm import GLM
from libloader.chat.tools.harmony import HARMONY
from libloader.chat.tools.hermes import HERMES
from libloader.chat.tools.hunyuan import HUNYUAN
from libloader.chat.tools.json_lists import (
    FIREFUNCTION,
    GRANITE3,
    MINIMAX_M1,
    NEMOTRON,
    PHI4,
    TOOL_CALLS,
)
from libloader.chat.tools.kimi_k2 import KIMI_K2
from libloader.chat.tools.lfm2 import LFM2
from libloader.chat.tools.llama3 import LLAMA3
from libloader.chat.tools.minicpm import MINICPM
from libloader.chat.tools.minimax_m2 import MINIMAX_M2
from libloader.chat.tools.minimax_m3 import MINIMAX_M3
from libloader.chat.tools.mistral import MISTRAL_ARGS, MISTRAL_LIST
from libloader.chat.tools.pythonic import PYTHONIC
from libloader.chat.tools.qwen3_coder import QWEN3_CODER
from libloader.errors import UsageError

FORMATS: tuple[Format, ...] = (
    HARMONY,
    KIMI_K2,
    DEEPSEEK_DSML,
    DEEPSEEK_V3,
    DEEPSEEK_V31,
    MINIMAX_M2,
    MINIMAX_M3,
    MINICPM,
    HUNYUAN,
    GIGACHAT31,
    GIGACHAT3,
    GEMMA4,
    FUNCTION_GEMMA,
    COMMAND_R7B,
    COMMAND_R,
    QWEN3_CODER,
    GLM,
    MISTRAL_ARGS,
    MISTRAL_LIST,
    FUNCTIONARY_V32,
    FUNCTIONARY_V31,
    FIREFUNCTION,
    LFM2,
    NEMOTRON,
    GRANITE3,
    PHI4,
    TOOL_CALLS,
    MINIMAX_M1,
    HERMES,
    PYTHONIC,
    LLAMA3,
    GENERIC,
)


def format_of(source: str) -> Format:
    """Return the format that a chat template speaks; GENERIC if none is known."""
    for each in FORMATS:
        if any(all(mark in source for mark in group) for group in each.marks):
            return each
    return GENERIC


def format_named(name: str) -> Format:
    """Return the format of that name; UsageError lists them."""
    for each in FORMATS:
        if each.name == name:
            return each
    raise UsageError(f"there is no tool-call format '{name}'; there are {', '.join(names())}")


def names() -> Iterable[str]:
    return [each.name for each in FORMATS]
