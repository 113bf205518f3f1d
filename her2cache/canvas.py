"""Decoded segments side by side, and windows cut out of them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from her2cache.units import PatchBatch, RgbImage

WHITE = 255
"""A segment that a file leaves out (sparse) is glass, and glass is white."""

_HUGE_PAGES_FROM = 4 << 20  # bytes; numpy asks for them then, and without them page walks take half the time


@dataclass(frozen=True)
class SegmentGrid:
    """How a level is cut into segments: sizes in level px, counts of segments."""

    width: int
    height: int
    columns: int
    rows: int


class Canvas:
    """The rows of segments under a row of windows. The next row takes the place of the oldest.

    Each segment has memory of its own that is contiguous, so that a codec can write straight into it: the
    canvas is a stack of columns one segment wide, and a column is a ring of as many segments as a window can
    lie on.
    """

    def __init__(self, grid: SegmentGrid, crops: NDArray[np.int64]) -> None:
        """Makes room for windows (x0, y0, x1, y1), int64 (n, 4), level px."""
        self._grid = grid
        self._first = int(crops[:, 0].min()) // grid.width
        columns = -(-int(crops[:, 2].max()) // grid.width) - self._first
        self._rows = int((-(-crops[:, 3] // grid.height) - crops[:, 1] // grid.height).max())
        shape = (columns, self._rows * grid.height, grid.width, 3)
        size = int(np.prod(shape))
        self._pixels = np.empty(max(size, _HUGE_PAGES_FROM), np.uint8)[:size].reshape(shape)

    def place(self, index: int) -> RgbImage:
        """Where a segment's pixels belong, uint8 (height, width, 3), contiguous."""
        row, column = divmod(index, self._grid.columns)
        y = row % self._rows * self._grid.height
        return self._pixels[column - self._first, y : y + self._grid.height]

    def cut(self, crops: NDArray[np.int64], patches: PatchBatch) -> None:
        """Copies windows that lie in one row, (n, 4) with ascending x0, to patches of the same size."""
        x0, x1 = crops[:, 0].tolist(), crops[:, 2].tolist()
        y0, y1 = crops[0, 1::2].tolist()
        side = patches.shape[1]
        for top, column, pixels in self._pieces(x0[0], y0, x1[-1], y1):
            left, right = column, column + pixels.shape[1]
            rows = patches[:, top : top + len(pixels)]
            first, last = bisect_right(x1, left), bisect_left(x0, right)  # windows on it
            a, b = bisect_left(x0, left, first, last), bisect_right(x1, right, first, last)  # wholly on it
            if b - a > 1 and x0[b - 1] - x0[a] == (b - 1 - a) * side:  # side by side: all in one go
                window = pixels[:, x0[a] - left : x1[b - 1] - left].reshape(len(pixels), b - a, side, 3)
                rows[a:b].swapaxes(0, 1)[:] = window
            else:
                b = a
            for k in (*range(first, a), *range(b, last)):
                start, stop = max(x0[k], left), min(x1[k], right)
                rows[k, :, start - x0[k] : stop - x0[k]] = pixels[:, start - left : stop - left]

    def window(self, x0: int, y0: int, x1: int, y1: int) -> RgbImage:
        """A copy of the pixels of a window."""
        window = np.empty((y1 - y0, x1 - x0, 3), np.uint8)
        for top, left, pixels in self._pieces(x0, y0, x1, y1):
            start, stop = max(x0, left), min(x1, left + pixels.shape[1])
            window[top : top + len(pixels), start - x0 : stop - x0] = pixels[:, start - left : stop - left]
        return window

    def _pieces(self, x0: int, y0: int, x1: int, y1: int) -> Iterator[tuple[int, int, RgbImage]]:
        """What a window lies on: rows below y0, x of the level, and pixels of a column (whole width)."""
        width, height = self._grid.width, self._pixels.shape[1]
        columns = range(x0 // width, -(-x1 // width))
        top = y0
        while top < y1:  # two pieces a column where the ring closes
            start = top % height
            stop = min(start + y1 - top, height)
            for column in columns:
                yield top - y0, column * width, self._pixels[column - self._first, start:stop]
            top += stop - start
