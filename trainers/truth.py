"""Truth maps of synthetic slides, and how well a map of patches agrees with them."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from her2cache.errors import CohortError

TUMOUR = 0.5
"""Share of tumour from which on a patch counts as tumour."""


@dataclass(frozen=True)
class TruthMap:
    """How much of each cell of a grid is tumour, from the slide's upper left corner.

    Attributes:
        fraction: 0 to 1, (rows, columns).
        cell_um: side of a cell, um.
    """

    fraction: NDArray[np.float64]
    cell_um: float

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads truth/<slide_id>.npz of a synthetic cohort.

        Raises:
            CohortError: it is missing, damaged or another file.
        """
        try:
            with np.load(path) as file:
                return cls(file["tumour_fraction"].astype(np.float64), float(file["patch_px"]) * float(file["mpp"]))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise CohortError(
                f"{path} cannot be read as a truth map ({error}): give truth/SLIDE_ID.npz of a cohort of"
                " `her2cache synth`"
            ) from error

    def of_patches(self, coords: NDArray[np.int32], patch_level0_px: float, mpp_level0: float) -> NDArray[np.float64]:
        """The share of each patch that is tumour, (n,); NaN for a patch that reaches beyond the map.

        Args:
            coords: level-0 (x, y) of the patches, (n, 2).
            patch_level0_px: side of a patch, level-0 px.
            mpp_level0: um per level-0 px.
        """
        start = coords * (mpp_level0 / self.cell_um)  # (n, 2), cells
        end = start + patch_level0_px * mpp_level0 / self.cell_um
        rows, columns = self.fraction.shape
        slack = 0.01  # a scale is stored rounded, of 0.5 um/px as of 0.499
        inside = (end <= np.array([columns, rows]) + slack).all(axis=1)
        # the integral of the map up to any point: linear between the corners of cells
        integral = np.zeros((rows + 1, columns + 1))
        integral[1:, 1:] = self.fraction.cumsum(axis=0).cumsum(axis=1)
        (x0, y0), (x1, y1) = start.T, end.T
        total = _at(integral, x1, y1) - _at(integral, x0, y1) - _at(integral, x1, y0) + _at(integral, x0, y0)  # (n,)
        return np.where(inside, total / ((x1 - x0) * (y1 - y0)), np.nan)


def truth_auc(values: NDArray[np.float64], tumour: NDArray[np.float64]) -> float | None:
    """AUC of a map's values against whether patches are tumour; None where all are, or none.

    Args:
        values: (n,); patches of value NaN are passed over.
        tumour: share of each patch that is tumour, (n,); NaN is passed over.
    """
    known = ~np.isnan(values) & ~np.isnan(tumour)
    is_tumour = tumour[known] >= TUMOUR
    if is_tumour.all() or not is_tumour.any():
        return None
    return float(roc_auc_score(is_tumour, values[known]))


def _at(integral: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    rows, columns = integral.shape
    x, y = np.clip(x, 0, columns - 1), np.clip(y, 0, rows - 1)
    left, top = np.minimum(x.astype(np.int64), columns - 2), np.minimum(y.astype(np.int64), rows - 2)
    fx, fy = x - left, y - top
    upper = integral[top, left] * (1 - fx) + integral[top, left + 1] * fx
    lower = integral[top + 1, left] * (1 - fx) + integral[top + 1, left + 1] * fx
    return upper * (1 - fy) + lower * fy
