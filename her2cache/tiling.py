"""From a tissue mask to patch coordinates, and from decoded segments to patches.

A plan is pure geometry. Reading goes down the slide one row of patches at a time, on a canvas that holds the
rows of segments under it: segments are decoded into it, and patches are cut out of it. So each segment is
decoded once, and memory follows the width of the slide, never its area.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from her2cache.canvas import Canvas, SegmentGrid
from her2cache.errors import ConfigError, EmptyPlanError
from her2cache.pyramid import ReadPlan
from her2cache.regions import Regions
from her2cache.tissue import TissueMask
from her2cache.units import Coords, PatchBatch, RgbImage


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


_BAND_ROWS = 32  # rows of the grid that are planned together


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
    planned: list[tuple[NDArray[np.int32], NDArray[np.float64]]] = []
    inside = regions is None
    for top in range(0, rows if columns else 0, _BAND_ROWS):  # a slide has a million places for a patch
        row, column = np.divmod(
            np.arange(top * columns, min(rows, top + _BAND_ROWS) * columns, dtype=np.int32), columns
        )
        x0, y0 = column * stride, row * stride  # (band,)
        boxes = np.minimum(np.stack([x0, y0, x0 + side, y0 + side], axis=1), [*level_size, *level_size])  # (band, 4)
        # a share is a quotient of sums: 1 may come out a bit less
        eligible = tissue.share(boxes * read.downsample) >= spec.min_tissue - 1e-9  # (band,)
        if regions is not None:
            within = regions.contain((boxes[:, :2] + boxes[:, 2:]) / 2 * read.downsample)  # (band,)
            inside |= bool(within.any())
            eligible &= within
        planned.append((np.stack([column, row], axis=1)[eligible], boxes[eligible]))
    if not inside:
        raise EmptyPlanError(
            "no patch has its centre in the regions of interest: they lie outside the slide, or are not in level-0"
            " px; look at both in QuPath, or clear the cell regions of the cohort table"
        )
    if not any(len(boxes) for _, boxes in planned):
        raise EmptyPlanError(
            f"none of {columns * rows} patches of {spec.patch_px} px at {spec.mpp:g} um/px has {spec.min_tissue:.0%}"
            f" tissue (the mask covers {tissue.mask.mean():.1%} of the slide): the slide is blank, smaller than a"
            " patch, or of a stain the thresholds do not fit; choose the preset with --stain HE|IHC, or lower"
            " --min-tissue"
        )
    grid, boxes = (np.concatenate(parts) for parts in zip(*planned, strict=True))
    return PatchPlan(
        read=read,
        patch_px=spec.patch_px,
        grid=grid,
        coords=np.rint(boxes[:, :2] * read.downsample).astype(np.int32),
        boxes=boxes,
        grid_shape=(columns, rows),
    )


class SegmentSource(Protocol):
    """Anything that decodes the segments of a level (slide.SlideReader does)."""

    def segment_grid(self, level: int) -> SegmentGrid: ...

    def decode(
        self, level: int, indices: NDArray[np.int64], place: Callable[[int], RgbImage]
    ) -> Iterator[tuple[int, str | None]]:
        """Decodes segments, each into its place; yields (index, why it cannot be decoded or None)."""
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
    crops = whole_pixels(plan.boxes)  # (n, 4)
    strips = _strips(plan, size)
    canvas = Canvas(grid, crops)
    memory = _Memory(plan, min(size, len(plan)))
    block = memory.block(0)
    broken: dict[int, str] = {}
    for (start, stop), missing in zip(pairwise(strips), _needed(crops, grid, strips), strict=True):
        if start == block.start + len(block.ok):
            block = memory.block(start)
        decoded = source.decode(level, missing, canvas.place)
        broken |= {index: reason for index, reason in decoded if reason is not None}
        place = slice(start - block.start, stop - block.start)
        if plan.read.factor == 1:
            canvas.cut(crops[start:stop], block.patches[place])
        else:
            _resample_all(canvas, crops[start:stop], plan.boxes[start:stop], block.patches[place])
        broken = {k: reason for k, reason in broken.items() if (k // grid.columns + 1) * grid.height > crops[start, 1]}
        for index, reason in broken.items():
            on_it = _overlap(crops[start:stop], grid, index)
            block.ok[place] &= ~on_it
            block.reasons.extend([reason] if on_it.any() else [])
        if stop == block.start + len(block.ok):
            yield block


def _strips(plan: PatchPlan, size: int) -> list[int]:
    """Bounds of the runs of a plan that lie in one row of the grid and in one block."""
    rows = np.flatnonzero(np.diff(plan.grid[:, 1], prepend=-1, append=-1))
    return np.union1d(rows, np.arange(0, len(plan), size)).tolist()


def _needed(crops: NDArray[np.int64], grid: SegmentGrid, strips: list[int]) -> list[NDArray[np.int64]]:
    """Indices of the segments that each strip of windows lies on and none before it, in file order."""
    x0, y0 = crops[:, 0] // grid.width, crops[:, 1] // grid.height
    x1, y1 = -(-crops[:, 2] // grid.width) - 1, -(-crops[:, 3] // grid.height) - 1
    strip = np.repeat(np.arange(len(strips) - 1), np.diff(strips))  # of each window
    first = np.full(grid.rows * grid.columns, len(strips) - 1)  # strip on each segment
    for dy in range(int((y1 - y0).max()) + 1):
        for dx in range(int((x1 - x0).max()) + 1):
            np.minimum.at(first, np.minimum(y0 + dy, y1) * grid.columns + np.minimum(x0 + dx, x1), strip)
    return np.split(np.argsort(first, kind="stable"), np.searchsorted(np.sort(first), np.arange(1, len(strips))))[:-1]


def _overlap(crops: NDArray[np.int64], grid: SegmentGrid, index: int) -> NDArray[np.bool_]:
    """Which windows lie on a segment."""
    row, column = divmod(index, grid.columns)
    x, y = column * grid.width, row * grid.height
    x0, y0, x1, y1 = crops.T
    return (x0 < x + grid.width) & (x1 > x) & (y0 < y + grid.height) & (y1 > y)


class _Memory:
    """Memory of blocks, used again as soon as nobody looks at it: fresh pages cost as much as filling them."""

    def __init__(self, plan: PatchPlan, size: int) -> None:
        self._plan, self._size = plan, size
        self._free: list[memoryview] = []

    def block(self, start: int) -> DecodedBlock:
        """An empty block."""
        n, side = min(self._size, len(self._plan) - start), self._plan.patch_px
        memory = self._free.pop() if self._free else np.empty(self._size * side * side * 3, np.uint8).data
        whole = np.frombuffer(memory, np.uint8)  # the base of every view of it
        weakref.finalize(whole, self._free.append, memory).atexit = False
        patches = whole[: n * side * side * 3].reshape(n, side, side, 3)
        return DecodedBlock(start, patches, np.ones(n, np.bool_), [])


def _resample_all(canvas: Canvas, crops: NDArray[np.int64], boxes: NDArray[np.float64], patches: PatchBatch) -> None:
    for patch, crop, box in zip(patches, crops.tolist(), boxes, strict=True):
        patch[:] = resample(canvas.window(*crop), box - [crop[0], crop[1], crop[0], crop[1]], len(patch))


def whole_pixels(boxes: NDArray[np.float64]) -> NDArray[np.int64]:
    """The windows of whole pixels that boxes touch, int64 (n, 4)."""
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
