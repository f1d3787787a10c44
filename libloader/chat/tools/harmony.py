"""gpt-oss: channels. analysis is reasoning, final is content, commentary may be a call.

<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...
<|channel|>commentary to=functions.name <|constrain|>json<|message|>{...}<|call|>
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from libloader.chat.tools.deltas import Call, ContentDelta, ReasoningDelta
from libloader.chat.tools.format import Format, Steps
from libloader.chat.tools.gbnf import CALL, Forced, Rules, alternatives, literal
from libloader.chat.tools.reader import Broken, Reader

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>", START)
_RECIPIENT = re.compile(r"to=(?:functions\.)?([\w.\-]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")


def read_all(reader: Reader) -> Steps:
    more = True
    while more:
        reader.mark()
        try:
            more = yield from _read_message(reader)
        except Broken:
            reader.rewind()
            more = yield from reader.stream(ContentDelta, START)


def _read_message(reader: Reader) -> Steps:
    """Read a header and the text behind it; return whether more may follow."""
    yield from reader.skip(START)
    yield from reader.skip("assistant")
    yield from reader.spaces()
    if not ((yield from reader.looks_like(CHANNEL)) or (yield from reader.looks_like("to="))):
        raise Broken
    header, _ = yield from reader.until(MESSAGE)
    recipient, channel = _RECIPIENT.search(header), _CHANNEL.search(header)
    reader.done()
    if recipient and recipient.group(1) != "assistant":
        yield from reader.spaces()
        yield from reader.stream_arguments(recipient.group(1))
        yield from reader.spaces()
        return (yield from reader.skip_any(*ENDS))
    is_reasoning = channel and channel.group(1) == "analysis"
    return (yield from reader.stream(ReasoningDelta if is_reasoning else ContentDelta, *ENDS))


def grammar(functions: Sequence[Forced], parallel: bool) -> Rules:
    """One call: gpt-oss makes no parallel ones. It may think first."""
    calls = (
        f"{literal(f'{CHANNEL}commentary to=functions.{each.name} {CONSTRAIN}json{MESSAGE}')} "
        f"{each.arguments}"
        for each in functions
    )
    return {"root": CALL, CALL: alternatives(calls)}


def write(calls: Sequence[Call]) -> str:
    return f"<|end|>{START}assistant".join(
        f"{CHANNEL}commentary to=functions.{call.name} {CONSTRAIN}json{MESSAGE}{call.arguments}"
        for call in calls
    )


HARMONY = Format(
    name="harmony",
    marks=(("<|channel|>analysis",),),
    shown=(START, CHANNEL, MESSAGE, CONSTRAIN, *ENDS),
    read_all=read_all,
    one_call=True,
    grammar=grammar,
    write=write,
)
