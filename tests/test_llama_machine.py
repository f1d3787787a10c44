"""Cores and memory that a process may use, read from planted system files."""

from __future__ import annotations

import pytest

from libloader.llama import machine


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A machine with 8 CPUs, two of them on each core, and no limits; files can be added."""
    monkeypatch.setattr(machine, "CPUS", tmp_path / "cpu")
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "CGROUP_1_MEMORY", tmp_path / "cgroup1")
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "_affinity", lambda: range(8))

    def plant(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    for cpu in range(8):
        plant(f"cpu/cpu{cpu}/topology/thread_siblings_list", f"{cpu % 4},{cpu % 4 + 4}\n")
    plant("meminfo", "MemTotal: 9000 kB\nMemAvailable:    4096 kB\n")
    return plant


def test_of_two_hyperthreads_one_counts(host):
    assert machine.default_threads() == 4


def test_only_cpus_that_the_process_may_use_count(host, monkeypatch):
    monkeypatch.setattr(machine, "_affinity", lambda: [0, 1, 4])
    assert machine.default_threads() == 2


@pytest.mark.parametrize(("quota", "n"), [("150000 100000", 2), ("50000 100000", 1), ("max 1", 4)])
def test_a_containers_cpu_quota_is_kept(host, quota, n):
    host("cgroup/cpu.max", quota)
    assert machine.default_threads() == n


def test_without_any_knowledge_of_cores_each_cpu_counts(host, monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "CPUS", tmp_path / "nothing")
    assert machine.default_threads() == 8


def test_available_memory_is_what_the_kernel_says(host):
    assert machine.available_memory_bytes() == 4096 << 10


def test_a_containers_memory_limit_less_its_use_is_kept(host):
    host("cgroup/memory.max", "1000000\n")
    host("cgroup/memory.current", "400000\n")
    assert machine.available_memory_bytes() == 600_000


def test_the_older_kind_of_container_limit_is_kept_too(host):
    host("cgroup1", "500000")
    assert machine.available_memory_bytes() == 500_000


def test_no_limit_is_no_limit(host):
    host("cgroup/memory.max", "max")
    assert machine.available_memory_bytes() == 4096 << 10
