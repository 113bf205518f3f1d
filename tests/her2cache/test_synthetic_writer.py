"""Slides written region by region, and the synthetic cohort's use of it."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from her2cache.synthetic.anatomy import AnatomyModel
from her2cache.synthetic.cohort import tumour_fraction, write_synthetic_cohort
from her2cache.synthetic.noise import Window
from her2cache.synthetic.section import Section, halo_px, without_halo
from her2cache.synthetic.specimen import draw_case
from her2cache.synthetic.writer import REGION_PX, write_regions
from her2cache.units import RgbImage
from tests.slides import texture


def _whole_levels(path: Path, pixels: RgbImage, mpp: float) -> None:
    """What the writer does, with every level in memory."""
    levels = [pixels]
    while max(levels[-1].shape[:2]) > 512:
        levels.append(np.asarray(Image.fromarray(levels[-1]).reduce(4)))
    with tifffile.TiffWriter(path) as tiff:
        for k, level in enumerate(levels):
            resolution = (1e4 / (mpp * 4**k),) * 2
            tiff.write(
                level,
                tile=(256, 256),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 85},
                resolution=resolution,
                resolutionunit="CENTIMETER",
                subfiletype=int(k > 0),
                metadata=None,
                software=False,
            )


class TestWriter:
    @pytest.mark.parametrize("size", [(100, 70), (1536, 1536), (1537, 600), (700, 3100), (2311, 1999)])
    def test_the_same_bytes_as_from_memory(self, size: tuple[int, int], tmp_path: Path) -> None:
        pixels = texture(*size)
        asked: list[tuple[int, int, int, int]] = []

        def render(x: int, y: int, width: int, height: int) -> RgbImage:
            asked.append((x, y, width, height))
            return pixels[y : y + height, x : x + width]

        write_regions(tmp_path / "regions.tif", size, render, 0.25)
        _whole_levels(tmp_path / "whole.tif", pixels, 0.25)
        assert (tmp_path / "regions.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()
        assert len(list(tmp_path.iterdir())) == 2
        assert len(set(asked)) == len(asked)
        assert sum(width * height for _, _, width, height in asked) == size[0] * size[1]
        assert max(max(width, height) for _, _, width, height in asked) <= REGION_PX

    def test_memory_follows_the_width(self, tmp_path: Path) -> None:
        region = texture(512, 512)

        def peak(height: int) -> int:
            tracemalloc.start()
            try:
                write_regions(tmp_path / "s.tif", (512, height), lambda x, y, w, h: np.resize(region, (h, w, 3)), 0.5)
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

        peak(2000)  # what is loaded once
        assert peak(24_000) < 1.3 * peak(6_000)

    def test_a_failure_leaves_nothing(self, tmp_path: Path) -> None:
        def render(x: int, y: int, width: int, height: int) -> RgbImage:
            if y:
                raise OSError(28, "No space left on device")
            return np.zeros((height, width, 3), np.uint8)

        with pytest.raises(OSError, match="No space"):
            write_regions(tmp_path / "s.tif", (600, 3000), render, 0.5)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_slide_of_several_regions_shows_the_same_section(tmp_path: Path) -> None:
    """And its truth map too; the second column and row of regions are a few pixels wide and mostly glass."""
    width = 1700
    write_synthetic_cohort(tmp_path, slides=1, width_px=width, mpp=0.25, seed=3, workers=1)
    case, window = draw_case(3, 1), Window(0.0, 0.0, width, width, 0.25).grown(halo_px(0.25))
    anatomy = AnatomyModel(case, width * 0.25, width * 0.25).window(window)
    for stain in ("HE", "IHC"):
        whole = Section(case, stain).render(anatomy)
        _whole_levels(tmp_path / "whole.tif", whole, 0.25)
        found = tifffile.imread(tmp_path / "slides" / f"case-001-{stain}.tif").astype(int)
        difference = np.abs(found - tifffile.imread(tmp_path / "whole.tif"))
        assert (difference <= 1).mean() > 0.998, stain
    with np.load(tmp_path / "truth" / "case-001-HE.npz") as truth:
        expected = tumour_fraction(anatomy.tumour[without_halo(window)], 0.25)
        np.testing.assert_allclose(truth["tumour_fraction"], expected, atol=1e-3)


def test_a_window_without_a_cell_can_be_rendered() -> None:
    """As a region on the glass around the tissue is."""
    case = draw_case(3, 2)
    anatomy = AnatomyModel(case, 4000.0, 4000.0).window(Window(0.0, 0.0, 64, 3, 0.5).grown(halo_px(0.5)))
    assert anatomy.tissue.max() == 0
    for stain in ("HE", "IHC"):
        section = Section(case, stain)
        assert np.abs(section.render(anatomy).mean(axis=(0, 1)) - section.staining.white).max() < 3


def test_thresholds_of_an_overview_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    case = draw_case(3, 2)
    whole = AnatomyModel(case, 2000.0, 1600.0)
    monkeypatch.setattr("her2cache.synthetic.anatomy._OVERVIEW_PART_PX", 60)
    parts = AnatomyModel(case, 2000.0, 1600.0)
    assert parts._nest_level == pytest.approx(whole._nest_level, abs=1e-4)
    assert parts._fat_level == pytest.approx(whole._fat_level, abs=1e-4)
