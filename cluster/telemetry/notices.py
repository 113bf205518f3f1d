"""Notices of running jobs on this machine: a small file a job, in a folder of the user's own.

A job holds a lock as long as its process lives, whatever ends it: the kernel releases it. So a notice is believed as
long as its lock is held, and no process id, which may be given anew or mean another process in another container, is
judged by. Whoever reads touches neither the job nor Ray.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Found:
    """A running job.

    Attributes:
        state: what it says of itself, see `cluster.board.Job`.
        age: seconds since it said so.
    """

    state: dict[str, Any]
    age: float


class Notice:
    """The file of one job, until it is closed.

    Args:
        job: its id.

    Raises:
        OSError: there can be none.
    """

    def __init__(self, job: str) -> None:
        folder = _own_folder()
        self._state, self._lock = folder / f"{job}.json", folder / f"{job}.lock"
        new = folder / f".{job}.new"
        self._held = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(self._held, fcntl.LOCK_EX)
        new.rename(self._lock)  # whoever sees it finds it locked

    def post(self, state: Mapping[str, Any]) -> None:
        """Replaces what it says."""
        partial = self._state.with_suffix(".part")
        partial.write_text(json.dumps(state), encoding="utf-8")
        partial.replace(self._state)
        os.utime(self._lock)  # sweepers of /tmp go by age

    def close(self) -> None:
        """Takes it away."""
        with suppress(OSError):
            _remove(self._lock)
        os.close(self._held)


def read_notices() -> list[Found]:
    """Notices of the user's jobs on this machine, the oldest first; those of dead jobs are removed."""
    found: list[Found] = []
    try:
        locks = list(_own_folder().glob("*.lock"))
    except OSError:
        return []
    for lock in locks:
        state = lock.with_suffix(".json")
        with suppress(OSError, ValueError):  # it ends just now, or has just begun
            if not _is_held(lock):
                _remove(lock)
                continue
            found.append(Found(json.loads(state.read_bytes()), max(0.0, time.time() - state.stat().st_mtime)))
    return sorted(found, key=lambda job: job.state["since"])


def _own_folder() -> Path:
    """A folder that nobody else can write to, on a disk of this machine.

    Raises:
        OSError: somebody else's is in its place.
    """
    named = os.environ.get("HER2CACHE_RUN_DIR")
    folder = Path(named) if named else Path("/tmp") / f"her2cache-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{folder} is not a folder of this user's own")
    return folder


def _is_held(lock: Path) -> bool:
    probe = os.open(lock, os.O_RDONLY)
    try:
        fcntl.flock(probe, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(probe)
    return False


def _remove(lock: Path) -> None:
    for path in (lock.with_suffix(".json"), lock.with_suffix(".part"), lock):
        path.unlink(missing_ok=True)
