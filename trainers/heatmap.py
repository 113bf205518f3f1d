"""A map of patches drawn over the slide's thumbnail, beside the slide as it is and its IHC sister (paper, figure 5)."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from her2cache.units import RgbImage
from trainers.files import whole
from trainers.palette import DPI

SCALE_MAX = 2.0
"""Upper end of the colour scale, one for all slides so that colours compare; larger values are clipped."""

_SIGNED_QUANTILE = 0.99
"""Of the absolute values of a slide: the ends of the colours where values have a sign."""

OPACITY = 0.65
LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in a grey value (ITU-R BT.601)."""

_GREY_FROM = -120
"""Grey value that is drawn black: the slide under the colours is pale, so that every colour on it is a value."""


_COMPRESSION = 4
"""Of the PNG: a tenth larger than at Pillow's 6, and written in half the time, most of which it would take."""


@dataclass(frozen=True)
class Section:
    """A picture of a whole slide.

    Attributes:
        pixels: uint8 (height, width, 3).
        um_per_px: its scale; None where it is not known, for a picture without a scale bar.
        name: of the stain.
    """

    pixels: RgbImage
    um_per_px: float | None
    name: str

    @property
    def shape(self) -> tuple[int, int]:
        return self.pixels.shape[0], self.pixels.shape[1]


@dataclass(frozen=True)
class Look:
    """How a map is drawn.

    Attributes:
        name: of the map, above it.
        caption: what a value is, below the colour bar.
        scale_max: upper end of the colours.
        diverging: whether values have a sign: colours are centred on 0.
    """

    name: str
    caption: str
    scale_max: float = SCALE_MAX
    diverging: bool = False

    @classmethod
    def of(cls, name: str, caption: str, values: NDArray[np.float64], *, diverging: bool = False) -> Look:
        """With the scale that the map has by default: one for all slides, but for values with a sign that of the slide,
        for a pull in logits has no size that is the same for every model."""
        if not diverging:
            return cls(name, caption)
        ends = float(np.nanquantile(np.abs(values), _SIGNED_QUANTILE))
        return cls(name, f"{caption}; colours of this slide alone", ends or 1.0, diverging=True)

    @property
    def colours(self) -> str:
        """Of the map: both can be told apart by colour-blind readers."""
        return "RdBu_r" if self.diverging else "viridis"


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
    he: Section,
    *,
    squares: NDArray[np.int64],
    values: NDArray[np.float64],
    look: Look,
    title: str,
    out: Path,
    ihc: Section | None = None,
) -> None:
    """Writes a PNG: the slide as it is, the values laid over it, and the IHC section.

    Args:
        he: the slide.
        squares: of the patches in its pixels, from `place_patches`, (n, 4).
        values: of the patches, (n,); NaN is left transparent.
        look: how they are drawn.
        title: slide, run and predicted score.
        out: the file to write; its folder is made.
        ihc: a sister section of the same case, which need not lie as the slide does.
    """
    painted = paint_patches(squares, values, he.shape)
    sections = [he, he] if ihc is None else [he, he, ihc]
    figure, panels = _panels(sections, title)
    plain, overlay = panels[:2]
    plain.imshow(he.pixels)
    plain.set_title(he.name, fontsize=10)
    overlay.imshow(he.pixels @ LUMA, cmap="gray", vmin=_GREY_FROM, vmax=255)
    low = -look.scale_max if look.diverging else 0.0
    image = overlay.imshow(
        painted, cmap=look.colours, vmin=low, vmax=look.scale_max, alpha=OPACITY, interpolation="nearest"
    )
    overlay.set_title(look.name, fontsize=10)
    if ihc is not None:
        panels[2].imshow(ihc.pixels)
        panels[2].set_title(f"{ihc.name}, sister section (not aligned)", fontsize=10)
    inch = 1 / _panel_inches(he.shape)[1]  # in units of the panel's height
    bar = figure.colorbar(
        image,
        cax=overlay.inset_axes((0, -0.3 * inch, 1, 0.16 * inch)),
        orientation="horizontal",
        extend="both" if look.diverging else "max",
    )
    bar.ax.tick_params(labelsize=8)
    bar.set_label(f"{look.caption}\n{_ends(values, look)}", fontsize=8)
    grey = [Patch(facecolor="0.82", edgecolor="0.5", label="grey: glass, or tissue without a patch")]
    plain.legend(
        handles=grey, loc="upper left", bbox_to_anchor=(0, -0.08 * inch), frameon=False, fontsize=8, borderaxespad=0
    )
    for axes, section in zip(panels, sections, strict=True):
        axes.set_axis_off()
        if section.um_per_px is not None:
            _draw_scale_bar(axes, section.shape, section.um_per_px)
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole(out) as partial:
        figure.savefig(
            partial, format="png", bbox_inches="tight", pad_inches=0.15, pil_kwargs={"compress_level": _COMPRESSION}
        )


def _ends(values: NDArray[np.float64], look: Look) -> str:
    """Says how far the values reach, for the colours end before."""
    if look.diverging:
        return f"from {np.nanmin(values):.2g} to {np.nanmax(values):.2g}"
    return f"largest {np.nanmax(values):.2g}"


def _panels(sections: Sequence[Section], title: str) -> tuple[Figure, list[Axes]]:
    """Panels side by side and equally high, one above the other for a slide much wider than high."""
    inches = [_panel_inches(section.shape) for section in sections]
    n, tall = len(sections), max(high for _, high in inches)
    stacked = sections[0].shape[1] > 2 * sections[0].shape[0]
    if stacked:
        size = max(6.5, *(wide for wide, _ in inches)), sum(high for _, high in inches) + 1 + 0.5 * n
    else:
        size = max(6.5, sum(wide for wide, _ in inches)), tall + 1.7
    figure = Figure(figsize=size, dpi=DPI, layout="compressed")
    wrapped = textwrap.fill(title, int(12 * size[0]), break_on_hyphens=False)
    figure.suptitle(wrapped, fontsize=10, parse_math=False)
    if stacked:
        panels = figure.subplots(n, 1, height_ratios=[high for _, high in inches])
    else:
        panels = figure.subplots(1, n, width_ratios=[wide / high for wide, high in inches])
    return figure, list(panels)


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
