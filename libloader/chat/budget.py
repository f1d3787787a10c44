"""A budget for thoughts in the words of one template: what the engine looks for, and writes.

Counting and writing are the engine's part (engine/thinking.py).
"""

from __future__ import annotations

from libloader.chat.template import ChatTemplate, RenderedPrompt
from libloader.core import Thinking

UNLIMITED = -1


def thinking(
    template: ChatTemplate, prompt: RenderedPrompt, n_max: int, message: str = ""
) -> Thinking | None:
    """Return the budget of `n_max` tokens for an answer to `prompt`; None if there is none to keep.

    `message` is a sentence that ends thoughts that were cut short, so that the model knows why.
    """
    if n_max <= UNLIMITED:
        return None
    last = f"\n\n{message}" if message else ""
    own = template.format.thought
    if own is not None:
        closing = last + own.end + template.format.resumes
        return Thinking(n_max, own.begin, own.end, closing, again=True)
    tags = prompt.thinking or template.tags
    if tags is None or prompt.text.rstrip().endswith(tags.end):
        return None
    opened = prompt.thinking is not None
    return Thinking(n_max, tags.begin, tags.end, f"{last}\n{tags.end}\n\n", opened=opened)
