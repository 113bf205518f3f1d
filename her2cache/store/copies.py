"""Slide files in object storage: what is known of one, and a copy of it in the node's cache."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import obstore
from obstore.exceptions import PreconditionError

from her2cache.errors import SlideOpenError, StoreSilentError, StoreUnreachableError
from her2cache.store.cache import Cache
from her2cache.store.objects import open_bucket, split_uri, translated

_RANGE_BYTES = 32 << 20
_RANGES_AT_ONCE = 4

_SILENCE_S = 60.0
_silent: dict[str, float] = {}
"""Buckets whose server did not answer, and when."""

_checked: set[tuple[str, int]] = set()
"""Key and inode of the copies whose sha256 this process has compared."""


@dataclass(frozen=True)
class ObjectState:
    """What tells one content of an object from another.

    Attributes:
        bytes: its size.
        mtime_ns: when it was written.
        version: its ETag; None where the server has none.
    """

    bytes: int
    mtime_ns: int
    version: str | None


def look_up(uri: str) -> ObjectState | None:
    """What is known of an object without reading it; None where there is none. One request, two where it fails.

    Raises:
        SlideOpenError: the bucket cannot be used.
        StoreSilentError: its server does not answer; those who ask soon afterwards need not wait to be told.
    """
    name, key = split_uri(uri)
    if time.monotonic() - _silent.get(name, -_SILENCE_S) < _SILENCE_S:
        raise StoreSilentError(f"{uri} cannot be reached: its server did not answer just now; try again later")
    try:
        bucket = open_bucket(uri)
        try:
            with translated(uri):
                found = obstore.head(bucket, key)
        except StoreSilentError:
            raise
        except (FileNotFoundError, StoreUnreachableError):
            with translated(uri):  # the answer to a HEAD has no body that would say why
                found = obstore.get(bucket, key).meta
    except FileNotFoundError:
        return None
    except StoreSilentError:
        _silent[name] = time.monotonic()
        raise
    except StoreUnreachableError as error:
        raise SlideOpenError(str(error)) from None
    modified = int(found["last_modified"].timestamp() * 1e6) * 1000
    return ObjectState(found["size"], modified, found["e_tag"])


@contextmanager
def copied(uri: str) -> Generator[tuple[Path, ObjectState, str]]:
    """A copy of a slide file on this node, which stays for as long as the context is open.

    It is read from the bucket by the first process of the node that asks; each process compares it once with the
    sha256 that was taken then.

    Yields:
        Where the copy is, what was known of the object, and its sha256, hex.

    Raises:
        SlideOpenError: there is no such object, the bucket cannot be used, or the copy is damaged twice over.
        StoreError: there is no room for it in the cache, or the server does not answer.
    """
    state = look_up(uri)
    if state is None:
        raise SlideOpenError(f"{uri} does not exist; correct the path, or look into the bucket")
    cache, key = Cache.of_node(), f"{uri} {state.version or state.mtime_ns} {state.bytes}"
    suffix = ".ndpi" if uri.lower().endswith(".ndpi") else ""  # by which tifffile knows its 64-bit offsets
    for _ in range(2):
        with cache.hold(key, state.bytes, lambda path: _fetch(uri, state, path), suffix=suffix) as path:
            sha256, copy = cache.sha256(key, suffix=suffix), (key, path.stat().st_ino)
            if copy in _checked or _sum(path) == sha256:
                _checked.add(copy)
                yield path, state, sha256
                return
            cache.drop(key, suffix=suffix)
    raise SlideOpenError(
        f"{uri}: its copy in {cache.folder} is damaged, and so was the one before: the disk is failing; name a folder"
        " on another one in HER2CACHE_CACHE"
    )


def _fetch(uri: str, state: ObjectState, path: Path) -> str:
    """Reads an object into a file in ranges, several at once; its sha256, hex."""
    bucket, (_, key) = open_bucket(uri), split_uri(uri)

    def fetch(start: int) -> None:
        stop = min(start + _RANGE_BYTES, state.bytes)
        # the same content in every range, or none
        options: obstore.GetOptions = {"range": (start, stop)}
        if state.version is not None:
            options["if_match"] = state.version
        with translated(uri):
            data = obstore.get(bucket, key, options=options).bytes()
        if len(data) != stop - start:
            raise StoreUnreachableError(f"{uri}: the server gave {len(data)} bytes for {stop - start}; try again later")
        os.pwrite(descriptor, data, start)

    descriptor = os.open(path, os.O_WRONLY)
    try:
        with ThreadPoolExecutor(_RANGES_AT_ONCE) as pool:
            list(pool.map(fetch, range(0, state.bytes, _RANGE_BYTES)))
    except (FileNotFoundError, PreconditionError):
        raise SlideOpenError(f"{uri} was changed while it was read; run the same command again") from None
    except StoreSilentError:
        raise
    except StoreUnreachableError as error:
        raise SlideOpenError(str(error)) from None
    finally:
        os.close(descriptor)
    return _sum(path)


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
