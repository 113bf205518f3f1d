"""Colour statistics, block by block, are those of all patches at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from her2cache.colour import ColourSums


@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.integers(0, 1000))
def test_blocks_do_not_matter(sizes: list[int], seed: int) -> None:
    patches = np.random.default_rng(seed).integers(0, 256, (sum(sizes), 24, 24, 3), dtype=np.uint8)
    sums = ColourSums()
    for part in np.split(patches, np.cumsum(sizes)[:-1]):
        sums.add(part)
    if not sum(sizes):
        assert sums.statistics() == []
        return
    seen = patches[:, ::8, ::8].astype(np.float64)
    means = seen.mean(axis=(1, 2))
    expected = [*means.mean(axis=0), *means.std(axis=0), *seen.std(axis=(1, 2)).mean(axis=0)]
    assert sums.statistics() == pytest.approx(expected, abs=1e-3)


def test_of_one_colour() -> None:
    sums = ColourSums()
    sums.add(np.full((7, 96, 96, 3), (200, 120, 170), np.uint8))
    assert sums.statistics() == pytest.approx([200, 120, 170, 0, 0, 0, 0, 0, 0], abs=1e-3)
