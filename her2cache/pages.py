"""What a level of a TIFF must be before any of it is decoded: sizes that go together, and pixels of the right kind."""

from __future__ import annotations

import math
from collections.abc import Container
from pathlib import Path
from typing import Any

import numpy as np

from her2cache.canvas import SegmentGrid
from her2cache.errors import SlideOpenError

MOST_SEGMENT_PX = 1 << 26
"""A segment is decoded whole, so one of 8192 x 8192 px takes 200 MB."""

_BILEVEL = {2, 3, 4}  # compressions of fax, of which tifffile would make pixels of 8 bits
_RGB, _YCBCR = 2, 6  # TIFF tag PhotometricInterpretation


def grid_of(page: Any) -> SegmentGrid:
    """How a page of tifffile is cut into segments."""
    width, height = page.imagewidth, page.imagelength
    segment = (page.tilewidth, page.tilelength) if page.is_tiled else (width, min(page.rowsperstrip, height))
    return SegmentGrid(*segment, columns=math.ceil(width / segment[0]), rows=math.ceil(height / segment[1]))


def require_usable(
    path: Path, level: int, page: Any, axes: str, known: Container[int], decoded_to_rgb: Container[int]
) -> None:
    """Refuses a level that patches cannot be cut from.

    Args:
        path: of the slide, for the message.
        level: its number.
        page: of tifffile.
        axes: of the series, as tifffile names them.
        known: compressions that can be decoded.
        decoded_to_rgb: compressions whose YCbCr comes as RGB.

    Raises:
        SlideOpenError: its sizes contradict each other or are absurd, it is empty, its compression is unknown, or its
            pixels are not 8-bit RGB.
    """
    if page.compression not in known or page.compression in _BILEVEL:
        raise SlideOpenError(
            f"{path}: level {level} is compressed in a way that is not known here (TIFF compression"
            f" {int(page.compression)}): the file is damaged, or of an uncommon kind; copy it again, or convert it to a"
            " pyramidal TIFF of JPEG"
        )
    is_rgb = page.photometric == _RGB or (page.photometric == _YCBCR and page.compression in decoded_to_rgb)
    if axes != "YXS" or page.samplesperpixel not in {3, 4} or page.dtype != np.uint8 or not is_rgb:
        raise SlideOpenError(
            f"{path}: level {level} has axes {axes}, {page.samplesperpixel} samples of {page.dtype} a pixel, colours"
            f" {getattr(page.photometric, 'name', page.photometric)}, but patches are 8-bit RGB; convert the file to a"
            " pyramidal RGB TIFF"
        )
    if reason := _index_damage(page):
        raise SlideOpenError(
            f"{path}: level {level} {reason}: the file is damaged, or was not written to its end; copy it again from"
            " the original"
        )
    grid = grid_of(page)
    if grid.width * grid.height > MOST_SEGMENT_PX:
        raise SlideOpenError(
            f"{path}: level {level} comes in segments of {grid.width:,} x {grid.height:,} px, each of which would have"
            f" to be decoded whole (more than {MOST_SEGMENT_PX / 1e6:.0f} megapixels); convert the file to a tiled"
            " pyramidal TIFF"
        )


def _index_damage(page: Any) -> str | None:
    """Why the index of a page's segments cannot be right."""
    sizes = page.imagewidth, page.imagelength
    sizes += (page.tilewidth, page.tilelength) if page.is_tiled else (page.rowsperstrip,)
    if min(sizes) < 1:
        return f"is empty: {' x '.join(map(str, sizes[:2]))} px in segments of {' x '.join(map(str, sizes[2:]))}"
    grid = grid_of(page)
    expected, there = grid.columns * grid.rows, {len(page.dataoffsets), len(page.databytecounts)}
    if there != {expected}:
        return (
            f"has an index of {min(there):,} segments, but {sizes[0]:,} x {sizes[1]:,} px in segments of"
            f" {grid.width:,} x {grid.height:,} are {expected:,}"
        )
    return None if any(page.databytecounts) else "is empty: the file holds none of its segments"


def alike(full: tuple[int, int], size: tuple[int, int], slack: int = 2) -> bool:
    """Whether a level can be a reduced picture of another: one factor explains both its sides to a few pixels.

    Args:
        full: (width, height) of the larger level, px.
        size: of the smaller, px.
        slack: px that rounding and cutting off may cost a side.
    """
    least = max(f / (s + slack) for f, s in zip(full, size, strict=True))
    most = min(f / max(s - slack, 0.5) for f, s in zip(full, size, strict=True))
    return least <= most
