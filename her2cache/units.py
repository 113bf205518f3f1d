"""Units as types: a level-0 pixel is never taken for a level or a patch pixel."""

from __future__ import annotations

from typing import NewType

import numpy as np
from numpy.typing import NDArray

Level0Px = NewType("Level0Px", int)
LevelPx = NewType("LevelPx", int)
PatchPx = NewType("PatchPx", int)
Mpp = NewType("Mpp", float)
"""Micrometres per pixel."""

MPP_RANGE = (0.05, 10.0)
"""Plausible scales of a slide, um/px; a value outside is metadata gone wrong."""

Coords = NDArray[np.int32]
"""Level-0 (x, y) of the upper left corner of each patch, shape (n_patches, 2)."""

RgbImage = NDArray[np.uint8]
"""An RGB image, shape (height, width, 3)."""

PatchBatch = NDArray[np.uint8]
"""RGB patches, shape (n_patches, height, width, 3)."""

BoolArray = NDArray[np.bool_]

BoolImage = NDArray[np.bool_]
"""A mask, shape (height, width)."""
