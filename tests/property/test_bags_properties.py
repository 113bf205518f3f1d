from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from her2cache.bags import BagSampler

SLIDES = st.lists(st.integers(1, 400), min_size=1, max_size=6)


@given(
    counts=SLIDES, size=st.integers(1, 60), views=st.integers(1, 5), seed=st.integers(0, 2**32), epoch=st.integers(0)
)
def test_bags_hold_distinct_rows_of_their_slide(
    counts: list[int], size: int, views: int, seed: int, epoch: int
) -> None:
    n_patches = {f"s{i}": max(n, size) for i, n in enumerate(counts)}
    sampler = BagSampler(n_patches, size, seed=seed, views=views)
    for bags in (sampler.training(30, epoch), sampler.fixed(30, "validation"), sampler.fixed(30, "test")):
        assert bags.rows.shape == bags.views.shape == (30, size)
        limit = np.array(list(n_patches.values()))[bags.slide]
        assert (bags.rows >= 0).all()
        assert (bags.rows < limit[:, None]).all()
        assert (np.diff(np.sort(bags.rows, axis=1), axis=1) > 0).all()
        assert (bags.views >= 0).all()
        assert (bags.views < views).all()


@given(counts=SLIDES, size=st.integers(1, 60), seed=st.integers(0, 2**32))
def test_with_replacement_every_slide_serves(counts: list[int], size: int, seed: int) -> None:
    n_patches = {f"s{i}": n for i, n in enumerate(counts)}
    bags = BagSampler(n_patches, size, seed=seed, allow_replacement=True).training(30, 0)
    limit = np.array(counts)[bags.slide]
    assert ((bags.rows >= 0) & (bags.rows < limit[:, None])).all()
