"""A node's cache of what lies in object storage: each object staged once, the least recently used leaves first.

Every process of a node works on the same folder; nothing but file locks is between them, so one that is killed leaves
nothing locked.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from uuid import uuid4

from her2cache.errors import StoreError

FOLDER_VARIABLE = "HER2CACHE_CACHE"
LIMIT_VARIABLE = "HER2CACHE_CACHE_GB"

_SHARE_OF_DISK = 0.8
"""Without a limit of its own the cache takes this share of what it has and the disk has free."""

_WAIT_S, _PATIENCE_S = 0.2, 600.0
_SUM = ".sha256"


@dataclass(frozen=True)
class Cache:
    """Files staged from object storage, by key. A key names one content for ever: put a version or ETag into it.

    Attributes:
        folder: where they lie; made when it is first needed.
        limit_bytes: what they may take together; None for four fifths of what the disk can give.
    """

    folder: Path
    limit_bytes: int | None = None

    @classmethod
    def of_node(cls) -> Self:
        """The cache that the environment names: HER2CACHE_CACHE (a folder), HER2CACHE_CACHE_GB (its limit).

        Raises:
            StoreError: the limit is not a positive number.
        """
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = Path(os.environ.get(FOLDER_VARIABLE) or home / "her2cache")
        limit = os.environ.get(LIMIT_VARIABLE)
        if not limit:
            return cls(folder.absolute())
        try:
            limit_bytes = int(float(limit) * 1e9)
        except (ValueError, OverflowError):
            limit_bytes = 0
        if limit_bytes <= 0:
            raise StoreError(f"{LIMIT_VARIABLE} is {limit!r}, not a positive number of gigabytes; correct or unset it")
        return cls(folder.absolute(), limit_bytes)

    @contextmanager
    def hold(self, key: str, size: int, fill: Callable[[Path], object], *, suffix: str = "") -> Generator[Path]:
        """The file of a key, staged first when it is not there; it does not leave the cache meanwhile.

        Of all processes of the node one stages it, the others wait for it. Where the room is taken by files that
        others hold, it waits for some minutes until they let go. A file that was mapped or opened stays readable
        afterwards, wherever its name has gone.

        Args:
            key: of the content.
            size: bytes it will have.
            fill: writes it into the file of the path that it is given, and may return its sha256, hex, which `sha256`
                then tells. What it raises is raised here, and nothing is kept.
            suffix: of the file's name.

        Raises:
            StoreError: it is larger than the limit, others hold too much, the disk is full, or the folder cannot be
                written.
        """
        path, waiting = self._path(key, suffix), time.monotonic()
        while (held := self._hold(path)) is None:
            if self._stage(path, size, fill):
                waiting = time.monotonic()
            elif time.monotonic() - waiting > _PATIENCE_S:
                raise StoreError(
                    f"the cache {self.folder} has no room for {size / 1e9:.3g} GB: what is there is in use by open"
                    f" slides; close other jobs of this node, or raise {LIMIT_VARIABLE}"
                )
            else:
                time.sleep(_WAIT_S)
        try:
            yield path
        finally:
            os.close(held)

    def drop(self, key: str, *, suffix: str = "") -> None:
        """Forgets a key, as when its file turned out to be damaged."""
        path = self._path(key, suffix)
        with _locked(self._lock_of(path)):
            _forget(path)

    def room(self) -> int:
        """Bytes that files may take together: the limit, or what the disk can give now."""
        if self.limit_bytes is not None:
            return self.limit_bytes
        (self.folder / "files").mkdir(parents=True, exist_ok=True)
        taken = sum(file.size for file in self._files())
        return int(_SHARE_OF_DISK * (shutil.disk_usage(self.folder).free + taken))

    def sha256(self, key: str, *, suffix: str = "") -> str:
        """What `fill` said of the content when it was staged; "" when it said nothing, or the key has left."""
        try:
            return _sum_path(self._path(key, suffix)).read_text()
        except FileNotFoundError:
            return ""

    def _path(self, key: str, suffix: str) -> Path:
        return self.folder / "files" / (hashlib.sha256(key.encode()).hexdigest() + suffix)

    def _lock_of(self, path: Path) -> Path:
        """The lock that whoever stages or drops a file holds; some share one."""
        folder = self.folder / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / path.name[:3]

    def _hold(self, path: Path) -> int | None:
        """A shared lock on a file of the cache, which marks it as used just now; None where it is not there."""
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        now = time.time_ns()  # the kernel's own clock is coarse, and would leave the order of quick uses open
        try:
            with suppress(PermissionError):  # another user's keeps its age
                os.utime(path, ns=(now, now))
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except FileNotFoundError:
            pass  # it left between opening and locking
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def _stage(self, path: Path, size: int, fill: Callable[[Path], object]) -> bool:
        """Stages a file unless another process did meanwhile; False where there is no room yet."""
        if self.limit_bytes is not None and size > self.limit_bytes:
            raise StoreError(
                f"an object of {size / 1e9:.3g} GB does not fit into the cache {self.folder} of"
                f" {self.limit_bytes / 1e9:.3g} GB; raise {LIMIT_VARIABLE}"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self._lock_of(path)):
                if path.exists():
                    return True
                part = self._reserve(size)
                if part is None:
                    return False
                with part as target:
                    said = fill(target)
                    if isinstance(said, str):
                        _sum_path(path).write_text(said)
                    _flush(target)
                    target.replace(path)
                return True
        except OSError as error:
            raise StoreError(
                f"the cache {self.folder} cannot be written ({error}); free some space, check its permissions, or name"
                f" another folder in {FOLDER_VARIABLE}"
            ) from error

    def _reserve(self, size: int) -> _Part | None:
        """A file of that size under a name of its own, once there is room for it; None while others hold too much."""
        with _locked(self.folder / "locks" / "room"):
            files = sorted(self._files(), key=lambda file: file.used)
            taken = sum(file.size for file in files)
            limit = self.room()
            for file in files:
                if taken + size <= limit:
                    break
                if _removed(file.path):
                    taken -= file.size
            if taken + size <= limit or not taken:
                return _Part(self.folder / "files" / f"{uuid4().hex}.part", size)
        return None

    def _files(self) -> Iterator[_File]:
        """What lies in the cache, without parts that killed processes left: these are removed on the way."""
        for entry in os.scandir(self.folder / "files"):
            if entry.name.endswith(_SUM):
                continue
            try:
                found = entry.stat()
            except FileNotFoundError:
                continue
            if not (entry.name.endswith(".part") and _removed(Path(entry.path))):
                yield _File(Path(entry.path), found.st_size, found.st_mtime_ns)


@dataclass(frozen=True)
class _File:
    path: Path
    size: int
    used: int  # nanoseconds, of its last use


class _Part:
    """A file that is being staged: it has its full size from the start, is locked, and is gone at the end."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        os.truncate(self._descriptor, size)

    def __enter__(self) -> Path:
        return self._path

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


@contextmanager
def _locked(path: Path) -> Generator[None]:
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _removed(path: Path) -> bool:
    """Removes a file unless someone holds it; whether it is gone."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _forget(path)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass
    return True


def _sum_path(path: Path) -> Path:
    return path.with_name(path.name + _SUM)


def _forget(path: Path) -> None:
    path.unlink(missing_ok=True)
    _sum_path(path).unlink(missing_ok=True)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
