"""The native log: pieces with numbers become whole lines with Python's levels."""

from __future__ import annotations

import logging

import pytest

from libloader.abi import nativelog
from libloader.abi.builds import order


@pytest.fixture
def log():
    lines: list[tuple[int, str]] = []
    made = nativelog.NativeLog(lambda level, line: lines.append((level, line)))
    made.lines = lines
    return made


def feed(log, *pieces) -> list[tuple[int, str]]:
    for number, text in pieces:
        log.callback(number, text, None)
    return log.lines


def test_pieces_are_joined_to_lines_at_the_level_of_the_first(log):
    assert feed(log, (3, b"loading"), (5, b" ..."), (5, b" done\n")) == [
        (logging.WARNING, "loading ... done")
    ]


@pytest.mark.parametrize(
    ("build", "number", "level"),
    [
        ("b3889", 1, logging.INFO), ("b3889", 2, logging.WARNING),
        ("b3995", 3, logging.ERROR), ("b3995", 4, logging.DEBUG),
        ("b4234", 1, logging.DEBUG), ("b4234", 2, logging.INFO),
        ("b9842", 3, logging.WARNING), ("b9842", 4, logging.ERROR),
    ],
)  # fmt: skip
def test_levels_are_read_as_the_build_means_them(log, build, number, level):
    log.set_build(order(build))
    assert feed(log, (number, b"x\n")) == [(level, "x")]


def test_text_that_is_no_utf8_and_no_text_at_all_are_survived(log):
    assert feed(log, (2, b"\xff\n"), (2, None), (2, b"a\nb\n")) == [
        (logging.INFO, "\N{REPLACEMENT CHARACTER}"),
        (logging.INFO, "a"),
        (logging.INFO, "b"),
    ]


def test_a_failing_receiver_never_throws_into_c(capfd):
    def fail(level, line):
        raise RuntimeError("broken")

    nativelog.NativeLog(fail).callback(4, b"text\n", None)
    assert "Exception ignored" not in capfd.readouterr().err


def test_without_a_receiver_lines_go_to_the_logger_and_blank_ones_nowhere(caplog):
    with caplog.at_level(logging.INFO, "libllama"):
        feed_to = nativelog.NativeLog()
        feed_to.callback(4, b"model is gone\n\n", None)
        feed_to.callback(1, b"a detail\n", None)
    assert [(r.levelno, r.message) for r in caplog.records] == [(logging.ERROR, "model is gone")]


def test_last_words_are_logged_and_handed_on(log):
    heard: list[str] = []
    log.fatal(heard.append)(b"ggml.c:12: GGML_ASSERT(x) failed\n")
    assert heard == ["ggml.c:12: GGML_ASSERT(x) failed"]
    assert log.lines == [(logging.CRITICAL, heard[0])]


def test_a_warning_about_what_we_do_on_purpose_is_not_shown_as_one(caplog):
    caplog.set_level(logging.DEBUG, logger="libllama")
    made = nativelog.NativeLog()
    made.set_build(order("b9999"))
    made.callback(
        3, b"n_ctx_seq (8) > n_ctx_train (4) -- possible training context overflow\n", None
    )
    made.callback(3, b"something else\n", None)
    assert [record.levelname for record in caplog.records] == ["DEBUG", "WARNING"]


def test_what_we_bring_about_is_hushed_and_what_follows_is_not(log):
    is_on = [True]
    log.hush_while(lambda: bool(is_on))
    feed(log, (4, b"failed to decode\n"))
    is_on.clear()
    assert feed(log, (4, b"failed to decode\n")) == [
        (logging.DEBUG, "failed to decode"),
        (logging.ERROR, "failed to decode"),
    ]
