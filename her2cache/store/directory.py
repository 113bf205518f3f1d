"""A store in a directory: records that are put once, read, listed, deleted; attempts that are made in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore

from her2cache.errors import StoreError
from her2cache.store import chunks
from her2cache.store.chunks import Digest

_STAGED = "#"
"""In the name of a record that is being written. No slide id has it, and obstore lists no file `...#<digits>`."""


class Directory:
    """A store under a root directory; see `Records`.

    Attributes:
        root: the directory.
        uri: the same, as text.
        at_once: files that are read at once.
    """

    def __init__(self, uri: str | Path) -> None:
        self.root = Path(str(uri).removeprefix("file://")).absolute()
        self.uri = str(self.root)
        self.at_once = os.cpu_count() or 1
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(f"{self.root} is a file, a store is a directory; give another path")
        try:
            self._store = LocalStore(prefix=self.root, mkdir=True)
        except (BaseError, OSError) as error:
            raise StoreError(
                f"{self.root} cannot be made a store ({_first_line(error)}); check the path and its permissions"
            ) from error

    def put_new(self, path: str, data: bytes) -> bool:
        """Writes a record that must not exist yet.

        It is on disk before it is there: a record is linked to its name only once its bytes are flushed, so not
        even a power loss leaves half of one. The link is the compare-and-create.

        Returns:
            Whether it was written; False when there was one already, which stays as it is.
        """
        target = self.root / path
        try:
            if target.exists():
                return False
            with _staged(target, data) as staged:
                os.link(staged, target)
            self._flush(path)
        except FileExistsError:
            return False
        except OSError as error:
            raise _unwritable(target, error) from error
        return True

    def put(self, path: str, data: bytes) -> None:
        """Writes a record, over the one that may be there."""
        target = self.root / path
        try:
            with _staged(target, data) as staged:
                staged.replace(target)
            sync_up_to(target.parent, self.root)
        except OSError as error:
            raise _unwritable(target, error) from error

    def get(self, path: str) -> bytes | None:
        """A record's bytes, or None when there is none."""
        try:
            return (self.root / path).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{self.root / path} cannot be read ({error}); check its permissions") from error

    def get_each(self, paths: Sequence[str]) -> Sequence[bytes | None]:
        """The bytes of many records, in their order."""
        return [self.get(path) for path in paths]

    def list(self, prefix: str) -> list[str]:
        """Paths of the records under a prefix, sorted."""
        return sorted(entry["path"] for batch in obstore.list(self._store, prefix) for entry in batch)

    def delete(self, path: str) -> None:
        """Removes a record; nothing happens when there is none."""
        (self.root / path).unlink(missing_ok=True)

    def staged(self) -> Iterator[Path]:
        """Records that are being written, or that a killed process was writing."""
        for pattern in ("*", "*/*", "*/*/*"):
            yield from self.root.glob(f"{pattern}{_STAGED}*")

    def require_exclusive(self, path: str, data: bytes) -> None:
        """Nothing to try: `put_new` links, and fails where there are no links."""

    def place(self, path: str) -> Folder:
        """The folder of a new attempt, within the store itself."""
        return Folder(self.root / path)

    def has_attempt(self, path: str) -> bool:
        return (self.root / path).is_dir()

    def add_to(self, digest: Digest, path: str, size: int) -> None:
        """See `Records.add_to`; the file is mapped."""
        chunks.add_to(digest, self.root / path, size)

    def leftovers(self) -> Sequence[Left]:
        found = sorted([*self.root.glob("attempts/*/*/*"), *self.staged()])
        return [Left(str(path.relative_to(self.root)), path) for path in found]

    def _flush(self, path: str) -> None:
        """Flushes a record's name to disk; one that cannot be is taken back: its writer will take it for unwritten."""
        try:
            sync_up_to((self.root / path).parent, self.root)
        except OSError:
            self.delete(path)
            raise


@dataclass(frozen=True)
class Folder:
    """An attempt that is made where it will stay: keeping a file is flushing it."""

    folder: Path

    @property
    def above(self) -> Sequence[Path]:
        """The folders up to the root of the store."""
        return [self.folder.parents[k] for k in range(4)]

    def begin(self, path: Path) -> None:
        sync(path)

    def keep(self, path: Path) -> None:
        sync(path)

    def check(self) -> None:
        """A flush that failed has said so."""

    def leave(self, *, remove: bool) -> None:
        """Emptied folders above it stay: another writer may be about to make its attempt in them."""
        if remove:
            shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class Left:
    """A file or folder that may be left over; see `Leftover`."""

    path: str
    name: Path

    def weigh(self) -> tuple[int, float]:
        size, newest = 0, 0.0
        for path in (self.name, *self.name.rglob("*")):
            try:
                found = path.stat()
            except FileNotFoundError:
                continue  # its writer is at work
            size += found.st_size if path.is_file() else 0
            newest = max(newest, found.st_mtime)
        return size, newest

    def remove(self) -> None:
        if self.name.is_dir():
            shutil.rmtree(self.name, ignore_errors=True)
        else:
            self.name.unlink(missing_ok=True)


@contextmanager
def _staged(target: Path, data: bytes) -> Generator[Path]:
    """A file of its own beside a record, with the record's bytes flushed to disk; gone at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = target.with_name(f"{target.name}{_STAGED}{uuid4().int}")
    try:
        with staged.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield staged
    finally:
        staged.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{path} cannot be written ({error}): the disk is full, not writable, or knows no hard links;"
        " free some space or check its permissions, and run the same command again"
    )


def _first_line(error: Exception) -> str:
    """obstore's messages go on with a dump of their source."""
    return str(error).partition("\n")[0]


def sync(path: Path) -> None:
    """Flushes a file or a directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_up_to(path: Path, root: Path) -> None:
    """Flushes a file or a directory, and those above it up to `root`, to disk."""
    sync(path)
    while path != root:
        path = path.parent
        sync(path)
