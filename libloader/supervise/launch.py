"""Starting the engine child and holding its three lines: two pipes, the breadcrumb, the log.

Both ends are here because they must agree on the address, one word of the command line:
`read,write,parent,breadcrumb` (fds on POSIX; handles, and a name for the breadcrumb, on Windows).

Laws:
- The child is spawned, never forked: a new interpreter reads its module from the same file.
- It inherits the two pipe ends and the breadcrumb, and nothing else: no client's socket.
- Its stdout and stderr are one pipe that ends in this process's log; native code may print what it
  likes there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import libloader
from libloader.supervise import channel, lifetime
from libloader.supervise.blame import Exit, describe_exit
from libloader.supervise.breadcrumb import Breadcrumb

READ_BYTES = 65536
_LINE_BYTES = 4096

logger = logging.getLogger("igllama.engine")


# --- the command line --------------------------------------------------------------------------

# Interpreter flags that the child must have if we have them: (attribute of sys.flags, option).
_FLAGS = (
    ("isolated", "-I"),
    ("ignore_environment", "-E"),
    ("no_user_site", "-s"),
    ("no_site", "-S"),
    ("dont_write_bytecode", "-B"),
)


# By default -c would import from the folder where the user happens to be: not from there.
_RUN_MODULE = """\
import sys
sys.path[:] = [sys.argv[1], *filter(None, sys.path)]
import importlib
sys.exit(importlib.import_module(sys.argv[2]).main(sys.argv[3:]))
"""


def module_command(name: str) -> list[str]:
    """Return the command that runs `main` of one of our modules, in an interpreter like ours.

    It is read from where this process read it: a folder, or a single file that is a zip.
    """
    (package,) = libloader.__path__  # the import system's own word; right in a zip as well
    home = os.path.dirname(os.path.abspath(package))
    return [*python(), "-c", _RUN_MODULE, home, name]


def python() -> list[str]:
    flags = [option for name, option in _FLAGS if getattr(sys.flags, name)]
    if sys.flags.optimize:
        flags.append("-" + "O" * sys.flags.optimize)
    python = sys.executable or os.path.realpath("/proc/self/exe")  # "" if started without a PATH
    return [python, *flags, *(["-X", "utf8"] if sys.flags.utf8_mode else [])]


# --- the child's end ---------------------------------------------------------------------------


class ChildEnds(NamedTuple):
    """What the child holds: fds to read commands from and write frames to, and the breadcrumb."""

    read_fd: int
    write_fd: int
    parent_pid: int
    breadcrumb: Breadcrumb


def open_address(address: str) -> ChildEnds:
    """Take over what `Child` passed on; called once, in the child."""
    read_end, write_end, parent_pid, page = address.split(",")
    fds = [int(read_end), int(write_end)]
    if sys.platform == "win32":
        import msvcrt  # missing elsewhere

        modes = (os.O_RDONLY, os.O_WRONLY)
        fds = [msvcrt.open_osfhandle(fd, mode) for fd, mode in zip(fds, modes)]
    for fd in fds:
        os.set_inheritable(fd, False)  # a debugger that a crash starts must not keep them open
    return ChildEnds(fds[0], fds[1], int(parent_pid), Breadcrumb.open(page))


# --- the front's end ---------------------------------------------------------------------------


class Child:
    """One engine process as the front holds it. Methods may be called from different threads."""

    def __init__(self, command: Sequence[str], memory_limit_bytes: int = 0) -> None:
        """Spawn it. OSError if the system cannot."""
        self.breadcrumb = Breadcrumb.create()
        self.last_words = ""
        self._has_memory_limit = memory_limit_bytes > 0
        self._lacked_memory = False  # the child said so
        child_read, self._write_fd = os.pipe()
        self._read_fd, child_write = os.pipe()
        ends, options = _inherit(child_read, child_write, self.breadcrumb)
        try:
            self._process: subprocess.Popen[bytes] = subprocess.Popen(
                [*command, f"{ends[0]},{ends[1]},{os.getpid()},{self.breadcrumb.address}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=_environment(),
                close_fds=True,
                **options,
            )
        except BaseException:
            self._close_fds()
            raise
        finally:
            os.close(child_read)
            os.close(child_write)
        self._job = _own_job(self._process, memory_limit_bytes)
        self._log = threading.Thread(target=self._read_log, name="engine-log", daemon=True)
        self._log.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def read(self) -> bytes:
        """Wait for bytes; b"" when the child is gone."""
        return os.read(self._read_fd, READ_BYTES)

    def write(self, frame: bytes) -> None:
        """Write one frame; blocks while the child does not read. OSError when it is gone."""
        channel.write_frame(self._write_fd, frame)

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            self._process.kill()

    def exited(self) -> bool:
        return self._process.poll() is not None

    def reap(self, patience_s: float = 1.0) -> Exit:
        """Wait for the end, by force after `patience_s`; return how it ended."""
        try:
            returncode = self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.kill()
            returncode = self._process.wait()
        self._log.join(0.2)  # so that the last words are there; a grandchild may hold the pipe
        end = describe_exit(returncode)
        if not self._lacked_memory:
            return end
        limited = ", limited by --memory-limit" if self._has_memory_limit else ""
        return end._replace(remark="out of memory" + limited)

    def close(self) -> None:
        """Give everything back after `reap`, when no thread reads or writes any more."""
        self._close_fds()
        self._log.join(0.2)

    def _close_fds(self) -> None:
        self.breadcrumb.close()
        for fd in (self._read_fd, self._write_fd):
            with contextlib.suppress(OSError):
                os.close(fd)

    def _read_log(self) -> None:
        """Pass the child's output on to our log, line by line, until it ends."""
        assert self._process.stdout is not None
        with self._process.stdout as output:
            dumping = False
            for line in iter(lambda: output.readline(_LINE_BYTES), b""):
                level, text = read_log_line(line)
                if not text:
                    continue
                self._lacked_memory = self._lacked_memory or bool(_NO_MEMORY.search(text))
                logger.log(level, "%s", text)
                dumping = dumping or text.startswith(_DUMP_STARTS)
                # Errors, and what native code prints itself as it aborts; warnings come any time.
                if not dumping and (level >= logging.ERROR or not _PRIORITY.match(line)):
                    self.last_words = text


# What faulthandler prints first; its stack is no message for a person.
_DUMP_STARTS = ("Fatal Python error", "Windows fatal exception", "Traceback (most recent")
# What C++, the C library, ggml and Python say when an allocation fails.
_NO_MEMORY = re.compile(
    r"bad_alloc|MemoryError|cannot allocate memory|failed to allocate|(out of|insufficient) memory",
    re.IGNORECASE,
)
# As of sd-daemon(3): a line may start with its syslog priority.
_PRIORITY = re.compile(rb"<([0-7])>")
_LEVELS = (
    *(logging.CRITICAL,) * 3,
    logging.ERROR,
    logging.WARNING,
    logging.INFO,
    logging.INFO,
    logging.DEBUG,
)
_PRIORITIES = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
)


def read_log_line(line: bytes) -> tuple[int, str]:
    """Return (level, text) of one line of the child's output; native code's own are INFO."""
    match = _PRIORITY.match(line)
    level = _LEVELS[int(match.group(1))] if match else logging.INFO
    text = line[match.end() if match else 0 :].decode("utf-8", "replace")
    return level, "".join(c if c.isprintable() else " " for c in text).strip()


def write_priority(level: int) -> str:
    """Return the prefix that `read_log_line` understands for a logging level."""
    return f"<{next((number for bound, number in _PRIORITIES if level >= bound), 7)}>"


def _environment() -> dict[str, str]:
    """Return our environment without secrets; ggml must not start a debugger when it aborts."""
    kept = {name: value for name, value in os.environ.items() if "API_KEY" not in name.upper()}
    return {**kept, "GGML_NO_BACKTRACE": "1"}


def _inherit(read_fd: int, write_fd: int, page: Breadcrumb) -> tuple[list[int], dict[str, Any]]:
    """Return the numbers by which the child knows the pipe ends, and Popen's options for that."""
    if sys.platform == "win32":
        import msvcrt  # missing elsewhere

        handles = [msvcrt.get_osfhandle(fd) for fd in (read_fd, write_fd)]
        for handle in handles:
            os.set_handle_inheritable(handle, True)
        startup = subprocess.STARTUPINFO(lpAttributeList={"handle_list": handles})
        flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
        return handles, {"startupinfo": startup, "creationflags": flags}
    return [read_fd, write_fd], {
        "pass_fds": (read_fd, write_fd, page.fd),
        "start_new_session": True,  # the terminal's Ctrl-C is for the front
    }


def _own_job(process: subprocess.Popen[bytes], memory_limit_bytes: int) -> int:
    if sys.platform != "win32":
        return 0
    import ctypes  # windll exists on Windows only

    handle = int(process._handle)  # Popen has no public name for it
    return lifetime.put_into_job(ctypes.windll.kernel32, handle, memory_limit_bytes)
