from __future__ import annotations

import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from her2cache.bags import BagSampler
from trainers.features import FeatureRows, prefix


def slides_of(counts: list[int], views: int) -> dict[str, list[np.ndarray]]:
    """Row `r` of view `v` of a slide holds (v, r), so that what was gathered says where it lay."""
    return {
        f"s{i}": [np.stack([np.full(n, v), np.arange(n)], axis=1).astype(np.float32) for v in range(views)]
        for i, n in enumerate(counts)
    }


@given(
    counts=st.lists(st.integers(1, 300), min_size=1, max_size=5),
    views=st.integers(1, 3),
    percent=st.integers(1, 100),
    least=st.integers(1, 60),
)
def test_the_first_rows_of_every_view(counts: list[int], views: int, percent: int, least: int) -> None:
    whole = slides_of(counts, views)
    part = prefix(whole, percent / 100, least)
    assert list(part) == list(whole)
    assert len(part) == len(whole)
    for slide, n in zip(whole, counts, strict=True):
        rows = min(n, max(least, -(-Fraction(percent, 100) * n // 1)))
        assert len(part[slide]) == views
        for view in range(-views, views):
            np.testing.assert_array_equal(part[slide][view], whole[slide][view][:rows])
        assert [len(v) for v in part[slide][:]] == [rows] * views
        with pytest.raises(IndexError):
            part[slide][views]


@given(
    counts=st.lists(st.integers(1, 200), min_size=1, max_size=4), percent=st.integers(1, 100), seed=st.integers(0, 9)
)
def test_bags_of_a_prefix_lie_in_it(counts: list[int], percent: int, seed: int) -> None:
    size = 10
    whole = slides_of([max(n, size) for n in counts], 2)
    part = pickle.loads(pickle.dumps(prefix(whole, percent / 100, size)))
    n = {slide: len(part[slide][0]) for slide in part}
    sampler = BagSampler(n, size, seed=seed, views=2)  # no slide is too small where the whole one was not
    bags = sampler.training(20, 0)
    gathered = FeatureRows(part, sampler.slides, 20 * size).bags(bags).numpy()  # (bags, size, 2)
    np.testing.assert_array_equal(gathered[..., 0], bags.views)
    np.testing.assert_array_equal(gathered[..., 1], bags.rows)
    assert (bags.rows < np.array(list(n.values()))[bags.slide][:, None]).all()


def test_all_rows_is_no_prefix() -> None:
    whole = slides_of([5], 1)
    assert prefix(whole, 1.0, 1) is whole
