"""From a tissue mask to patch coordinates, and from decoded segments to patches.

A plan is pure geometry. Reading goes down the slide one row of patches (a band) at a time. A segment
under it is decoded, copied into this band and those below that it reaches, and dropped. So each segment
is decoded once, and memory follows the width of the slide, never its area.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from her2cache.errors import EmptyPlanError
from her2cache.pyramid import ReadPlan
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
    """

    mpp: float = 0.5
    patch_px: int = 96
    stride_px: int = 96
    min_tissue: float = 0.5
    snap_tolerance: float = 0.01
    resample: str = "box"


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


def plan_patches(spec: PatchSpec, read: ReadPlan, level_size: tuple[int, int], tissue: TissueMask) -> PatchPlan:
    """Lays the grid over a level and keeps the patches with enough tissue.

    Only patches wholly inside the slide are planned.

    Args:
        spec: what a patch is.
        read: the level and the resampling factor, from `pyramid.plan_read`.
        level_size: (width, height) of that level, px.
        tissue: the tissue mask of the slide.

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
class PatchBand:
    """Patches of one row of the grid, in plan order.

    Attributes:
        start: plan index of the first.
        patches: uint8 (n, patch_px, patch_px, 3).
        ok: bool (n,); False where a segment could not be decoded (it is white then, which means nothing).
        reasons: why, one a broken segment.
    """

    start: int
    patches: PatchBatch
    ok: NDArray[np.bool_]
    reasons: list[str]


def read_bands(source: SegmentSource, plan: PatchPlan) -> Iterator[PatchBand]:
    """Reads the patches of a plan, a row of the grid at a time, each segment decoded once.

    Args:
        source: the slide.
        plan: its plan; patches are in raster order.

    Yields:
        Every patch of the plan, in plan order.
    """
    level = plan.read.level
    grid = source.segment_grid(level)
    crops = _crops(plan.boxes)  # (n, 4)
    bounds = np.flatnonzero(np.diff(plan.grid[:, 1], prepend=-1, append=-1)).tolist()
    waiting = deque((int(crops[start, 1]), slice(start, stop)) for start, stop in pairwise(bounds))
    begun: deque[_Band] = deque()
    decoded = np.zeros(grid.rows * grid.columns, np.bool_)
    while waiting or begun:
        if not begun:
            begun.append(_Band(plan, crops, waiting.popleft()[1]))
        under = begun[0].segments(grid)
        missing = under[~decoded[under]]
        decoded[missing] = True
        for index, pixels in source.segments(level, missing):
            row, column = divmod(index, grid.columns)
            while waiting and waiting[0][0] < (row + 1) * grid.height:
                begun.append(_Band(plan, crops, waiting.popleft()[1]))
            for band in begun:
                band.paste(column * grid.width, row * grid.height, grid, pixels)
        yield begun.popleft().finished()


class _Band:
    """A row of patches that is being put together, segment by segment.

    Attributes:
        x0, x1: first column and end of the window of each patch in the level, ascending.
        y0, y1: the same of the rows, for all.
    """

    def __init__(self, plan: PatchPlan, crops: NDArray[np.int64], place: slice) -> None:
        self._plan, self._place = plan, place
        self.x0: list[int] = crops[place, 0].tolist()
        self.x1: list[int] = crops[place, 2].tolist()
        self.y0, self.y1 = (int(y) for y in crops[place.start, [1, 3]])
        self._canvas = np.empty((self.y1 - self.y0, self.x1[-1] - self.x0[0], 3), np.uint8)
        self._ok = np.ones(len(self.x0), np.bool_)
        self._reasons: list[str] = []

    def segments(self, grid: SegmentGrid) -> NDArray[np.int64]:
        """Indices of the segments under its patches, in file order."""
        width = grid.width
        columns = {c for x0, x1 in zip(self.x0, self.x1, strict=True) for c in range(x0 // width, -(-x1 // width))}
        rows = np.arange(self.y0 // grid.height, -(-self.y1 // grid.height))
        return (rows[:, None] * grid.columns + np.array(sorted(columns))).ravel()

    def paste(self, x: int, y: int, grid: SegmentGrid, pixels: RgbImage | str | None) -> None:
        """Copies the part of a segment at (x, y) of the level that lies in the band."""
        top, bottom = max(self.y0, y), min(self.y1, y + grid.height)
        left, right = max(self.x0[0], x), min(self.x1[-1], x + grid.width)
        if top >= bottom or left >= right:
            return
        known = isinstance(pixels, np.ndarray)
        part = pixels[top - y : bottom - y, left - x : right - x] if known else WHITE
        self._canvas[top - self.y0 : bottom - self.y0, left - self.x0[0] : right - self.x0[0]] = part
        touched = slice(bisect_right(self.x1, x), bisect_left(self.x0, x + grid.width))
        if isinstance(pixels, str) and touched.start < touched.stop:
            self._ok[touched] = False
            self._reasons.append(pixels)

    def finished(self) -> PatchBand:
        """Its patches, cut out and brought to the target scale."""
        native, side = self._plan.read.factor == 1, self._plan.patch_px
        patches = np.empty((len(self.x0), side, side, 3), np.uint8)
        for k, box in enumerate(self._plan.boxes[self._place]):
            window = self._canvas[:, self.x0[k] - self.x0[0] : self.x1[k] - self.x0[0]]
            patches[k] = window if native else resample(window, box - [self.x0[k], self.y0, self.x0[k], self.y0], side)
        return PatchBand(self._place.start, patches, self._ok, self._reasons)


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
