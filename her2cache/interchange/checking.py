"""Whether what a file says can be true, and can be stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from her2cache.errors import ConfigError
from her2cache.interchange.origin import SlideFile
from her2cache.interchange.patches import Features, SlidePatches

DTYPES = ("float16", "float32")
"""Of features in a store."""

_DOUBTFUL = 0.3
"""A scale that is off by this share is no question of nominal values any more."""


def checked(patches: SlidePatches, about: SlideFile, path: Path) -> SlidePatches:
    """The patches of a file, with the slide's own size, once they make sense.

    Raises:
        ConfigError: they make none.
    """
    features, coords = patches.features, patches.coords
    if features.ndim != 2 or not features.shape[1]:
        raise ConfigError(f"{path}: features are {features.shape}, not (n, dim): they are not one vector a patch")
    if len(features) != len(coords):
        raise ConfigError(
            f"{path}: {len(features):,} features but {len(coords):,} coordinates: the writer was interrupted, or the"
            " slide was cut into patches anew since; make the file again"
        )
    if features.dtype.name not in DTYPES:
        raise ConfigError(f"{path}: features are {features.dtype}, a store holds {' or '.join(DTYPES)}; convert them")
    bad = int((~np.isfinite(features).all(axis=1)).sum())
    if bad:
        raise ConfigError(f"{path}: {bad:,} of {len(features):,} features hold NaN or infinity: make the file again")
    if about.size is not None:
        corner, side = coords.max(axis=0), patches.patch_level0_px
        if (corner >= about.size).any() or (coords.min(axis=0) <= -side).any():
            raise ConfigError(
                f"{path}: patches reach ({corner[0]}, {corner[1]}), the slide {about.record['path']} is"
                f" {about.size[0]} x {about.size[1]} px: they are another slide's, or its mpp is wrong; correct the"
                " cohort table"
            )
    return replace(patches, size=about.size or patches.size)


def scale_doubts(patches: SlidePatches) -> tuple[str, ...]:
    """A note where the slide's scale and the sizes of its patches contradict each other; none where they do not."""
    by_slide, by_file = patches.patch_level0_px * patches.slide_mpp, patches.patch_px * patches.mpp  # um
    if abs(by_slide / by_file - 1) <= _DOUBTFUL:
        return ()
    return (
        f"a patch measures {by_slide:.3g} um by the slide's scale ({patches.slide_mpp:g} um/px), but {by_file:.3g} um"
        " by the files: one of the two is wrong; see the column mpp of the cohort table, and --mpp",
    )


def require_storable(features: Features, dtype: str, path: Path, *, may_round: bool) -> None:
    """Refuses features that a dtype cannot hold.

    Args:
        features: of a slide.
        dtype: in which they are to be stored.
        path: of their file.
        may_round: whether they need not be held exactly.

    Raises:
        ConfigError: they do not fit.
    """
    if np.can_cast(features.dtype, dtype):
        return
    with np.errstate(over="ignore"):
        narrow = features.astype(dtype)
    if not np.isfinite(narrow).all():
        raise ConfigError(
            f"{path}: features reach {np.abs(features).max():.3g}, which {dtype} cannot hold; import them with --dtype"
            " float32"
        )
    if not may_round and not np.array_equal(narrow, features):
        raise ConfigError(
            f"{path}: features are {features.dtype}, which {dtype}, usual for files of this tool, would round; give"
            " --dtype float32 to keep them, or --dtype float16 to round them"
        )
