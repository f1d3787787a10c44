"""Frames and messages between front and engine child."""

from __future__ import annotations

import os
import struct
import threading

import pytest

from libloader import core, errors
from libloader.supervise import channel

USAGE = core.Usage(3, 1, 2)
EVENTS = (
    core.TokenEvent("a", 0, "é🙂", (1, 2)),
    core.TokenEvent("a", 1, "", (7,), ((7, "x", -0.5, ((8, "\xe9", -1.0),)),)),
    core.ChoiceDone("a", 0, "stop", "\n"),
    core.ChoiceDone("a", 1, "length"),
    core.EmbeddingEvent("a", 0, "AACAPw==", 4),
    core.TokensEvent("a", 0, (1, 2), ("a", "\xff"), "ab"),
    core.ProgressEvent("a", 9, 0, 4),
    core.RequestDone("a", USAGE, {"prompt_ms": 1.5}),
    core.RequestFailed("a", errors.to_wire(errors.QueueFull("full", retry_after_s=2.0))),
)


def step(events: list[object], **fields: object) -> dict[str, object]:
    return {"op": "step", "ms": 1.5, "events": events, "figures": None, **fields}


def test_every_kind_of_event_survives_the_pipe():
    wire = step([core.event_to_wire(event) for event in EVENTS])
    (message,) = channel.FrameDecoder().feed(channel.encode(wire))
    assert channel.read_child_message(message) == channel.Step(1.5, EVENTS, None)


@pytest.mark.parametrize("figures", [None, {"n_running": 2.0}])
def test_a_step_is_written_as_any_other_message_is(figures):
    wire = step([core.event_to_wire(event) for event in EVENTS], figures=figures)
    frames = [channel.encode(wire), channel.encode_step(1.5, EVENTS, figures)]
    plain, quick = (channel.FrameDecoder().feed(frame) for frame in frames)
    assert quick == plain


def test_text_that_needs_escaping_arrives_as_it_was():
    text = '"\\\n\0\x1f\u2028é🙂</script>'
    events = (core.TokenEvent('a"b', 0, text, ()),)
    (message,) = channel.FrameDecoder().feed(channel.encode_step(0.0, events, None))
    assert channel.read_child_message(message) == channel.Step(0.0, events, None)


def test_a_step_too_long_for_a_frame_is_refused():
    events = [core.TokenEvent("a", 0, "x" * channel.MAX_FRAME_BYTES, (1,))]
    with pytest.raises(ValueError, match="exceeds"):
        channel.encode_step(1.0, events, None)


def test_frames_cut_at_any_byte_arrive_whole_and_in_order():
    messages = [{"op": "cancel", "id": "é" * n} for n in range(5)]
    data = b"".join(map(channel.encode, messages))
    for size in (1, 2, 3, 5, 7, len(data)):
        decoder, got = channel.FrameDecoder(), []
        for start in range(0, len(data), size):
            got += decoder.feed(data[start : start + size])
        assert got == messages
        assert not decoder.partial


@pytest.mark.parametrize("text", ["{} {}", '{"op":"step"}x', " {}", "", "nothing"])
def test_a_frame_that_is_not_one_value_is_refused_whole_or_in_pieces(text):
    frame = struct.pack("<I", len(text)) + text.encode()
    for pieces in ([frame], [frame[:3], frame[3:]]):
        decoder = channel.FrameDecoder()
        with pytest.raises(ValueError):
            for piece in pieces:
                assert decoder.feed(piece) == []


def test_half_a_frame_is_seen_as_partial():
    decoder = channel.FrameDecoder()
    assert decoder.feed(channel.encode({"op": "stop"})[:-1]) == []
    assert decoder.partial


def test_a_forbidden_token_travels_as_minus_infinity():
    request = core.Request("a", "generate", (), sampling=core.Sampling(logit_bias=((5, -1e999),)))
    wire = {"op": "submit", "request": core.to_wire(request)}
    (message,) = channel.FrameDecoder().feed(channel.encode(wire))
    assert core.from_wire(core.Request, message["request"]) == request


def test_a_frame_longer_than_the_limit_is_refused_on_both_sides():
    with pytest.raises(ValueError, match="exceeds"):
        channel.encode("x" * (channel.MAX_FRAME_BYTES + 1))
    with pytest.raises(ValueError, match="claims"):
        channel.FrameDecoder().feed(struct.pack("<I", channel.MAX_FRAME_BYTES + 1))


def test_text_that_is_no_unicode_is_refused_before_it_is_sent():
    with pytest.raises(ValueError):
        channel.encode({"op": "submit", "text": "\ud800"})


def test_a_frame_larger_than_the_pipe_is_written_whole():
    read_fd, write_fd = os.pipe()
    frame = channel.encode("x" * 300_000)
    writer = threading.Thread(target=channel.write_frame, args=(write_fd, frame))
    writer.start()
    decoder, got = channel.FrameDecoder(), []
    while not got:
        got = decoder.feed(os.read(read_fd, 65536))
    writer.join()
    os.close(read_fd)
    os.close(write_fd)
    assert got == ["x" * 300_000]


def test_progress_is_held_between_0_and_1():
    assert channel.read_child_message({"op": "progress", "value": 7}) == channel.Progress(1.0)


@pytest.mark.parametrize(
    "message",
    [
        None,
        [],
        {},
        {"op": "shout"},
        {"op": "progress", "value": "much"},
        {"op": "ready", "info": None},
        {"op": "start_error", "error": 5},
        step([], figures=3),
        step([], figures={"n": []}),
        {"op": "step", "ms": 1, "events": []},
        step([["t", "a", 0, "x", [1]]]),
        step([["t", "a", 0, "x", [1.5], None]]),
        step([["t", "a", 0, "x", [True], None]]),
        step([["t", "a", "0", "x", [1], None]]),
        step([["z", "a"]]),
        step([["f", "a", "error"]]),
        step([["d", "a", [1, 2, 3, 4], {}]]),
        step([[]]),
        step(["t"]),
        step([{"t": 1}]),
    ],
)
def test_a_malformed_message_is_a_value_error(message):
    with pytest.raises(ValueError, match="malformed"):
        channel.read_child_message(message)
