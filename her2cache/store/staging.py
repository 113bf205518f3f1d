"""Chunk files of a store in a bucket, staged into the node's cache: once a node, compared with size and crc32c."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray

from her2cache.errors import CorruptFeaturesError
from her2cache.store import chunks
from her2cache.store.bucket import AT_ONCE, in_parallel
from her2cache.store.cache import Cache
from her2cache.store.objects import stream, translated

_SHARE_AHEAD = 0.9
"""Of the room that the cache has; what is staged ahead beyond that would only push out what was staged before."""


def map_staged(uri: str, rows: int, columns: int, dtype: DTypeLike, *, verify: bool) -> NDArray[np.generic]:
    """Maps a chunk of a store in a bucket, from the node's cache.

    What was staged and no longer is what it was then is staged once more. The map stays valid when the file leaves the
    cache.

    Args:
        uri: of the chunk.
        rows, columns, dtype: what its commit record says it holds.
        verify: whether to compare its bytes with their crc32c; as they are staged they are compared in any case.

    Returns:
        A read-only map (rows, columns).

    Raises:
        CorruptFeaturesError: the object is missing, has another size, or fails its checksum; so does its copy, twice.
        StoreUnreachableError: it is to be staged, and the store does not answer.
        StoreError: there is no room for it in the cache.
    """
    cache, size = Cache.of_node(), rows * columns * np.dtype(dtype).itemsize
    for last in (False, True):
        try:
            with cache.hold(_key(uri, size), size + chunks.CRC_BYTES, lambda path: _fill(path, uri, size)) as path:
                return chunks.map_chunk(path, rows, columns, dtype, verify=verify)
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
