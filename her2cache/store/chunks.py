"""Chunk files of a local attempt: reserved, mapped, filled in any order, sealed with their crc32c.

Zarr would hold a chunk in memory several times over. A chunk here is one uncompressed view of a slide,
so its file is the rows themselves and four bytes of checksum, and can be written through a memory map.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import google_crc32c
import numpy as np
from numpy.typing import DTypeLike, NDArray

from her2cache.errors import CorruptFeaturesError, StoreError

CRC_BYTES = 4
_BLOCK_BYTES = 8 << 20


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
        with path.open("xb") as file:
            os.posix_fallocate(file.fileno(), 0, size + CRC_BYTES)
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


def seal(path: Path, size: int) -> None:
    """Cuts a chunk file to `size` bytes, appends their crc32c, and flushes it to disk."""
    with path.open("r+b") as file:
        file.truncate(size)
        crc = google_crc32c.value(np.memmap(path, np.uint8, mode="r", shape=(size,)))
        file.seek(size)
        file.write(crc.to_bytes(CRC_BYTES, "little"))
        file.flush()
        os.fsync(file.fileno())


def map_chunk(path: Path, rows: int, columns: int, dtype: DTypeLike, *, verify: bool) -> NDArray[np.generic]:
    """Maps a chunk file read-only.

    Args:
        path: the file.
        rows, columns, dtype: what its commit record says it holds.
        verify: whether to compare its bytes with their crc32c.

    Returns:
        A read-only map (rows, columns).

    Raises:
        CorruptFeaturesError: the file is missing, has another size, or fails its checksum.
    """
    size = rows * columns * np.dtype(dtype).itemsize
    remedy = "the disk or a copy damaged it; run `her2cache store repair`"
    try:
        found = path.stat().st_size
    except OSError as error:
        raise CorruptFeaturesError(
            f"{path} is gone ({error.strerror}) though its slide is committed: {remedy}"
        ) from error
    if found != size + CRC_BYTES:
        raise CorruptFeaturesError(f"{path} has {found} bytes instead of {size + CRC_BYTES}: {remedy}")
    whole = np.memmap(path, np.uint8, mode="r")
    if verify and google_crc32c.value(whole[:size]) != int.from_bytes(whole[size:].tobytes(), "little"):
        raise CorruptFeaturesError(f"{path} does not match its crc32c: {remedy}")
    return whole[:size].view(dtype).reshape(rows, columns)
