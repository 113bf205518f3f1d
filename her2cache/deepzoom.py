"""A slide as tiles of one size at scales that halve, for looking at it."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from her2cache.slide import SlideReader
from her2cache.units import RgbImage

TILE_PX = 512
"""Side of a tile."""

WHITE = 255

_BAND_BYTES = 64 * 2**20
"""Pixels of a level that are held at once: a slide may be one level, of any size."""


def count_zooms(size: tuple[int, int]) -> int:
    """How many zooms a slide of (width, height) level-0 px has: the native ones, and one that enlarges."""
    return native_zoom(size) + 2


def native_zoom(size: tuple[int, int]) -> int:
    """The zoom at which a pixel of a slide of (width, height) level-0 px is one of level 0."""
    return max(0, math.ceil(math.log2(max(size) / TILE_PX)))


def read_tile(slide: SlideReader, zoom: int, column: int, row: int) -> RgbImage:
    """Pixels of a tile, uint8 (TILE_PX, TILE_PX, 3).

    At zoom 0 one tile holds the whole slide, and each further zoom shows twice as much of it.

    Raises:
        IndexError: there is no such zoom, or the tile lies beyond the square that zoom 0 shows.
    """
    zooms = count_zooms(slide.size)
    if not (0 <= zoom < zooms and 0 <= column < 2**zoom and 0 <= row < 2**zoom):
        raise IndexError(f"no tile ({column}, {row}) at zoom {zoom} of {zooms}")
    side = TILE_PX * 2.0 ** (native_zoom(slide.size) - zoom)  # level-0 px
    return read_square(slide, column * side, row * side, side, TILE_PX)


def read_square(slide: SlideReader, left: float, top: float, side: float, px: int) -> RgbImage:
    """A square of a slide at any scale, averaged from the coarsest level that is fine enough.

    Args:
        slide: an open slide.
        left, top: of the square, level-0 px, at least 0.
        side: of the square, level-0 px.
        px: side of the picture.

    Returns:
        uint8 (px, px, 3); white beyond the slide, hatched in grey where it cannot be decoded.
    """
    level = max((k for k, d in enumerate(slide.downsamples) if d <= 1.01 * side / px), default=0)
    downsample = slide.downsamples[level]
    factor = side / px / downsample  # level px per px
    width, height = slide.level_sizes[level]
    x0, y0 = left / downsample, top / downsample
    x1, y1 = min(x0 + px * factor, width), min(y0 + px * factor, height)
    picture = np.full((px, px, 3), WHITE, np.uint8)
    columns, rows = math.ceil((x1 - x0) / factor - 1e-6), math.ceil((y1 - y0) / factor - 1e-6)
    if columns <= 0 or rows <= 0:
        return picture
    step = max(1, int(_BAND_BYTES / (3 * (x1 - x0) * factor)))  # rows of the picture
    for start in range(0, rows, step):
        end = min(start + step, rows)
        bottom = y1 if end == rows else y0 + end * factor
        picture[start:end, :columns] = _read_band(
            slide, level, (x0, y0 + start * factor, x1, bottom), end - start, columns
        )
    return picture


def _read_band(
    slide: SlideReader, level: int, box: tuple[float, float, float, float], rows: int, columns: int
) -> RgbImage:
    """A rectangle (left, top, right, bottom) of a level as a picture of so many pixels."""
    x, y = int(box[0]), int(box[1])
    pixels = _read_region(slide, level, x, y, math.ceil(box[2]), math.ceil(box[3]))
    if pixels.shape[:2] == (rows, columns) and box[2] - box[0] == columns:
        return pixels
    within = (box[0] - x, box[1] - y, box[2] - x, box[3] - y)
    return np.asarray(Image.fromarray(pixels).resize((columns, rows), Image.Resampling.BOX, box=within))


def _read_region(slide: SlideReader, level: int, x0: int, y0: int, x1: int, y1: int) -> RgbImage:
    """Pixels of a level, uint8 (y1 - y0, x1 - x0, 3)."""
    grid = slide.segment_grid(level)
    first, last = x0 // grid.width, -(-x1 // grid.width)
    top, bottom = y0 // grid.height, -(-y1 // grid.height)
    columns, rows = last - first, bottom - top
    indices = (np.arange(top, bottom)[:, None] * grid.columns + np.arange(first, last)).ravel()  # (rows x columns,)
    # each segment has memory of its own, which a codec can write into
    segments = np.full((rows * columns, grid.height, grid.width, 3), WHITE, np.uint8)
    place = {int(index): segments[k] for k, index in enumerate(indices)}
    for index, reason in slide.decode(level, indices, place.__getitem__):
        if reason is not None:
            place[index][:] = _hatched(grid.height, grid.width)
    joined = segments.reshape(rows, columns, grid.height, grid.width, 3).swapaxes(1, 2)
    joined = joined.reshape(rows * grid.height, columns * grid.width, 3)
    x, y = x0 - first * grid.width, y0 - top * grid.height
    return joined[y : y + y1 - y0, x : x + x1 - x0]


def _hatched(height: int, width: int) -> RgbImage:
    """What stands for pixels that cannot be decoded; nobody takes it for glass."""
    stripes = (np.arange(height)[:, None] + np.arange(width)) // 8 % 2  # (height, width)
    return np.repeat(np.where(stripes, 150, 190).astype(np.uint8)[..., None], 3, axis=2)
