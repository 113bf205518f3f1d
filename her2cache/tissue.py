"""Tissue by HSV thresholds on a picture of the whole slide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from her2cache.errors import ConfigError
from her2cache.hsv import Channel, where, within_hues
from her2cache.pen import find_pen
from her2cache.pieces import drop_small
from her2cache.units import BoolImage, RgbImage


@dataclass(frozen=True)
class TissueSettings:
    """Thresholds of a stain. A pixel is tissue when it passes all of them.

    Attributes:
        hue_min, hue_max: degrees on the colour circle, 0 to 360; a range that wraps has min > max.
        saturation_min: 0 to 1.
        value_min, value_max: 0 to 1.
        hole_um2: holes in tissue below this area are filled.
        speck_um2: pieces of tissue below this area are dropped.
        mpp: scale of the picture in which tissue is looked for, um/px; 8 is six pixels along a patch of 96 px at 0.5.
        skip_pen: whether what a felt-tip pen marked on the glass is no tissue, see `pen.find_pen`.
    """

    hue_min: float
    hue_max: float
    saturation_min: float
    value_min: float
    value_max: float
    hole_um2: float = 5_000.0
    speck_um2: float = 10_000.0
    mpp: float = 8.0
    skip_pen: bool = False

    def __post_init__(self) -> None:
        for name, (low, high) in {**THRESHOLDS, "mpp": (0.5, 100.0)}.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(
                    f"the tissue threshold {name} is {getattr(self, name):g}, it must lie between {low:g} and {high:g}:"
                    " hues are degrees, saturation and value shares of 1, areas um2"
                )


THRESHOLDS = {
    "hue_min": (0.0, 360.0),
    "hue_max": (0.0, 360.0),
    "saturation_min": (0.0, 1.0),
    "value_min": (0.0, 1.0),
    "value_max": (0.0, 1.0),
    "hole_um2": (0.0, 1e12),
    "speck_um2": (0.0, 1e12),
}
"""The numbers that may differ from slide to slide, with the least and the largest value of each."""

PRESETS = {
    "he": TissueSettings(hue_min=220, hue_max=350, saturation_min=0.07, value_min=0.0, value_max=0.97),
    "ihc": TissueSettings(hue_min=0, hue_max=360, saturation_min=0.03, value_min=0.0, value_max=1.0),
}
"""Start values seen on real slides: tissue of an H&E slide lies at hues of 240 to 360 degrees, blank glass
at a saturation of about 0.01."""


def preset(stain: str) -> TissueSettings:
    """Settings of a stain, "HE" or "IHC".

    Raises:
        ConfigError: another stain.
    """
    names = {"HE": "he", "IHC": "ihc"}
    if stain not in names:
        raise ConfigError(
            f"stain {stain!r} has no tissue preset: her2cache knows HE and IHC; correct"
            " the cohort's column stain, or --stain"
        )
    return PRESETS[names[stain]]


@dataclass(frozen=True)
class Overview:
    """A picture of a whole slide.

    Attributes:
        image: uint8 (height, width, 3).
        undecodable: bool (height, width), where the file could not be decoded; the image is white there.
        downsample: level-0 px per px.
    """

    image: RgbImage
    undecodable: BoolImage
    downsample: float


@dataclass(frozen=True)
class TissueMask:
    """Where a slide has tissue.

    Attributes:
        mask: bool (height, width) of the thumbnail.
        downsample: level-0 px per mask px.
    """

    mask: BoolImage
    downsample: float

    def share(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Share of tissue in level-0 boxes, exact to fractions of a mask pixel.

        Args:
            boxes: (x0, y0, x1, y1), float64 (n, 4), level-0 px.

        Returns:
            0 to 1, float64 (n,).
        """
        height, width = self.mask.shape
        area = np.zeros((height + 1, width + 1), np.int32)  # area[y, x]: tissue in mask[:y, :x]
        np.cumsum(self.mask, axis=0, out=area[1:, 1:])
        np.cumsum(area, axis=1, out=area)
        x0, y0, x1, y1 = (boxes / self.downsample).T

        def corner(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
            return ndimage.map_coordinates(area, [y, x], output=np.float64, order=1, mode="nearest")

        tissue = corner(x1, y1) - corner(x0, y1) - corner(x1, y0) + corner(x0, y0)
        return np.clip(tissue / ((x1 - x0) * (y1 - y0)), 0, 1)


def find_tissue(overview: Overview, level0_mpp: float, settings: TissueSettings) -> TissueMask:
    """Thresholds an overview, fills holes and drops specks.

    What could not be decoded counts as tissue: so patches are planned there, and are counted as failed
    instead of vanishing as glass.

    Args:
        overview: of the whole slide.
        level0_mpp: um per level-0 px; turns areas into pixels.
        settings: thresholds.
    """
    pixel_um = overview.downsample * level0_mpp
    pixel_um2 = pixel_um**2
    mask = threshold(overview.image, settings)
    pen = find_pen(overview.image, pixel_um) if settings.skip_pen else np.zeros_like(mask)
    mask = (mask & ~pen) | overview.undecodable
    filled = np.asarray(ndimage.binary_fill_holes(mask), np.bool_)
    holes = filled & ~mask  # never the glass around the tissue, however little of it there is
    mask |= holes & ~drop_small(holes, settings.hole_um2 / pixel_um2)
    mask = drop_small(mask & ~pen, settings.speck_um2 / pixel_um2)
    return TissueMask(mask | overview.undecodable, overview.downsample)


def threshold(image: RgbImage, settings: TissueSettings) -> BoolImage:
    """Pixels within the thresholds, bool (height, width)."""

    def passes(hue: Channel, saturation: Channel, value: Channel) -> BoolImage:
        in_hue = within_hues(hue, settings.hue_min, settings.hue_max)
        in_value = (value >= settings.value_min) & (value <= settings.value_max)
        return in_hue & in_value & (saturation >= settings.saturation_min)

    return where(image, passes)
