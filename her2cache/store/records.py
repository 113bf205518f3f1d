"""What a store is made of, wherever it lies: small JSON records, and the files of attempts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from her2cache.store.chunks import Digest


class Place(Protocol):
    """Where one attempt is made: a folder on this machine whose finished files are kept in the store."""

    @property
    def folder(self) -> Path:
        """Where its files are filled."""
        ...

    @property
    def above(self) -> Sequence[Path]:
        """What else must be kept for the files to be found again."""
        ...

    def begin(self, path: Path) -> None:
        """Does ahead what it can of keeping a file that will still change a little."""
        ...

    def keep(self, path: Path) -> None:
        """Makes a finished file or folder durable in the store.

        Raises:
            OSError: the disk fails.
            StoreUnreachableError: the store does not answer.
        """
        ...

    def check(self) -> None:
        """Compares what the store has with what was kept.

        Raises:
            StoreError: it is not the same.
        """
        ...

    def leave(self, *, remove: bool) -> None:
        """Ends the attempt here; what the store has of it is removed if that is said, as far as that can be done."""
        ...


class Leftover(Protocol):
    """Files that a writer made and no record need name.

    Attributes:
        path: relative to the store.
        name: for people.
    """

    @property
    def path(self) -> str: ...
    @property
    def name(self) -> Path | str: ...

    def weigh(self) -> tuple[int, float]:
        """Its bytes and when something of it was last written, in seconds since the epoch; 0 when it is gone."""
        ...

    def remove(self) -> None: ...


class Records(Protocol):
    """The records of a store, addressed by paths relative to it, and the files of its attempts.

    Attributes:
        uri: where it lies.
        at_once: how many requests it is worth to have under way.
    """

    uri: str
    at_once: int

    def put_new(self, path: str, data: bytes) -> bool:
        """Writes a record that must not exist yet; a compare-and-create.

        Returns:
            Whether it was written; False when there was one already, which stays as it is.
        """
        ...

    def put(self, path: str, data: bytes) -> None:
        """Writes a record, over the one that may be there."""
        ...

    def get(self, path: str) -> bytes | None:
        """A record's bytes, or None when there is none."""
        ...

    def get_each(self, paths: Sequence[str]) -> Sequence[bytes | None]:
        """The bytes of many records, in their order."""
        ...

    def list(self, prefix: str) -> list[str]:
        """Paths of the records under a prefix, sorted."""
        ...

    def delete(self, path: str) -> None:
        """Removes a record; nothing happens when there is none."""
        ...

    def require_exclusive(self, path: str, data: bytes) -> None:
        """Tries whether two writers of one record are told apart. A record with these bytes is there.

        Raises:
            StoreError: they are not, so commits would be lost.
        """
        ...

    def place(self, path: str) -> Place:
        """Where a new attempt is made."""
        ...

    def has_attempt(self, path: str) -> bool:
        """Whether there is anything of an attempt."""
        ...

    def add_to(self, digest: Digest, path: str, size: int) -> None:
        """Adds the rows of a chunk file to a digest, as the store itself has them, and compares their crc32c.

        Args:
            digest: of hashlib.
            path: of the file.
            size: bytes of its rows.

        Raises:
            CorruptFeaturesError: the file is missing, has another size, or fails its checksum.
        """
        ...

    def leftovers(self) -> Sequence[Leftover]:
        """Every attempt, and every record that is being written, in the order of their paths."""
        ...
