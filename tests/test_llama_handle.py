"""Native handles: freed once, children first, and never used afterwards."""

from __future__ import annotations

import pytest

from libloader.errors import EngineUnavailable
from libloader.llama.handle import Handle


@pytest.fixture
def freed():
    """The order in which handles of these tests were freed."""
    return []


def test_a_handle_is_freed_once_however_often_it_is_closed(freed):
    with Handle("thing", "a", freed.append) as handle:
        handle.close()
    handle.close()
    assert freed == ["a"]


def test_children_are_freed_before_their_parent_and_the_newest_first(freed):
    parent = Handle("model", "model", freed.append)
    Handle("context", "first", freed.append, parent)
    Handle("context", "second", freed.append, parent)
    parent.close()
    assert freed == ["second", "first", "model"]


def test_a_child_that_was_closed_is_not_freed_again_by_its_parent(freed):
    parent = Handle("model", "model", freed.append)
    Handle("context", "child", freed.append, parent).close()
    parent.close()
    assert freed == ["child", "model"]


def test_a_closed_handle_has_no_pointer_to_give(freed):
    handle = Handle("context", "a", freed.append)
    handle.close()
    with pytest.raises(EngineUnavailable, match="the context is closed"):
        _ = handle.pointer


def test_an_error_inside_the_with_block_frees_the_handle_too(freed):
    with pytest.raises(KeyError), Handle("thing", "a", freed.append):
        raise KeyError
    assert freed == ["a"]
