"""How the engine child is tied to its front and kept in bounds, per platform.

    what                                Linux                 macOS            Windows
    ends when the front ends            pipe EOF + PDEATHSIG  pipe EOF         pipe EOF + Job Object
    Ctrl-C reaches the front only       own session, and signals ignored       own process group
    no core dump, no error dialogue     RLIMIT_CORE           RLIMIT_CORE      SetErrorMode
    the OOM killer takes it first       oom_score_adj         -                -
    memory limit, if asked for          RLIMIT_AS             RLIMIT_AS        Job Object

The pipe's EOF is enough everywhere (child.py watches it, also during a native call); the rest
makes it certain. ctypes, because prctl and the Job Object have no other door in the standard
library. All of it is best effort: a refusal changes nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from typing import Any

OOM_SCORE_ADJ = 500
_PR_SET_PDEATHSIG = 1
_SEM_NO_DIALOGUES = 0x0001 | 0x0002  # FAILCRITICALERRORS, NOGPFAULTERRORBOX


def bind(front_pid: int, memory_limit_bytes: int = 0) -> None:
    """Tie this process, the engine child, to its front. Ends it if the front is gone already."""
    ignore_signals()
    if sys.platform == "win32":
        ctypes.windll.kernel32.SetErrorMode(_SEM_NO_DIALOGUES)
        return
    if sys.platform == "linux":
        _die_with_parent()
        with contextlib.suppress(OSError):
            _write_text("/proc/self/oom_score_adj", str(OOM_SCORE_ADJ))
    if os.getppid() != front_pid:  # it ended before PDEATHSIG was set
        os._exit(0)
    limit_resources(memory_limit_bytes)


def ignore_signals() -> None:
    """Leave Ctrl-C, SIGTERM and SIGHUP to the front: a service manager sends them to both."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
        number = getattr(signal, name, None)
        if number is not None:
            signal.signal(number, signal.SIG_IGN)


def limit_resources(memory_limit_bytes: int) -> None:
    """Forbid core dumps (prompts are in memory) and cap the address space if asked to. POSIX."""
    import resource  # missing on Windows

    # On Linux a limit of 0 still feeds a core_pattern that is a pipe; 1 is the kernel's "not even
    # that", and smaller than any core file.
    core_bytes = 1 if sys.platform == "linux" else 0
    limits = [(resource.RLIMIT_CORE, core_bytes)]
    if memory_limit_bytes:
        limits.append((resource.RLIMIT_AS, memory_limit_bytes))
    for kind, size in limits:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (size, size))


def _die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the thread that spawned us ends; it lives as the front."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _write_text(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


# --- Windows: a Job Object that ends its processes with its last handle ------------------------

_JOB_LIMIT_INFORMATION_CLASS = 9
_KILL_ON_JOB_CLOSE = 0x2000
_PROCESS_MEMORY = 0x0100


class _BasicLimits(ctypes.Structure):
    _fields_ = [
        ("PerProcessUserTimeLimit", ctypes.c_int64),
        ("PerJobUserTimeLimit", ctypes.c_int64),
        ("LimitFlags", ctypes.c_uint32),
        ("MinimumWorkingSetSize", ctypes.c_size_t),
        ("MaximumWorkingSetSize", ctypes.c_size_t),
        ("ActiveProcessLimit", ctypes.c_uint32),
        ("Affinity", ctypes.c_size_t),
        ("PriorityClass", ctypes.c_uint32),
        ("SchedulingClass", ctypes.c_uint32),
    ]


class _ExtendedLimits(ctypes.Structure):
    _fields_ = [
        ("BasicLimitInformation", _BasicLimits),
        ("IoInfo", ctypes.c_uint64 * 6),
        ("ProcessMemoryLimit", ctypes.c_size_t),
        ("JobMemoryLimit", ctypes.c_size_t),
        ("PeakProcessMemoryUsed", ctypes.c_size_t),
        ("PeakJobMemoryUsed", ctypes.c_size_t),
    ]


def put_into_job(kernel32: Any, process_handle: int, memory_limit_bytes: int) -> int:
    """Put a child into a new Job Object; return the job's handle, 0 if Windows refused.

    Called in the front, which keeps the handle as long as it lives: Windows closes it even when
    the front is killed, and that ends the child.
    """
    kernel32.CreateJobObjectW.restype = ctypes.c_void_p
    job = kernel32.CreateJobObjectW(None, None)
    limits = _ExtendedLimits()
    limits.BasicLimitInformation.LimitFlags = _KILL_ON_JOB_CLOSE
    if memory_limit_bytes:
        limits.BasicLimitInformation.LimitFlags |= _PROCESS_MEMORY
        limits.ProcessMemoryLimit = memory_limit_bytes
    handle = ctypes.c_void_p(job)
    set_up = kernel32.SetInformationJobObject(
        handle, _JOB_LIMIT_INFORMATION_CLASS, ctypes.byref(limits), ctypes.sizeof(limits)
    )
    if not set_up or not kernel32.AssignProcessToJobObject(handle, ctypes.c_void_p(process_handle)):
        return 0
    return int(job)
