"""Decoded segments set aside until they are asked for a second time.

A slide without a pyramid is decoded whole for its overview, before anyone knows where its tissue is. What
was decoded then is kept: in memory as long as it is small, else in a temporary file, which the page
cache serves and the process does not pay for.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO, cast

from her2cache.canvas import WHITE
from her2cache.units import RgbImage

MEMORY_BYTES = 192_000_000
"""A level up to this size, 64 megapixels, is kept in memory."""

SPARE_BYTES = 1 << 30
"""What is left free on the disk of a temporary file."""

Key = tuple[int, int]
"""Level and index of a segment."""


class Shelf:
    """Holds decoded segments; each can be taken once."""

    def __init__(self, file: BinaryIO | None = None) -> None:
        """Keeps them in a file open for reading and writing, or in memory."""
        self._file = file
        self._end = 0
        self._held: dict[Key, RgbImage | int | str] = {}  # pixels, their offset in the file, or why there are none

    def __contains__(self, key: Key) -> bool:
        return key in self._held

    def __len__(self) -> int:
        return len(self._held)

    def put(self, key: Key, pixels: RgbImage, reason: str | None) -> None:
        """Keeps a copy of a segment's pixels, uint8 (height, width, 3), or the reason why it has none.

        A segment for which the disk has no room any more is not kept.
        """
        if reason is not None:
            self._held[key] = reason
        elif self._file is None:
            self._held[key] = pixels.copy()
        elif _write(self._file, pixels, self._end):
            self._held[key] = self._end
            self._end += pixels.nbytes

    def take(self, key: Key, place: RgbImage) -> str | None:
        """Hands a segment out: its pixels into a contiguous array of their shape; or white, and the reason."""
        held = self._held.pop(key)
        if isinstance(held, str):
            place[:] = WHITE
            return held
        if isinstance(held, int):
            assert self._file is not None
            read = os.preadv(self._file.fileno(), [place.data.cast("B")], held)
            assert read == place.nbytes
        else:
            place[:] = held
        return None

    def close(self) -> None:
        """Lets go of everything."""
        self._held.clear()
        if self._file is not None:
            self._file.close()


def open_shelf(size: int, path: Path) -> Shelf | None:
    """A shelf for a level of a slide, or None, with a warning, where there is no room for it.

    Args:
        size: bytes of the level, decoded.
        path: of the slide, for the warning.
    """
    if size <= MEMORY_BYTES:
        return Shelf()
    folder = Path(os.environ.get("TMPDIR") or "/var/tmp")  # /tmp may be memory
    free = shutil.disk_usage(folder).free if folder.is_dir() else 0
    if free < size + SPARE_BYTES:
        logging.getLogger(__name__).warning(
            "%s has no pyramid, and %s has no room for its %.1f GB of pixels: they are decoded twice; set TMPDIR to a"
            " larger disk",
            path,
            folder,
            size / 1e9,
        )
        return None
    return Shelf(cast(BinaryIO, tempfile.TemporaryFile(prefix="her2cache-", dir=folder)))


def _write(file: BinaryIO, pixels: RgbImage, offset: int) -> bool:
    try:
        return os.pwrite(file.fileno(), pixels.data.cast("B"), offset) == pixels.nbytes
    except OSError:  # full by now
        return False
