"""Colours as hue, saturation and value."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from her2cache.units import BoolImage, RgbImage

Channel = NDArray[np.float64]


def to_hsv(image: RgbImage) -> tuple[Channel, Channel, Channel]:
    """Hue in degrees, saturation and value from 0 to 1 of an image; each float64 (height, width)."""
    hsv = np.asarray(Image.fromarray(image).convert("HSV"))
    return hsv[..., 0] * (360 / 255), hsv[..., 1] / 255, hsv[..., 2] / 255


def within_hues(hue: Channel, low: float, high: float) -> BoolImage:
    """Where a hue lies between two, going up the circle from `low`; a range that wraps has low > high."""
    return (hue >= low) & (hue <= high) if low <= high else (hue >= low) | (hue <= high)
