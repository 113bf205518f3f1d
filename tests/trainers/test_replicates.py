"""Metrics over draws equal those of `trainers.metrics.evaluate` on the cases written out, draw by draw."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers import replicates
from trainers.metrics import evaluate
from trainers.replicates import replicate_auc, replicate_metrics
from trainers.resampling import permuted, resampled, truth


def sample(seed: int, n: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Some classes may be absent, and one decimal makes ties."""
    rng = np.random.default_rng(seed)
    held = rng.choice(classes, rng.integers(1, classes + 1), replace=False)
    p = np.round(rng.dirichlet(np.full(classes, 0.5), n), 1) + 1e-3
    return rng.choice(held, n), p


def assert_equal(found: dict[str, np.ndarray], k: int, y: np.ndarray, p: np.ndarray) -> None:
    expected = evaluate(y, p, p.shape[1])
    assert found.keys() == expected.keys() - {"n_classes", "n_never_predicted"}
    for name, values in found.items():
        value = expected[name]
        assert (value is None) == np.isnan(values[k]), name
        assert value is None or values[k] == pytest.approx(value), name


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 25), st.integers(2, 5))
def test_the_truth_is_evaluated_as_it_is(seed: int, n: int, classes: int) -> None:
    y, p = sample(seed, n, classes)
    assert_equal(replicate_metrics(truth(y, classes), p), 0, y, p)


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(2, 20), st.integers(2, 4))
def test_draws_are_evaluated_as_cases_written_out(seed: int, n: int, classes: int) -> None:
    y, p = sample(seed, n, classes)
    boot, dealt = resampled(y, classes, seed, draws=3), permuted(y, classes, seed, draws=3)
    of_boot, of_dealt = replicate_metrics(boot, p), replicate_metrics(dealt, p)
    for k in range(3):
        times = boot[k].sum(axis=1).astype(int)
        assert_equal(of_boot, k, np.repeat(y, times), np.repeat(p, times, axis=0))
        assert_equal(of_dealt, k, dealt[k].argmax(axis=1), p)
    np.testing.assert_allclose(replicate_auc(boot, p), of_boot["auc"])


def test_seeds_are_averaged_and_not_pooled() -> None:
    y, p = sample(3, 20, 4)
    other = np.roll(p, 1, axis=0)
    draws = resampled(y, 4, draws=5)
    one, two, both = (replicate_metrics(draws, each) for each in (p, other, np.stack([p, other])))
    for name, values in both.items():
        np.testing.assert_allclose(values, (one[name] + two[name]) / 2)
    assert (replicate_metrics(draws, (p + other) / 2)["auc"] != both["auc"]).any()


def test_many_cases_are_worked_on_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    y, p = sample(5, 30, 4)
    draws = resampled(y, 4, draws=7)
    whole = replicate_metrics(draws, p)
    monkeypatch.setattr(replicates, "_CELLS", 2 * draws[0].size)
    for name, values in replicate_metrics(draws, p).items():
        np.testing.assert_allclose(values, whole[name])
