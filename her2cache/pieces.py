"""Connected pieces of a mask."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from her2cache.units import BoolImage


def drop_small(mask: BoolImage, min_px: float) -> BoolImage:
    """Drops the 4-connected pieces of a mask that are smaller than `min_px`."""
    pieces = np.zeros(mask.shape, np.int32)
    count = int(ndimage.label(mask, output=pieces))  # pyright: ignore[reportArgumentType]
    sizes = np.zeros(count + 1, np.int64)
    for rows in np.array_split(pieces, -(-len(pieces) // 256)):  # bincount works on a copy in int64
        sizes += np.bincount(rows.ravel(), minlength=count + 1)
    keep = sizes >= min_px
    keep[0] = False
    return keep[pieces]
