"""Plans, and reading them band by band; the properties for any geometry are in tests/property."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from her2cache.canvas import SegmentGrid
from her2cache.errors import EmptyPlanError
from her2cache.pyramid import ReadPlan, plan_read
from her2cache.slide import open_slide
from her2cache.tiling import PatchPlan, PatchSpec, plan_patches, read_blocks, resample
from her2cache.tissue import TissueMask
from her2cache.units import BoolImage, PatchBatch, RgbImage
from tests.memory import MemorySlide
from tests.slides import Damage, corrupt, level_pixels, make_sparse, texture, write_slide

NATIVE = ReadPlan(level=0, downsample=1.0, level_mpp=0.5, factor=1.0, snapped=False)
SPEC = PatchSpec(patch_px=48, stride_px=48)


def plan_with(
    size: tuple[int, int], eligible: NDArray[np.bool_] | None = None, read: ReadPlan = NATIVE, spec: PatchSpec = SPEC
) -> PatchPlan:
    """A plan of a level, restricted to some patches of the full grid."""
    level0 = np.ceil(np.array(size) * read.downsample).astype(int)
    full = plan_patches(spec, read, size, TissueMask(np.ones((level0[1], level0[0]), np.bool_), 1.0))
    keep = np.ones(len(full), np.bool_) if eligible is None else eligible
    return PatchPlan(read, spec.patch_px, full.grid[keep], full.coords[keep], full.boxes[keep], full.grid_shape)


def read_all(source: object, plan: PatchPlan, size: int = 16) -> tuple[PatchBatch, NDArray[np.bool_], list[str]]:
    """Every patch of a plan, checked to come once and in order."""
    patches: list[PatchBatch] = []
    ok: list[NDArray[np.bool_]] = []
    reasons: list[str] = []
    for block in read_blocks(source, plan, size):  # pyright: ignore[reportArgumentType]
        assert block.start == sum(map(len, ok))
        assert len(block.patches) == len(block.ok) == min(size, len(plan) - block.start)
        patches.append(block.patches)
        ok.append(block.ok)
        reasons += block.reasons
    assert sum(map(len, ok)) == len(plan)
    return np.concatenate(patches), np.concatenate(ok), reasons


def touched(plan: PatchPlan, grid: SegmentGrid, index: int) -> NDArray[np.bool_]:
    """Which patches overlap a segment."""
    y, x = (index // grid.columns) * grid.height, (index % grid.columns) * grid.width
    x0, y0, x1, y1 = plan.boxes.T
    return (x0 < x + grid.width) & (x1 > x) & (y0 < y + grid.height) & (y1 > y)


class TestPlan:
    def test_order_grid_and_coordinates(self) -> None:
        plan = plan_with((150, 100))
        assert plan.grid_shape == (3, 2)
        assert plan.grid.tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]]
        assert plan.coords.tolist() == [[0, 0], [48, 0], [96, 0], [0, 48], [48, 48], [96, 48]]
        assert (plan.grid.dtype, plan.coords.dtype, plan.boxes.dtype) == (np.int32, np.int32, np.float64)

    def test_coordinates_are_of_level_0_and_boxes_of_the_level(self) -> None:
        read = plan_read(0.25, [1.0, 2.0], 0.75)
        plan = plan_with((200, 100), read=read)
        assert plan.boxes[1].tolist() == [72, 0, 144, 72]
        assert plan.coords[1].tolist() == [144, 0]

    @pytest.mark.parametrize(("min_tissue", "columns"), [(0.0, 5), (0.01, 4), (0.5, 4), (0.51, 3), (1.0, 3)])
    def test_eligible_from_the_least_share_on(self, min_tissue: float, columns: int) -> None:
        mask = np.zeros((10, 50), np.bool_)
        mask[:, :35] = True  # in mask px of 7 level-0 px: patches of 10, 3.5 of them tissue
        spec = PatchSpec(patch_px=70, stride_px=70, min_tissue=min_tissue)
        plan = plan_patches(spec, NATIVE, (350, 70), TissueMask(mask, 7.0))
        assert plan.grid[:, 0].tolist() == list(range(columns))

    @pytest.mark.parametrize(("mpp", "width", "columns"), [(0.3125, 768, 5), (0.35, 2880, 21), (0.22, 9600, 44)])
    def test_a_slide_of_so_many_patches_holds_them_all(self, mpp: float, width: int, columns: int) -> None:
        """Though in floating point they come out a bit wider than the slide."""
        read, spec = plan_read(mpp, [1.0], 0.5), PatchSpec()
        for extra, expected in ((0, columns), (1, columns), (-1, columns - 1)):
            size = (width + extra, 300)
            plan = plan_patches(spec, read, size, TissueMask(np.ones((1, 1), np.bool_), 1e5))
            assert plan.grid_shape[0] == expected
            assert plan.boxes[:, 2].max() <= size[0]

    def test_full_tissue_is_eligible_at_any_scale(self) -> None:
        spec = PatchSpec(patch_px=48, stride_px=31, min_tissue=1.0)
        read = plan_read(0.2277, [1.0], 0.5)
        plan = plan_patches(spec, read, (997, 613), TissueMask(np.ones((71, 114), np.bool_), 8.77))
        assert len(plan) == plan.grid_shape[0] * plan.grid_shape[1]

    @pytest.mark.parametrize("size", [(47, 500), (500, 47), (1, 1), (47, 47)])
    def test_a_level_smaller_than_a_patch_has_none(self, size: tuple[int, int]) -> None:
        with pytest.raises(EmptyPlanError, match=r"none of 0 patches.*smaller than a patch"):
            plan_with(size)

    def test_no_tissue_is_an_error_with_a_remedy(self) -> None:
        with pytest.raises(EmptyPlanError, match=r"blank.*--stain HE\|IHC, or lower --min-tissue"):
            plan_patches(SPEC, NATIVE, (500, 500), TissueMask(np.zeros((50, 50), np.bool_), 10.0))


class TestMemory:
    def test_follows_the_width_not_the_height(self) -> None:
        def peak(height: int) -> int:
            pixels = texture(400, 300)
            source = MemorySlide(np.tile(pixels, (height // 300, 1, 1)), 64, 32)
            plan = plan_with((400, height))
            tracemalloc.start()
            for block in read_blocks(source, plan, 8):
                del block
            try:
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

        assert peak(6000) < 1.2 * peak(1200)

    def test_patches_are_copies(self) -> None:
        plan = plan_with((400, 200))
        blocks = list(read_blocks(MemorySlide(texture(400, 200), 64, 32), plan, 5))
        patches, _, _ = read_all(MemorySlide(texture(400, 200), 64, 32), plan)
        assert np.array_equal(np.concatenate([block.patches for block in blocks]), patches)

    def test_memory_is_used_again_only_when_nobody_holds_it(self) -> None:
        plan = plan_with((400, 1200))
        held: list[RgbImage] = []
        seen: list[int] = []
        expected, _, _ = read_all(MemorySlide(texture(400, 1200), 64, 32), plan)
        for k, block in enumerate(read_blocks(MemorySlide(texture(400, 1200), 64, 32), plan, 10)):
            seen.append(block.patches.ctypes.data)
            if k % 4 == 0:
                held.append(block.patches[3])  # a view keeps the whole block
        assert all(np.array_equal(patch, expected[40 * k + 3]) for k, patch in enumerate(held))
        assert len(held) < len(set(seen)) <= len(held) + 2 < len(seen)

    @pytest.mark.parametrize("size", [1, 3, 8, 9, 1000])
    def test_blocks_of_any_size_hold_the_same(self, size: int) -> None:
        source, plan = MemorySlide(texture(400, 200), 64, 32, broken={9}), plan_with((400, 200))
        patches, ok, reasons = read_all(source, plan, size)
        expected = read_all(MemorySlide(texture(400, 200), 64, 32, broken={9}), plan)
        assert np.array_equal(patches, expected[0])
        assert np.array_equal(ok, expected[1])
        assert set(reasons) == set(expected[2]) == {"segment 9 is broken"}
        assert max(source.asked.values()) == 1


def _naive(level: RgbImage, plan: PatchPlan) -> PatchBatch:
    return np.stack([level[y0:y1, x0:x1] for x0, y0, x1, y1 in plan.boxes.astype(int)])


SIZE = (500, 420)


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return write_slide(tmp_path / "slide.tiff", texture(*SIZE))


def _scattered(plan: PatchPlan) -> NDArray[np.bool_]:
    keep = np.random.default_rng(0).random(len(plan)) < 0.3
    keep[plan.grid[:, 1] == 2] = False  # a band without a patch
    return keep


class TestFiles:
    @pytest.mark.parametrize("segment_px", [(16, 16), (64, 64), (256, 256), (32, 128), None])
    @pytest.mark.parametrize("compression", ["jpeg", None, "deflate", "lzw"])
    def test_exact_whatever_the_segments(
        self, tmp_path: Path, segment_px: tuple[int, int] | None, compression: str | None
    ) -> None:
        options = {} if segment_px else {"rowsperstrip": 16}
        path = write_slide(
            tmp_path / "s.tiff", texture(*SIZE), segment_px=segment_px, compression=compression, **options
        )
        plan = plan_with(SIZE)
        with open_slide(path) as reader:
            patches, ok, _ = read_all(reader, plan)
        assert ok.all()
        assert np.array_equal(patches, _naive(level_pixels(path), plan))

    def test_only_segments_under_a_patch_are_decoded_once(self, slide: Path) -> None:
        keep = _scattered(plan_with(SIZE))
        plan = plan_with(SIZE, keep)
        with open_slide(slide) as reader:
            grid = reader.segment_grid(0)
            patches, _, _ = read_all(reader, plan)
            used = sum(bool(touched(plan, grid, k).any()) for k in range(grid.columns * grid.rows))
            assert reader.decoded == [used]
            assert used < grid.columns * grid.rows
        assert np.array_equal(patches, _naive(level_pixels(slide), plan))

    @pytest.mark.parametrize("stride_px", [7, 24, 47, 60])
    def test_any_stride(self, slide: Path, stride_px: int) -> None:
        spec = PatchSpec(patch_px=48, stride_px=stride_px)
        plan = plan_with(SIZE, spec=spec)
        with open_slide(slide) as reader:
            patches, _, _ = read_all(reader, plan)
            grid = reader.segment_grid(0)
            assert reader.decoded[0] <= grid.columns * grid.rows
        assert np.array_equal(patches, _naive(level_pixels(slide), plan))

    def test_a_coarser_level(self, tmp_path: Path) -> None:
        path = write_slide(tmp_path / "s.tiff", texture(1001, 843), mpp=0.25, factors=(1, 2, 4))
        with open_slide(path) as reader:
            read = plan_read(0.25, reader.downsamples, 0.5)
            plan = plan_with(reader.level_sizes[1], read=read)
            patches, _, _ = read_all(reader, plan)
            assert reader.decoded[0] == reader.decoded[2] == 0
        assert np.array_equal(patches, _naive(level_pixels(path, 1), plan))

    def test_sparse_segments_are_white(self, slide: Path) -> None:
        expected = level_pixels(slide).copy()
        make_sparse(slide, [9, 17])
        for index in (9, 17):
            y, x = index // 8 * 64, index % 8 * 64
            expected[y : y + 64, x : x + 64] = 255
        plan = plan_with(SIZE)
        with open_slide(slide) as reader:
            patches, ok, reasons = read_all(reader, plan)
            assert reader.decoded == [8 * 6 - 2]  # the seventh row has no patch
        assert ok.all()
        assert reasons == []
        assert np.array_equal(patches, _naive(expected, plan))

    @pytest.mark.parametrize("damage", ["head", "middle", "tail"])
    @pytest.mark.parametrize("indices", [[0], [18, 19, 27], [47]])
    def test_damage_marks_just_the_patches_on_it(self, slide: Path, damage: Damage, indices: list[int]) -> None:
        plan = plan_with(SIZE)
        expected = _naive(level_pixels(slide), plan)
        for index in indices:
            corrupt(slide, index, damage)
        with open_slide(slide) as reader:
            hit = np.any([touched(plan, reader.segment_grid(0), index) for index in indices], axis=0)
            patches, ok, reasons = read_all(reader, plan)
        assert np.array_equal(ok, ~hit)
        assert np.array_equal(patches[ok], expected[ok])
        assert len(reasons) >= len(indices)
        assert all(reasons)

    def test_patches_beside_damage_are_not_marked(self) -> None:
        """Patches and segments with common borders: each patch lies on one segment."""
        plan = plan_with((480, 240))
        for index in (0, 9, 23, 49):
            _, ok, reasons = read_all(MemorySlide(texture(480, 240), 48, 48, broken={index}), plan)
            assert np.flatnonzero(~ok).tolist() == [index]
            assert reasons == [f"segment {index} is broken"]

    @pytest.mark.parametrize("compression", ["jpeg", None, "deflate", "lzw"])
    def test_the_end_of_a_truncated_file_is_marked(self, tmp_path: Path, compression: str | None) -> None:
        slide = write_slide(tmp_path / "s.tiff", texture(*SIZE), compression=compression)
        plan = plan_with(SIZE)
        expected = _naive(level_pixels(slide), plan)
        with slide.open("r+b") as file:
            file.truncate(slide.stat().st_size * 2 // 3)
        with open_slide(slide) as reader:
            patches, ok, reasons = read_all(reader, plan)
        assert 0.4 < ok.mean() < 0.8
        assert np.array_equal(patches[ok], expected[ok])
        assert set(reasons) == {"the file ends before its segment does, or its index is damaged"}


def _checkerboard(width: int, height: int, cell: float) -> BoolImage:
    """White fields of a checkerboard, at pixel centres."""
    x, y = np.floor((np.arange(width) + 0.5) / cell), np.floor((np.arange(height) + 0.5) / cell)
    return (x[None, :] + y[:, None]) % 2 == 0


@pytest.mark.parametrize(
    ("mpp", "downsamples", "target", "upsample"),
    [
        (0.5, [1], 0.5, False),
        (0.5, [1, 4], 0.5, False),
        (0.499, [1], 0.5, False),
        (0.499, [1, 2, 4], 0.5, False),
        (0.25, [1], 0.5, False),
        (0.25, [1, 2, 4], 0.5, False),
        (0.25, [1, 4, 16], 0.5, False),
        (0.2277, [1], 0.5, False),
        (0.2277, [1, 2, 4], 0.5, False),
        (0.2277, [1, 4], 1.0, False),
        (0.25, [1], 1.0, False),
        (0.499, [1], 1.0, False),
        (0.5, [1, 4], 1.0, False),
        (0.5, [1, 2], 1.0, False),
        (1.0, [1, 4], 1.0, False),
        (0.499, [1], 0.8, False),
        (0.25, [1, 2, 4], 1.0, False),
        (1.0, [1, 2], 0.45, True),
    ],
)
def test_a_checkerboard_keeps_its_period(mpp: float, downsamples: list[int], target: float, upsample: bool) -> None:
    """The patches, put side by side, are the checkerboard at the target scale: period, phase and all."""
    cell_um = 11.0
    read = plan_read(mpp, downsamples, target, allow_upsample=upsample)
    width, height = 700, 500
    level = np.where(_checkerboard(width, height, cell_um / read.level_mpp)[..., None], 255, 0).astype(np.uint8)
    plan = plan_with((width, height), read=read, spec=PatchSpec(mpp=target, patch_px=40, stride_px=40))
    patches, _, _ = read_all(MemorySlide(np.repeat(level, 3, axis=2), 64, 32), plan)

    columns, rows = plan.grid_shape
    mosaic = np.zeros((rows * 40, columns * 40), np.uint8)
    for (column, row), patch in zip(plan.grid, patches, strict=True):
        mosaic[row * 40 :, column * 40 :][:40, :40] = patch[..., 0]
    scale = read.level_mpp if read.factor == 1 else target
    cell = cell_um / scale
    inner = np.ones(mosaic.shape, np.bool_)  # away from the borders of the fields, which are grey
    blur = 0.5 + max(1.0, 1 / read.factor)
    for axis, n in enumerate(mosaic.shape):
        phase = (np.arange(n) + 0.5) % cell
        near = np.minimum(phase, cell - phase) < blur
        inner &= ~(near[:, None] if axis == 0 else near[None, :])
    expected = _checkerboard(columns * 40, rows * 40, cell) * 255
    assert inner.mean() > 0.3
    assert np.array_equal(mosaic[inner], expected[inner])


class TestResample:
    def test_whole_factors_are_block_means(self) -> None:
        pixels = texture(60, 40)
        found = resample(pixels, np.array([10.0, 4.0, 42.0, 36.0]), 16)
        means = pixels[4:36, 10:42].reshape(16, 2, 16, 2, 3).mean(axis=(1, 3))
        assert np.abs(found - means).max() <= 1  # Pillow rounds after each axis

    def test_enlarging_repeats_pixels(self) -> None:
        pixels = texture(5, 5)
        found = resample(pixels, np.array([1.0, 2.0, 4.0, 5.0]), 12)
        assert np.array_equal(found, pixels[2:5, 1:4].repeat(4, axis=0).repeat(4, axis=1))
