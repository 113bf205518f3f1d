"""The small JSON records of a store, in a directory, through obstore: put once, read, list, delete."""

from __future__ import annotations

import os
from pathlib import Path

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore

from her2cache.errors import StoreError


class Records:
    """Records under a root, addressed by paths relative to it.

    Attributes:
        root: the directory of the store.
    """

    def __init__(self, uri: str | Path) -> None:
        text = str(uri)
        if "://" in text and not text.startswith("file://"):
            raise StoreError(f"{text}: this version keeps a store in a directory; give the path of one")
        self.root = Path(text.removeprefix("file://")).absolute()
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(f"{self.root} is a file, a store is a directory; give another path")
        try:
            self._store = LocalStore(prefix=self.root, mkdir=True)
        except (BaseError, OSError) as error:
            raise StoreError(
                f"{self.root} cannot be made a store ({_first_line(error)}); check the path and its permissions"
            ) from error

    def put_new(self, path: str, data: bytes) -> bool:
        """Writes a record that must not exist yet, and flushes it to disk.

        Returns:
            Whether it was written; False when there was one already, which stays as it is.
        """
        try:
            obstore.put(self._store, path, data, mode="create")
            self._flush(path)
        except AlreadyExistsError:
            return False
        except (BaseError, OSError) as error:
            raise _unwritable(self.root / path, error) from error
        return True

    def put(self, path: str, data: bytes) -> None:
        """Writes a record, over the one that may be there."""
        try:
            obstore.put(self._store, path, data)
            self._flush(path)
        except (BaseError, OSError) as error:
            raise _unwritable(self.root / path, error) from error

    def get(self, path: str) -> bytes | None:
        """A record's bytes, or None when there is none."""
        try:
            return bytes(obstore.get(self._store, path).bytes())
        except FileNotFoundError:
            return None
        except (BaseError, OSError) as error:
            raise StoreError(
                f"{self.root / path} cannot be read ({_first_line(error)}); check its permissions"
            ) from error

    def list(self, prefix: str) -> list[str]:
        """Paths of the records under a prefix, sorted."""
        return sorted(entry["path"] for batch in obstore.list(self._store, prefix) for entry in batch)

    def delete(self, path: str) -> None:
        """Removes a record; nothing happens when there is none."""
        (self.root / path).unlink(missing_ok=True)

    def _flush(self, path: str) -> None:
        """Flushes a record to disk; one that cannot be is taken back, for its writer will take it for unwritten."""
        try:
            sync_up_to(self.root / path, self.root)
        except OSError:
            self.delete(path)
            raise


def _unwritable(path: Path, error: Exception) -> StoreError:
    return StoreError(
        f"{path} cannot be written ({_first_line(error)}): the disk is full, or not writable; free some space or check"
        " its permissions, and run the same command again"
    )


def _first_line(error: Exception) -> str:
    """obstore's messages go on with a dump of their source."""
    return str(error).partition("\n")[0]


def sync_up_to(path: Path, root: Path) -> None:
    """Flushes a file, and the directories from it up to `root`, to disk."""
    while True:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if path == root:
            return
        path = path.parent
