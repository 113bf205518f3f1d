"""From a tissue mask to patch coordinates, and from decoded segments to patches.

A plan is pure geometry. Reading goes down the slide one row of patches at a time, on a canvas that holds
the rows of segments under it: a segment is decoded, pasted and dropped, and patches are cut out of the
canvas. So each segment is decoded once, and memory follows the width of the slide, never its area.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from her2cache.errors import ConfigError, EmptyPlanError
from her2cache.pyramid import ReadPlan
from her2cache.regions import Regions
from her2cache.tissue import TissueMask
from her2cache.units import Coords, PatchBatch, RgbImage

WHITE = 255
"""A segment that a file leaves out (sparse) is glass, and glass is white."""


@dataclass(frozen=True)
class PatchSpec:
    """What a patch is, whatever the slide.

    Attributes:
        mpp: target scale, um/px.
        patch_px: side of a patch at the target scale, px.
        stride_px: distance of neighbouring patches at the target scale, px.
        min_tissue: least share of tissue of an eligible patch, 0 to 1.
        snap_tolerance: a level within this relative distance of `mpp` is used as it is.
        resample: filter of the resampling to `mpp`; only "box" (Pillow's).
        min_edges: least edge strength of a patch in focus, grey levels (see `focus`); 0 takes blurred ones as well.
    """

    mpp: float = 0.5
    patch_px: int = 96
    stride_px: int = 96
    min_tissue: float = 0.5
    snap_tolerance: float = 0.01
    resample: str = "box"
    min_edges: float = 0.0

    def __post_init__(self) -> None:
        ok = self.mpp > 0 and self.patch_px >= 1 and self.stride_px >= 1 and 0 <= self.min_tissue <= 1
        if not (ok and 0 <= self.snap_tolerance < 1 and self.min_edges >= 0 and self.resample == "box"):
            raise ConfigError(
                f"{self} makes no sense: scale, side and stride must be above 0, min_tissue between 0 and 1,"
                ' snap_tolerance from 0 to below 1, min_edges at least 0, resample "box"'
            )


@dataclass(frozen=True)
class PatchPlan:
    """Where the eligible patches of one slide lie, in raster order.

    Attributes:
        read: the level they are read from and its scale.
        patch_px: side of a patch at the target scale, px.
        grid: (column, row) of each patch in the full grid, int32 (n_patches, 2).
        coords: level-0 (x, y) of each upper left corner, int32 (n_patches, 2).
        boxes: (x0, y0, x1, y1) of each patch in level px, float64 (n_patches, 4).
        grid_shape: (columns, rows) of the full grid.
    """

    read: ReadPlan
    patch_px: int
    grid: NDArray[np.int32]
    coords: Coords
    boxes: NDArray[np.float64]
    grid_shape: tuple[int, int]

    def __len__(self) -> int:
        return len(self.coords)


def plan_patches(
    spec: PatchSpec,
    read: ReadPlan,
    level_size: tuple[int, int],
    tissue: TissueMask,
    regions: Regions | None = None,
) -> PatchPlan:
    """Lays the grid over a level and keeps the patches with enough tissue.

    Only patches wholly inside the slide are planned, and where regions are given only those whose centre is in one.

    Args:
        spec: what a patch is.
        read: the level and the resampling factor, from `pyramid.plan_read`.
        level_size: (width, height) of that level, px.
        tissue: the tissue mask of the slide.
        regions: of interest.

    Raises:
        EmptyPlanError: no patch has enough tissue.
    """
    stride, side = spec.stride_px * read.factor, spec.patch_px * read.factor  # level px
    slack = 1e-6  # keeps a patch that ends on the border in spite of rounding
    columns, rows = (max(0, int((extent - side + slack) // stride) + 1) for extent in level_size)
    row, column = np.divmod(np.arange(columns * rows, dtype=np.int32), max(columns, 1))
    x0, y0 = column * stride, row * stride  # (grid,)
    boxes = np.stack([x0, y0, x0 + side, y0 + side], axis=1)  # (grid, 4)
    boxes = np.minimum(boxes, [*level_size, *level_size])
    share = tissue.share(boxes * read.downsample)  # (grid,)
    eligible = share >= spec.min_tissue - 1e-9  # a share is a quotient of sums: 1 may come out a bit less
    if regions is not None:
        inside = regions.contain((boxes[:, :2] + boxes[:, 2:]) / 2 * read.downsample)  # (grid,)
        if not inside.any():
            raise EmptyPlanError(
                "no patch has its centre in the regions of interest: they lie outside the slide, or are not in level-0"
                " px; look at both in QuPath, or clear the cell regions of the cohort table"
            )
        eligible &= inside
    if not eligible.any():
        raise EmptyPlanError(
            f"none of {len(boxes)} patches of {spec.patch_px} px at {spec.mpp:g} um/px has {spec.min_tissue:.0%}"
            f" tissue (the mask covers {tissue.mask.mean():.1%} of the slide): the slide is blank, smaller than a"
            " patch, or of a stain the thresholds do not fit; choose the preset with --stain HE|IHC, or lower"
            " --min-tissue"
        )
    boxes = boxes[eligible]
    return PatchPlan(
        read=read,
        patch_px=spec.patch_px,
        grid=np.stack([column, row], axis=1)[eligible],
        coords=np.rint(boxes[:, :2] * read.downsample).astype(np.int32),
        boxes=boxes,
        grid_shape=(columns, rows),
    )


@dataclass(frozen=True)
class SegmentGrid:
    """How a level is cut into segments: sizes in level px, counts of segments."""

    width: int
    height: int
    columns: int
    rows: int


class SegmentSource(Protocol):
    """Anything that decodes the segments of a level (slide.SlideReader does)."""

    def segment_grid(self, level: int) -> SegmentGrid: ...

    def segments(self, level: int, indices: NDArray[np.int64]) -> Iterator[tuple[int, RgbImage | str | None]]:
        """Yields (index, pixels); None for a sparse segment, the reason for one that cannot be decoded."""
        ...


@dataclass(frozen=True)
class DecodedBlock:
    """Consecutive patches of a plan.

    Attributes:
        start: plan index of the first.
        patches: uint8 (n, patch_px, patch_px, 3).
        ok: bool (n,); False where a segment could not be decoded (it is white then, which means nothing).
        reasons: why, one a broken segment and row of patches on it.
    """

    start: int
    patches: PatchBatch
    ok: NDArray[np.bool_]
    reasons: list[str]


def read_blocks(source: SegmentSource, plan: PatchPlan, size: int) -> Iterator[DecodedBlock]:
    """Reads the patches of a plan, each segment decoded once.

    Args:
        source: the slide.
        plan: its plan; patches are in raster order.
        size: patches a block; only the last is shorter.

    Yields:
        Every patch of the plan, in plan order.
    """
    level = plan.read.level
    grid = source.segment_grid(level)
    crops = _crops(plan.boxes)  # (n, 4)
    canvas = _Canvas(grid, crops)
    decoded = np.zeros(grid.rows * grid.columns, np.bool_)
    broken: dict[int, str] = {}
    block = DecodedBlock(0, np.empty(0, np.uint8), np.empty(0, np.bool_), [])
    for start, stop in _strips(plan, size):
        if start % size == 0:
            count = min(size, len(plan) - start)
            patches = np.empty((count, plan.patch_px, plan.patch_px, 3), np.uint8)
            block = DecodedBlock(start, patches, np.ones(count, np.bool_), [])
        strip = crops[start:stop]
        under = _segments_under(strip, grid)
        missing = under[~decoded[under]]
        decoded[missing] = True
        for index, pixels in source.segments(level, missing):
            canvas.paste(index, pixels)
            if isinstance(pixels, str):
                broken[index] = pixels
        place = slice(start - block.start, stop - block.start)
        if plan.read.factor == 1:
            canvas.cut(strip, block.patches[place])
        else:
            _resample_all(canvas, strip, plan.boxes[start:stop], block.patches[place])
        for index in [k for k in under.tolist() if k in broken] if broken else ():
            x = index % grid.columns * grid.width
            on_it = (strip[:, 0] < x + grid.width) & (strip[:, 2] > x)
            if on_it.any():
                block.ok[place] &= ~on_it
                block.reasons.append(broken[index])
        if stop == block.start + len(block.ok):
            yield block


def _strips(plan: PatchPlan, size: int) -> Iterator[tuple[int, int]]:
    """Runs of a plan (start, stop) that lie in one row of the grid and in one block."""
    rows = np.flatnonzero(np.diff(plan.grid[:, 1], prepend=-1, append=-1))
    return pairwise(np.union1d(rows, np.arange(0, len(plan), size)).tolist())


def _segments_under(crops: NDArray[np.int64], grid: SegmentGrid) -> NDArray[np.int64]:
    """Indices of the segments under a row of windows, in file order."""
    columns = {c for x0, x1 in crops[:, ::2].tolist() for c in range(x0 // grid.width, -(-x1 // grid.width))}
    y0, y1 = crops[0, 1::2].tolist()
    rows = np.arange(y0 // grid.height, -(-y1 // grid.height))
    return (rows[:, None] * grid.columns + np.array(sorted(columns))).ravel()


class _Canvas:
    """The rows of segments that a row of patches lies on; a new one takes the place of the oldest."""

    def __init__(self, grid: SegmentGrid, crops: NDArray[np.int64]) -> None:
        self._grid = grid
        first, last = crops[:, 0].min() // grid.width, -(-crops[:, 2].max() // grid.width)
        self._left = int(first) * grid.width
        self._rows = int((-(-crops[:, 3] // grid.height) - crops[:, 1] // grid.height).max())
        shape = (self._rows * grid.height, int(last - first) * grid.width, 3)
        self._pixels = np.empty(max(int(np.prod(shape)), 8 << 20), np.uint8)[: int(np.prod(shape))].reshape(shape)

    def paste(self, index: int, pixels: RgbImage | str | None) -> None:
        row, column = divmod(index, self._grid.columns)
        y, x = row % self._rows * self._grid.height, column * self._grid.width - self._left
        if isinstance(pixels, np.ndarray):
            self._pixels[y : y + len(pixels), x : x + pixels.shape[1]] = pixels
        else:
            self._pixels[y : y + self._grid.height, x : x + self._grid.width] = WHITE

    def cut(self, crops: NDArray[np.int64], patches: PatchBatch) -> None:
        """Copies windows of one row, (n, 4), to patches of their size; neighbours that touch in one go."""
        side = patches.shape[1]
        x0 = (crops[:, 0] - self._left).tolist()
        runs = list(pairwise([0, *(k for k in range(1, len(x0)) if x0[k] - x0[k - 1] != side), len(x0)]))
        top = 0
        for rows in self._spans(*crops[0, 1::2].tolist()):
            bottom = top + len(rows)
            for a, b in runs:
                window = rows[:, x0[a] : x0[a] + (b - a) * side]
                patches[a:b, top:bottom].swapaxes(0, 1)[:] = window.reshape(len(rows), b - a, side, 3)
            top = bottom

    def window(self, x0: int, y0: int, x1: int, y1: int) -> RgbImage:
        """A copy of the pixels of a window."""
        return np.concatenate([rows[:, x0 - self._left : x1 - self._left] for rows in self._spans(y0, y1)])

    def _spans(self, y0: int, y1: int) -> Iterator[RgbImage]:
        """The rows y0 to y1 of the level: one piece, or two where they go round the end."""
        while y0 < y1:
            start = y0 % len(self._pixels)
            span = self._pixels[start : start + y1 - y0]
            yield span
            y0 += len(span)


def _resample_all(canvas: _Canvas, crops: NDArray[np.int64], boxes: NDArray[np.float64], patches: PatchBatch) -> None:
    for patch, crop, box in zip(patches, crops.tolist(), boxes, strict=True):
        patch[:] = resample(canvas.window(*crop), box - [crop[0], crop[1], crop[0], crop[1]], len(patch))


def _crops(boxes: NDArray[np.float64]) -> NDArray[np.int64]:
    """The whole pixels that a box touches, (n, 4)."""
    rounded = np.rint(boxes)
    boxes = np.where(np.abs(boxes - rounded) < 1e-6, rounded, boxes)
    return np.concatenate([np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])], axis=1).astype(np.int64)


def resample(pixels: RgbImage, box: NDArray[np.float64], side: int) -> RgbImage:
    """Brings a fractional window of an image to `side` x `side` px with Pillow's BOX filter.

    Args:
        pixels: uint8 (height, width, 3).
        box: (x0, y0, x1, y1) of the window within `pixels`.
        side: px of the result.
    """
    height, width = pixels.shape[:2]
    x0, y0, x1, y1 = (float(v) for v in np.clip(box, 0, [width, height, width, height]))
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((side, side), Image.Resampling.BOX, box=(x0, y0, x1, y1)))
