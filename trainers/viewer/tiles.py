"""Tiles of slides as JPEG, decoded when they are asked for and kept as long as there is room."""

from __future__ import annotations

import io
from collections import OrderedDict, deque
from collections.abc import Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

import numpy as np
from PIL import Image

from her2cache.deepzoom import read_square, read_tile
from her2cache.remote import RemotePath, SlidePath
from her2cache.slide import SlideReader, open_slide
from her2cache.units import RgbImage

CACHE_BYTES = 256 * 2**20
"""Of encoded tiles: some 5,000."""

QUALITY = 85

_IDLE_READERS = 32
"""Open slides that wait for the next tile, of all slides together."""


@dataclass(frozen=True)
class TileKey:
    """A tile of a slide; see `her2cache.deepzoom.read_tile`."""

    slide: str
    zoom: int
    column: int
    row: int


class Tiles:
    """Serves tiles to many at once. A tile that several wait for is decoded once.

    Args:
        paths: name of a slide -> its file; no other file is ever opened.
        workers: tiles decoded at once.
        cache_bytes: room for encoded tiles; those unused for longest go first.
    """

    def __init__(self, paths: Mapping[str, SlidePath], workers: int, cache_bytes: int = CACHE_BYTES) -> None:
        self._readers = _Readers(paths)
        self._workers = ThreadPoolExecutor(workers, "tiles")
        self._cache = _Cache(cache_bytes)
        self._pending: dict[TileKey, Future[bytes]] = {}
        self._lock = Lock()

    def get(self, key: TileKey) -> Future[bytes]:
        """A tile as JPEG.

        Raises (in the future):
            LookupError: there is no such slide or tile.
            SlideOpenError: the slide's file cannot be read.
        """
        with self._lock:
            if (kept := self._cache.get(key)) is not None:
                done = Future[bytes]()
                done.set_result(kept)
                return done
            if (pending := self._pending.get(key)) is None:
                pending = self._pending[key] = self._workers.submit(self._make, key)
        return pending

    def square(self, slide: str, left: float, top: float, side: float, px: int) -> Future[bytes]:
        """A square of a slide as JPEG, see `her2cache.deepzoom.read_square`; raises as `get`."""

        def make() -> bytes:
            with self._readers.borrow(slide) as reader:
                return encode(read_square(reader, left, top, side, px))

        return self._workers.submit(make)

    def close(self) -> None:
        """Ends the workers and closes the slides."""
        self._workers.shutdown(cancel_futures=True)
        self._readers.close()

    def _make(self, key: TileKey) -> bytes:
        try:
            with self._readers.borrow(key.slide) as reader:
                encoded = encode(read_tile(reader, key.zoom, key.column, key.row))
            with self._lock:
                self._cache.put(key, encoded)
            return encoded
        finally:
            with self._lock:
                self._pending.pop(key, None)


def encode(pixels: RgbImage) -> bytes:
    """A picture as JPEG."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


class _Readers:
    """Open slides: a reader serves one thread at a time, and is kept for the next."""

    def __init__(self, paths: Mapping[str, SlidePath]) -> None:
        self._paths = paths
        self._idle: deque[tuple[str, SlideReader]] = deque()
        self._lock = Lock()

    @contextmanager
    def borrow(self, slide: str) -> Generator[SlideReader]:
        reader = self._take(slide) or open_slide(self._paths[slide])
        try:
            yield reader
        finally:
            self._give_back(slide, reader)

    def close(self) -> None:
        while self._idle:
            _close(self._idle.pop()[1])

    def _take(self, slide: str) -> SlideReader | None:
        with self._lock:
            for held in reversed(self._idle):
                if held[0] == slide:
                    self._idle.remove(held)
                    return held[1]
        return None

    def _give_back(self, slide: str, reader: SlideReader) -> None:
        if isinstance(reader.path, RemotePath):  # an open one holds its place in the node's cache
            _close(reader)
            return
        with self._lock:
            self._idle.append((slide, reader))
            surplus = self._idle.popleft()[1] if len(self._idle) > _IDLE_READERS else None
        if surplus is not None:
            _close(surplus)


class _Cache:
    """Least recently used; not for several threads."""

    def __init__(self, room: int) -> None:
        self._left = room
        self._kept: OrderedDict[TileKey, bytes] = OrderedDict()

    def get(self, key: TileKey) -> bytes | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: TileKey, tile: bytes) -> None:
        if key in self._kept:
            return
        self._kept[key] = tile
        self._left -= len(tile)
        while self._left < 0:
            self._left += len(self._kept.popitem(last=False)[1])


def _close(reader: SlideReader) -> None:
    reader.__exit__(None, None, None)
