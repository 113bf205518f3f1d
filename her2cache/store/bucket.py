"""A store in a bucket: records that are put, read and listed by request; attempts made on this machine and sent there.

An attempt's files are filled in a scratch folder beside the node's cache, `scratch/` in the folder that HER2CACHE_CACHE
names, and sent as they are finished. The folder of a process that was killed is removed by the next one that starts an
attempt on the machine.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import obstore
from obstore.exceptions import AlreadyExistsError, PreconditionError
from obstore.store import ObjectStore

from her2cache.errors import StoreError, StoreUnreachableError
from her2cache.store import chunks
from her2cache.store.cache import Cache
from her2cache.store.chunks import Digest
from her2cache.store.objects import normal_uri, open_bucket, split_uri, stream, translated

AT_ONCE = 8
"""Requests of a process that are under way at once, where it has many to make."""

_RECORDS_AT_ONCE = 32
"""The same for records, which are small: the time of a request is that of the way there and back."""

_PART_BYTES, _PARTS_AT_ONCE, _MOST_PARTS = 8 << 20, 2, 9_000

T = TypeVar("T")
S = TypeVar("S")


class Bucket:
    """A store under a prefix of a bucket; see `Records`. It pickles as its URI: credentials are the environment's.

    Attributes:
        uri: s3://bucket/prefix.
        at_once: requests under way at once.
    """

    def __init__(self, uri: str | Path) -> None:
        self.uri = normal_uri(uri)
        self.at_once = AT_ONCE
        _, self._prefix = split_uri(self.uri)
        open_bucket(self.uri)  # raises what is wrong with the environment

    def put_new(self, path: str, data: bytes) -> bool:
        """A conditional put. Its answer may be lost and the request be sent again: what is there is then ours."""
        try:
            with translated(self.uri):
                obstore.put(self._bucket, self._key(path), data, mode="create")
        except (AlreadyExistsError, PreconditionError):
            return self.get(path) == data
        return True

    def put(self, path: str, data: bytes) -> None:
        with translated(self.uri):
            obstore.put(self._bucket, self._key(path), data)

    def get(self, path: str) -> bytes | None:
        try:
            with translated(self.uri):
                return bytes(obstore.get(self._bucket, self._key(path)).bytes())
        except FileNotFoundError:
            return None

    def get_each(self, paths: Sequence[str]) -> Sequence[bytes | None]:
        """The bytes of many records; many requests are under way at once."""
        return in_parallel(self.get, paths, _RECORDS_AT_ONCE)

    def list(self, prefix: str) -> list[str]:
        return sorted(path for path, _, _ in self.found(prefix))

    def delete(self, path: str) -> None:
        with suppress(FileNotFoundError), translated(self.uri):
            obstore.delete(self._bucket, self._key(path))

    def require_exclusive(self, path: str, data: bytes) -> None:
        """Puts a record that is there once more, as if it were not. A server that lets that pass knows no conditions.

        Raises:
            StoreError: it does.
        """
        with suppress(AlreadyExistsError, PreconditionError):
            with translated(self.uri):
                obstore.put(self._bucket, self._key(path), data, mode="create")
            raise StoreError(
                f"{self.uri}: its server ignores conditional puts (If-None-Match), so of two jobs that embed one slide"
                " the later would overwrite what the first has committed; use a server that has them, or a directory"
            )

    def place(self, path: str) -> Upload:
        return Upload(self, path)

    def has_attempt(self, path: str) -> bool:
        return any(True for _ in self.found(path))

    def add_to(self, digest: Digest, path: str, size: int) -> None:
        """See `Records.add_to`; the object is streamed."""
        name = f"{self.uri}/{path}"
        try:
            with translated(self.uri):
                chunks.take(name, size, stream(name), digest)
        except FileNotFoundError:
            raise chunks.gone(name, "no such object") from None

    def leftovers(self) -> Sequence[Remains]:
        folders = {"/".join(path.split("/")[:4]) for path, _, _ in self.found("attempts")}
        return [Remains(self, folder) for folder in sorted(folders)]

    def found(self, prefix: str) -> Iterator[tuple[str, int, datetime]]:
        """Path, bytes and last change of every object under a prefix."""
        cut = len(self._prefix) + 1 if self._prefix else 0
        with translated(self.uri):
            for batch in obstore.list(self._bucket, self._key(prefix), chunk_size=1000):
                for entry in batch:
                    yield entry["path"][cut:], entry["size"], entry["last_modified"]

    def send(self, path: str, file: Path) -> None:
        """Sends a file; the server compares its sha256. A large one goes in parts and is there as a whole or not."""
        part = max(_PART_BYTES, -(-file.stat().st_size // _MOST_PARTS))
        try:
            with translated(self.uri):
                obstore.put(self._bucket, self._key(path), file, chunk_size=part, max_concurrency=_PARTS_AT_ONCE)
        except FileNotFoundError:
            raise StoreUnreachableError(
                f"{self.uri}/{path}: the server forgot an upload that was under way; run the same command again"
            ) from None

    def delete_each(self, paths: Sequence[str]) -> None:
        """Removes objects, those that are not there too."""
        with suppress(FileNotFoundError), translated(self.uri):
            obstore.delete(self._bucket, [self._key(path) for path in paths])

    @property
    def _bucket(self) -> ObjectStore:
        return open_bucket(self.uri)

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{path}" if self._prefix else path


class Upload:
    """An attempt that is made in a scratch folder of this machine and sent to a bucket; see `Place`."""

    def __init__(self, bucket: Bucket, path: str) -> None:
        self._bucket, self._path = bucket, path
        self.folder, self._held = _new_scratch()
        self.above: Sequence[Path] = ()
        self._sent: dict[str, int] = {}  # path in the store -> bytes
        self._failed: StoreUnreachableError | None = None

    def begin(self, path: Path) -> None:
        """A file that will still change cannot be sent."""

    def keep(self, path: Path) -> None:
        if path.is_dir():
            return
        if self._failed is not None:  # the others need not find out by themselves
            raise self._failed
        target = f"{self._path}/{path.relative_to(self.folder)}"
        self._sent[target] = path.stat().st_size
        try:
            self._bucket.send(target, path)
        except StoreUnreachableError as error:
            self._failed = error
            raise

    def check(self) -> None:
        found = {path: size for path, size, _ in self._bucket.found(self._path)}
        if found != self._sent:
            wrong = sorted(path for path in found.keys() | self._sent if found.get(path) != self._sent.get(path))
            raise StoreError(
                f"{self._bucket.uri}/{wrong[0]} has {found.get(wrong[0], 'no')} bytes there instead of"
                f" {self._sent.get(wrong[0], 'none')}: the server lost something; run the same command again"
            )

    def leave(self, *, remove: bool) -> None:
        if self._held is None:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._held)
        self._held = None
        if remove and self._sent and self._failed is None:  # else it is for garbage collection
            with suppress(StoreUnreachableError):
                self._bucket.delete_each(list(self._sent))


@dataclass(frozen=True)
class Remains:
    """The objects of an attempt that may be left over; see `Leftover`."""

    bucket: Bucket
    path: str

    @property
    def name(self) -> str:
        return f"{self.bucket.uri}/{self.path}"

    def weigh(self) -> tuple[int, float]:
        """By the clock of the server."""
        found = list(self.bucket.found(self.path))
        newest = max((changed for _, _, changed in found), default=datetime.fromtimestamp(0, UTC))
        return sum(size for _, size, _ in found), newest.timestamp()

    def remove(self) -> None:
        self.bucket.delete_each([path for path, _, _ in self.bucket.found(self.path)])


def in_parallel(call: Callable[[S], T], items: Iterable[S], at_once: int) -> list[T]:
    """Calls a function for many things at once, and gives the results in their order.

    Raises:
        Exception: what the first call that failed raised; those not yet begun are left out.
    """
    with ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(call, item) for item in items]
        try:
            return [future.result() for future in futures]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _new_scratch() -> tuple[Path, int]:
    """A new folder and a lock on it, which lasts as long as the process; those of dead processes are removed.

    Raises:
        StoreError: it cannot be made.
    """
    home = Cache.of_node().folder / "scratch"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with (home / ".lock").open("ab") as door:
            fcntl.flock(door, fcntl.LOCK_EX)  # nobody meets a folder that is made and not yet locked
            for old in home.iterdir():
                if old.is_dir() and (held := _lock(old)) is not None:
                    shutil.rmtree(old, ignore_errors=True)
                    os.close(held)
            folder = home / uuid4().hex
            folder.mkdir()
            held = _lock(folder)
    except OSError as error:
        raise StoreError(
            f"{home} cannot be written ({error}): attempts are made there before they are sent; free some space, or"
            " name another folder in HER2CACHE_CACHE"
        ) from error
    assert held is not None
    return folder, held


def _lock(folder: Path) -> int | None:
    """A lock on a folder; None where another process has it, or the folder is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
