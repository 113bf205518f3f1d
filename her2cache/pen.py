"""Marks of a felt-tip pen on the glass."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from her2cache.hsv import Channel, where, within_hues
from her2cache.pieces import drop_small
from her2cache.units import BoolImage, RgbImage

INKS = {
    "blue": (195.0, 262.0, 0.42),
    "green": (70.0, 195.0, 0.20),
    "red": (346.0, 10.0, 0.65),
}
"""Hues from and to, degrees, and the least saturation of each ink. Start values: eosin and haematoxylin lie between 262
and 346 degrees, what lies outside is paler than this (seen on a real H&E slide and on PatchCamelyon, averaged to 8
um/px); DAB of an IHC slide begins at 10. Faint red and faint black ink look like tissue and are not found."""

BLACK = 0.22
"""Largest value (brightness) of black ink; of a thousand pixels of tissue one is as dark."""

LEAST_UM2 = 50_000.0
"""Smaller pieces are pigment or folds: a pen's line is about a millimetre wide."""

MARGIN_UM = 40.0
"""The edge of a line is paler than its middle, and belongs to it."""


def find_pen(image: RgbImage, pixel_um: float) -> BoolImage:
    """Finds pen marks in a picture of a slide.

    Args:
        image: uint8 (height, width, 3), at about 8 um/px.
        pixel_um: um per px.

    Returns:
        bool (height, width).
    """
    ink = drop_small(where(image, _is_ink), LEAST_UM2 / pixel_um**2)
    steps = round(MARGIN_UM / pixel_um)
    return np.asarray(ndimage.binary_dilation(ink, iterations=steps), np.bool_) if steps and ink.any() else ink


def _is_ink(hue: Channel, saturation: Channel, value: Channel) -> BoolImage:
    ink = value <= BLACK
    for low, high, least in INKS.values():
        ink |= within_hues(hue, low, high) & (saturation >= least)
    return ink
