"""Averaging a level of a slide over blocks of pixels, a segment at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from her2cache.canvas import SegmentGrid
from her2cache.scratch import scratch
from her2cache.units import BoolImage, RgbImage


def average(
    segments: Iterable[tuple[int, RgbImage, str | None]], grid: SegmentGrid, size: tuple[int, int], step: int
) -> tuple[RgbImage, BoolImage]:
    """Averages a level over blocks of step x step px.

    Args:
        segments: (index, pixels, why they cannot be decoded or None) of every segment of the level, one row of
            segments after the other.
        grid: how the level is cut into segments.
        size: (width, height) of the level, px.
        step: side of a block, px; blocks at the right and the lower border are smaller.

    Returns:
        uint8 (rows, columns, 3), rounded means; and bool (rows, columns), the blocks that hold undecodable pixels.
    """
    width, height = size
    blocks = _Blocks(size, grid.height, step)
    undecodable: BoolImage = scratch(blocks.image.shape[:2], np.bool_)  # pyright: ignore[reportAssignmentType]
    for index, pixels, reason in segments:
        row, column = divmod(index, grid.columns)
        x, y = column * grid.width, row * grid.height
        w, h = min(grid.width, width - x), min(grid.height, height - y)
        if reason is not None:
            undecodable[y // step : -(-(y + h) // step), x // step : -(-(x + w) // step)] = True
        blocks.add(pixels[:h, :w], x, y)
    blocks.finish(len(blocks.image))
    return blocks.image, undecodable


class _Blocks:
    """Means of blocks. Only the rows of blocks that a row of segments reaches have their sums in memory."""

    def __init__(self, size: tuple[int, int], segment_height: int, step: int) -> None:
        self._size, self._step = size, step
        width, height = size
        self.image: RgbImage = scratch((math.ceil(height / step), math.ceil(width / step), 3), np.uint8)  # pyright: ignore[reportAttributeAccessIssue]
        self._top = 0  # the row of blocks that the first row of sums belongs to
        self._sums = np.zeros((segment_height // step + 2, self.image.shape[1], 3), np.uint32)

    def add(self, pixels: RgbImage, x: int, y: int) -> None:
        """Adds the pixels of a segment at (x, y) to the blocks they lie in."""
        if self._step == 1:
            self.image[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
            return
        self.finish(y // self._step)
        row_edges = _edges(y, pixels.shape[0], self._step)
        column_edges = _edges(x, pixels.shape[1], self._step)
        rows = np.add.reduceat(pixels, row_edges, axis=0, dtype=np.uint32)
        top, left = y // self._step - self._top, x // self._step
        self._sums[top : top + len(row_edges), left : left + len(column_edges)] += np.add.reduceat(
            rows, column_edges, axis=1
        )

    def finish(self, stop: int) -> None:
        """Turns the sums of the rows of blocks above `stop` into means."""
        count = stop - self._top
        if self._step == 1 or count == 0:
            return
        width, height = self._size
        rows = np.minimum(self._step, height - self._step * np.arange(self._top, stop))
        columns = np.minimum(self._step, width - self._step * np.arange(self.image.shape[1]))
        area = (rows[:, None] * columns)[..., None].astype(np.uint32)
        self.image[self._top : stop] = (self._sums[:count] + area // 2) // area
        self._sums[:-count] = self._sums[count:].copy()
        self._sums[-count:] = 0
        self._top = stop


def _edges(start: int, length: int, step: int) -> NDArray[np.int64]:
    """Offsets within a segment at which a new block begins."""
    first = -start % step
    edges = np.arange(first, length, step)
    return edges if first == 0 else np.concatenate([[0], edges])
