"""The heatmap is the paper's algorithm 1, every patch is drawn, and pixels are where patches are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from trainers import heatmap as module
from trainers.heatmap import (
    attention_weighted_score,
    draw_heatmap,
    paint_patches,
    partition_bags,
    place_patches,
    scale_bar_um,
)
from trainers.patch_scores import PatchScores

RNG = np.random.default_rng(7)
FEATURES = RNG.normal(size=(90, 10))
W1, W2, W, B = RNG.normal(size=6), RNG.normal(size=(6, 10)), RNG.normal(size=(4, 10)), RNG.normal(size=4)
SCORES = PatchScores(
    (np.tanh(FEATURES @ W2.T) @ W1).astype(np.float32),
    (FEATURES @ W.T).astype(np.float32),
    B.astype(np.float32),
)


def algorithm_1(bags: list[list[int]]) -> dict[int, float]:
    """Algorithm 1 as the paper writes it, the model by equations 1-2, patch by patch."""
    heatmap: dict[int, list[float]] = {}
    for locations in bags:
        bag = FEATURES[locations]
        logits = np.array([W1 @ np.tanh(W2 @ v) for v in bag])
        attention_weights = np.exp(logits) / np.exp(logits).sum()
        z = W @ sum(a * v for a, v in zip(attention_weights, bag, strict=True)) + B
        probabilities = np.exp(z) / np.exp(z).sum()
        bag_probability = probabilities[2] + probabilities[3]
        patch_probabilities = bag_probability * attention_weights
        for location, value in zip(locations, patch_probabilities, strict=True):
            heatmap.setdefault(location, []).append(float(value))
    return {location: float(np.mean(values)) for location, values in heatmap.items()}


@pytest.mark.parametrize("entries", [2**20, 100])
def test_equal_to_algorithm_1_on_the_same_bags(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_ENTRIES", entries)
    bags = partition_bags(90, 40, 20, np.random.default_rng(1))
    values = attention_weighted_score(SCORES, bags, (2, 3))
    reference = algorithm_1(bags.tolist())
    assert set(reference) == set(range(90))
    assert values == pytest.approx([20 * reference[k] for k in range(90)], rel=1e-4)


def test_a_patch_that_no_bag_drew_has_no_value() -> None:
    values = attention_weighted_score(SCORES, np.array([[3, 5, 8], [8, 5, 3]]), (2, 3))
    assert np.flatnonzero(~np.isnan(values)).tolist() == [3, 5, 8]


def test_uniform_attention_shows_the_probability_of_the_bag() -> None:
    flat = PatchScores(np.zeros(30, np.float32), np.zeros((30, 2), np.float32), np.array([0, 1], np.float32))
    bags = partition_bags(30, 10, 10, np.random.default_rng(0))
    expected = np.e / (1 + np.e)
    assert attention_weighted_score(flat, bags, (1,)) == pytest.approx(np.full(30, expected))


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 150), st.integers(1, 60), st.integers(1, 40), st.integers(0, 999))
def test_every_patch_is_drawn_and_about_equally_often(n: int, bags: int, size: int, seed: int) -> None:
    rows = partition_bags(n, bags, size, np.random.default_rng(seed))
    k = min(size, n)
    assert rows.shape == (max(bags, -(-n // k)), k)
    assert all(len(set(bag)) == k for bag in rows.tolist())
    drawn = np.bincount(rows.ravel(), minlength=n)
    passes = -(-len(rows) // -(-n // k))
    assert drawn.min() >= passes - (len(rows) % -(-n // k) > 0)
    assert drawn.max() <= 2 * passes


@settings(max_examples=60, deadline=None)
@given(st.floats(20, 500), st.floats(1.5, 80), st.integers(0, 500), st.integers(0, 500), st.booleans())
def test_neighbours_leave_no_gap(patch: float, downsample: float, x0: int, y0: int, floor: bool) -> None:
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


@pytest.mark.parametrize("shape", [(200, 120, 3), (60, 300, 3)])
def test_the_picture(shape: tuple[int, int, int], tmp_path: Path) -> None:
    coords = np.array([[x, y] for y in range(0, 400, 100) for x in range(0, 800, 100)], np.int32)

    def draw(name: str, values: list[float]) -> NDArray[np.bool_]:
        out = tmp_path / "new folder" / name
        draw_heatmap(
            np.full(shape, 230, np.uint8),
            downsample=10.0,
            coords=coords,
            patch_level0_px=100.0,
            values=np.array(values),
            mpp_level0=0.5,
            title="slide_$1$ · run r · predicted 2+",
            out=out,
        )
        return coloured(out)

    every = draw("every.png", [1.0] * 32)
    # the same scale and the same largest value, so that only the patches differ
    lower_half = draw("lower half.png", [np.nan] * 16 + [1.0] * 16)
    undrawn = every & ~lower_half
    panels = np.flatnonzero(undrawn.any(axis=0)), np.flatnonzero(undrawn.any(axis=1))
    height, width = np.ptp(panels[1]) + 1, np.ptp(panels[0]) + 1
    assert width / height == pytest.approx(4, rel=0.03)  # 8 x 2 patches, square on the page
    assert undrawn.sum() == height * width  # one solid block: nothing is left of an undrawn patch
    assert not (lower_half & ~every).any()
    if shape[0] > shape[1]:  # side by side: the slide as it is stays as it is
        assert not every[:, : every.shape[1] // 3].any()
