"""Baselines find a planted signal, and nothing where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from her2cache.cohort import Slide
from trainers.baselines import COLOUR, PERMUTED, POOLED, baselines, mean_features
from trainers.config import SplitsSection
from trainers.splits import Splits, make_splits, nested_splits
from trainers.tasks import find_task

CASES, DIM = 40, 12


@pytest.fixture(scope="module")
def splits() -> Splits:
    """Two slides of each case."""
    slides = [
        Slide(f"s{k}{part}", f"c{k:02d}", Path(f"{k}{part}.svs"), "HE", her2_score=k % 4)
        for k in range(CASES)
        for part in "ab"
    ]
    return make_splits(slides, find_task("four"), SplitsSection(test_slides=16, folds=4))


def planted(splits: Splits, signal: float) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((len(splits.slides), DIM))
    x[np.arange(len(x)), [s.label for s in splits.slides]] += signal
    return x


def test_signal_is_found_and_noise_is_not(splits: Splits) -> None:
    found = baselines(
        {"good": planted(splits, 4.0)[None], "none": planted(splits, 0.0)[None]}, planted(splits, 0.0), splits, 4
    )
    by = {(b.name, b.embedder): b for b in found}
    assert list(by) == [(POOLED, "good"), (POOLED, "none"), (COLOUR, ""), (PERMUTED, "good"), (PERMUTED, "none")]
    for (name, embedder), b in by.items():
        assert b.test.auc is not None
        assert b.crossed.auc is not None
        assert b.crossed.chance is not None
        assert b.nested is None
        if (name, embedder) == (POOLED, "good"):
            assert min(b.test.auc, b.crossed.auc) > 0.95
            assert b.crossed.auc > b.crossed.chance.high
        else:
            assert b.crossed.auc < 0.75
        row = b.row(nested=False)
        assert (row["test_cases"], row["cv_cases"]) == (8, 32)
        assert row["test_chance_low"] < 0.4 < row["test_chance_high"]


def test_test_cases_never_train(splits: Splits) -> None:
    """Whatever stands in the rows of the test cases, the cross-validated value is the same."""
    x = planted(splits, 1.0)
    other = x.copy()
    other[[k for k, s in enumerate(splits.slides) if s.split == "test"]] = 1e3
    a, b = (baselines({"e": rows[None]}, None, splits, 4)[0] for rows in (x, other))
    assert a.crossed == b.crossed
    assert a.test != b.test


def test_outer_folds_are_pooled(splits: Splits) -> None:
    """All cases, each predicted by a model that has not seen it; the seeds of an embedder are averaged."""
    scores = {s.case_id: s.her2_score for s in splits.slides}
    slides = [Slide(s.slide_id, s.case_id, Path(s.slide_id), "HE", scores[s.case_id]) for s in splits.slides]
    nested = nested_splits(slides, find_task("four"), SplitsSection(nested=3, folds=3))
    assert [s.slide_id for s in nested[0].slides] == [s.slide_id for s in splits.slides]
    one, two = planted(splits, 1.0), planted(splits, 0.5)
    found = baselines(
        {"one": one[None], "two": two[None], "both": np.stack([one, two])}, None, splits, 4, nested=nested
    )
    by = {b.embedder: b.nested for b in found if b.name == POOLED}
    assert all(score is not None and score.cases == CASES for score in by.values())
    aucs = {name: score.auc for name, score in by.items() if score is not None and score.auc is not None}
    assert aucs["both"] == pytest.approx((aucs["one"] + aucs["two"]) / 2)
    assert aucs["one"] > aucs["two"] > 0.5
    row = found[-1].row(nested=True)
    assert row["baseline"] == PERMUTED
    assert row["nested_chance_low"] - 0.1 < row["nested_auc"] < row["nested_chance_high"] + 0.1


def test_the_test_value_is_scikit_learns(splits: Splits) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    x = planted(splits, 1.0)
    train = np.array([s.split == "train" for s in splits.slides])
    labels = np.array([s.label for s in splits.slides])
    scaler = StandardScaler().fit(x[train])
    p = (
        LogisticRegression(C=1e-2, max_iter=2000, class_weight="balanced")
        .fit(scaler.transform(x[train]), labels[train])
        .predict_proba(scaler.transform(x[~train]))
    )
    ids = sorted({s.case_id for s in splits.test})
    mean = np.array([p[[s.case_id == c for s in splits.test]].mean(axis=0) for c in ids])
    y = np.array([next(s.label for s in splits.test if s.case_id == c) for c in ids])
    expected = np.mean([roc_auc_score(y == c, mean[:, c]) for c in range(4)])
    assert baselines({"e": x[None]}, None, splits, 4)[0].test.auc == pytest.approx(expected)


def test_mean_features(splits: Splits) -> None:
    rng = np.random.default_rng(1)
    tables = {s.slide_id: [rng.standard_normal((5000 + k, 3)).astype(np.float16)] for k, s in enumerate(splits.test)}
    got = mean_features(tables, splits.test)
    np.testing.assert_allclose(
        got, [tables[s.slide_id][0].astype(np.float64).mean(axis=0) for s in splits.test], atol=1e-6
    )
