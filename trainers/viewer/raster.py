"""Patches as the pixels of a small picture, which a browser draws at once however many there are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Raster:
    """A grid of cells, one a patch at most.

    Attributes:
        columns, rows: of the grid.
        left, top: of its upper left corner, level-0 px.
        step: side of a cell, level-0 px.
        cells: cell of each patch, row by row from the top, int64 (patches,).
    """

    columns: int
    rows: int
    left: float
    top: float
    step: float
    cells: NDArray[np.int64]


def lay_out(coords: NDArray[np.int32], patch_px: float, step: float) -> Raster:
    """Cells as far apart as the patches are, each around the middle of its patch.

    Args:
        coords: level-0 (x, y) of the patches, (patches, 2), at least one.
        patch_px: side of a patch, level-0 px.
        step: between neighbouring patches, level-0 px.
    """
    first = coords.min(axis=0)  # (2,)
    places = np.rint((coords - first) / step).astype(np.int64)  # (patches, 2)
    columns, rows = (int(side) for side in places.max(axis=0) + 1)
    margin = (patch_px - step) / 2
    return Raster(
        columns=columns,
        rows=rows,
        left=float(first[0]) + margin,
        top=float(first[1]) + margin,
        step=step,
        cells=places[:, 1] * columns + places[:, 0],
    )
