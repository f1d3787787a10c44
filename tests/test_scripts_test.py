"""The test command: it runs every file once, and says so when something fails."""

from __future__ import annotations

import importlib.util
import sys
from fnmatch import fnmatch

from serving import ROOT

SPEC = importlib.util.spec_from_file_location("test_command", ROOT / "scripts" / "test.py")
command = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(command)


def test_every_test_file_is_run_once():
    ((*_, first), _), ((second,),) = command.stages()
    computing = set(first[2:])
    ignored = [argument.partition("=")[2] for argument in second[2:]]
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").glob("test_*.py")}
    assert computing == {name for name in files if any(fnmatch(name, each) for each in ignored)}
    assert computing and files - computing
    assert all(argument.startswith("--ignore-glob=") for argument in second[2:])


def test_a_lane_goes_on_after_a_failure_and_remembers_it(capfd):
    broken = ("-c", "print('oh'); raise SystemExit(3)")
    fine = ("-c", "print('well')")
    assert command.run_all(sys.executable, [broken, fine]) == 1
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == [
        *("SystemExit(3)", "oh", "failed"),
        *("print('well')", "well", "passed"),
    ]
    assert command.run_all(sys.executable, [fine]) == 0


def test_a_lane_that_was_killed_has_failed():
    killed = ("-c", "import os; os.kill(os.getpid(), 9)")
    assert command.run_all(sys.executable, [killed]) == 1
