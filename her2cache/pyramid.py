"""Pure maths of a pyramid: which level to read for a target scale, and by how much to resample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from her2cache.errors import SlideError


@dataclass(frozen=True)
class ReadPlan:
    """How a slide is read at a target scale.

    Attributes:
        level: index of the level that is read.
        downsample: level-0 px per level px.
        level_mpp: scale of the level, um/px.
        factor: level px per target px; 1 when the level is used as it is.
        snapped: whether the level's scale is off the target, but within the tolerance.
    """

    level: int
    downsample: float
    level_mpp: float
    factor: float
    snapped: bool


def plan_read(
    level0_mpp: float,
    downsamples: Sequence[float],
    target_mpp: float,
    *,
    snap_tolerance: float = 0.01,
    allow_upsample: bool = False,
) -> ReadPlan:
    """Picks the coarsest level that is at least as fine as the target.

    A level within `snap_tolerance` of the target counts as equal to it and is read without resampling.

    Args:
        level0_mpp: scale of level 0, um/px.
        downsamples: level-0 px per px of each level, ascending, the first 1.
        target_mpp: wanted scale, um/px.
        snap_tolerance: relative.
        allow_upsample: whether a slide coarser than the target may be enlarged.

    Raises:
        SlideError: every level is coarser than the target, and `allow_upsample` is not set.
    """
    scales = [level0_mpp * downsample for downsample in downsamples]
    tolerance = snap_tolerance + 1e-9  # a level that is off by just the tolerance counts, whatever the rounding
    fine_enough = [k for k, mpp in enumerate(scales) if mpp / target_mpp - 1 <= tolerance]
    if not fine_enough and not allow_upsample:
        raise SlideError(
            f"the slide has {level0_mpp:g} um/px, coarser than the target of {target_mpp:g}: patches would have to be"
            " enlarged; choose a coarser --mpp, or --allow-upsample"
        )
    level = max(fine_enough, key=lambda k: scales[k]) if fine_enough else 0
    mpp = scales[level]
    snaps = abs(mpp / target_mpp - 1) <= tolerance
    return ReadPlan(
        level=level,
        downsample=downsamples[level],
        level_mpp=mpp,
        factor=1.0 if snaps else target_mpp / mpp,
        snapped=snaps and mpp != target_mpp,
    )
