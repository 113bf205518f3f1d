"""Pixels into a pyramidal tiled JPEG TIFF that tiffslide, OpenSlide and QuPath open.

Level 0 is asked for region by region and written at once; each coarser level is made of the one before by
way of a temporary file. So memory follows the width of a slide, never its area.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np
import tifffile
from PIL import Image

from her2cache.units import RgbImage

REGION_PX = 1536
"""Side of the regions that level 0 is asked for in; a multiple of the segment and of a patch of 48 um."""

_SEGMENT_PX = 256
_LEVEL_FACTOR = 4  # as scanners do
_SMALLEST_PX = 512  # no further level once the longer side is at most this
_JPEG_QUALITY = 85

Render = Callable[[int, int, int, int], RgbImage]
"""Pixels of a region (x, y, width, height) of level 0."""


def write_pyramid(path: Path, pixels: RgbImage, mpp: float) -> None:
    """Writes a slide that lies in memory.

    Args:
        path: where to.
        pixels: level 0, shape (height, width, 3).
        mpp: its scale, um/px, written as the TIFF resolution.
    """
    height, width = pixels.shape[:2]
    write_regions(path, (width, height), lambda x, y, w, h: pixels[y : y + h, x : x + w], mpp)


def write_regions(path: Path, size: tuple[int, int], render: Render, mpp: float) -> None:
    """Writes a slide region by region, in one step: the file is either complete or not there.

    Args:
        path: where to.
        size: (width, height) of level 0, px.
        render: gives level 0; it is asked once for each region of at most `REGION_PX` squared.
        mpp: scale of level 0, um/px, written as the TIFF resolution.
    """
    write_whole(path, lambda partial: _write_levels(partial, size, render, mpp))


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a file beside `path`, then moves it there."""
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_levels(path: Path, size: tuple[int, int], render: Render, mpp: float) -> None:
    sizes = [size]
    while max(sizes[-1]) > _SMALLEST_PX:
        sizes.append(tuple(-(-side // _LEVEL_FACTOR) for side in sizes[-1]))  # pyright: ignore[reportArgumentType]
    bands = _rendered(size, render)
    with tifffile.TiffWriter(path, bigtiff=size[0] * size[1] * 3 > 2**31) as tiff, ExitStack() as files:
        for k, (width, height) in enumerate(sizes):
            pixels_per_cm = 1e4 / (mpp * _LEVEL_FACTOR**k)
            coarser = None
            if k + 1 < len(sizes):
                coarser = files.enter_context(tempfile.TemporaryFile(dir=path.parent))
                bands = _reduced_into(coarser, bands)
            tiff.write(
                _segments(bands),
                shape=(height, width, 3),
                dtype=np.uint8,
                tile=(_SEGMENT_PX, _SEGMENT_PX),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": _JPEG_QUALITY},
                resolution=(pixels_per_cm, pixels_per_cm),
                resolutionunit="CENTIMETER",
                subfiletype=1 if k else 0,
                metadata=None,  # no shape tag of tifffile's own
                software=False,  # no version number: bytes stay the same
            )
            if coarser is not None:
                bands = _read_back(coarser, sizes[k + 1])


def _rendered(size: tuple[int, int], render: Render) -> Iterator[RgbImage]:
    """Level 0 in bands of its whole width."""
    width, height = size
    for y in range(0, height, REGION_PX):
        rows = min(REGION_PX, height - y)
        band = np.empty((rows, width, 3), np.uint8)
        for x in range(0, width, REGION_PX):
            columns = min(REGION_PX, width - x)
            band[:, x : x + columns] = render(x, y, columns, rows)
        yield band


def _reduced_into(file: IO[bytes], bands: Iterator[RgbImage]) -> Iterator[RgbImage]:
    """Passes bands on and leaves the next coarser level in a file."""
    for band in bands:
        for y in range(0, len(band), _SEGMENT_PX):  # a multiple of the factor; Pillow copies what it is given
            file.write(np.asarray(Image.fromarray(band[y : y + _SEGMENT_PX]).reduce(_LEVEL_FACTOR)).tobytes())
        yield band


def _read_back(file: IO[bytes], size: tuple[int, int]) -> Iterator[RgbImage]:
    width, height = size
    file.seek(0)
    for y in range(0, height, REGION_PX):
        rows = min(REGION_PX, height - y)
        yield np.frombuffer(file.read(rows * width * 3), np.uint8).reshape(rows, width, 3)


def _segments(bands: Iterator[RgbImage]) -> Iterator[RgbImage]:
    """Cuts bands into segments, row by row; those at the right and the lower border are filled up with black."""
    for band in bands:
        height, width = band.shape[:2]
        for y in range(0, height, _SEGMENT_PX):
            for x in range(0, width, _SEGMENT_PX):
                part = band[y : y + _SEGMENT_PX, x : x + _SEGMENT_PX]
                missing = [(0, _SEGMENT_PX - part.shape[0]), (0, _SEGMENT_PX - part.shape[1]), (0, 0)]
                yield np.pad(part, missing)
