"""Chunk files of a local attempt: reserved, mapped, filled in any order, sealed with their crc32c.

Zarr would hold a chunk in memory several times over. A chunk here is one uncompressed view of a slide,
so its file is the rows themselves and four bytes of checksum, and can be written through a memory map.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Protocol

import google_crc32c
import numpy as np
from numpy.typing import DTypeLike, NDArray

from her2cache.errors import CorruptFeaturesError, StoreError

CRC_BYTES = 4
_BLOCK_BYTES = 8 << 20
_ZEROS = bytes(1 << 20)

_REMEDY = "the disk or a copy damaged it; run `her2cache store repair`"


class Digest(Protocol):
    """What hashlib makes."""

    def update(self, data: memoryview, /) -> object: ...


class NoDigest:
    """For bytes whose digest nobody wants."""

    def update(self, data: memoryview, /) -> None: ...


def reserve(path: Path, rows: int, columns: int, dtype: DTypeLike) -> np.memmap[tuple[int, int], np.dtype[np.float16]]:
    """Creates a chunk file with its full size on disk and maps it.

    The space is reserved, so a full disk is an error here, not a bus error at a later store into the map.

    Returns:
        A writable map (rows, columns).

    Raises:
        StoreError: there is no space, or the file cannot be made.
    """
    size = rows * columns * np.dtype(dtype).itemsize
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb", buffering=0) as file:
            os.posix_fallocate(file.fileno(), 0, size + CRC_BYTES)
            # zeros bring the file into the page cache in large pieces; without them every page that a row is
            # scattered into would cost a fault and an entry in the file system's journal
            for start in range(0, size, len(_ZEROS)):
                file.write(memoryview(_ZEROS)[: size - start])
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise StoreError(
                f"the disk of {path.parent} is full: {size / 1e6:,.0f} MB are needed for one slide; free some space"
                " and run the same command again"
            ) from error
        raise StoreError(f"{path} cannot be written ({error}); check its permissions") from error
    return np.memmap(path, dtype=dtype, mode="r+", shape=(rows, columns))


def compact(rows: NDArray[np.float16], keep: NDArray[np.bool_]) -> int:
    """Moves the kept rows to the front, in place and in order; returns their number."""
    source = np.flatnonzero(keep)
    step = max(1, _BLOCK_BYTES // max(1, rows[:1].nbytes))
    for start in range(0, len(source), step):  # a block's target never passes its source
        block = source[start : start + step]
        rows[start : start + len(block)] = rows[block]
    return len(source)


def seal(path: Path, size: int, digest: Digest) -> None:
    """Cuts a chunk file to `size` bytes, adds them to a digest, and appends their crc32c. It is not yet flushed."""
    with path.open("r+b") as file:
        file.truncate(size)
        rows = np.frombuffer(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ), np.uint8)
        crc = _sum(rows, digest)
        file.seek(size)
        file.write(crc.to_bytes(CRC_BYTES, "little"))


def map_chunk(path: Path, rows: int, columns: int, dtype: DTypeLike, *, verify: bool) -> NDArray[np.generic]:
    """Maps a chunk file read-only. The map holds a file descriptor for as long as the array lives.

    Args:
        path: the file.
        rows, columns, dtype: what its commit record says it holds.
        verify: whether to compare its bytes with their crc32c.

    Returns:
        A read-only map (rows, columns).

    Raises:
        CorruptFeaturesError: the file is missing, has another size, or fails its checksum.
        StoreError: the process may open no more files, or make no more maps.
    """
    whole = _map(path, rows * columns * np.dtype(dtype).itemsize)
    if verify:
        _compare(path, google_crc32c.value(whole[:-CRC_BYTES]), whole[-CRC_BYTES:].tobytes())
    return whole[:-CRC_BYTES].view(dtype).reshape(rows, columns)


def add_to(digest: Digest, path: Path, size: int) -> None:
    """Adds the rows of a chunk file, `size` bytes, to a digest, and compares them with their crc32c on the way.

    Raises:
        CorruptFeaturesError: the file is missing, has another size, or fails its checksum.
    """
    whole = _map(path, size)
    _compare(path, _sum(whole[:-CRC_BYTES], digest), whole[-CRC_BYTES:].tobytes())


def take(name: str, size: int, blocks: Iterable[memoryview], digest: Digest, target: BinaryIO | None = None) -> None:
    """Takes a chunk file as it comes over a network: summed, compared with its crc32c, written to a file.

    Args:
        name: of the file, for errors.
        size: bytes of its rows.
        blocks: of the file, in order, in pieces of any size.
        digest: that its rows are added to.
        target: where the whole file is written; nowhere when None.

    Raises:
        CorruptFeaturesError: it has another size, or fails its checksum.
    """
    crc, found, end = 0, 0, b""
    for block in blocks:
        if target is not None:
            target.write(block)
        rows = block[: max(0, size - found)]
        crc = google_crc32c.extend(crc, np.frombuffer(rows, np.uint8))
        digest.update(rows)
        end += block[len(rows) :].tobytes()
        found += len(block)
        if found > size + CRC_BYTES:
            break
    if found != size + CRC_BYTES:
        more = "at least " if found > size + CRC_BYTES else ""
        raise CorruptFeaturesError(f"{name} has {more}{found} bytes instead of {size + CRC_BYTES}: {_REMEDY}")
    _compare(name, crc, end)


def _sum(rows: NDArray[np.uint8], digest: Digest) -> int:
    """Adds bytes to a digest and returns their crc32c; they are read once, however large the file is."""
    crc = 0
    for start in range(0, len(rows), _BLOCK_BYTES):
        block = rows[start : start + _BLOCK_BYTES]
        crc = google_crc32c.extend(crc, block)
        digest.update(block.data)
    return crc


def _map(path: Path, size: int) -> NDArray[np.uint8]:
    """A whole chunk file, its checksum included, of which `size` bytes are rows."""
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno()).st_size
            if found != size + CRC_BYTES:
                raise CorruptFeaturesError(f"{path} has {found} bytes instead of {size + CRC_BYTES}: {_REMEDY}")
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR}:
            raise gone(path, error.strerror or "") from error
        if error.errno in {errno.EMFILE, errno.ENOMEM}:
            raise StoreError(
                f"{path} cannot be mapped ({error.strerror}): this process holds too many maps of features; take them"
                " from `FeatureStore.maps`, which keeps a bounded number, or raise the limit (`ulimit -n`)"
            ) from error
        raise StoreError(f"{path} cannot be read ({error}); check its permissions") from error


def gone(path: Path | str, why: str) -> CorruptFeaturesError:
    """The error that a missing chunk file is."""
    return CorruptFeaturesError(f"{path} is gone ({why}) though its slide is committed: {_REMEDY}")


def _compare(path: Path | str, crc: int, end: bytes) -> None:
    if crc != int.from_bytes(end, "little"):
        raise CorruptFeaturesError(f"{path} does not match its crc32c: {_REMEDY}")
