#!/usr/bin/env python3
"""Render a folder of chat templates and compare with reference texts.

    python3 scripts/check_templates.py FOLDER [--show N] [--time]
    python3 scripts/check_templates.py --time       our built-in templates, times only

FOLDER holds NAME.jinja files, scenarios.json (contexts to render each template with) and
expected/NAME.json (what jinja2 made of them). Prints what differs and `N passed, N failed`;
exits with 1 if anything failed. `--time` also renders with jinja2, if it is installed (the test
environment has it), and prints the times of both, last those of a conversation of 50 turns.
"""

from __future__ import annotations

import argparse
import datetime
import difflib
import json
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Callable, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from libloader.chat.builtin_templates import TEMPLATES  # noqa: E402
from libloader.chat.jinja import Template, TemplateError, TemplateRaised  # noqa: E402

N_TURNS = 50


class Scenario(NamedTuple):
    id: str
    context: dict[str, Any]


def load_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def load_source(path: Path) -> str:
    return path.read_bytes().decode("utf-8")  # line ends as they are


def outcome(template: Template, context: dict[str, Any], now: datetime.datetime) -> dict[str, str]:
    """Render, and describe the result in the form of the expected files."""
    try:
        return {"text": template.render(context, now)}
    except TemplateRaised as error:
        return {"error": "raise_exception", "message": error.reason}
    except TemplateError as error:
        return {"error": "other", "message": str(error)}


def is_right(got: dict[str, str], expected: dict[str, str]) -> bool:
    if "text" in got:
        return got["text"] in (expected.get("text"), expected.get("also_accept"))
    if "text" in expected:
        return False
    if "raise_exception" in (got["error"], expected["error"]):
        return got == {key: expected.get(key) for key in ("error", "message")}
    return True


def describe(got: dict[str, str], expected: dict[str, str]) -> str:
    if "text" in got and "text" in expected:
        lines = difflib.unified_diff(
            expected["text"].splitlines(True), got["text"].splitlines(True), "expected", "got", n=1
        )
        return "".join(repr(line) + "\n" for line in lines)[:2000]
    return f"  expected {str(expected)[:500]}\n  got      {str(got)[:500]}\n"


class Corpus:
    def __init__(self, folder: Path) -> None:
        data = load_json(folder / "scenarios.json")
        self.folder = folder
        self.now = datetime.datetime.fromisoformat(data["now"])
        self.scenarios = [Scenario(each["id"], each["context"]) for each in data["scenarios"]]

    def templates(self) -> Iterator[tuple[str, str]]:
        for path in sorted(self.folder.glob("*.jinja")):
            yield path.stem, load_source(path)

    def check(self, n_shown: int) -> tuple[int, int]:
        """Print what differs; return how many results are right and how many wrong."""
        passed = failed = 0
        for name, source in self.templates():
            results = load_json(self.folder / "expected" / f"{name}.json")["results"]
            for scenario_id, got in self.outcomes(source):
                if is_right(got, results[scenario_id]):
                    passed += 1
                    continue
                failed += 1
                if failed <= n_shown:
                    print(f"{name} / {scenario_id}\n{describe(got, results[scenario_id])}")
        return passed, failed

    def outcomes(self, source: str) -> Iterator[tuple[str, dict[str, str]]]:
        try:
            template = Template(source)
        except TemplateError as error:
            broken = {"error": "syntax", "message": str(error)}
            yield from ((scenario.id, broken) for scenario in self.scenarios)
            return
        for scenario in self.scenarios:
            context = json.loads(json.dumps(scenario.context))
            got = outcome(template, context, self.now)
            if context != scenario.context:
                got = {"error": "changed", "message": "the template changed the messages"}
            yield scenario.id, got


# --- times ---------------------------------------------------------------------------------------

Renderer = Callable[[dict[str, Any]], str]


def jinja2_parser(now: datetime.datetime) -> Callable[[str], Renderer] | None:
    """Return jinja2 set up as transformers does, or None without jinja2."""
    try:
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        return None

    class Generation(Extension):
        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            from jinja2 import nodes

            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def raise_exception(message: str) -> None:
        raise ValueError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    def make(source: str) -> Renderer:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
        )
        environment.filters["tojson"] = tojson
        environment.globals["raise_exception"] = raise_exception
        environment.globals["strftime_now"] = now.strftime
        template = environment.from_string(source)
        return lambda context: template.render(**context)

    return make


def best_ms(function: Callable[[], object], n_rounds: int = 7) -> float:
    """Return the time of the fastest of some rounds: the others were disturbed."""
    times = []
    for _ in range(n_rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times) * 1000


class Times(NamedTuple):
    name: str
    parse_ms: float
    render_ms: float  # of all scenarios that both render
    jinja2_ms: float
    compile_ms: float

    @property
    def ratio(self) -> float:
        return self.render_ms / self.jinja2_ms


def renders(render: Renderer, context: dict[str, Any]) -> bool:
    try:
        render(context)
    except Exception:  # whatever the reference raises, there is no time to compare
        return False
    return True


def measure(corpus: Corpus, reference: Callable[[str], Renderer]) -> list[Times]:
    found = []
    for name, source in corpus.templates():
        template, other = Template(source), reference(source)

        def ours(context: dict[str, Any], template: Template = template) -> str:
            return template.render(context, corpus.now)

        contexts = [
            scenario.context
            for scenario in corpus.scenarios
            if renders(other, scenario.context) and renders(ours, scenario.context)
        ]
        found.append(
            Times(
                name,
                best_ms(lambda: Template(source), 3),  # noqa: B023
                best_ms(lambda: [ours(context) for context in contexts]),  # noqa: B023
                best_ms(lambda: [other(context) for context in contexts]),  # noqa: B023
                best_ms(lambda: reference(source), 1),  # noqa: B023
            )
        )
    return found


def long_conversation(n_turns: int) -> dict[str, Any]:
    """Return a context of `n_turns` questions and answers."""
    messages: list[dict[str, Any]] = []
    for turn in range(n_turns):
        messages.append({"role": "user", "content": f"Question {turn}? " + "lorem ipsum " * 40})
        messages.append({"role": "assistant", "content": f"Answer {turn}. " + "dolor sit " * 60})
    messages.append({"role": "user", "content": "Thanks."})
    variables = {"add_generation_prompt": True, "bos_token": "<s>", "eos_token": "</s>"}
    return {"messages": messages, **variables}


def print_conversation(
    sources: Iterable[tuple[str, str]], make: Callable[[str], Renderer], now: datetime.datetime
) -> None:
    """Print the milliseconds of a long conversation over all templates that render it, of both."""
    context = long_conversation(N_TURNS)
    ours, theirs = [], []
    for _, source in sources:
        template, other = Template(source), make(source)
        if renders(other, context) and "text" in outcome(template, context, now):
            ours.append(best_ms(lambda: template.render(context, now)))  # noqa: B023
            theirs.append(best_ms(lambda: other(context)))  # noqa: B023
    ratios = [a / b for a, b in zip(ours, theirs)]
    print(
        f"{N_TURNS} turns, {len(ours)} templates: median {statistics.median(ours):.2f} ms, "
        f"jinja2 {statistics.median(theirs):.2f} ms, ratio {statistics.median(ratios):.1f}; "
        f"worst {max(ours):.2f} ms, ratio {max(ratios):.1f}"
    )


def print_times(corpus: Corpus) -> None:
    reference = jinja2_parser(corpus.now)
    if reference is None:
        print("jinja2 is not installed: no times to compare with")
        return
    times = measure(corpus, reference)
    for row in sorted(times, key=lambda row: row.ratio):
        print(f"{row.ratio:6.1f} x  parse {row.parse_ms:6.2f} ms  {row.name}")
    for label, values in (
        ("render time / jinja2's", [row.ratio for row in times]),
        ("parse ms", [row.parse_ms for row in times]),
        ("jinja2's compile ms", [row.compile_ms for row in times]),
    ):
        print(f"{label}: median {statistics.median(values):.2f}, worst {max(values):.2f}")
    print_conversation(corpus.templates(), reference, corpus.now)


def print_builtin_times() -> None:
    now = datetime.datetime.now()
    reference = jinja2_parser(now)
    if reference is None:
        print("jinja2 is not installed: no times to compare with")
    else:
        print_conversation(TEMPLATES.items(), reference, now)


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--show", type=int, default=20, metavar="N", help="print N differences")
    parser.add_argument("--time", action="store_true", help="compare times with jinja2")
    options = parser.parse_args()
    if options.folder is None:
        if not options.time:
            parser.error("name a folder, or give --time")
        print_builtin_times()
        return 0
    corpus = Corpus(options.folder)
    passed, failed = corpus.check(options.show)
    if options.time:
        print_times(corpus)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
