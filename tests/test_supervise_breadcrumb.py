"""The page that names what the engine was doing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from libloader.supervise.breadcrumb import SIZE, Breadcrumb, Crumb


@pytest.fixture
def page():
    page = Breadcrumb.create()
    yield page
    page.close()


def test_a_fresh_page_names_nothing(page):
    assert page.read() == Crumb()


def test_a_mark_is_read_back_and_counts(page):
    page.mark("sample", "chatcmpl-1", 7)
    page.mark("decode", "a b c", 8)
    assert page.read() == Crumb(2, 8, "decode", ("a", "b", "c"))


def test_shorter_ids_leave_nothing_of_longer_ones(page):
    page.mark("decode", "a-long-request-id another", 1)
    page.mark("sample", "b", 1)
    assert page.read().ids == ("b",)


def test_ids_that_do_not_fit_name_nobody_rather_than_half(page):
    page.mark("decode", " ".join(f"request-{n}" for n in range(1000)), 1)
    assert page.read().ids == ()
    page.mark("decode", "x" * (SIZE - 34), 1)
    assert len(page.read().ids[0]) == SIZE - 34


@pytest.mark.skipif(sys.platform == "win32", reason="fds are passed by number")
def test_a_mark_outlives_the_process_that_made_it(page):
    code = (
        "import sys; from libloader.supervise.breadcrumb import Breadcrumb;"
        "Breadcrumb.open(sys.argv[1]).mark('grammar_init', 'x', 3);"
        "import os; os.kill(os.getpid(), 9)"
    )
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    done = subprocess.run(
        [sys.executable, "-c", code, page.address], pass_fds=(page.fd,), cwd=root, check=False
    )
    assert done.returncode == -9
    assert page.read() == Crumb(1, 3, "grammar_init", ("x",))
