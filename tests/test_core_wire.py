"""Plain values survive the pipe: whatever goes through JSON comes back equal."""

import json

import pytest

from libloader import core, errors


def through_json(value):
    return json.loads(json.dumps(value))


def test_a_request_survives_the_pipe():
    request = core.Request(
        id="a",
        kind="generate",
        prompts=(
            core.Prompt(segments=(("hi", True), ("<|x|>", False))),
            core.Prompt(tokens=(1, 2)),
        ),
        sampling=core.Sampling(logit_bias=((5, float("-inf")),), temperature=0.0),
        stop=("x",),
        resume=((1, 2), ()),
        labels=("yes", "no"),
        thinking=core.Thinking(5, "<think>", "</think>", "\n</think>", opened=True),
    )
    assert core.from_wire(core.Request, through_json(core.to_wire(request))) == request


def test_a_status_survives_the_pipe_with_and_without_model():
    for info in (None, core.ModelInfo(alias="m", special_tokens=("<s>",))):
        status = core.EngineStatus(state="ok", info=info, counters={"x": 1.0})
        assert core.from_wire(core.EngineStatus, through_json(core.to_wire(status))) == status


def test_what_is_as_by_default_does_not_travel():
    request = core.Request("a", "generate", (core.Prompt(tokens=(1,)),), streamed=False)
    travels = {"id": "a", "kind": "generate", "prompts": [{"tokens": [1]}], "streamed": False}
    assert through_json(core.to_wire(request)) == travels
    assert core.to_wire(core.EngineSettings()) == {}


@pytest.mark.parametrize(
    "event",
    [
        core.TokenEvent("a", 0, "hé", (1, 2), ((1, "h", -0.5, ((1, "h", -0.5),)),)),
        core.ChoiceDone("a", 1, "stop", "x"),
        core.ChoiceDone("a", 1, "stop", None, (-0.5, -1e4)),
        core.DryRunEvent("a", 0, 12, 4096, 99, (("ram", 7),)),
        core.EmbeddingEvent("a", 0, "AAAA", 3),
        core.TokensEvent("a", 0, (1,), ("h",), "h"),
        core.ProgressEvent("a", 10, 4, 8),
        core.RequestDone("a", core.Usage(1, 2, 3), {"prompt_ms": 1.5}),
        core.RequestFailed("a", errors.to_wire(errors.QueueFull("full", retry_after_s=2.0))),
    ],
    ids=lambda event: type(event).__name__,
)
def test_every_event_survives_the_pipe(event):
    assert core.event_from_wire(through_json(core.event_to_wire(event))) == event


def test_unknown_keys_are_ignored():
    assert core.from_wire(core.Prompt, {"tokens": [1], "later": 1}) == core.Prompt(tokens=(1,))


@pytest.mark.parametrize("cls", list(errors.all_classes()), ids=lambda cls: cls.__name__)
def test_every_error_survives_the_pipe_with_class_field_and_delay(cls):
    error = cls("words", param="field")
    error.retry_after_s = 2.5
    copy = errors.from_wire(through_json(errors.to_wire(error)))
    assert type(copy) is cls
    assert (copy.message, copy.param, copy.retry_after_s) == ("words", "field", 2.5)


def test_an_unknown_error_name_becomes_a_server_error():
    assert type(errors.from_wire({"name": "Nonsense", "message": "x"})) is errors.ServerError


def test_the_docstring_draws_every_error_class():
    drawn = errors.__doc__.split()
    assert [cls.__name__ for cls in errors.all_classes() if cls.__name__ not in drawn] == []
