"""What this machine offers a model: cores to compute on and memory to hold it.

Both respect what the process may use (CPU affinity, cgroup limits), as in a container.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
CGROUP_1_MEMORY = CGROUP / "memory" / "memory.limit_in_bytes"
CPUS = Path("/sys/devices/system/cpu")
MEMINFO = Path("/proc/meminfo")


def default_threads() -> int:
    """Return the number of cores that this process may use; of two hyperthreads one counts."""
    usable = sorted(_affinity())
    cores = {_siblings(cpu) for cpu in usable}
    return max(1, min(len(cores), _cgroup_cpus(len(cores))))


def available_memory_bytes() -> int:
    """Return the memory that a model and its KV cache can take now; 0 if it cannot be told."""
    found = [limit for limit in (_free_memory(), *_cgroup_memory()) if limit > 0]
    return min(found, default=0)


def _affinity() -> Iterable[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


def _siblings(cpu: int) -> str:
    """Return a text that is the same for all hyperthreads of one core."""
    return _read(CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list") or str(cpu)


def _cgroup_cpus(default: int) -> int:
    """Return the CPU quota of this container, rounded up; `default` without one."""
    quota, _, period = _read(CGROUP / "cpu.max").partition(" ")
    if not quota.isdigit() or not period.isdigit():
        return default
    return max(1, -(-int(quota) // int(period)))


def _free_memory() -> int:
    for line in _read(MEMINFO).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 0


def _cgroup_memory() -> list[int]:
    """Return the memory limit of this container less what it uses, if there is one."""
    limit = _read(CGROUP / "memory.max") or _read(CGROUP_1_MEMORY)
    used = _read(CGROUP / "memory.current")
    if not limit.isdigit():
        return []
    return [max(1, int(limit) - (int(used) if used.isdigit() else 0))]


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
