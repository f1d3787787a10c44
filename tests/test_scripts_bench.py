"""The benchmark: each row's arithmetic on planted data, its verdicts, and two rows for real."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import socketserver
import subprocess
import sys
import threading
import time

import pytest
from serving import POCKET, ROOT

sys.path.insert(0, str(ROOT / "scripts"))
from benching import (  # noqa: E402
    arithmetic,
    client,
    costs,
    prefixes,
    processes,
    prose,
    rawloop,
    speed,
    table,
)
from benching.arithmetic import Memory  # noqa: E402
from benching.common import Run  # noqa: E402

SPEC = importlib.util.spec_from_file_location("bench", ROOT / "scripts" / "bench.py")
bench = importlib.util.module_from_spec(SPEC)
sys.modules["bench"] = bench
SPEC.loader.exec_module(bench)


# ---- rows and verdicts ----


@pytest.mark.parametrize(
    ("goal", "figure", "verdict"),
    [
        (table.at_least(0.97), 0.97, "ok"),
        (table.at_least(0.97), 0.969, "miss"),
        (table.at_most(1.1), 1.1, "ok"),
        (table.at_most(1.1), 1.11, "miss"),
        (table.at_most(1.1), math.nan, "miss"),
        (None, 5.0, "-"),
    ],
)
def test_a_figure_is_judged_by_the_sense_of_its_goal(goal, figure, verdict):
    assert table.row("planted", [figure], "words", goal).verdict == verdict


def test_a_row_is_the_median_of_its_repeats_with_their_extremes():
    item = table.row("planted", [0.9, 1.0, 0.5], "words", None, [0.7, 0.8, 0.9])
    assert (item.figure, item.low, item.high, item.n, item.against) == (0.9, 0.5, 1.0, 3, 0.8)


def test_a_repeat_that_could_not_be_measured_is_left_out_and_a_row_of_none_misses():
    assert table.row("planted", [math.nan, 0.04], "words", table.at_most(0.05)).verdict == "ok"
    assert table.row("planted", [math.nan], "words", table.at_most(0.05)).verdict == "miss"
    assert table.row("planted", [], "words", table.at_most(0.05)).verdict == "miss"


def test_both_sides_start_anew_for_every_two_repeats_and_take_turns_at_being_first(monkeypatch):
    happened = []

    @contextlib.contextmanager
    def process(name):
        happened.append(name)
        yield name
        happened.append(f"{name} ends")

    monkeypatch.setattr(processes, "our_server", lambda *_: process("ours"))
    monkeypatch.setattr(processes, "raw_loop", lambda *_: process("raw"))
    run = Run({"S": "S.gguf"}, "", threads=1, repeats=3, seconds=60.0)
    for sides, numbers in run.pairs("S"):
        assert (sides.ours, sides.raw) == ("ours", "raw")
        happened += numbers
    first, second = ["ours", "raw", 0, 1], ["raw", "ours", 2]
    assert happened == [*first, "raw ends", "ours ends", *second, "ours ends", "raw ends"]


def test_a_printed_row_says_figure_goal_verdict_and_words():
    item = table.row("planted", [0.5, 0.7, 0.6], "what was measured", table.at_least(0.92), [0.8])
    line = table.line(item, True)
    for part in ("planted", "0.600", "0.500..0.700", ">= 0.92", "miss", "0.800", "measured (n=3)"):
        assert part in line


def test_the_json_file_is_strict_json_and_holds_verdicts(tmp_path):
    path = tmp_path / "table.json"
    table.write_json(str(path), [table.row("planted", [math.nan], "w", table.at_most(1))], {"a": 1})
    read = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert read["a"] == 1
    assert read["rows"][0]["verdict"] == "miss" and read["rows"][0]["figure"] is None


# ---- arithmetic ----


def test_a_rate_counts_the_tokens_that_come_while_all_streams_run():
    one = [1.0, 2.0, 3.0]
    assert arithmetic.rate_while_it_comes([one], [3]) == 2 / 2.0
    later = [1.5, 2.5, 4.5]  # two tokens in each piece but the first
    assert arithmetic.rate_while_it_comes([one, later], [3, 5]) == (2 + 1 * 2) / 1.5
    assert math.isnan(arithmetic.rate_while_it_comes([one, [3.0, 4.0]], [3, 2]))


def test_the_largest_gap_is_looked_for_in_the_window_only():
    times = [0.0, 5.0, 6.0, 8.0, 8.5, 20.0]
    assert arithmetic.largest_gap(times, 5.5, 8.2) == 2.0
    assert arithmetic.largest_gap(times, 7.0, 9.0) == 11.5  # it begins in the window
    assert arithmetic.largest_gap([], 0.0, 9.0) == 0.0


def test_gaps_are_those_that_end_in_the_window():
    assert arithmetic.gaps([0.0, 5.0, 6.0, 8.0, 8.5, 20.0], 5.0, 8.5) == [1.0, 2.0, 0.5]


def test_a_quantile_is_a_value_that_was_seen():
    values = [float(n) for n in range(100)]
    assert arithmetic.quantile(values, 0.99) == 99.0 and arithmetic.quantile(values, 0.5) == 50.0
    assert arithmetic.quantile([7.0], 0.99) == 7.0
    assert math.isnan(arithmetic.quantile([], 0.5))


class Dripping(socketserver.BaseRequestHandler):
    """Sends bytes until its client hangs up; three of them to a path that says so."""

    def handle(self):
        n_bytes = 3 if b" /three " in self.request.recv(4096) else 10**6
        try:
            for _ in range(n_bytes):
                self.request.sendall(b".")
                time.sleep(0.005)
        except OSError:
            self.server.hung_up.append(1)


def test_a_load_that_is_stopped_hangs_up_on_all_that_go_on():
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Dripping) as server:
        server.hung_up = []
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        target = client.Target("127.0.0.1", server.server_address[1])
        load = client.Load(lambda call: load.stop())
        for path in ("/", "/", "/three"):
            load.add(client.Call(target, path, {}))
        load.run()
        assert all(call.ended_at and call.sock.fileno() == -1 for call in load.calls)
        server.shutdown()
    assert len(server.hung_up) == 2  # leaving `with` has waited for the handlers


def test_a_step_ends_when_a_stream_gets_its_next_token():
    arrivals = [(0.0, 1), (0.1, 2), (1.0, 2), (1.1, 1), (1.2, 3), (2.0, 3), (3.0, 3)]
    steps = arithmetic.steps_of(arrivals)
    assert [(step.began_s, sorted(step.streams)) for step in steps] == [
        (0.0, [1, 2]), (1.0, [1, 2, 3]), (2.0, [3]), (3.0, [3]),
    ]  # fmt: skip


def steady(n_streams, n_steps, step_s, start=0.0):
    return [(start + i * step_s, stream) for i in range(n_steps) for stream in range(n_streams)]


def test_ragged_steps_as_fast_as_full_ones_have_the_ratio_one():
    arrivals = steady(4, 10, 0.02) + steady(2, 10, 0.01, start=10.0)
    ratio, n_busy = arithmetic.ragged_ratio(arrivals, {2: 0.01, 4: 0.02})
    assert ratio == pytest.approx(1.0)
    assert 2 < n_busy < 4


def test_ragged_steps_that_are_slower_are_noticed():
    ratio, _ = arithmetic.ragged_ratio(steady(3, 50, 0.03), {2: 0.01, 4: 0.02})
    assert ratio == pytest.approx(0.03 / 0.015)


@pytest.mark.parametrize(("n", "expected"), [(2, 1.0), (3, 2.0), (4, 3.0), (1, 1.0), (9, 3.0)])
def test_between_known_points_values_lie_on_a_line(n, expected):
    assert arithmetic.interpolated({2: 1.0, 4: 3.0}, n) == expected


def test_a_shared_prefix_is_counted_once():
    prefix = list(range(100))
    assert arithmetic.n_distinct([[*prefix, 1], [*prefix, 2, 3], [*prefix, 2, 4]]) == 104


def test_what_came_from_a_cache_was_not_computed():
    usages = [{"prompt_tokens": 10, "cached_tokens": 0}, {"prompt_tokens": 12, "cached_tokens": 9}]
    assert arithmetic.computed_tokens(usages) == 13


def test_a_cost_is_spread_over_steps_and_compared_with_their_time():
    microseconds, share = arithmetic.cost_of_steps(0.02, 100, 2.0)
    assert (microseconds, share) == (pytest.approx(200.0), pytest.approx(0.01))


def test_memory_above_leaves_out_weights_and_their_copies_and_the_kv_cache():
    front, child = Memory(pss=20, model_pages=0), Memory(pss=1000, model_pages=300)
    assert arithmetic.memory_above([front, child], model_buffers=310, kv_bytes=350) == 60


def test_copies_of_weights_are_read_from_the_log_and_mappings_are_none():
    log = (
        "load_tensors:   CPU_Mapped model buffer size =   319.93 MiB\n"
        "load_tensors:   CPU_REPACK model buffer size =   2.50 MiB\n"
    )
    assert costs.weight_copies(log) == int(2.5 * 2**20)
    assert costs.kv_bytes("model 324 MiB, KV cache 448 MiB, saved") == 448 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_the_memory_of_a_process_and_its_children_is_read():
    code = "import sys; sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as child:
        family = processes.family(processes.os.getpid())
        assert child.pid in family
        assert processes.memory_of(child.pid, "/no/model").pss > 1 << 20


def test_of_the_free_memory_a_quarter_is_touched_at_most(monkeypatch):
    sizes, real = [], processes.mmap.mmap
    monkeypatch.setattr(processes.mmap, "mmap", lambda fd, n: sizes.append(n) or real(fd, n))
    monkeypatch.setattr(processes.machine, "available_memory_bytes", lambda: 4 << 20)
    processes.touch_memory(1 << 30)
    processes.touch_memory(4097)
    assert sizes == [1 << 20, 4097]


def test_inputs_are_packed_in_order_by_rows_and_by_sequences():
    inputs = [[0] * n for n in (3, 3, 3, 1, 1, 1)]
    assert [[len(i) for i in group] for group in rawloop.packed(inputs, 6, 3)] == [
        [3, 3], [3, 1, 1], [1],
    ]  # fmt: skip


def test_prompts_of_other_seeds_differ_from_the_first_words_on():
    assert prose.words(50, 1) == prose.words(50, 1)
    assert prose.words(4, 1) != prose.words(4, 2)


def test_the_raw_loop_counts_the_prompt_that_a_server_renders():
    assert prefixes.rendered("Hi") == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


# ---- the client ----


class Answered(client.Call):
    """A call whose answer is planted."""

    def __init__(self, *parts):
        self.parts = list(parts)


def test_only_pieces_with_text_count_as_arrivals():
    call = Answered(
        (1.0, b'data: {"delta":{"role":"assistant","content":""}}\n\n'),
        (2.0, b'data: {"delta":{"content":"a"}}\n\ndata: {"delta":{"content": "b"}}\n\n'),
        (3.0, b'data: {"delta":{"content":"\\""}}\n\n'),
    )
    assert call.text_times() == [2.0, 2.0, 3.0]


def test_counts_are_the_servers_last_ones():
    call = Answered(
        (1.0, b'{"usage":{"prompt_tokens":1,"completion_tokens": 2}}'),
        (2.0, b'{"usage":{"prompt_tokens": 7,"completion_tokens":8,'),
        (3.0, b'"prompt_tokens_details":{"cached_tokens":5}}}'),
    )
    counts = call.counts()
    assert (counts["prompt_tokens"], counts["completion_tokens"]) == (7, 8)
    assert (counts["cached_tokens"], counts["draft_n"]) == (5, 0)


def test_the_text_of_an_answer_is_put_together_from_its_pieces():
    call = Answered(
        (1.0, b'data: {"delta":{"role":"assistant","content":""}}\n\n'),
        (2.0, b'data: {"delta":{"content":"a \\"b\\""}}\n\ndata: {"delta":{"content": "\\\\"}}'),
        (3.0, b'\n\ndata: {"delta":{"content":"\\u00e9"}}\n\n'),
    )
    assert call.text == 'a "b"\\é'


def test_an_answer_without_usage_ends_the_benchmark_with_what_was_said():
    with pytest.raises(SystemExit, match="queue_full"):
        Answered((1.0, b'{"error":{"code":"queue_full"}}')).counts()
    with pytest.raises(SystemExit, match="queue_full"):
        Answered((1.0, b'{"error":{"code":"queue_full"}}')).text_times()


# ---- draft models ----


def answer(step_s, text="abcd", n_drafted=0, n_accepted=0):
    """An answer of one letter a step, as a draft call of the benchmark gets it."""
    pieces = [
        (step_s * number, b'data: {"content":"%b"}\n\n' % letter.encode())
        for number, letter in enumerate(text)
    ]
    counts = f'"draft_n":{n_drafted},"draft_n_accepted":{n_accepted}'
    usage = f'{{"prompt_tokens":1,"completion_tokens":{len(text)},{counts}}}'
    return Answered(*pieces, (9.0, usage.encode()))


def ratios_of(monkeypatch, with_it, without):
    monkeypatch.setattr(speed, "answered", lambda target, text: target)
    return speed.draft_ratios(Run({}, "", 1, repeats=2, seconds=9.0), with_it, without)


def test_drafting_twice_as_fast_has_the_ratio_two_and_tells_what_was_drafted(monkeypatch):
    drafted, plain = answer(0.5, n_drafted=5, n_accepted=3), answer(1.0)
    assert ratios_of(monkeypatch, drafted, plain) == ([2.0, 2.0], [(3, 5), (3, 5)])


def test_another_text_with_a_draft_model_ends_the_benchmark(monkeypatch):
    with pytest.raises(SystemExit, match="drafting changed the text: 'abce', not 'abcd'"):
        ratios_of(monkeypatch, answer(0.5, "abce"), answer(1.0))


def test_without_its_models_the_draft_row_is_left_out():
    assert list(speed.draft(Run({"S": "S.gguf"}, "", 1, repeats=1, seconds=1.0))) == []


@pytest.mark.parametrize(
    ("arguments", "made"),
    [
        (["--rows", "lookup"], ["S", "M"]),
        (["--rows", "lookup,draft"], ["S", "M", "MW", "DW", "D"]),
        (["--rows", "draft", "--quick"], ["S"]),
        (["--rows", "draft", "--model-m", "none"], ["S"]),
    ],
)
def test_the_models_of_the_draft_row_are_made_only_for_it(monkeypatch, tmp_path, arguments, made):
    commands = []
    monkeypatch.setattr(bench.subprocess, "run", lambda command, check: commands.append(command))
    monkeypatch.setattr(sys, "argv", ["bench.py", "--models", str(tmp_path), *arguments])
    paths = bench.find_models(bench.read_options(), bench.ExitStack())
    assert list(paths) == made
    assert [tuple(command[2:-2]) for command in commands] == [bench.MADE[name] for name in made]


# ---- choosing rows, and the whole ----


def test_rows_are_chosen_by_name_beginning_or_pattern():
    assert bench.chosen("streams-16-S,gap") == ["streams-16-S", "gap-S", "gap-M"]
    assert bench.chosen("*") == list(bench.ROWS)
    with pytest.raises(SystemExit, match="no row 'stream'"):
        bench.chosen("stream")


def planted_run(monkeypatch, capsys, *arguments):
    """Run the whole program with one planted row that is over its goal."""
    rows = {"planted": lambda run: iter([table.row("planted", [2.0], "w", table.at_most(1.0))])}
    monkeypatch.setattr(bench, "ROWS", rows)
    files = ["--model-s", str(POCKET), "--model-m", "none"]
    monkeypatch.setattr(sys, "argv", ["bench.py", *files, *arguments])
    code = bench.main()
    return code, capsys.readouterr().out


def test_a_row_over_its_goal_says_miss_and_fails_the_run_only_if_that_is_asked(monkeypatch, capsys):
    code, printed = planted_run(monkeypatch, capsys)
    assert code == 0 and " miss " in printed and "1 missed" in printed
    assert planted_run(monkeypatch, capsys, "--strict")[0] == 1


@pytest.mark.native
def test_two_rows_are_measured_on_a_small_model(native_library, tmp_path):
    path = tmp_path / "table.json"
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "bench.py"), "--model-s", str(POCKET)]
        + ["--model-m", "none", "--quick", "--threads", "1", "--repeats", "1"]
        + ["--rows", "streams-4,channel", "--json", str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["name"]: row for row in json.loads(path.read_text())["rows"]}
    assert list(rows) == ["streams-4 S", "streams-4 S plain", "channel", "channel isolation"]
    assert 0.02 < rows["streams-4 S"]["figure"] < 5
    assert 0 < rows["channel"]["figure"] < 0.5
