"""The contact sheet: which patches are at the ends of a map, and that their pixels are those of the slide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from her2cache.slide import open_slide
from trainers.contact import extremes, read_patches, write_contact_sheet


def test_both_ends() -> None:
    values = np.array([3.0, np.nan, -1.0, 7.0, 2.0, 5.0])
    ends = extremes(values, 2)
    assert (ends.top.tolist(), ends.bottom.tolist()) == ([3, 5], [2, 4])
    few = extremes(values, 50)
    assert (few.top.tolist(), few.bottom.tolist()) == ([3, 5, 0], [2, 4])
    assert extremes(np.array([1.0]), 3).bottom.size == 0


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    """Each pixel of the finest level says where it is; two levels."""
    y, x = np.mgrid[:512, :640]
    pixels = np.stack([x % 256, y % 256, x // 256 * 16 + y // 256], axis=2).astype(np.uint8)
    with tifffile.TiffWriter(tmp_path / "s.tif") as file:
        options = {"tile": (64, 64), "photometric": "rgb", "resolutionunit": "CENTIMETER"}
        file.write(pixels, subifds=1, resolution=(40_000, 40_000), **options)  # pyright: ignore[reportArgumentType]
        file.write(pixels[::2, ::2], subfiletype=1, resolution=(20_000, 20_000), **options)  # pyright: ignore[reportArgumentType]
    return tmp_path / "s.tif"


@pytest.mark.parametrize("side_level0", [96, 192])
def test_pixels_are_those_of_the_slide_in_the_order_asked_for(slide: Path, side_level0: int) -> None:
    coords = np.array([[300, 288], [0, 0], [96, 288], [640 - side_level0, 512 - side_level0], [96, 10]], np.int32)
    with open_slide(slide) as reader:
        found = read_patches(reader, coords, side_level0, 96, 0.25)
    step = side_level0 // 96
    for patch, (x, y) in zip(found, coords.tolist(), strict=True):
        rows, columns = np.mgrid[y : y + side_level0 : step, x : x + side_level0 : step]
        assert (patch[:, :, 0] == columns % 256).all()
        assert (patch[:, :, 1] == rows % 256).all()


def test_rounded_positions_and_resampling(slide: Path) -> None:
    coords = np.array([[101, 50], [485, 357]], np.int32)  # one of them a pixel beyond what fits
    with open_slide(slide) as reader:
        found = read_patches(reader, coords, 155.6, 100, 0.25)
    assert found.shape == (2, 100, 100, 3)
    assert found[0, :, 30, 0].std() == pytest.approx(0, abs=1)  # columns of one x
    assert int(found[0, 0, 0, 0]) == pytest.approx(101, abs=2)


def test_the_sheet(tmp_path: Path) -> None:
    reds = np.zeros((10, 96, 96, 3), np.uint8)
    reds[..., 0] = 255
    blues = reds[:3, ..., ::-1]
    places = np.arange(20, dtype=np.int32).reshape(10, 2)
    out = tmp_path / "new" / "sheet.png"
    write_contact_sheet(
        (reds, blues), (np.arange(10.0), np.arange(3.0)), (places, places[:3]), title="slide · a map", out=out
    )
    rgb = np.asarray(Image.open(out).convert("RGB"))
    red, blue = (rgb == (255, 0, 0)).all(axis=2), (rgb == (0, 0, 255)).all(axis=2)
    assert red.sum() == 10 * 128**2
    assert blue.sum() == 3 * 128**2
    assert np.flatnonzero(red.any(axis=1)).max() < np.flatnonzero(blue.any(axis=1)).min()
