"""From a tissue mask to patch coordinates, and from decoded segments to patches.

A plan is pure geometry. Reading goes down the slide one row of patches (a band) at a time: the
segments under the band are decoded, pasted into one canvas and cut into patches, and a segment is
kept only while a later band still touches it. So each segment is decoded once and memory follows the
width of the slide, never its area.
"""

from __future__ import annotations

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
        ok: bool (n,); False where a segment could not be decoded (the pixels are then meaningless).
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
    bounds = np.flatnonzero(np.diff(plan.grid[:, 1], prepend=-1, append=-1))
    bands = [slice(int(start), int(stop)) for start, stop in pairwise(bounds)]
    needed = [_touched(grid, crops[band]) for band in bands]
    last_use = {int(index): k for k, indices in enumerate(needed) for index in indices}

    kept: dict[int, RgbImage | str | None] = {}
    canvas = np.empty((0, 0, 3), np.uint8)
    for k, (band, indices) in enumerate(zip(bands, needed, strict=True)):
        missing = np.array([i for i in indices if int(i) not in kept], np.int64)
        kept.update(source.segments(level, missing))
        left, top = crops[band, :2].min(axis=0)
        right, bottom = crops[band, 2:].max(axis=0)
        if canvas.shape[0] < bottom - top or canvas.shape[1] < right - left:
            canvas = np.empty((bottom - top, right - left, 3), np.uint8)
        broken = _paste(canvas, (int(left), int(top), int(right), int(bottom)), grid, indices, kept)
        yield PatchBand(
            start=band.start,
            patches=_cut(canvas, (int(left), int(top)), plan, crops, band),
            ok=_untouched(grid, crops[band], list(broken)),
            reasons=list(broken.values()),
        )
        for index in indices:
            if last_use[int(index)] == k:
                del kept[int(index)]


def _crops(boxes: NDArray[np.float64]) -> NDArray[np.int64]:
    """The whole pixels that a box touches, (n, 4)."""
    rounded = np.rint(boxes)
    boxes = np.where(np.abs(boxes - rounded) < 1e-6, rounded, boxes)
    return np.concatenate([np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])], axis=1).astype(np.int64)


def _touched(grid: SegmentGrid, crops: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of the segments under some crops, in file order."""
    marks = np.zeros((grid.rows, grid.columns), np.bool_)
    for x0, y0, x1, y1 in crops:
        marks[y0 // grid.height : -(-y1 // grid.height), x0 // grid.width : -(-x1 // grid.width)] = True
    return np.flatnonzero(marks)


def _untouched(grid: SegmentGrid, crops: NDArray[np.int64], broken: list[int]) -> NDArray[np.bool_]:
    """Which crops lie on none of the broken segments, (n,)."""
    ok = np.ones(len(crops), np.bool_)
    for index in broken:
        row, column = divmod(index, grid.columns)
        x, y = column * grid.width, row * grid.height
        hit = (crops[:, 0] < x + grid.width) & (crops[:, 2] > x) & (crops[:, 1] < y + grid.height) & (crops[:, 3] > y)
        ok &= ~hit
    return ok


def _paste(
    canvas: RgbImage,
    window: tuple[int, int, int, int],
    grid: SegmentGrid,
    indices: NDArray[np.int64],
    decoded: dict[int, RgbImage | str | None],
) -> dict[int, str]:
    """Pastes segments into the canvas of a window of the level; returns those that are broken, and why."""
    left, top, right, bottom = window
    broken: dict[int, str] = {}
    for index in map(int, indices):
        row, column = divmod(index, grid.columns)
        x, y = column * grid.width, row * grid.height
        x0, y0 = max(x, left), max(y, top)
        x1, y1 = min(x + grid.width, right), min(y + grid.height, bottom)
        pixels = decoded[index]
        if isinstance(pixels, str):
            broken[index] = pixels
        elif pixels is None:
            canvas[y0 - top : y1 - top, x0 - left : x1 - left] = WHITE
        else:
            canvas[y0 - top : y1 - top, x0 - left : x1 - left] = pixels[y0 - y : y1 - y, x0 - x : x1 - x]
    return broken


def _cut(
    canvas: RgbImage,
    origin: tuple[int, int],
    plan: PatchPlan,
    crops: NDArray[np.int64],
    band: slice,
) -> PatchBatch:
    """Cuts the patches of a band out of its canvas, (n, patch_px, patch_px, 3)."""
    side = plan.patch_px
    patches = np.empty((band.stop - band.start, side, side, 3), np.uint8)
    offset = np.array([*origin, *origin])
    for patch, box, crop in zip(patches, plan.boxes[band], crops[band], strict=True):
        x0, y0, x1, y1 = crop - offset
        pixels = canvas[y0:y1, x0:x1]
        patch[:] = pixels if plan.read.factor == 1 else resample(pixels, box - crop[[0, 1, 0, 1]], side)
    return patches


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
