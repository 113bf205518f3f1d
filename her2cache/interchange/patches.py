"""What goes between a store and another tool's files: the patches of one slide, and their measures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from her2cache.errors import ConfigError
from her2cache.units import Coords

Features = NDArray[np.float16] | NDArray[np.float32]
"""Features of a slide's patches, (n_patches, dim)."""

_LIMITS = np.iinfo(np.int32)
_ROUNDING = 12


@dataclass(frozen=True)
class SlidePatches:
    """Features of a slide's patches, where these lie, and how large they are.

    Attributes:
        features: float16 or float32 (n_patches, dim).
        coords: level-0 (x, y) of each patch's corner, int32 (n_patches, 2); row k belongs to row k of `features`.
        patch_level0_px: side of a patch, level-0 px.
        patch_px: the same at `mpp`, px.
        mpp: scale of the patches, um/px.
        slide_mpp: scale of level 0, um/px.
        overlap_px: how far neighbouring patches overlap, px at `mpp`; None where it is not known.
        level: of the pyramid that patches are read from.
        downsample: level-0 px per px of that level.
        size: (width, height) of level 0, px; None where it is not known.
        made_by: what the file calls the network that made the features; None where it does not say.
        her2_score: of the slide, 0 to 3; only torchmil's files hold it.
    """

    features: Features
    coords: Coords
    patch_level0_px: float
    patch_px: int
    mpp: float
    slide_mpp: float
    overlap_px: int | None = None
    level: int = 0
    downsample: float = 1.0
    size: tuple[int, int] | None = None
    made_by: str | None = None
    her2_score: int | None = None


@dataclass(frozen=True)
class Given:
    """What options and the cohort say that a file may not. What is given counts more than what a file says.

    Attributes:
        patch_px: side of a patch at `mpp`, px.
        mpp: scale of the patches, um/px.
        patch_level0_px: side of a patch, level-0 px.
        slide_mpp: scale of level 0 of the slide, um/px.
        patches: folder of CLAM's coordinates.
    """

    patch_px: int | None = None
    mpp: float | None = None
    patch_level0_px: float | None = None
    slide_mpp: float | None = None
    patches: Path | None = None


def raster_order(coords: Coords) -> NDArray[np.int64]:
    """The order of rows by y, then x; rows of one place keep theirs.

    Args:
        coords: int32 (n, 2).

    Returns:
        Permutation, int64 (n,).
    """
    return np.lexsort((coords[:, 0], coords[:, 1]))


def level0_coords(found: NDArray[Any], path: Path) -> Coords:
    """Coordinates of a file as a store keeps them.

    Args:
        found: whole numbers of any type, (n, 2).
        path: of the file, for the error.

    Returns:
        int32 (n, 2).

    Raises:
        ConfigError: they are no whole level-0 px.
    """
    if found.ndim != 2 or found.shape[1] != 2 or found.dtype.kind not in "iuf":
        raise ConfigError(
            f"{path}: coords are {found.dtype} {found.shape}, not numbers (n, 2): another tool wrote the file, or it is"
            " damaged; see --from"
        )
    if not len(found):
        raise ConfigError(f"{path} holds no patch: no tissue was found in the slide; leave the file out")
    if not np.isfinite(found).all():
        raise ConfigError(f"{path}: coords hold NaN or infinity: the file is damaged; make it again")
    if not (found == np.rint(found)).all():
        raise ConfigError(f"{path}: coords are no whole pixels: the file is of another tool; see --from")
    if found.min() < _LIMITS.min or found.max() > _LIMITS.max:
        raise ConfigError(f"{path}: coords reach {found.max()}, beyond any slide: the file is damaged; make it again")
    return found.astype(np.int32)


def required(value: float | None, path: Path, what: str, option: str) -> float:
    """A measure that must be known.

    Args:
        value: as far as it is.
        path: of the file that does not say it.
        what: it is.
        option: that gives it.

    Raises:
        ConfigError: it is not known.
    """
    if value is None:
        raise ConfigError(f"{path} does not say {what}: its tool writes that not at all, or not always; give {option}")
    return value


def tidy(value: float) -> float:
    """A quotient without the rounding of its last digits, so that one scale has one space key."""
    return float(f"{value:.{_ROUNDING}g}")
