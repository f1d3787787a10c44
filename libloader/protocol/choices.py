"""`choices` in a chat request: the answer is exactly one of a few texts, with probabilities.

An extension of OpenAI's API; vLLM's name for the field is `guided_choice`. What the numbers are is
told in engine/choosing.py; here is how they are asked for and shown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from libloader.errors import FieldInvalid
from libloader.protocol import fields, sampling
from libloader.protocol.fields import Field, list_of, string
from libloader.protocol.shape import Shape
from libloader.protocol.tools import ToolUse

MAX_LABELS, MAX_LABEL_LENGTH = 256, 512
# Fields that decide which label it is; the other sampling fields are about single tokens.
HAVE_EFFECT = ("temperature", "seed")
WITHOUT_EFFECT = ("max_completion_tokens", "stop") + tuple(
    row.name for row in sampling.SAMPLING_FIELDS if row.name not in HAVE_EFFECT
)


def _label(value: Any, path: str) -> str:
    text: str = string(MAX_LABEL_LENGTH, 1)(value, path)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise fields.invalid(path, "text that UTF-8 can write, without half characters")
    return text


def _labels(value: Any, path: str) -> tuple[str, ...]:
    labels: tuple[str, ...] = list_of(_label, MAX_LABELS, 1)(value, path)
    for index, label in enumerate(labels):
        if label in labels[:index]:
            raise fields.invalid(f"{path}[{index}]", f"another text than {path} has already")
    return labels


CHOICES_FIELDS = (Field("choices", _labels, (), ("guided_choice",)),)


def read_choices(values: fields.Values, use: ToolUse, shape: Shape | None) -> tuple[str, ...]:
    """Return the labels, none for a free answer; what else shapes the answer excludes them."""
    labels: tuple[str, ...] = values["choices"]
    other = shape.param if shape is not None else "tool_choice" if use.is_forced else ""
    if labels and other:
        raise FieldInvalid(f"choices and {other} exclude each other: send one", param=other)
    return labels


def without_effect(values: fields.Values) -> tuple[str, ...]:
    """Return which of the fields that a client gave mean nothing for a choice."""
    return tuple(name for name in WITHOUT_EFFECT if name in values.given)


def probabilities(labels: Sequence[str], logprobs: Sequence[float]) -> dict[str, Any]:
    """Return the part of a finished choice that tells of all labels, in the order of the request.

    `choice_coverage` is how likely the model, left alone, begins with any of them.
    """
    best = max(logprobs)
    weights = [math.exp(logprob - best) for logprob in logprobs]
    total = math.fsum(weights)
    shares = [weight / total for weight in weights]
    return {
        "choice_probs": [{"choice": t, "probability": p} for t, p in zip(labels, shares)],
        "choice_coverage": min(1.0, math.exp(best) * total),
    }
