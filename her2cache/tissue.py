"""Tissue by HSV thresholds on a picture of the whole slide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from her2cache.errors import ConfigError
from her2cache.hsv import Channel, where, within_hues
from her2cache.pen import LEAST_UM2, MARGIN_UM, find_pen
from her2cache.pieces import drop_small
from her2cache.scratch import scratch
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


_BAND_PX = 512  # rows of the picture that are looked at together, with what decides about them


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
        if not len(boxes):
            return np.zeros(0)
        x0, y0, x1, y1 = (boxes / self.downsample).T
        # the rows of the mask under the boxes: callers ask for a band of them at a time
        top, stop = max(0, int(y0.min())), max(1, int(np.ceil(y1.max())) + 1)
        under = self.mask[top:stop]
        y0, y1 = y0 - top, y1 - top
        area = np.zeros((under.shape[0] + 1, under.shape[1] + 1), np.int32)  # area[y, x]: tissue in under[:y, :x]
        np.cumsum(under, axis=0, out=area[1:, 1:])
        np.cumsum(area, axis=1, out=area)

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
    height, width = overview.image.shape[:2]
    found: BoolImage = scratch((height, width), np.bool_)  # pyright: ignore[reportAssignmentType]
    reach = _reach_px(settings, pixel_um)
    for top in range(0, height, _BAND_PX):
        stop = min(top + _BAND_PX, height)
        low, high = max(0, top - reach), min(height, stop + reach)
        rows = slice(low, high)
        band = _find_in(overview.image[rows], overview.undecodable[rows], pixel_um, settings, low > 0, high < height)
        found[top:stop] = band[top - low : stop - low]
    return TissueMask(found, overview.downsample)


def _reach_px(settings: TissueSettings, pixel_um: float) -> int:
    """Rows above and below a band that decide about the pixels in it.

    A piece is small by its area, so none that is small is longer than that many pixels, and one that leaves the rows
    looked at has at least as many pixels in them as there are rows: it is large there as in the whole picture.
    """
    areas_um2 = settings.hole_um2 + settings.speck_um2 + (LEAST_UM2 if settings.skip_pen else 0)
    return int(areas_um2 / pixel_um**2 + MARGIN_UM / pixel_um) + 4


def _find_in(
    image: RgbImage, undecodable: BoolImage, pixel_um: float, settings: TissueSettings, above: bool, below: bool
) -> BoolImage:
    """Tissue in some rows; `above` and `below` say whether the slide goes on there."""
    pixel_um2 = pixel_um**2
    mask = threshold(image, settings)
    pen = find_pen(image, pixel_um) if settings.skip_pen else np.zeros_like(mask)
    mask = (mask & ~pen) | undecodable
    mask |= _small_holes(mask, settings.hole_um2 / pixel_um2, above, below)
    return drop_small(mask & ~pen, settings.speck_um2 / pixel_um2) | undecodable


def _small_holes(mask: BoolImage, min_px: float, above: bool, below: bool) -> BoolImage:
    """Holes in tissue smaller than `min_px`; never the glass around it, however little of it there is."""
    # glass beyond rows that the slide goes on after is not at its border: walls keep a hole there a hole
    wall = np.ones((1, mask.shape[1]), np.bool_)
    walled = np.concatenate([wall[: int(above)], mask, wall[: int(below)]])
    holes = (np.asarray(ndimage.binary_fill_holes(walled), np.bool_) & ~walled)[int(above) : len(walled) - int(below)]
    return holes & ~drop_small(holes, min_px)


def threshold(image: RgbImage, settings: TissueSettings) -> BoolImage:
    """Pixels within the thresholds, bool (height, width)."""

    def passes(hue: Channel, saturation: Channel, value: Channel) -> BoolImage:
        in_hue = within_hues(hue, settings.hue_min, settings.hue_max)
        in_value = (value >= settings.value_min) & (value <= settings.value_max)
        return in_hue & in_value & (saturation >= settings.saturation_min)

    return where(image, passes)
