"""What every reader of slides has in common: an overview, a thumbnail, and segments that are decoded once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from her2cache.canvas import SegmentGrid
from her2cache.overview import average
from her2cache.remote import SlidePath
from her2cache.shelf import Shelf, open_shelf
from her2cache.tissue import Overview
from her2cache.units import RgbImage


class SlideReader(ABC):
    """An open slide. Use `slide.open_slide`, and as a context manager; it does not pickle.

    Attributes:
        path: the file, as it was asked for.
        size: (width, height) of level 0, px.
        level_sizes: (width, height) of each level, px.
        downsamples: level-0 px per px of each level.
        identity: of the copy that is read instead of `path`, see `identity.file_identity`; None where there is no copy.
        decoded: segments decoded so far, a level each (to prove that none is decoded twice).
    """

    def __init__(self, path: Path, level_sizes: Sequence[tuple[int, int]], downsamples: Sequence[float]) -> None:
        self.path: SlidePath = path
        self._file = path
        self.identity: dict[str, Any] | None = None
        self._held = ExitStack()
        self.level_sizes = tuple(level_sizes)
        self.size: tuple[int, int] = self.level_sizes[0]
        self.downsamples = tuple(downsamples)
        self.decoded = [0] * len(self.level_sizes)
        self._kept: Shelf | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._kept is not None:
            self._kept.close()
        try:
            self._close()
        finally:
            self._held.close()

    def keep(self, held: ExitStack) -> None:
        """Takes what is to be let go when the slide is closed, such as the file's place in a cache."""
        self._held = held

    @property
    @abstractmethod
    def reader(self) -> str:
        """Name of the library and of the format it found, recorded with the features."""

    @property
    @abstractmethod
    def file_mpp(self) -> float | None:
        """Scale of level 0 by the file's metadata, um/px: the mean of x and y."""

    @property
    @abstractmethod
    def objective_power(self) -> float | None:
        """Magnification of the objective by the file's metadata."""

    @property
    def origin(self) -> tuple[int, int]:
        """Level-0 (x, y) where the scanned part begins, to which QuPath crops a slide that says so."""
        return 0, 0

    @abstractmethod
    def segment_grid(self, level: int) -> SegmentGrid:
        """How a level is cut into segments."""

    @abstractmethod
    def _decode(
        self, level: int, indices: list[int], place: Callable[[int], RgbImage]
    ) -> Iterator[tuple[int, str | None]]:
        """Decodes segments that are not kept; see `decode`."""

    @abstractmethod
    def _close(self) -> None:
        """Closes the file."""

    def decode(
        self, level: int, indices: NDArray[np.int64], place: Callable[[int], RgbImage]
    ) -> Iterator[tuple[int, str | None]]:
        """Decodes segments of a level.

        Args:
            level: index of the level.
            indices: indices of segments in the level's grid, row by row.
            place: gives the array that a segment's pixels go into, uint8 (height, width, 3), contiguous. Those
                outside the level are left as they are; a segment that the file leaves out, or that cannot be decoded,
                is white.

        Yields:
            (index, reason): None, or why the segment cannot be decoded; in any order.
        """
        wanted: list[int] = []
        for index in indices.tolist():
            if self._kept is not None and (level, index) in self._kept:
                yield index, self._kept.take((level, index), place(index))
            else:
                wanted.append(index)
        yield from self._decode(level, wanted, place)

    def overview(self, mpp: float, level0_mpp: float, *, reread: int | None = None) -> Overview:
        """A picture of the whole slide at about a scale.

        The coarsest level that is fine enough is averaged over whole numbers of pixels.

        Args:
            mpp: wanted scale, um/px.
            level0_mpp: scale of level 0, um/px.
            reread: a level whose segments are asked for afterwards; those decoded here are kept for then.
        """
        fine = [k for k, downsample in enumerate(self.downsamples) if downsample * level0_mpp <= mpp]
        level = max(fine, key=lambda k: self.downsamples[k], default=0)
        step = max(1, round(mpp / (self.downsamples[level] * level0_mpp)))
        grid = self.segment_grid(level)
        if level == reread:
            self._kept = open_shelf(grid.rows * grid.columns * grid.height * grid.width * 3, self._file)
        segments = self._decode_level(level, grid, self._kept if level == reread else None)
        image, undecodable = average(segments, grid, self.level_sizes[level], step)
        return Overview(image, undecodable, self.downsamples[level] * step)

    def thumbnail(self, max_px: int) -> tuple[RgbImage, float]:
        """A picture of the whole slide whose longer side has at most `max_px`, and its level-0 px per px."""
        downsample = max(self.size) / max_px
        overview = self.overview(downsample, 1.0)
        image, reached = overview.image, overview.downsample
        height, width = image.shape[:2]
        if max(width, height) <= max_px:
            return image, reached
        columns, rows = (max(1, int(side / downsample + 1e-6)) for side in self.size)
        box = (0, 0, min(columns * downsample / reached, width), min(rows * downsample / reached, height))
        return np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BOX, box=box)), downsample

    def _decode_level(
        self, level: int, grid: SegmentGrid, shelf: Shelf | None
    ) -> Iterator[tuple[int, RgbImage, str | None]]:
        pixels = np.empty((grid.height, grid.width, 3), np.uint8)
        for start in range(0, grid.rows * grid.columns, grid.columns):
            for index, reason in self.decode(level, np.arange(start, start + grid.columns), lambda _: pixels):
                if shelf is not None:
                    shelf.put((level, index), pixels, reason)
                yield index, pixels, reason


def downsample_between(full: tuple[int, int], size: tuple[int, int]) -> float:
    """Level-0 px per level px. A level has whole pixels, so an integer that explains both its sides is meant."""
    ratio = (full[0] / size[0] + full[1] / size[1]) / 2
    whole = round(ratio)
    return float(whole) if all(abs(f / whole - s) < 1 for f, s in zip(full, size, strict=True)) else ratio
