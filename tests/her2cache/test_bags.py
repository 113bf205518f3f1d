from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

from her2cache.bags import BagSampler, sample_rows
from her2cache.errors import BagError

P_MIN = 1e-4  # of a chi-square test on a fixed seed


def test_every_subset_is_equally_likely() -> None:
    rows = sample_rows(np.full(20_000, 5), 3, np.random.default_rng(0))
    subsets = Counter(tuple(sorted(r)) for r in rows.tolist())
    assert len(subsets) == 10
    assert chisquare(list(subsets.values())).pvalue > P_MIN


@pytest.mark.parametrize("n", [100, 130, 5000])
def test_every_row_is_equally_likely(n: int) -> None:
    rows = sample_rows(np.full(4000, n), 100, np.random.default_rng(1))
    counts = np.bincount(rows.ravel(), minlength=n)
    assert len(counts) == n
    if n > 100:  # else every row is in every bag
        assert chisquare(counts).pvalue > P_MIN


def test_slides_and_views_are_drawn_uniformly_and_independently_of_the_rows() -> None:
    sampler = BagSampler({"a": 6, "b": 6, "c": 6}, 4, seed=3, views=4)
    bags = sampler.training(9000, epoch=0)
    assert chisquare(np.bincount(bags.slide)).pvalue > P_MIN
    joint = np.bincount((bags.rows * 4 + bags.views).ravel(), minlength=24)  # the order by view must not couple them
    assert chisquare(joint).pvalue > P_MIN
    assert (np.diff(bags.views, axis=1) >= 0).all()


def test_an_epoch_does_not_depend_on_earlier_ones() -> None:
    sampler = BagSampler({"a": 50, "b": 70}, 10, seed=3, views=2)
    straight = [sampler.training(20, epoch) for epoch in range(3)]
    alone = BagSampler({"a": 50, "b": 70}, 10, seed=3, views=2).training(20, 2)
    for name in ("slide", "rows", "views"):
        np.testing.assert_array_equal(getattr(straight[2], name), getattr(alone, name))
    assert not np.array_equal(straight[0].rows, straight[1].rows)


def test_fixed_bags_are_plain_patches_and_always_the_same() -> None:
    sampler = BagSampler({"a": 50, "b": 70}, 10, seed=3, views=2)
    first = sampler.fixed(20, "validation")
    sampler.training(20, 0)
    np.testing.assert_array_equal(first.rows, sampler.fixed(20, "validation").rows)
    assert not first.views.any()
    assert not np.array_equal(first.rows, sampler.fixed(20, "test").rows)


def test_balanced_sampling_draws_classes_equally() -> None:
    slides = {f"s{i}": 20 for i in range(10)}
    classes = dict.fromkeys(slides, 0) | {"s9": 1}
    balanced = BagSampler(slides, 5, seed=0, classes=classes).training(4000, 0)
    plain = BagSampler(slides, 5, seed=0).training(4000, 0)
    assert (balanced.slide == 9).mean() == pytest.approx(0.5, abs=0.04)
    assert (plain.slide == 9).mean() == pytest.approx(0.1, abs=0.03)


def test_a_slide_with_too_few_patches_is_named() -> None:
    with pytest.raises(BagError, match="slide thin has 9 patches, a bag needs 10"):
        BagSampler({"fat": 100, "thin": 9}, 10, seed=0)
    with pytest.raises(BagError, match="slide none has 0 patches"):
        BagSampler({"none": 0}, 10, seed=0, allow_replacement=True)
    with pytest.raises(BagError, match="no slide"):
        BagSampler({}, 10, seed=0)


def test_replacement_is_confined_to_thin_slides() -> None:
    bags = BagSampler({"fat": 100, "thin": 3}, 10, seed=0, allow_replacement=True).training(200, 0)
    repeats = [len(set(r)) < 10 for r in bags.rows.tolist()]
    assert repeats == (bags.slide == 1).tolist()
    assert set(bags.rows[bags.slide == 1].ravel()) == {0, 1, 2}


def test_bags_of_the_papers_epoch_take_a_small_fraction_of_it() -> None:
    sampler = BagSampler({f"s{i}": 5000 for i in range(35)}, 100, seed=0)
    seconds = min(_seconds(sampler, epoch) for epoch in range(3))
    assert seconds < 0.5  # 0.04 on two quiet cores, where the epoch takes 4.5


def _seconds(sampler: BagSampler, epoch: int) -> float:
    start = time.perf_counter()
    sampler.training(6400, epoch)
    return time.perf_counter() - start
