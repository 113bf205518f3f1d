"""Connected pieces of a mask."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from her2cache.units import BoolImage


def drop_small(mask: BoolImage, min_px: float) -> BoolImage:
    """Drops the 4-connected pieces of a mask that are smaller than `min_px`."""
    pieces = np.zeros(mask.shape, np.int32)
    ndimage.label(mask, output=pieces)
    keep = np.bincount(pieces.ravel()) >= min_px
    keep[0] = False
    return keep[pieces]
