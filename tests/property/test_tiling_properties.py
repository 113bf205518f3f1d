"""For any scale, size and grid: levels, plans and patches are what a slow definition says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from her2cache.errors import EmptyPlanError, SlideError
from her2cache.pyramid import plan_read
from her2cache.slide import _downsample
from her2cache.tiling import PatchPlan, PatchSpec, plan_patches, read_blocks
from her2cache.tissue import TissueMask
from tests.memory import MemorySlide

SCALES = st.one_of(st.sampled_from([0.2277, 0.25, 0.499, 0.5, 1.0]), st.floats(0.1, 2.0))
PYRAMIDS = st.sampled_from([(1,), (1, 2), (1, 4), (1, 2, 4, 8), (1, 4, 16, 32), (1, 2.0013, 4.0092)])
SIDES = st.integers(1, 3000)


class TestReadPlan:
    @given(SCALES, PYRAMIDS, SCALES, st.floats(0, 0.05))
    def test_coarsest_level_at_least_as_fine(
        self, mpp: float, downsamples: tuple[float, ...], target: float, tolerance: float
    ) -> None:
        scales = [mpp * d for d in downsamples]
        fine = [k for k, scale in enumerate(scales) if scale <= target * (1 + tolerance) * (1 + 1e-9)]
        try:
            plan = plan_read(mpp, downsamples, target, snap_tolerance=tolerance)
        except SlideError:
            assert mpp > target * (1 + tolerance)
            return
        assert plan.level == max(fine)
        assert plan.level_mpp == mpp * plan.downsample
        assert plan.factor >= 1
        if plan.factor == 1:
            assert plan.level_mpp == pytest.approx(target, rel=tolerance + 1e-8)
        else:
            assert plan.level_mpp * plan.factor == pytest.approx(target)
            assert plan.level_mpp < target * (1 - tolerance) * (1 + 1e-8)

    @given(SCALES, PYRAMIDS, SCALES)
    def test_enlarging_only_with_the_flag_and_from_level_0(
        self, mpp: float, downsamples: tuple[float, ...], target: float
    ) -> None:
        plan = plan_read(mpp, downsamples, target, allow_upsample=True)
        if plan.factor < 1:
            assert plan.level == 0
            with pytest.raises(SlideError):
                plan_read(mpp, downsamples, target)
        else:
            assert plan == plan_read(mpp, downsamples, target)


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 64), st.booleans())
def test_a_level_of_rounded_size_has_a_whole_downsample(width: int, height: int, factor: int, up: bool) -> None:
    rounding = math.ceil if up else math.floor
    size = max(1, rounding(width / factor)), max(1, rounding(height / factor))
    assume(min(size) > 2 * factor)  # below, several whole numbers explain the size
    assert _downsample((width, height), size) == factor


class TestPlan:
    @given(
        mpp=SCALES,
        downsamples=PYRAMIDS,
        target=SCALES,
        width=SIDES,
        height=SIDES,
        patch_px=st.integers(8, 300),
        stride_share=st.floats(0.3, 1.5),
    )
    def test_no_gap_no_overlap_nothing_outside(
        self,
        mpp: float,
        downsamples: tuple[float, ...],
        target: float,
        width: int,
        height: int,
        patch_px: int,
        stride_share: float,
    ) -> None:
        read = plan_read(mpp, downsamples, target, allow_upsample=True)
        spec = PatchSpec(mpp=target, patch_px=patch_px, stride_px=max(1, round(patch_px * stride_share)))
        stride, side = spec.stride_px * read.factor, spec.patch_px * read.factor
        assume((width / stride) * (height / stride) < 5_000)
        tissue = TissueMask(np.ones((1, 1), np.bool_), 1e9)
        spec = PatchSpec(mpp=target, patch_px=patch_px, stride_px=spec.stride_px, min_tissue=0)
        try:
            plan = plan_patches(spec, read, (width, height), tissue)
        except EmptyPlanError:
            assert min(width, height) < side
            return

        # inside the slide, and of the right size
        assert plan.boxes.min() >= 0
        assert (plan.boxes[:, 2:] <= [width, height]).all()
        assert np.abs(plan.boxes[:, 2:] - plan.boxes[:, :2] - side).max() < 1e-5
        # as many as fit: another column or row would stick out
        columns, rows = plan.grid_shape
        assert len(plan) == columns * rows
        assert columns * stride + side > width
        assert rows * stride + side > height
        # a stride apart, each cell once, in raster order
        assert np.abs(plan.boxes[:, :2] - plan.grid * stride).max() < 1e-5
        cells = plan.grid[:, 1].astype(int) * columns + plan.grid[:, 0]
        assert np.array_equal(cells, np.arange(columns * rows))
        # level-0 coordinates lead back to the box
        assert np.abs(plan.coords - plan.boxes[:, :2] * read.downsample).max() <= 0.5 + 1e-6


@pytest.mark.parametrize(
    ("mpp", "target"),
    [(mpp, 0.5) for mpp in (0.25, 0.2277, 0.499, 0.5)] + [(mpp, 1.0) for mpp in (0.25, 0.2277, 0.499, 0.5, 0.7, 1.0)],
)
@pytest.mark.parametrize("factors", [(1,), (1, 2, 4), (1, 4, 16)])
@given(width=st.integers(600, 9000), height=st.integers(600, 9000), stride_px=st.sampled_from([48, 96, 120]))
def test_coordinates_lead_back_to_level_0(
    mpp: float, target: float, factors: tuple[int, ...], width: int, height: int, stride_px: int
) -> None:
    """From the slide's own sizes to level-0 pixels: every patch is a stride further on the slide, in um."""
    sizes = [(width // f, height // f) for f in factors]
    downsamples = [_downsample((width, height), size) for size in sizes]
    read = plan_read(mpp, downsamples, target)
    assert abs(read.level_mpp * read.factor / target - 1) <= (0.01 if read.snapped else 1e-9)
    spec = PatchSpec(mpp=target, stride_px=stride_px, min_tissue=0)
    plan = plan_patches(spec, read, sizes[read.level], TissueMask(np.ones((1, 1), np.bool_), 1e9))
    pace = stride_px * read.level_mpp * read.factor / mpp  # level-0 px
    assert np.abs(plan.coords - plan.grid * pace).max() <= 1
    columns, rows = plan.grid_shape
    assert len(plan) == columns * rows
    side = 96 * read.level_mpp * read.factor / mpp
    for count, extent in ((columns, width), (rows, height)):
        assert (count - 1) * pace + side <= extent + 1
        assert count * pace + side > extent - factors[-1]  # one more does not fit; a level may lack some pixels


LEVEL = np.random.default_rng(0).integers(0, 256, (151, 203, 3), np.uint8)


def _slow_patch(level: NDArray[np.uint8], plan: PatchPlan, box: NDArray[np.float64]) -> NDArray[np.uint8]:
    near = np.rint(box)
    x0, y0, x1, y1 = np.where(np.abs(box - near) < 1e-6, near, box)
    left, top = math.floor(x0), math.floor(y0)
    window = level[top : math.ceil(y1), left : math.ceil(x1)]
    if plan.read.factor == 1:
        return window
    height, width = window.shape[:2]
    within = (box[0] - left, box[1] - top, min(box[2] - left, width), min(box[3] - top, height))
    within = tuple(max(0.0, float(v)) for v in within)
    return np.asarray(Image.fromarray(window).resize((plan.patch_px,) * 2, Image.Resampling.BOX, box=within))


class TestBands:
    @given(
        data=st.data(),
        segment=st.tuples(st.integers(1, 80), st.integers(1, 80)),
        patch_px=st.integers(1, 60),
        stride_px=st.integers(1, 70),
        mpp=st.sampled_from([0.5, 0.499, 0.25, 0.2277, 0.31, 1.3]),
        size=st.integers(1, 40),
    )
    def test_equal_to_a_crop_of_the_level(
        self, data: st.DataObject, segment: tuple[int, int], patch_px: int, stride_px: int, mpp: float, size: int
    ) -> None:
        read = plan_read(mpp, [1.0], 0.5, allow_upsample=True)
        height = data.draw(st.integers(1, LEVEL.shape[0]), "height")
        width = data.draw(st.integers(1, LEVEL.shape[1]), "width")
        level = LEVEL[:height, :width]
        stride, side = stride_px * read.factor, patch_px * read.factor
        assume(min(width, height) >= side)
        assume((width / stride) * (height / stride) < 400)
        everywhere = TissueMask(np.ones((1, 1), np.bool_), 1e9)
        full = plan_patches(
            PatchSpec(patch_px=patch_px, stride_px=stride_px, min_tissue=0), read, (width, height), everywhere
        )
        keep = np.array(data.draw(st.lists(st.booleans(), min_size=len(full), max_size=len(full)), "keep"))
        assume(keep.any())
        plan = PatchPlan(read, patch_px, full.grid[keep], full.coords[keep], full.boxes[keep], full.grid_shape)
        segments = -(-width // segment[0]) * -(-height // segment[1])
        wrong = st.sets(st.integers(0, segments - 1), max_size=3)
        sparse, broken = data.draw(wrong, "sparse"), data.draw(wrong, "broken")
        slide = MemorySlide(level, *segment, sparse=sparse, broken=broken - sparse)
        blocks = list(read_blocks(slide, plan, size))

        assert [block.start for block in blocks] == list(range(0, len(plan), size))
        assert all(len(block.ok) == size for block in blocks[:-1])
        patches, ok = np.concatenate([b.patches for b in blocks]), np.concatenate([b.ok for b in blocks])
        assert len(ok) == len(plan)
        whitened = slide.whitened()
        under = set[int]()
        for box, patch, is_ok in zip(plan.boxes, patches, ok, strict=True):
            below = slide.under(box)
            under |= below
            assert is_ok == (not below & slide.broken)
            if is_ok:
                assert np.array_equal(patch, _slow_patch(whitened, plan, box))
        assert slide.asked == dict.fromkeys(under, 1)  # those under a patch, each once
