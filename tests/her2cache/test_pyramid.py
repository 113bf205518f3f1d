"""Which level is read, and by how much it is resampled."""

from __future__ import annotations

import pytest

from her2cache.errors import SlideError
from her2cache.pyramid import ReadPlan, plan_read

PYRAMID = [1.0, 2.0, 4.0, 16.0]


@pytest.mark.parametrize(
    ("mpp", "downsamples", "target", "level", "factor", "snapped"),
    [
        (0.5, [1.0], 0.5, 0, 1.0, False),
        (0.499, [1.0], 0.5, 0, 1.0, True),
        (0.25, [1.0], 0.5, 0, 2.0, False),
        (0.25, PYRAMID, 0.5, 1, 1.0, False),
        (0.25, [1.0, 4.0], 0.5, 0, 2.0, False),
        (0.25, PYRAMID, 1.0, 2, 1.0, False),
        (0.25, [1.0, 16.0], 1.0, 0, 4.0, False),
        (0.2277, [1.0, 2.0, 4.0], 0.5, 1, 0.5 / 0.4554, False),
        (0.2277, [1.0], 0.5, 0, 0.5 / 0.2277, False),
        (0.25, [1.0, 2.0005, 4.0], 0.5, 1, 1.0, True),  # sizes rounded to whole px
        (0.25, PYRAMID, 100.0, 3, 25.0, False),
    ],
)
def test_known_scales(
    mpp: float, downsamples: list[float], target: float, level: int, factor: float, snapped: bool
) -> None:
    plan = plan_read(mpp, downsamples, target)
    assert plan == ReadPlan(level, downsamples[level], mpp * downsamples[level], pytest.approx(factor), snapped)


@pytest.mark.parametrize(
    ("mpp", "snaps"), [(0.495, True), (0.4949, False), (0.505, True), (0.4999, True), (0.5, False)]
)
def test_snapping_ends_at_one_percent(mpp: float, snaps: bool) -> None:
    plan = plan_read(mpp, [1.0], 0.5)
    assert plan.snapped == snaps
    assert (plan.factor == 1) == (snaps or mpp == 0.5)


def test_a_level_that_snaps_counts_as_fine_enough() -> None:
    assert plan_read(0.2515, [1.0, 2.0], 0.5).level == 1
    assert plan_read(0.26, [1.0, 2.0], 0.5).level == 0


def test_enlarging_is_refused_with_the_remedy() -> None:
    with pytest.raises(SlideError, match=r"0\.51 um/px.*0\.5.*--mpp, or --allow-upsample"):
        plan_read(0.51, [1.0], 0.5)
    plan = plan_read(0.51, PYRAMID, 0.5, allow_upsample=True)
    assert (plan.level, plan.snapped) == (0, False)
    assert plan.factor == pytest.approx(0.5 / 0.51)


def test_the_flag_enlarges_only_when_it_must() -> None:
    assert plan_read(0.25, PYRAMID, 0.5, allow_upsample=True) == plan_read(0.25, PYRAMID, 0.5)
