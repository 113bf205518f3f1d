"""A level of a slide that lies in memory, for tests of what reads segments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator

import numpy as np
from numpy.typing import NDArray

from her2cache.canvas import SegmentGrid
from her2cache.units import RgbImage


class MemorySlide:
    """Segments of an array. It remembers which were asked for."""

    def __init__(
        self,
        pixels: RgbImage,
        segment_width: int,
        segment_height: int,
        *,
        sparse: Collection[int] = (),
        broken: Collection[int] = (),
    ) -> None:
        self.pixels = pixels
        height, width = pixels.shape[:2]
        self.grid = SegmentGrid(
            segment_width, segment_height, columns=-(-width // segment_width), rows=-(-height // segment_height)
        )
        self.sparse, self.broken = set(sparse), set(broken)
        self.asked: Counter[int] = Counter()

    def segment_grid(self, level: int) -> SegmentGrid:
        return self.grid

    def decode(
        self, level: int, indices: NDArray[np.int64], place: Callable[[int], RgbImage]
    ) -> Iterator[tuple[int, str | None]]:
        for index in indices[::-1].tolist():  # a file may have them in any order
            self.asked[index] += 1
            pixels = place(index)
            assert pixels.shape == (self.grid.height, self.grid.width, 3)
            assert pixels.flags.c_contiguous
            part = self._part(self.pixels, index)
            if index in self.sparse or index in self.broken:
                pixels[:] = 255
            else:
                pixels[:] = 77  # padded, as in a file
                pixels[: part.shape[0], : part.shape[1]] = part
            yield index, f"segment {index} is broken" if index in self.broken else None

    def whitened(self) -> RgbImage:
        """The level with its sparse segments white."""
        pixels = self.pixels.copy()
        for index in self.sparse:
            self._part(pixels, index)[:] = 255
        return pixels

    def under(self, box: NDArray[np.float64]) -> set[int]:
        """Segments that a box (x0, y0, x1, y1) overlaps, one by one."""
        x0, y0, x1, y1 = np.where(np.abs(box - np.rint(box)) < 1e-6, np.rint(box), box)
        found = set[int]()
        for index in range(self.grid.columns * self.grid.rows):
            row, column = divmod(index, self.grid.columns)
            x, y = column * self.grid.width, row * self.grid.height
            if x0 < x + self.grid.width and x1 > x and y0 < y + self.grid.height and y1 > y:
                found.add(index)
        return found

    def _part(self, pixels: RgbImage, index: int) -> RgbImage:
        row, column = divmod(index, self.grid.columns)
        x, y = column * self.grid.width, row * self.grid.height
        return pixels[y : y + self.grid.height, x : x + self.grid.width]
