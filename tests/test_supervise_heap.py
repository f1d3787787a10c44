"""All threads of a process share one heap, so that their number does not become memory."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
from serving import ROOT

# Blocks that are neither Python's own small ones nor large enough to be mapped one by one. A heap
# of a thread reserves 64 MiB of addresses, most of them without access.
COUNT_HEAPS = """
import threading
from libloader.supervise import heap
{share}
ready = threading.Barrier(9)
def work():
    held = [bytearray(20_000) for _ in range(50)]
    ready.wait()
for _ in range(8):
    threading.Thread(target=work).start()
ready.wait()
ends = [line.split()[0].split("-") for line in open("/proc/self/maps") if " ---p " in line]
sizes = [int(end, 16) - int(start, 16) for start, end in ends]
print(sum(48 << 20 < size <= 64 << 20 for size in sizes))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have one heap")
@pytest.mark.parametrize("share", [True, False])
def test_threads_have_heaps_of_their_own_only_without_it(share):
    code = COUNT_HEAPS.format(share="heap.share()" if share else "")
    counted = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    n_heaps = int(counted.stdout)
    assert n_heaps == 0 if share else n_heaps > 1
