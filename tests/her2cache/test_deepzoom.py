"""Tiles for looking: the slide's own pixels, halved zoom by zoom, white beyond it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from her2cache.deepzoom import TILE_PX, count_zooms, native_zoom, read_square, read_tile
from her2cache.slide import open_slide
from her2cache.units import RgbImage
from tests.slides import corrupt, texture, write_slide

WIDTH, HEIGHT = 1300, 700


def reference(pixels: RgbImage, downsample: float, column: int, row: int) -> RgbImage:
    """A tile cut from level 0, a white border around it, and averaged."""
    side = int(TILE_PX * downsample)
    padded = np.full((2048, 2048, 3), 255, np.uint8)
    padded[: pixels.shape[0], : pixels.shape[1]] = pixels
    cut = Image.fromarray(padded[row * side : (row + 1) * side, column * side : (column + 1) * side])
    return np.asarray(cut.resize((TILE_PX, TILE_PX), Image.Resampling.BOX))


@pytest.mark.parametrize("segment_px", [(64, 64), (256, 128), None])
def test_tiles_are_the_slide(tmp_path: Path, segment_px: tuple[int, int] | None) -> None:
    pixels = texture(WIDTH, HEIGHT)
    path = write_slide(tmp_path / "s.tif", pixels, segment_px=segment_px, compression=None)
    with open_slide(path) as slide:
        assert native_zoom(slide.size) == 2
        assert count_zooms(slide.size) == 4
        for z, downsample in ((0, 4), (1, 2), (2, 1), (3, 0.5)):
            for column in range(2**z):
                for row in range(2**z):
                    tile, expected = read_tile(slide, z, column, row), reference(pixels, downsample, column, row)
                    inside = _inside(downsample, column, row)
                    assert tile.shape == (TILE_PX, TILE_PX, 3)
                    assert np.abs(tile[inside].astype(int) - expected[inside]).max(initial=0) <= 1
                    assert (tile[expected.min(axis=2) == 255] == 255).all()


def _inside(downsample: float, column: int, row: int) -> tuple[slice, slice]:
    """The part of a tile that no pixel of the border beyond the slide has a share in."""
    right, bottom = (int(side / downsample) - at * TILE_PX for side, at in ((WIDTH, column), (HEIGHT, row)))
    return slice(0, max(0, bottom)), slice(0, max(0, right))


def test_a_coarser_level_is_read_where_there_is_one(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "s.tif", texture(2048, 1024), factors=(1, 4), compression=None)
    with open_slide(path) as slide:
        coarse = read_tile(slide, 0, 0, 0)
        assert slide.decoded[0] == 0
        assert slide.decoded[1] > 0
        assert np.abs(coarse[:256].astype(int) - reference(texture(2048, 1024), 4, 0, 0)[:256]).max() <= 1
        read_tile(slide, 1, 0, 0)  # averaged from level 0
        assert slide.decoded[0] > 0


@pytest.mark.parametrize("at", [(-1, 0, 0), (4, 0, 0), (2, 4, 0), (2, 0, -1), (0, 10**9, 0)])
def test_there_are_no_other_tiles(tmp_path: Path, at: tuple[int, int, int]) -> None:
    with open_slide(write_slide(tmp_path / "s.tif", texture(WIDTH, HEIGHT))) as slide, pytest.raises(IndexError):
        read_tile(slide, *at)


def test_a_small_slide_is_one_tile(tmp_path: Path) -> None:
    with open_slide(write_slide(tmp_path / "s.tif", texture(100, 80), compression=None)) as slide:
        tile = read_tile(slide, 0, 0, 0)
    assert (tile[:80, :100] == texture(100, 80)).all()
    assert (tile[80:] == 255).all()


def test_damage_is_not_taken_for_glass(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "s.tif", texture(512, 512), segment_px=(256, 256))
    corrupt(path, 1)
    with open_slide(path) as slide:
        tile = read_tile(slide, 0, 0, 0)
    assert set(np.unique(tile[:256, 256:])) == {150, 190}
    assert len(np.unique(tile[:256, :256])) > 50


def test_a_slide_of_one_level_is_read_in_bands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_slide(tmp_path / "s.tif", texture(WIDTH, HEIGHT), compression=None)
    with open_slide(path) as slide:
        whole = read_tile(slide, 0, 0, 0)
        monkeypatch.setattr("her2cache.deepzoom._BAND_BYTES", 200_000)
        assert (read_tile(slide, 0, 0, 0) == whole).all()


def test_a_square_anywhere(tmp_path: Path) -> None:
    """As of a patch: between pixels, and shrunk by no whole number."""
    pixels = texture(300, 200)
    with open_slide(write_slide(tmp_path / "s.tif", pixels, compression=None)) as slide:
        assert (read_square(slide, 33, 21, 64, 64) == pixels[21:85, 33:97]).all()
        shrunk = read_square(slide, 10.5, 20, 90, 40)
        expected = Image.fromarray(pixels).resize((40, 40), Image.Resampling.BOX, box=(10.5, 20, 100.5, 110))
        assert np.abs(shrunk.astype(int) - np.asarray(expected)).max() <= 1
        corner = read_square(slide, 290, 190, 20, 20)
    assert (corner[:10, :10] == pixels[190:, 290:]).all()
    assert (corner[10:] == 255).all()
