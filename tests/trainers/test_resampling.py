"""Intervals and null ranges against scikit-learn, draw by draw, and against what is known of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from trainers import resampling
from trainers.resampling import bootstrap_auc, by_case, macro_auc, null_range


def sample(rng: np.random.Generator, n: int, classes: int = 4, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    y = rng.integers(0, classes, n)
    p = rng.dirichlet(np.ones(classes), n)
    return y, np.round(p, 1) if ties else p


def reference(y: np.ndarray, p: np.ndarray) -> float:
    return float(np.mean([roc_auc_score(y == c, p[:, c]) for c in np.unique(y)]))


@given(st.integers(0, 10**6), st.integers(2, 20), st.booleans())
def test_macro_auc_is_scikit_learns(seed: int, n: int, ties: bool) -> None:
    y, p = sample(np.random.default_rng(seed), n, ties=ties)
    assume(len(np.unique(y)) > 1)
    assert macro_auc(y, p) == pytest.approx(reference(y, p))


def test_one_class_has_no_auc() -> None:
    y, p = np.zeros(5, np.int64), np.full((5, 4), 0.25)
    assert macro_auc(y, p) is bootstrap_auc(y, p) is null_range(y, p) is None


def test_null_range_is_that_of_explicit_permutations() -> None:
    y, p = sample(np.random.default_rng(3), 16, ties=True)
    rng = np.random.default_rng(4)
    aucs = [reference(rng.permutation(y), p) for _ in range(400)]
    low, high = np.percentile(aucs, [2.5, 97.5])
    found = null_range(y, p)
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(low, abs=0.03), pytest.approx(high, abs=0.03))


def test_bootstrap_is_that_of_explicit_resampling_within_classes() -> None:
    y, p = sample(np.random.default_rng(5), 40)
    rng = np.random.default_rng(6)
    groups = [np.flatnonzero(y == c) for c in np.unique(y)]
    rows = [np.concatenate([rng.choice(group, len(group)) for group in groups]) for _ in range(400)]
    low, high = np.percentile([reference(y[r], p[r]) for r in rows], [2.5, 97.5])
    found = bootstrap_auc(y, p)
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(low, abs=0.03), pytest.approx(high, abs=0.03))
    assert found.cases == tuple(np.bincount(y, minlength=4))
    assert found.reliable == (min(found.cases) >= 5)


@pytest.mark.parametrize(("a_class", "low", "high"), [(2, 0.23, 0.77), (4, 0.31, 0.69), (13, 0.40, 0.60)])
def test_null_range_of_a_macro_auc(a_class: int, low: float, high: float) -> None:
    """Known from simulation: with two cases a class, chance alone reaches from 0.23 to 0.77."""
    rng, y = np.random.default_rng(7), np.repeat(np.arange(4), a_class)
    ranges = [null_range(y, rng.dirichlet(np.ones(4), len(y)), seed=k, draws=500) for k in range(20)]
    assert np.mean([r.low for r in ranges if r]) == pytest.approx(low, abs=0.03)
    assert np.mean([r.high for r in ranges if r]) == pytest.approx(high, abs=0.03)
    assert all(r is not None and r.reliable == (a_class >= 5) for r in ranges)


def test_draws_are_seeded() -> None:
    y, p = sample(np.random.default_rng(8), 20)
    assert bootstrap_auc(y, p, seed=1) == bootstrap_auc(y, p, seed=1) != bootstrap_auc(y, p, seed=2)
    assert null_range(y, p, seed=1) == null_range(y, p, seed=1) != null_range(y, p, seed=2)
    assert resampling.DRAWS == 2_000


def test_a_case_is_the_mean_of_its_slides() -> None:
    p = np.array([[1.0, 0.0], [0.0, 1.0], [0.4, 0.6]])
    ids, y, rows = by_case(["b", "a", "b"], [1, 0, 1], p)
    assert ids == ["a", "b"]
    assert y.tolist() == [0, 1]
    np.testing.assert_allclose(rows, [[0.0, 1.0], [0.7, 0.3]])
