"""gpt-oss: channels. analysis is reasoning, final is content, commentary may be a call.

<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...
<|channel|>commentary to=functions.name <|constrain|>json<|message|>{...}<|call|>
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from libloader.chat.reasoning import Tags
from libloader.chat.tools.deltas import Call, ContentDelta, ReasoningDelta
from libloader.chat.tools.format import Format, Steps
from libloader.chat.tools.gbnf import (
    CALL,
    Begins,
    Forced,
    Rules,
    alternatives,
    literal,
    one_of,
)
from libloader.chat.tools.reader import Broken, Reader

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>", START)
RECIPIENT = "to=functions."
HEADER = f"{CALL}-header"  # the rule of what stands between the recipient and the arguments
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
    """One call: gpt-oss makes no parallel ones."""
    calls = (f"{literal(each.name)} {HEADER} {each.arguments}" for each in functions)
    return {
        "root": one_of(f"{CHANNEL}commentary {RECIPIENT}", [CALL]),
        CALL: alternatives(calls),
        HEADER: f'" "? {literal(CONSTRAIN)}? " "? "json"? {literal(MESSAGE)}',
    }


def begins(functions: Sequence[Forced], root: str) -> Begins:
    """The recipient is named in the channel's part of the header, or before it in the role's.

    The prompt has written the first role, so there the recipient may be the first text.
    """
    channels = (f"{CHANNEL}commentary {RECIPIENT}", f"{CHANNEL}analysis {RECIPIENT}")
    role = f"{START}assistant {RECIPIENT}"
    named = (
        f'{literal(each.name)} {literal(CHANNEL)} ("commentary" | "analysis") {HEADER} '
        f"{each.arguments}"
        for each in functions
    )
    addressed = f"({alternatives(named)})"
    first = alternatives(one_of(channel, [CALL]) for channel in channels)
    return Begins(
        (*channels, role),
        f"{first} | {literal(role)} {addressed}",
        (RECIPIENT,),
        f"{literal(RECIPIENT)} {addressed}",
    )


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
    begins=begins,
    thought=Tags(f"{CHANNEL}analysis{MESSAGE}", "<|end|>"),
    resumes=f"{START}assistant",
    content=f"{CHANNEL}final{MESSAGE}",
    write=write,
)
