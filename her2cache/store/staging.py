"""Chunk files of a store in a bucket, staged into the node's cache: once a node, compared with size and crc32c."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import DTypeLike, NDArray

from her2cache.errors import CorruptFeaturesError
from her2cache.store import chunks
from her2cache.store.bucket import AT_ONCE, in_parallel
from her2cache.store.cache import Cache
from her2cache.store.objects import stream, translated

_LOOK_S = 1.0
"""Between two looks for maps whose files have left, which cost a microsecond a map."""

_TOUCH_S = 30.0
"""A file that is used counts as used at least so often."""

_SHARE_AHEAD = 0.9
"""Of the room that the cache has; what is staged ahead beyond that would only push out what was staged before."""


class StagedMaps:
    """Maps of staged chunks that stay open for as long as their files are in the node's cache.

    A map of a file that left the cache would keep its room on the disk, so such maps are closed: when they are asked
    for, and all of them when another chunk is staged.

    Args:
        most: maps that stay open at once; those used last.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[tuple[str, int, int, str], _Kept] = OrderedDict()
        self._lock = Lock()
        self._looked = 0.0

    def map(self, uri: str, rows: int, columns: int, dtype: str, *, verify: bool) -> NDArray[np.generic]:
        """See `map_staged`; a map that is open already is given as it is."""
        key = (uri, rows, columns, dtype)
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None and kept.is_current():
                self._kept.move_to_end(key)
                return kept.rows
        mapped, file = map_staged(uri, rows, columns, dtype, verify=verify)
        with self._lock:
            self._close_those_that_left()
            with suppress(FileNotFoundError):  # it has left already
                self._kept[key] = _Kept(mapped, file)
                self._kept.move_to_end(key)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return mapped

    def _close_those_that_left(self) -> None:
        now = time.monotonic()
        if now - self._looked >= _LOOK_S:
            self._looked = now
            for key in [key for key, kept in self._kept.items() if not kept.is_there()]:
                del self._kept[key]


class _Kept:
    """An open map and its file."""

    def __init__(self, rows: NDArray[np.generic], file: Path) -> None:
        self.rows, self._file = rows, file
        self._inode, self._touched = file.stat().st_ino, time.monotonic()

    def is_there(self) -> bool:
        try:
            return self._file.stat().st_ino == self._inode
        except FileNotFoundError:
            return False

    def is_current(self) -> bool:
        """Whether the file is there; it counts as used now."""
        if not self.is_there():
            return False
        now = time.monotonic()
        if now - self._touched > _TOUCH_S:
            self._touched = now
            with suppress(OSError):  # it leaves just now, or is another user's
                os.utime(self._file)
        return True


def map_staged(
    uri: str, rows: int, columns: int, dtype: DTypeLike, *, verify: bool
) -> tuple[NDArray[np.generic], Path]:
    """Maps a chunk of a store in a bucket, from the node's cache.

    What was staged and no longer is what it was then is staged once more. The map stays valid when the file leaves the
    cache.

    Args:
        uri: of the chunk.
        rows, columns, dtype: what its commit record says it holds.
        verify: whether to compare its bytes with their crc32c; as they are staged they are compared in any case.

    Returns:
        A read-only map (rows, columns), and the file.

    Raises:
        CorruptFeaturesError: the object is missing, has another size, or fails its checksum; so does its copy, twice.
        StoreUnreachableError: it is to be staged, and the store does not answer.
        StoreError: there is no room for it in the cache.
    """
    cache, size = Cache.of_node(), rows * columns * np.dtype(dtype).itemsize
    for last in (False, True):
        try:
            with cache.hold(_key(uri, size), size + chunks.CRC_BYTES, lambda path: _fill(path, uri, size)) as path:
                return chunks.map_chunk(path, rows, columns, dtype, verify=verify), path
        except _DamagedObject as error:
            raise CorruptFeaturesError(str(error)) from None
        except CorruptFeaturesError as error:
            cache.drop(_key(uri, size))
            if last:
                raise CorruptFeaturesError(
                    f"the copy of {uri} in this node's cache was damaged twice ({error}): its disk is failing; name"
                    " another folder in HER2CACHE_CACHE"
                ) from None
    raise AssertionError


def stage_ahead(wanted: Iterable[tuple[str, int]]) -> None:
    """Stages chunks that are about to be read, several at once; those that other processes staged are only looked at.

    Args:
        wanted: URI and bytes of the rows of each, the first to be read first. What does not fit into the cache is
            left for when it is asked for.

    Raises:
        CorruptFeaturesError, StoreUnreachableError, StoreError: see `map_staged`.
    """
    cache = Cache.of_node()
    room = _SHARE_AHEAD * cache.room()
    chosen: list[tuple[str, int]] = []
    for uri, size in wanted:
        room -= size + chunks.CRC_BYTES
        if room < 0:
            break
        chosen.append((uri, size))

    def stage(one: tuple[str, int]) -> None:
        uri, size = one
        try:
            with cache.hold(_key(uri, size), size + chunks.CRC_BYTES, lambda path: _fill(path, uri, size)):
                pass
        except _DamagedObject as error:
            raise CorruptFeaturesError(str(error)) from None

    in_parallel(stage, chosen, AT_ONCE)


class _DamagedObject(Exception):  # noqa: N818 - never seen outside
    """The object itself is damaged, not what was staged of it."""


def _key(uri: str, size: int) -> str:
    """Attempts never change, so a name and a size are one content for ever."""
    return f"{uri} {size}"


def _fill(target: Path, uri: str, size: int) -> None:
    """Writes an object into a file of the cache."""
    try:
        with target.open("r+b") as file, translated(uri):
            chunks.take(uri, size, stream(uri), chunks.NoDigest(), file)
    except CorruptFeaturesError as error:
        raise _DamagedObject(str(error)) from None
    except FileNotFoundError:
        raise _DamagedObject(str(chunks.gone(uri, "no such object"))) from None
