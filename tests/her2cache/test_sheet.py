"""The contact sheet shows what `embed` would do, and warns of what a person should look at."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from her2cache.cohort import Slide
from her2cache.errors import SlideOpenError
from her2cache.ingest import ReadOptions, SlideSurvey, read_slide
from her2cache.sheet import CELL_PX, sheet_entry, write_sheet
from her2cache.tiling import PatchSpec
from her2cache.tissue import preset
from tests.slides import GLASS, texture, write_slide

OPTIONS = ReadOptions(PatchSpec(), preset("HE"))


def slide(folder: Path, name: str, tissue_px: int, side: int = 1536) -> Slide:
    pixels = np.full((side, side, 3), GLASS, np.uint8)
    pixels[:tissue_px, :tissue_px] = texture(tissue_px, tissue_px) if tissue_px else 0
    return Slide(name, name, write_slide(folder / f"{name}.tif", pixels, segment_px=(256, 256)), "HE")


def test_it_plans_what_embed_reads(tmp_path: Path) -> None:
    half = slide(tmp_path, "half", 1152)
    entry = sheet_entry(half, OPTIONS)
    survey = next(read_slide(half, OPTIONS))
    assert isinstance(survey, SlideSurvey)
    assert entry.n_patches == len(survey.coords) == 144
    assert entry.tissue_share == pytest.approx((1152 / 1536) ** 2, abs=0.02)
    assert (entry.mpp, entry.mpp_source) == (pytest.approx(0.5), "file")
    assert entry.warnings == ()


@pytest.mark.parametrize(("tissue_px", "said"), [(0, "empty"), (480, "almost empty"), (1536, "almost all")])
def test_warnings(tmp_path: Path, tissue_px: int, said: str) -> None:
    assert said in sheet_entry(slide(tmp_path, "s", tissue_px), OPTIONS).warnings[0]


def test_grid_and_outline_are_drawn_where_the_tissue_is(tmp_path: Path) -> None:
    half = slide(tmp_path, "half", 768)
    picture = sheet_entry(half, OPTIONS).picture
    assert max(picture.shape) <= CELL_PX
    blue = (picture == (0, 90, 200)).all(axis=2)
    inside = picture.shape[0] // 2
    assert blue.any()
    assert not blue[inside + 8 :].any()
    assert not blue[:, inside + 8 :].any()


def test_the_sheet_holds_every_slide(tmp_path: Path) -> None:
    entries = [sheet_entry(slide(tmp_path, f"slide-{k}-{'x' * 80}", 768), OPTIONS) for k in range(3)]
    write_sheet(entries, tmp_path / "sheets" / "sheet.png", columns=2)
    with Image.open(tmp_path / "sheets" / "sheet.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape[1] > 2 * CELL_PX
    assert pixels.shape[0] > 2 * CELL_PX
    blue = (pixels == (0, 90, 200)).all(axis=2)
    middle = (pixels.shape[0] // 2, pixels.shape[1] // 2)
    quarters = [blue[: middle[0], : middle[1]], blue[: middle[0], middle[1] :], blue[middle[0] :, : middle[1]]]
    assert all(quarter.any() for quarter in quarters)
    assert not blue[middle[0] :, middle[1] :].any()


def test_a_slide_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SlideOpenError):
        sheet_entry(Slide("no", "no", tmp_path / "no.tif", "HE"), OPTIONS)


def test_regions_are_drawn_and_pen_is_pointed_out(tmp_path: Path) -> None:
    marked = slide(tmp_path, "marked", 768)
    pixels = np.full((1536, 1536, 3), GLASS, np.uint8)
    pixels[:768, :768] = texture(768, 768)
    pixels[900:1100] = (50, 75, 165)
    write_slide(marked.path, pixels, segment_px=(256, 256))
    regions = tmp_path / "regions.geojson"
    ring = [[100, 100], [500, 100], [500, 500], [100, 500], [100, 100]]
    regions.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    entry = sheet_entry(replace(marked, regions=regions), OPTIONS)
    assert entry.n_patches == 16
    assert any("--skip-pen" in warning for warning in entry.warnings)
    red = (entry.picture == (190, 60, 0)).all(axis=2)
    at = np.flatnonzero(red.any(axis=1)) * 1536 / entry.picture.shape[0]
    assert (round(at.min(), -2), round(at.max(), -2)) == (100, 500)
    careful = replace(OPTIONS, tissue=replace(OPTIONS.tissue, skip_pen=True))
    assert not any("pen" in warning for warning in sheet_entry(marked, careful).warnings)
