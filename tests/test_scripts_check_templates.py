"""scripts/check_templates.py tells right from wrong."""

from __future__ import annotations

import json
import sys

import pytest
from jinja_reference import NOW

from libloader.chat.builtin_templates import TEMPLATES
from scripts import check_templates

SOURCE = (
    "{% for m in messages %}{% if m.role == 'bad' %}{{ raise_exception('Bad role!') }}"
    "{% elif m.role == 'odd' %}{{ m.nope.x }}{% else %}[{{ m.content }}]{% endif %}{% endfor %}"
)
RESULTS = {
    "good": {"text": "[hi]"},
    "raised": {"error": "raise_exception", "message": "Bad role!"},
    "failed": {"error": "undefined", "message": "whatever jinja2 said"},
    "either": {"error": "security", "message": "", "also_accept": "[ho]"},
}
ROLES = {
    "good": ("user", "hi"),
    "raised": ("bad", ""),
    "failed": ("odd", ""),
    "either": ("u", "ho"),
}


@pytest.fixture
def folder(tmp_path):
    scenarios = [
        {"id": id, "context": {"messages": [{"role": role, "content": content}]}}
        for id, (role, content) in ROLES.items()
    ]
    write(tmp_path / "scenarios.json", {"now": NOW.isoformat(), "scenarios": scenarios})
    (tmp_path / "one.jinja").write_bytes(SOURCE.encode())
    (tmp_path / "expected").mkdir()
    write(tmp_path / "expected" / "one.json", {"results": RESULTS})
    return tmp_path


def write(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")


def run(folder, monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["check_templates.py", str(folder), *options])
    return check_templates.main()


def test_a_right_folder_passes(folder, monkeypatch, capsys):
    assert run(folder, monkeypatch) == 0
    assert capsys.readouterr().out == "4 passed, 0 failed\n"


@pytest.mark.parametrize(
    ("scenario", "wrong"),
    [
        ("good", {"text": "[hi] "}),
        ("good", {"error": "type", "message": ""}),
        ("raised", {"error": "raise_exception", "message": "Bad role"}),
        ("raised", {"error": "type", "message": "Bad role!"}),
        ("failed", {"text": ""}),
        ("either", {"error": "security", "message": "", "also_accept": "[he]"}),
    ],
)
def test_a_planted_difference_is_shown_and_counted(folder, monkeypatch, capsys, scenario, wrong):
    write(folder / "expected" / "one.json", {"results": {**RESULTS, scenario: wrong}})
    assert run(folder, monkeypatch) == 1
    out = capsys.readouterr().out
    assert f"one / {scenario}" in out
    assert out.endswith("3 passed, 1 failed\n")


def test_a_template_that_does_not_parse_fails_everywhere(folder, monkeypatch, capsys):
    (folder / "one.jinja").write_bytes(b"{% if %}")
    assert run(folder, monkeypatch, "--show", "0") == 1
    assert capsys.readouterr().out == "2 passed, 2 failed\n"


def test_times_are_printed_beside_jinja2s(folder, monkeypatch, capsys):
    assert run(folder, monkeypatch, "--time") == 0
    out = capsys.readouterr().out
    for label in ("render time / jinja2's: median", "parse ms: median", "50 turns, 1 templates: "):
        assert label in out


def test_without_a_folder_a_long_conversation_is_timed_in_the_built_in_templates(
    monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", ["check_templates.py", "--time"])
    monkeypatch.setattr(check_templates, "N_TURNS", 2)
    monkeypatch.setattr(check_templates, "best_ms", lambda function: 1.0 if function() else 0.0)
    assert check_templates.main() == 0
    n = len(TEMPLATES)
    assert capsys.readouterr().out.startswith(
        f"2 turns, {n} templates: median 1.00 ms, jinja2 1.00"
    )
