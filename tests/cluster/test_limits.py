"""Cores and memory that a process may use: affinity, cgroups of both versions and how they nest, Slurm."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster import limits
from cluster.limits import available_cpus, available_memory, cgroup_cpus

V2 = "0::/user/job\n"
V1 = "4:memory:/box\n2:cpu,cpuacct:/user/job\n1:name=systemd:/x\n0::/\n"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def unlimited(monkeypatch: pytest.MonkeyPatch) -> int:
    """Without Slurm; what is then available."""
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    monkeypatch.delenv("SLURM_CPUS_ON_NODE", raising=False)
    return available_cpus()


def test_affinity(unlimited: int) -> None:
    allowed = os.sched_getaffinity(0)
    assert 1 <= unlimited <= len(allowed)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert available_cpus() == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(
    ("per_task", "on_node", "most"),
    [
        ("1", "", 1),
        ("512", "", None),
        ("0", "", 1),
        ("two", "", None),
        ("", "1", 1),
        ("", "16(x2)", None),
        ("512", "1", None),  # what the job asked for a task goes before what the node has
        ("1", "512", 1),
    ],
)
def test_slurm(unlimited: int, monkeypatch: pytest.MonkeyPatch, per_task: str, on_node: str, most: int | None) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", per_task)
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", on_node)
    assert available_cpus() == (most or unlimited)


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        (V2, {"user/job/cpu.max": "150000 100000\n"}, 1.5),
        (V2, {"user/job/cpu.max": "max 100000\n"}, None),
        (V2, {"user/job/cpu.max": "\n"}, None),
        (V2, {"user/cpu.max": "300000 100000\n", "user/job/cpu.max": "400000 100000\n"}, 3.0),  # the one above binds
        (V2, {"user/cpu.max": "300000 100000\n", "other/cpu.max": "100000 100000\n"}, 3.0),
        (V2, {"cpu.max": "200000 100000\n"}, 2.0),  # a container's own root, the path of the host
        ("0::/../outside\n", {"cpu.max": "200000 100000\n"}, 2.0),
        ("", {"cpu.max": "200000 100000\n"}, 2.0),
        (V2, {"unified/user/job/cpu.max": "200000 100000\n"}, 2.0),
        (
            V1,
            {
                "cpu,cpuacct/user/job/cpu.cfs_quota_us": "400000\n",
                "cpu,cpuacct/user/job/cpu.cfs_period_us": "100000\n",
                "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            4.0,
        ),
        (
            V1,
            {
                "cpu/user/cpu.cfs_quota_us": "250000\n",
                "cpu/user/cpu.cfs_period_us": "100000\n",
                "cpu/user/job/cpu.cfs_quota_us": "-1\n",
                "cpu/user/job/cpu.cfs_period_us": "100000\n",
            },
            2.5,
        ),
        (V1, {"cpuset/user/job/cpu.cfs_quota_us": "100000\n", "cpuset/user/job/cpu.cfs_period_us": "1000000\n"}, None),
        (V2, {}, None),
    ],
)
def test_cgroup_quota(tmp_path: Path, own: str, files: dict[str, str], cores: float | None) -> None:
    proc = write(tmp_path / "proc", {"self/cgroup": own})
    (tmp_path / "cgroup").mkdir()
    assert cgroup_cpus(write(tmp_path / "cgroup", files), proc) == cores


def stat(active: int, inactive: int, prefix: str = "") -> str:
    return f"anon 5\n{prefix}active_file {active}\n{prefix}inactive_file {inactive}\n"


@pytest.mark.parametrize(
    ("own", "files", "left"),
    [
        (V2, {}, 8 << 20),  # the machine's
        (
            V2,
            {"user/job/memory.max": "5000000\n", "user/job/memory.current": "4000000\n", "user/job/memory.stat": ""},
            1_000_000,
        ),
        (
            V2,
            {
                "user/job/memory.max": "max\n",
                "user/job/memory.current": "4000000\n",
                "user/memory.max": "5000000\n",
                "user/memory.current": "4500000\n",
                "user/memory.stat": stat(200_000, 300_000),
            },
            1_000_000,
        ),
        (
            V1,
            {
                "memory/box/memory.limit_in_bytes": "5000000\n",
                "memory/box/memory.usage_in_bytes": "4000000\n",
                "memory/box/memory.stat": stat(1, 2) + stat(1_000_000, 500_000, "total_"),
                "memory/memory.limit_in_bytes": "9223372036854771712\n",
                "memory/memory.usage_in_bytes": "4000000\n",
            },
            2_500_000,
        ),
        (V2, {"user/job/memory.max": "5\n", "user/job/memory.current": "6\n"}, 0),
    ],
)
def test_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, files: dict[str, str], left: int) -> None:
    memory = "MemTotal: 9000 kB\nMemFree: 1000 kB\nMemAvailable: 8192 kB\n"
    (tmp_path / "cgroup").mkdir()
    proc = write(tmp_path / "proc", {"self/cgroup": own, "meminfo": memory})
    root = write(tmp_path / "cgroup", files)
    monkeypatch.setattr(limits, "PROC", proc)
    monkeypatch.setattr(limits, "CGROUPS", root)
    assert available_memory() == left


def test_memory_of_this_machine() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < available_memory() <= total
