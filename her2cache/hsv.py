"""Colours as hue, saturation and value."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from her2cache.units import BoolImage, RgbImage

Channel = NDArray[np.float64]
Test = Callable[[Channel, Channel, Channel], BoolImage]
"""Says of pixels, by hue, saturation and value, whether they belong to something."""

_BAND_PX = 256


def where(image: RgbImage, test: Test) -> BoolImage:
    """Applies a test to every pixel, a band of rows at a time: as floats a large picture takes ten times its bytes.

    Args:
        image: uint8 (height, width, 3).
        test: what to ask.

    Returns:
        bool (height, width).
    """
    found = np.empty(image.shape[:2], np.bool_)
    for y in range(0, len(image), _BAND_PX):
        found[y : y + _BAND_PX] = test(*to_hsv(image[y : y + _BAND_PX]))
    return found


def to_hsv(image: RgbImage) -> tuple[Channel, Channel, Channel]:
    """Hue in degrees, saturation and value from 0 to 1 of an image; each float64 (height, width)."""
    hsv = np.asarray(Image.fromarray(image).convert("HSV"))
    return hsv[..., 0] * (360 / 255), hsv[..., 1] / 255, hsv[..., 2] / 255


def within_hues(hue: Channel, low: float, high: float) -> BoolImage:
    """Where a hue lies between two, going up the circle from `low`; a range that wraps has low > high."""
    return (hue >= low) & (hue <= high) if low <= high else (hue >= low) | (hue <= high)
