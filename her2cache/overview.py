"""Averaging a level of a slide over blocks of pixels, a segment at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from her2cache.tiling import WHITE, SegmentGrid
from her2cache.units import BoolImage, RgbImage


def average(
    segments: Iterable[tuple[int, RgbImage | str | None]], grid: SegmentGrid, size: tuple[int, int], step: int
) -> tuple[RgbImage, BoolImage]:
    """Averages a level over blocks of step x step px.

    Args:
        segments: every segment of the level, as `tiling.SegmentSource` yields them.
        grid: how the level is cut into segments.
        size: (width, height) of the level, px.
        step: side of a block, px; blocks at the right and the lower border are smaller.

    Returns:
        uint8 (rows, columns, 3), rounded means, sparse and undecodable segments white; and bool
        (rows, columns), the blocks that hold undecodable pixels.
    """
    width, height = size
    sums = np.zeros((math.ceil(height / step), math.ceil(width / step), 3), np.uint32)
    undecodable = np.zeros(sums.shape[:2], np.bool_)
    for index, pixels in segments:
        row, column = divmod(index, grid.columns)
        x, y = column * grid.width, row * grid.height
        w, h = min(grid.width, width - x), min(grid.height, height - y)
        if isinstance(pixels, str):
            undecodable[y // step : -(-(y + h) // step), x // step : -(-(x + w) // step)] = True
        known = isinstance(pixels, np.ndarray)
        _add_blocks(sums, pixels[:h, :w] if known else np.full((h, w, 3), WHITE, np.uint8), x, y, step)
    rows = np.minimum(step, height - step * np.arange(sums.shape[0]))
    columns = np.minimum(step, width - step * np.arange(sums.shape[1]))
    area = (rows[:, None] * columns)[..., None].astype(np.uint32)
    return ((sums + area // 2) // area).astype(np.uint8), undecodable


def _add_blocks(sums: NDArray[np.uint32], pixels: RgbImage, x: int, y: int, step: int) -> None:
    """Adds the pixels of a segment at (x, y) to the sums of the step x step blocks they lie in."""
    height, width = pixels.shape[:2]
    row_edges = _edges(y, height, step)
    column_edges = _edges(x, width, step)
    rows = np.add.reduceat(pixels, row_edges, axis=0, dtype=np.uint32)
    blocks = np.add.reduceat(rows, column_edges, axis=1)
    top, left = y // step, x // step
    sums[top : top + len(row_edges), left : left + len(column_edges)] += blocks


def _edges(start: int, length: int, step: int) -> NDArray[np.int64]:
    """Offsets within a segment at which a new block begins."""
    first = -start % step
    edges = np.arange(first, length, step)
    return edges if first == 0 else np.concatenate([[0], edges])
