"""Intervals and null ranges against scikit-learn, draw by draw, and against what is known of them."""

from __future__ import annotations

import numpy as np
import pytest

from trainers import resampling
from trainers.replicates import replicate_auc
from trainers.resampling import Interval, by_case, is_reliable, permuted, resampled, truth


def sample(rng: np.random.Generator, n: int, classes: int = 4, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    y = rng.integers(0, classes, n)
    p = rng.dirichlet(np.ones(classes), n)
    return y, np.round(p, 1) if ties else p


def reference(y: np.ndarray, p: np.ndarray) -> float:
    """Mean over classes of the share of pairs in order."""
    pairs = [p[y == c, c][:, None] - p[y != c, c] for c in np.unique(y)]
    return float(np.mean([np.mean((d > 0) + 0.5 * (d == 0)) for d in pairs]))


def test_null_range_is_that_of_explicit_permutations() -> None:
    y, p = sample(np.random.default_rng(3), 16, ties=True)
    rng = np.random.default_rng(4)
    aucs = [reference(rng.permutation(y), p) for _ in range(1_000)]
    low, high = np.percentile(aucs, [2.5, 97.5])
    found = Interval.of(replicate_auc(permuted(y, 4), p))
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(low, abs=0.02), pytest.approx(high, abs=0.02))


def test_bootstrap_is_that_of_explicit_resampling_within_classes() -> None:
    y, p = sample(np.random.default_rng(5), 40)
    rng = np.random.default_rng(6)
    groups = [np.flatnonzero(y == c) for c in np.unique(y)]
    rows = [np.concatenate([rng.choice(group, len(group)) for group in groups]) for _ in range(1_000)]
    low, high = np.percentile([reference(y[r], p[r]) for r in rows], [2.5, 97.5])
    found = Interval.of(replicate_auc(resampled(y, 4), p))
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(low, abs=0.02), pytest.approx(high, abs=0.02))


def test_draws_keep_the_number_of_cases_of_a_class() -> None:
    y, _ = sample(np.random.default_rng(1), 23)
    n = np.bincount(y, minlength=4)
    for draw in (truth, resampled, permuted):
        draws = draw(y, 4)
        assert draws.shape == (1 if draw is truth else 2_000, 23, 4)
        assert (draws.sum(axis=1) == n).all()
    assert (permuted(y, 4).sum(axis=2) == 1).all()  # a case is never dealt twice
    assert (resampled(y, 4)[:, np.arange(23), y].sum(axis=1) == 23).all()  # and never counts as another class


@pytest.mark.parametrize(("a_class", "low", "high"), [(2, 0.23, 0.77), (4, 0.31, 0.69), (13, 0.40, 0.60)])
def test_null_range_of_a_macro_auc(a_class: int, low: float, high: float) -> None:
    """Known from simulation: with two cases a class, chance alone reaches from 0.23 to 0.77."""
    rng, y = np.random.default_rng(7), np.repeat(np.arange(4), a_class)
    p = [rng.dirichlet(np.ones(4), len(y)) for _ in range(20)]
    ranges = [Interval.of(replicate_auc(permuted(y, 4, seed=k, draws=500), p[k])) for k in range(20)]
    assert np.mean([r.low for r in ranges if r]) == pytest.approx(low, abs=0.03)
    assert np.mean([r.high for r in ranges if r]) == pytest.approx(high, abs=0.03)
    assert is_reliable(y) == (a_class >= 5)


def test_draws_are_seeded() -> None:
    y, _ = sample(np.random.default_rng(8), 20)
    for draw in (resampled, permuted):
        assert (draw(y, 4, seed=1) == draw(y, 4, seed=1)).all()
        assert (draw(y, 4, seed=1) != draw(y, 4, seed=2)).any()
    assert resampling.DRAWS == 2_000


def test_a_case_is_the_mean_of_its_slides() -> None:
    p = np.array([[1.0, 0.0], [0.0, 1.0], [0.4, 0.6]])
    ids, y, rows = by_case(["b", "a", "b"], [1, 0, 1], p)
    assert ids == ["a", "b"]
    assert y.tolist() == [0, 1]
    np.testing.assert_allclose(rows, [[0.0, 1.0], [0.7, 0.3]])
