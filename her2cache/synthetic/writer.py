"""Pixels into a pyramidal tiled JPEG TIFF that tiffslide, OpenSlide and QuPath open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from her2cache.units import RgbImage

_SEGMENT_PX = 256
_LEVEL_FACTOR = 4  # as scanners do
_SMALLEST_PX = 512  # no further level once the longer side is at most this
_JPEG_QUALITY = 85


def write_pyramid(path: Path, pixels: RgbImage, mpp: float) -> None:
    """Writes a slide, in one step: the file is either complete or not there.

    Args:
        path: where to.
        pixels: level 0, shape (height, width, 3).
        mpp: its scale, um/px, written as the TIFF resolution.
    """
    write_whole(path, lambda partial: _write_levels(partial, pixels, mpp))


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a file beside `path`, then moves it there."""
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_levels(path: Path, pixels: RgbImage, mpp: float) -> None:
    levels = [pixels]
    while max(levels[-1].shape[:2]) > _SMALLEST_PX:
        levels.append(np.asarray(Image.fromarray(levels[-1]).reduce(_LEVEL_FACTOR)))
    with tifffile.TiffWriter(path, bigtiff=pixels.nbytes > 2**31) as tiff:
        for i, level in enumerate(levels):
            pixels_per_cm = 1e4 / (mpp * _LEVEL_FACTOR**i)
            tiff.write(
                level,
                tile=(_SEGMENT_PX, _SEGMENT_PX),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": _JPEG_QUALITY},
                resolution=(pixels_per_cm, pixels_per_cm),
                resolutionunit="CENTIMETER",
                subfiletype=1 if i else 0,
                metadata=None,  # no shape tag of tifffile's own
                software=False,  # no version number: bytes stay the same
            )
