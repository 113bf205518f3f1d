"""What this process may use of its machine: cores and memory, as its cgroup, its affinity and Slurm grant them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")

_UNLIMITED = 1 << 60
"""cgroup v1 writes no limit as a number near 2^63."""


def available_cpus() -> int:
    """Cores this process may use: affinity, quotas of its cgroups, Slurm's grant, whichever is least; at least 1."""
    limits = [float(len(os.sched_getaffinity(0)))]
    if (quota := cgroup_cpus()) is not None:
        limits.append(quota)
    # of the task, if the job says; else of the node
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        granted = os.environ.get(name, "")
        if granted.isdigit():
            limits.append(float(granted))
            break
    return max(1, math.floor(min(limits)))


def available_memory() -> int:
    """Bytes that this process and its children can still take: of the machine, and of every cgroup above it.

    Cached files count as free, because they are given back when memory is asked for.
    """
    free = [_kilobytes(PROC / "meminfo", "MemAvailable:"), *_cgroup_memory(CGROUPS, PROC)]
    return max(0, min(n for n in free if n is not None))


def cgroup_cpus(root: Path = CGROUPS, proc: Path = PROC) -> float | None:
    """The least quota in cores of this process's cgroup and those above it, or None where there is none.

    Args:
        root: where cgroups are mounted.
        proc: where processes are.
    """
    quotas = [_quota(folder) for folder in _own_cgroups("cpu", root, proc)]
    return min((q for q in quotas if q is not None), default=None)


def _cgroup_memory(root: Path, proc: Path) -> list[int]:
    """What is left of the memory limit of each cgroup that has one."""
    left: list[int] = []
    for folder in _own_cgroups("memory", root, proc):
        for most, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            limit, taken = _number(folder / most), _number(folder / used)
            if limit is not None and taken is not None and limit < _UNLIMITED:
                left.append(limit - taken + _cached(folder / "memory.stat"))
    return left


def _own_cgroups(controller: str, root: Path, proc: Path) -> Iterator[Path]:
    """Folders of this process's cgroup and of those above it, version 2 and version 1.

    In a container the folder that the kernel names may not be mounted; the root that is stands for it.
    """
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    paths = {"": "/", controller: "/"}  # as if there were nothing to say
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            paths[""] = path
        elif controller in controllers.split(","):
            paths[controller] = path
    for mount in (root, root / "unified"):
        yield from _upwards(mount, paths[""])
    for mount in sorted(root.glob(f"*{controller}*")):
        if controller in mount.name.split(","):
            yield from _upwards(mount, paths[controller])


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    parts = [part for part in path.split("/") if part not in {"", ".."}]
    for depth in range(len(parts), -1, -1):
        folder = mount.joinpath(*parts[:depth])
        if folder.is_dir():
            yield folder


def _quota(folder: Path) -> float | None:
    """Of one cgroup, in cores."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    return int(quota) / int(period) if quota.isdigit() and int(quota) > 0 else None  # "max", "-1": none


def _cached(stat: Path) -> int:
    """Bytes of cached files in a cgroup, its children's included."""
    try:
        numbers = dict(line.split() for line in stat.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    prefix = "total_" if "total_inactive_file" in numbers else ""
    return sum(int(numbers.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # missing, or "max"
        return None


def _kilobytes(file: Path, key: str) -> int | None:
    try:
        return next(int(line.split()[1]) << 10 for line in file.read_text().splitlines() if line.startswith(key))
    except (OSError, StopIteration):
        return None
