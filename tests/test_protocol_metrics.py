"""The metrics page: names, labels and form, without a server."""

from __future__ import annotations

import re
from pathlib import Path

from libloader import core
from libloader.engine.timings import Counters
from libloader.protocol import metrics

GOLDEN = Path(__file__).parent / "data" / "metrics.txt"
SAMPLE = re.compile(r'[a-zA-Z_:]+(\{[a-z]+="[^"\n]*"(,[a-z]+="[^"\n]*")*\})? [0-9.e+-]+')


def busy_status() -> core.EngineStatus:
    counters = Counters()
    counters.count_request(core.Usage(10, 4, 7))
    counters.first_token_s.add(0.02)
    counters.token_gap_s.add(0.004)
    counters.token_gap_s.add(90.0)
    figures = {"n_running": 2, "n_waiting": 1, "n_hits_ram": 3, **counters.figures()}
    restarts = {"restarts_fault": 1.0, "restarts_hung": 0.0, "replayed": 5.0, "blamed": 1.0}
    return core.EngineStatus(state="ok", counters={**figures, **restarts})


WEB = metrics.WebCounts(
    {("/health", 200): 3, ("", 404): 1},
    {"invalid_json": 2},
    {"connections": 6, "n_connections": 1, "status_200": 3},
)


def test_the_page_is_the_golden_one():
    assert metrics.page(busy_status(), WEB) == GOLDEN.read_text(encoding="utf-8")


def test_every_line_is_help_type_or_a_sample_and_every_family_has_both():
    lines = metrics.page(busy_status(), WEB).splitlines()
    families = {line.split()[2] for line in lines if line.startswith("# TYPE ")}
    assert {line.split()[2] for line in lines if line.startswith("# HELP ")} == families
    samples = [line for line in lines if not line.startswith("#")]
    for line in samples:
        assert SAMPLE.fullmatch(line), line
        name = re.sub(r"_(bucket|sum|count)$", "", re.split(r"[{ ]", line)[0])
        assert name in families or name + "_count" in families, line


def test_an_engine_that_loads_has_a_page_too():
    page = metrics.page(core.EngineStatus(state="loading"), metrics.WebCounts())
    assert 'igllama_engine_state{state="loading"} 1' in page
    assert "igllama_prompt_tokens_total" not in page


def test_the_buckets_of_a_histogram_only_grow_and_end_in_the_count():
    page = metrics.page(busy_status(), WEB)
    gaps = re.findall(r'igllama_token_gap_seconds_bucket\{le="(.*?)"\} (\d+)', page)
    counts = [int(count) for _, count in gaps]
    assert gaps[-1] == ("+Inf", "2") and counts == sorted(counts) and counts[-2] == 1


def test_a_label_cannot_break_its_line():
    web = metrics.WebCounts({('/a"b\\c\nd', 200): 1})
    assert r'route="/a\"b\\c\nd"' in metrics.page(core.EngineStatus(), web)
