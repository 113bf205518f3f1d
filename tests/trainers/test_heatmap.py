"""The picture of a map: pixels are where patches are, and nothing is drawn where nothing is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from trainers.heatmap import SCALE_MAX, Look, Section, draw_heatmap, paint_patches, place_patches, scale_bar_um


@settings(max_examples=60, deadline=None)
@given(st.integers(20 * 1024, 500 * 1024), st.floats(1.5, 80), st.integers(0, 500), st.integers(0, 500), st.booleans())
def test_neighbours_leave_no_gap(part: int, downsample: float, x0: int, y0: int, floor: bool) -> None:
    patch = part / 1024  # its multiples have no rounding error, which would move a corner by a whole pixel
    assume(patch > 2 * downsample)
    grid = np.array([(x, y) for y in range(4) for x in range(5)]) * patch + (x0, y0)
    coords = (np.floor(grid) if floor else np.rint(grid)).astype(np.int32)
    shape = (10_000, 10_000)
    left, top, right, bottom = place_patches(coords, patch, downsample, shape).reshape(4, 5, 4).transpose(2, 0, 1)
    assert np.isin(right[:, :-1] - left[:, 1:], (0, 1)).all()
    assert np.isin(bottom[:-1] - top[1:], (0, 1)).all()
    assert np.abs(left - coords[:, 0].reshape(4, 5) / downsample).max() <= 0.5
    assert np.abs(right - left - patch / downsample).max() <= 1 + 1 / downsample


def test_places_stay_inside_the_thumbnail_and_are_never_empty() -> None:
    coords = np.array([[0, 0], [990, 990], [1005, 1010]], np.int32)
    squares = place_patches(coords, 5.0, 100.0, (10, 10))
    assert squares.tolist() == [[0, 0, 1, 1], [9, 9, 10, 10], [9, 9, 10, 10]]


def test_paint() -> None:
    squares = place_patches(np.array([[0, 0], [40, 20], [80, 0]], np.int32), 40, 20, (3, 6))
    painted = paint_patches(squares, np.array([1.0, 2.0, np.nan]), (3, 6))
    n = np.nan
    np.testing.assert_array_equal(painted, [[1, 1, n, n, n, n], [1, 1, 2, 2, n, n], [n, n, 2, 2, n, n]])


@pytest.mark.parametrize(("width", "bar"), [(1000, 200), (900, 200), (799, 100), (40_000, 10_000), (3, 0.5)])
def test_scale_bar(width: float, bar: float) -> None:
    assert scale_bar_um(width) == pytest.approx(bar)


def coloured(path: Path) -> NDArray[np.bool_]:
    """Where a picture is neither grey nor white."""
    rgb = np.asarray(Image.open(path).convert("RGB")).astype(np.int64)
    return (rgb.max(axis=2) - rgb.min(axis=2)) > 40


COORDS = np.array([[x, y] for y in range(0, 400, 100) for x in range(0, 800, 100)], np.int32)


def draw(
    out: Path, shape: tuple[int, int, int], values: list[float], look: Look | None = None, ihc: Section | None = None
) -> Path:
    draw_heatmap(
        Section(np.full(shape, 230, np.uint8), 5.0, "H&E"),
        squares=place_patches(COORDS, 100.0, 10.0, shape[:2]),
        values=np.array(values),
        look=look or Look("attention-weighted score", "p × attention × bag size"),
        title="slide_$1$ · run r · predicted 2+",
        out=out,
        ihc=ihc,
    )
    return out


@pytest.mark.parametrize("shape", [(200, 120, 3), (60, 300, 3)])
def test_the_picture(shape: tuple[int, int, int], tmp_path: Path) -> None:
    every = coloured(draw(tmp_path / "new folder" / "every.png", shape, [1.0] * 32))
    # the same scale and the same largest value, so that only the patches differ
    lower_half = coloured(draw(tmp_path / "lower half.png", shape, [np.nan] * 16 + [1.0] * 16))
    undrawn = every & ~lower_half
    panels = np.flatnonzero(undrawn.any(axis=0)), np.flatnonzero(undrawn.any(axis=1))
    height, width = np.ptp(panels[1]) + 1, np.ptp(panels[0]) + 1
    assert width / height == pytest.approx(4, rel=0.03)  # 8 x 2 patches, square on the page
    assert undrawn.sum() == height * width  # one solid block: nothing is left of an undrawn patch
    assert not (lower_half & ~every).any()
    if shape[0] > shape[1]:  # side by side: the slide as it is stays as it is
        assert not every[:, : every.shape[1] // 3].any()
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["lower half.png"]


def test_the_ihc_section_stands_beside_it(tmp_path: Path) -> None:
    brown = np.broadcast_to(np.array([150, 90, 40], np.uint8), (100, 60, 3))
    shape = (200, 120, 3)
    without = coloured(draw(tmp_path / "a.png", shape, [1.0] * 32))
    beside = coloured(draw(tmp_path / "b.png", shape, [1.0] * 32, ihc=Section(brown, None, "IHC")))
    assert beside.shape[1] > 1.3 * without.shape[1]
    right = beside[:, -beside.shape[1] // 4 :]
    assert right.any(axis=0).mean() > 0.6


def test_colours_of_a_signed_map_are_centred_on_0(tmp_path: Path) -> None:
    look = Look("signed map", "pull", scale_max=1.0, diverging=True)
    picture = draw(tmp_path / "signed.png", (200, 120, 3), [1.0] * 8 + [-1.0] * 8 + [0.0] * 16, look)
    rgb = np.asarray(Image.open(picture).convert("RGB")).astype(np.int64)
    # the colour bar lies below the panel, so rows of the upper half are those of patches
    upper = rgb[: len(rgb) // 2].reshape(-1, 3)
    upper = upper[(upper.max(axis=1) - upper.min(axis=1)) > 40]
    red, blue = upper[:, 0] > upper[:, 2], upper[:, 0] < upper[:, 2]
    assert red.sum() == pytest.approx(blue.sum(), rel=0.1)


def test_a_signed_map_has_the_scale_of_its_slide() -> None:
    values = np.append(np.linspace(-0.02, 0.01, 101), np.nan)
    look = Look.of("signed map", "pull", values, diverging=True)
    assert 0.015 < look.scale_max <= 0.02
    assert "of this slide alone" in look.caption
    assert Look.of("signed map", "pull", np.zeros(4), diverging=True).scale_max == 1.0
    assert Look.of("attention", "p", values) == Look("attention", "p", SCALE_MAX)
