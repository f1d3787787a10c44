"""The engine child: it ends with its front, keeps to itself, and can be broken on purpose."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
import zipfile

import pytest
from supervise_fakes import TESTS, ask, command, send, supervisor, wait_for

from libloader.supervise import faults, launch, lifetime

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="/proc")
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

FRONT = """
import sys; sys.path[:0] = {paths!r}
import supervise_fakes as fakes
engine = fakes.supervisor()
engine.start()
fakes.send(engine, fakes.ask("a", {prompt!r}, 10**6))
fakes.wait_for(lambda: engine._line.child.breadcrumb.read().phase in {phases!r})
print(engine._line.child.pid, flush=True)
import time; time.sleep(60)
"""


@pytest.fixture
def engine():
    engine = supervisor()
    engine.start()
    yield engine
    engine.stop()


def pid_of(engine) -> int:
    return engine._line.child.pid


def gone(pid: int) -> bool:
    """True when the process ended; a zombie whose parent is gone too counts."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@linux_only
@pytest.mark.parametrize(
    ("prompt", "phases"),
    [("tell", ("decode", "sample", "ipc_write")), ("boom !sample:hang", ("sample",))],
)
def test_when_the_front_is_killed_the_child_is_gone_within_a_second(prompt, phases):
    paths = [str(TESTS.parent), str(TESTS)]
    code = FRONT.format(paths=paths, prompt=prompt, phases=phases)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as front:
        assert front.stdout is not None
        pid = int(front.stdout.readline())
        assert not gone(pid)
        front.kill()
        wait_for(lambda: gone(pid), 1.0)


@linux_only
def test_the_pipes_end_alone_ends_the_child_during_a_native_call():
    """Without PDEATHSIG, as on macOS: only the file descriptors tell."""
    child = launch.Child(command())
    start = b'{"op":"start","settings":{"model":"{\\"load\\":\\"hang\\"}"}}'
    child.write(len(start).to_bytes(4, "little") + start)
    wait_for(lambda: child.breadcrumb.read().phase == "load")
    os.close(child._write_fd)
    child._write_fd = -1
    began = time.monotonic()
    end = child.reap(5.0)
    assert end.name == "exit code 0"
    assert time.monotonic() - began < 1.0
    child.close()


@linux_only
def test_a_front_that_stood_still_loses_nothing_and_kills_nobody():
    code = FRONT.format(paths=[str(TESTS.parent), str(TESTS)], prompt="tell", phases=("decode",))
    code = code.replace("import time; time.sleep(60)", SLOW_FRONT)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as front:
        assert front.stdout is not None
        front.stdout.readline()
        front.send_signal(signal.SIGSTOP)
        time.sleep(1.5)  # the child fills the pipe and waits
        front.send_signal(signal.SIGCONT)
        assert front.stdout.readline() == b"as ever 0\n"


SLOW_FRONT = """
clients = [fakes.send(engine, fakes.ask(f"s{n}", f"story {n}", 1500)) for n in range(3)]
engine.cancel("a")
for n, client in enumerate(clients):
    client.wait()
    assert client.text == fakes.text_of(f"story {n}", 1500)
print("as ever", engine.status().restarts, flush=True)
engine.stop()
"""


@posix_only
def test_ctrl_c_and_a_service_managers_sigterm_are_left_to_the_front(engine):
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid_of(engine), number)
    send(engine, ask("a")).wait()
    assert engine.status().restarts == 0
    assert os.getsid(pid_of(engine)) == pid_of(engine)


@linux_only
def test_the_child_is_the_first_to_go_when_memory_ends_and_leaves_no_core(engine):
    proc = f"/proc/{pid_of(engine)}"
    with open(f"{proc}/oom_score_adj", encoding="ascii") as file:
        assert int(file.read()) == lifetime.OOM_SCORE_ADJ
    with open(f"{proc}/limits", encoding="ascii") as file:
        core = next(line for line in file if line.startswith("Max core file size"))
    assert core.split()[4] == "1"


@linux_only
def test_the_child_inherits_no_socket_and_no_file_of_the_front(tmp_path):
    with open(tmp_path / "secret", "wb") as file:
        os.set_inheritable(file.fileno(), True)
        engine = supervisor()
        engine.start()
        try:
            folder = f"/proc/{pid_of(engine)}/fd"
            targets = {name: os.readlink(f"{folder}/{name}") for name in os.listdir(folder)}
        finally:
            engine.stop()
    assert not any("secret" in target for target in targets.values())
    pipes = [target for target in targets.values() if target.startswith("pipe:")]
    assert len(pipes) == 4, targets  # commands, frames, and the log as stdout and stderr
    assert len(targets) == 6, targets  # and /dev/null as stdin, and the breadcrumb


@linux_only
def test_an_api_key_in_the_environment_stays_with_the_front(monkeypatch):
    monkeypatch.setenv("IGLLAMA_API_KEY", "sesame")
    engine = supervisor()
    engine.start()
    try:
        with open(f"/proc/{pid_of(engine)}/environ", "rb") as file:
            environ = file.read()
    finally:
        engine.stop()
    assert b"sesame" not in environ
    assert b"GGML_NO_BACKTRACE=1" in environ


def test_faults_are_planted_only_in_test_mode(monkeypatch):
    monkeypatch.setenv("IGLLAMA_FAULT", "tokenize:abort")
    engine = supervisor()
    object.__setattr__(engine._options, "test_mode", False)
    engine.start()
    try:
        client = send(engine, ask("a"))
        client.wait()
    finally:
        engine.stop()
    assert client.failure == ""


def test_a_fault_strikes_at_its_visit_and_in_its_generations():
    struck: list[str] = []
    faults.ACTIONS["note"] = lambda: struck.append("!")
    try:
        (third,) = faults.read("decode:note:3:1", 1)
        for _ in range(5):
            third.visit()
        (later,) = faults.read("decode:note:1:1", 2)
        later.visit()
    finally:
        del faults.ACTIONS["note"]
    assert struck == ["!"]


@pytest.mark.parametrize("text", ["decode", "decode:dance", "decode:segv:x"])
def test_a_malformed_fault_is_refused(text):
    with pytest.raises((IndexError, KeyError, ValueError)):
        faults.read(text, 1)


def test_the_child_runs_with_the_interpreter_flags_of_the_front():
    code = (
        f"import sys; sys.path.insert(0, {str(TESTS.parent)!r});"
        "from libloader.supervise.launch import module_command; print(*module_command('m'))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-O", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"{sys.executable} -I -E -s -S -O -c ")
    assert done.stdout.endswith(f"{TESTS.parent} m\n")


def test_the_child_imports_the_engine_and_no_part_of_the_front():
    code = "import libloader.engine_child, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=TESTS.parent
    )
    loaded = done.stdout.split()
    front = {"web", "chat", "grammar", "protocol", "answers", "constraint", "service", "options"}
    assert "libloader.engine.engine" in loaded
    assert {f"libloader.{name}" for name in front} & set(loaded) == set()
    assert {"http", "http.server", "ssl", "argparse", "igllama"} & set(loaded) == set()


def test_a_module_of_a_zip_runs_from_anywhere(tmp_path):
    archive = tmp_path / "one file"
    with zipfile.ZipFile(archive, "w") as file:
        for path in TESTS.parent.joinpath("libloader").rglob("*.py"):
            file.write(path, path.relative_to(TESTS.parent).as_posix())
        file.writestr("libloader/said.py", "def main(arguments):\n    print(*arguments)\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "importlib.py").write_text("raise SystemExit('read from the working folder')")
    code = (
        "import sys; sys.path.insert(0, 'one file');"
        "from libloader.supervise.launch import module_command as c; import subprocess;"
        "subprocess.run([*c('libloader.said'), 'address'], cwd='elsewhere')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout == "address\n", done.stderr


@pytest.mark.parametrize(
    ("line", "level", "text"),
    [
        (b"<3>broken\n", 40, "broken"),
        (b"<7>detail\r\n", 10, "detail"),
        (b"native words\n", 20, "native words"),
        (b"<9>no priority\n", 20, "<9>no priority"),
        (b"a\x1b[31mred\x00\xff\n", 20, "a [31mred �"),
        (b"\n", 20, ""),
    ],
)
def test_lines_of_the_child_get_their_level_and_lose_their_control_characters(line, level, text):
    assert launch.read_log_line(line) == (level, text)


def test_levels_come_back_as_they_were_sent():
    for level in (10, 20, 30, 40, 50):
        assert launch.read_log_line(f"{launch.write_priority(level)}x".encode())[0] == level


class Kernel32:
    """The three functions of Windows that tie a child to us."""

    def __init__(self) -> None:
        self.limits: object = None
        self.assigned: tuple[int, int] | None = None
        self.CreateJobObjectW = self._create

    class _Function:
        restype: object = None

        def __call__(self, *_: object) -> int:
            return 4242

    _create = _Function()

    def SetInformationJobObject(self, job, kind, limits, size):  # noqa: N802
        self.limits = limits._obj
        assert kind == 9
        assert size == ctypes.sizeof(limits._obj)
        return 1

    def AssignProcessToJobObject(self, job, process):  # noqa: N802
        self.assigned = (job.value, process.value)
        return 1


def test_on_windows_the_child_sits_in_a_job_that_dies_with_the_front():
    kernel32 = Kernel32()
    assert lifetime.put_into_job(kernel32, 99, 1 << 30) == 4242
    assert kernel32.assigned == (4242, 99)
    assert kernel32.limits.BasicLimitInformation.LimitFlags == 0x2100
    assert kernel32.limits.ProcessMemoryLimit == 1 << 30


@pytest.mark.skipif(ctypes.sizeof(ctypes.c_void_p) != 8, reason="64-bit layout")
def test_the_job_limits_have_the_size_that_windows_expects():
    assert ctypes.sizeof(lifetime._BasicLimits) == 64
    assert ctypes.sizeof(lifetime._ExtendedLimits) == 144
