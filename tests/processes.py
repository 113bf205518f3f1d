"""Processes of a test, seen through /proc: who descends from whom, what they hold open, where they listen."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def descendants(root: int | None = None) -> list[int]:
    """Process ids below a process, this one by default."""
    children = dict[int, list[int]]()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, todo = list[int](), [root or os.getpid()]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def title(pid: int) -> str:
    """The command line, which Ray sets to `ray::Actor.method`."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def actors(*kinds: str) -> list[int]:
    """Ids of the Ray actors of some classes that descend from this process."""
    names = tuple(f"ray::{kind}" for kind in kinds)
    return [pid for pid in descendants() if title(pid).startswith(names)]


def holds_open(pid: int, path: Path) -> bool:
    with suppress(OSError):
        return any(str(path) == os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir())  # noqa: PTH115
    return False


def marked(name: str, value: str) -> list[int]:
    """Ids of the processes with a variable in their environment."""
    wanted, found = f"{name}={value}".encode(), list[int]()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def listening_addresses(pids: list[int]) -> set[str]:
    """Local addresses, in the kernel's hexadecimal, on which some processes accept connections."""
    inodes = dict[str, str]()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                inodes[f"socket:[{fields[9]}]"] = fields[1].rpartition(":")[0]
    found = set[str]()
    for pid in pids:
        with suppress(OSError):
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    found |= {inodes[target] for target in [os.readlink(fd)] if target in inodes}  # noqa: PTH115
    return found


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether a condition comes true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
