"""Where a model looks on a slide: algorithm 1 of the paper, drawn over the slide's thumbnail.

A patch's *attention-weighted score* is the mean, over the bags it was drawn in, of the bag's probability
of being HER2 positive times the patch's attention. Attention sums to 1 over a bag, so values are shown
times the bag size: a patch that is attended to like any other of its bag shows the bag's probability.
Its ranks are attention's, so a negative slide glows too where the model looks.
"""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from her2cache.units import RgbImage
from trainers.patch_scores import PatchScores

SCALE_MAX = 2.0
"""Upper end of the colour scale, one for all slides so that colours compare; larger values are clipped."""

CHUNK_ENTRIES = 2**20
"""Bag entries worked on at once (some 50 MB), so memory does not grow with the number of bags."""

DPI = 160
OPACITY = 0.65
LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in a grey value (ITU-R BT.601)."""


def partition_bags(n_patches: int, bags: int, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Deals the patches of a slide into bags, pass by pass, so that every patch is drawn.

    Each pass shuffles the patches anew and cuts them into bags; the last bag of a pass is filled up with
    patches from the pass's beginning. (Bags drawn freely miss patches: science.md rule 2.10.)

    Args:
        n_patches: patches of the slide.
        bags: how many bags; raised to one whole pass where fewer would leave patches out.
        size: patches a bag; the whole slide is one bag when it has fewer.
        rng: source of randomness.

    Returns:
        Rows of each bag, distinct within it, (bags, size).
    """
    size = min(size, n_patches)
    a_pass = math.ceil(n_patches / size)  # bags
    bags = max(bags, a_pass)
    rows = np.empty((math.ceil(bags / a_pass), a_pass * size), np.int64)
    for dealt in rows:
        dealt[:n_patches] = rng.permutation(n_patches)
        dealt[n_patches:] = dealt[: a_pass * size - n_patches]
    return rows.reshape(-1, size)[:bags]  # (bags, size)


def attention_weighted_score(
    scores: PatchScores, bags: NDArray[np.int64], positive: tuple[int, ...]
) -> NDArray[np.float64]:
    """Algorithm 1 of the paper on given bags, times the bag size.

    Args:
        scores: patch scores of the slide under one model.
        bags: patch rows of each bag, (bags, size).
        positive: the classes that count as HER2 positive (2+ and 3+).

    Returns:
        Value of each patch, (patches,); NaN for a patch that no bag drew.
    """
    n_patches = scores.attention_logit.size
    size = bags.shape[1]
    total = np.zeros(n_patches)
    drawn = np.zeros(n_patches, np.int64)
    step = max(1, CHUNK_ENTRIES // size)
    for start in range(0, len(bags), step):
        rows = bags[start : start + step]  # (step, size)
        p = scores.bag_probabilities(rows)[:, list(positive)].sum(axis=1)  # (step,)
        weighted = p[:, None] * scores.attention(rows)  # (step, size)
        total += np.bincount(rows.ravel(), weights=weighted.ravel(), minlength=n_patches)
        drawn += np.bincount(rows.ravel(), minlength=n_patches)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN of a patch never drawn
        return size * total / drawn


def place_patches(
    coords: NDArray[np.int32], patch_level0_px: float, downsample: float, shape: tuple[int, int]
) -> NDArray[np.int64]:
    """Squares of the patches in a thumbnail's pixels.

    Neighbours leave no gap, though the store rounds their coordinates: edges are rounded, not sizes, and a
    patch counts as whole level-0 pixels. They may share a row or column of pixels. A patch smaller than a
    pixel still gets one.

    Args:
        coords: level-0 (x, y) of the patches, (n, 2).
        patch_level0_px: side of a patch, level-0 px.
        downsample: level-0 px per thumbnail px.
        shape: (height, width) of the thumbnail.

    Returns:
        (left, top, right, bottom) of each patch, right and bottom exclusive, inside the thumbnail, (n, 4).
    """
    height, width = shape
    start = np.rint(coords / downsample)  # (n, 2)
    end = np.rint((coords + math.ceil(patch_level0_px)) / downsample)  # (n, 2)
    limit = np.array([width, height])
    start = np.clip(start, 0, limit - 1)
    end = np.clip(np.maximum(end, start + 1), 1, limit)
    return np.concatenate([start, end], axis=1).astype(np.int64)  # (n, 4)


def paint_patches(
    rectangles: NDArray[np.int64], values: NDArray[np.float64], shape: tuple[int, int]
) -> NDArray[np.float32]:
    """Fills each patch's square with its value; everything else, and patches of value NaN, is NaN.

    Args:
        rectangles: from `place_patches`, (n, 4).
        values: (n,).
        shape: (height, width) of the thumbnail.
    """
    painted = np.full(shape, np.nan, np.float32)
    for (left, top, right, bottom), value in zip(rectangles.tolist(), values.tolist(), strict=True):
        painted[top:bottom, left:right] = value
    return painted


def scale_bar_um(width_um: float) -> float:
    """Length of a scale bar: the largest 1, 2 or 5 times a power of ten within a quarter of the width, um."""
    limit = width_um / 4
    power = 10.0 ** math.floor(math.log10(limit))
    return max(step * power for step in (1, 2, 5) if step * power <= limit)


def draw_heatmap(
    thumbnail: RgbImage,
    *,
    downsample: float,
    coords: NDArray[np.int32],
    patch_level0_px: float,
    values: NDArray[np.float64],
    mpp_level0: float,
    title: str,
    out: Path,
    scale_max: float = SCALE_MAX,
) -> None:
    """Writes a PNG: the slide as it is, and beside it the values laid over it.

    Args:
        thumbnail: uint8 (height, width, 3).
        downsample: level-0 px per thumbnail px.
        coords: level-0 (x, y) of the patches, (n, 2).
        patch_level0_px: side of a patch, level-0 px.
        values: from `attention_weighted_score`, (n,); NaN is left transparent.
        mpp_level0: scale of level 0, um/px.
        title: slide, run and predicted score.
        out: the file to write; its folder is made.
        scale_max: upper end of the colour scale.
    """
    shape = thumbnail.shape[0], thumbnail.shape[1]
    painted = paint_patches(place_patches(coords, patch_level0_px, downsample, shape), values, shape)
    figure, he, overlay = _two_panels(shape, title)
    he.imshow(thumbnail)
    he.set_title("H&E", fontsize=10)
    # the tissue in pale grey, so that every colour on it is a value
    overlay.imshow(thumbnail @ LUMA, cmap="gray", vmin=-120, vmax=255)
    image = overlay.imshow(painted, cmap="viridis", vmin=0, vmax=scale_max, alpha=OPACITY, interpolation="nearest")
    overlay.set_title("attention-weighted score", fontsize=10)
    inch = 1 / _panel_inches(shape)[1]  # in units of the panel's height
    bar = figure.colorbar(
        image, cax=overlay.inset_axes((0, -0.3 * inch, 1, 0.16 * inch)), orientation="horizontal", extend="max"
    )
    bar.set_label(f"p(bag is 2+ or 3+) × attention × bag size; largest {np.nanmax(values):.2g}", fontsize=9)
    for axes in (he, overlay):
        axes.set_axis_off()
        _draw_scale_bar(axes, shape, mpp_level0 * downsample)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, format="png", bbox_inches="tight", pad_inches=0.15)


def _two_panels(shape: tuple[int, int], title: str) -> tuple[Figure, Axes, Axes]:
    """Two panels side by side, one above the other for a slide much wider than high."""
    wide, tall = _panel_inches(shape)
    stacked = shape[1] > 2 * shape[0]
    size = (max(wide, 6.5), 2 * tall + 2) if stacked else (max(2 * wide, 6.5), tall + 1.5)
    figure = Figure(figsize=size, dpi=DPI, layout="compressed")
    wrapped = textwrap.fill(title, int(12 * size[0]), break_on_hyphens=False)
    figure.suptitle(wrapped, fontsize=10, parse_math=False)
    first, second = figure.subplots(2, 1) if stacked else figure.subplots(1, 2)
    return figure, first, second


def _panel_inches(shape: tuple[int, int]) -> tuple[float, float]:
    """Width and height of a panel that shows a picture of (height, width) px."""
    height, width = shape
    wide = min(8.0 if width > 2 * height else 5.5, 5.5 * width / height)
    return wide, wide * height / width


def _draw_scale_bar(axes: Axes, shape: tuple[int, int], um_per_px: float) -> None:
    height, width = shape
    um = scale_bar_um(width * um_per_px)
    length, right, bottom = um / um_per_px, 0.97 * width, 0.97 * height
    thick = max(1.0, 0.008 * height)
    axes.add_patch(
        Rectangle((right - length, bottom - thick), length, thick, facecolor="black", edgecolor="white", lw=0.8)
    )
    text = f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} µm"
    label = axes.text(right - length / 2, bottom - 2 * thick, text, ha="center", va="bottom", fontsize=9)
    label.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
