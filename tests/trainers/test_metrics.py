"""The metrics equal scikit-learn where it defines them, and are None where the data cannot tell."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as sk

from trainers.metrics import MACRO, evaluate, fold_ci95


@st.composite
def predictions(draw: st.DrawFn) -> tuple[NDArray[np.int64], NDArray[np.float64], int]:
    classes = draw(st.integers(2, 5))
    n = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    held = draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=classes, unique=True))
    labels = rng.choice(held, size=n)
    # one decimal makes ties, which an AUC must count as a half
    probabilities = np.round(rng.dirichlet(np.full(classes, 0.5), size=n), 1) + 1e-3
    return labels, probabilities / probabilities.sum(axis=1, keepdims=True), classes


@settings(max_examples=80, deadline=None)
@given(predictions())
def test_equal_to_scikit_learn_where_defined(
    case: tuple[NDArray[np.int64], NDArray[np.float64], int],
) -> None:
    y, p, classes = case
    got = evaluate(y, p, classes)
    predicted = p.argmax(axis=1)
    present = sorted(set(y.tolist()))

    assert got["n_classes"] == len(present)
    assert got["n_never_predicted"] == len(set(present) - set(predicted.tolist()))
    assert got["accuracy"] == pytest.approx(sk.accuracy_score(y, predicted))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert got["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(y, predicted))
    for name, score in (
        ("precision", sk.precision_score),
        ("recall", sk.recall_score),
        ("f1", sk.f1_score),
    ):
        expected = score(y, predicted, labels=present, average="macro", zero_division=0)
        assert got[name] == pytest.approx(expected)
        for c, value in zip(present, score(y, predicted, labels=present, average=None, zero_division=0), strict=True):
            assert got[f"{name}_{c}"] == pytest.approx(value)

    if len(present) == classes:
        expected = (
            sk.roc_auc_score(y, p, multi_class="ovr", average="macro") if classes > 2 else sk.roc_auc_score(y, p[:, 1])
        )
        assert got["auc"] == pytest.approx(expected)
    for c in range(classes):
        defined = c in present and len(present) > 1
        assert got[f"auc_{c}"] == (pytest.approx(sk.roc_auc_score(y == c, p[:, c])) if defined else None)

    if len(present) > 1 or set(predicted.tolist()) != set(present):
        kappa = sk.cohen_kappa_score(y, predicted, labels=range(classes), weights="quadratic")
        assert got["quadratic_kappa"] == pytest.approx(kappa)
    assert got["mae"] == pytest.approx(sk.mean_absolute_error(y, predicted))
    for c in range(1, classes):
        above = y >= c
        defined = above.any() and not above.all()
        assert got[f"auc_ge_{c}"] == (pytest.approx(sk.roc_auc_score(above, p[:, c:].sum(axis=1))) if defined else None)
    assert got["expected_score_mae"] == pytest.approx(np.mean(np.abs((p * np.arange(classes)).sum(1) - y)))


@settings(max_examples=40, deadline=None)
@given(predictions())
def test_never_a_nan(case: tuple[NDArray[np.int64], NDArray[np.float64], int]) -> None:
    assert all(value is None or math.isfinite(value) for value in evaluate(*case).values())


def test_absent_classes_leave_gaps_and_not_zeros() -> None:
    # class 2 has no true case but is predicted; class 3 neither occurs nor is predicted
    y = [0, 0, 1, 1]
    p = np.eye(4)[[0, 2, 1, 1]]
    got = evaluate(y, p, 4)
    assert [got[f"recall_{c}"] for c in range(4)] == [0.5, 1.0, None, None]
    assert [got[f"precision_{c}"] for c in range(4)] == [1.0, 1.0, 0.0, None]
    assert [got[f"f1_{c}"] for c in range(4)] == [pytest.approx(2 / 3), 1.0, None, None]
    assert [got[f"auc_{c}"] for c in range(4)] == [0.75, 1.0, None, None]
    # macro over the two classes that have a true case
    assert got["n_classes"] == 2
    assert [got[name] for name in MACRO] == [1.0, 0.75, pytest.approx(5 / 6), 0.875]


def test_a_class_never_predicted_has_precision_zero_and_is_counted() -> None:
    got = evaluate([0, 1], np.array([[0.9, 0.1], [0.8, 0.2]]), 2)
    assert (got["precision_1"], got["recall_1"], got["f1_1"]) == (0.0, 0.0, 0.0)
    assert got["n_never_predicted"] == 1
    assert got["auc"] == 1.0


def test_one_class_alone_has_no_auc_and_no_kappa() -> None:
    got = evaluate([2, 2], np.eye(4)[[2, 2]], 4)
    assert got["auc"] is None
    assert got["quadratic_kappa"] is None
    assert (got["precision"], got["recall"], got["f1"], got["n_classes"]) == (1.0, 1.0, 1.0, 1)


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([], np.empty((0, 2)), "non-empty"),
        ([0, 1], np.eye(3)[:2], "probabilities must be"),
        ([0, 2], np.eye(2), "labels must lie"),
        ([0, 1], np.array([[np.nan, 1.0], [0.5, 0.5]]), "finite"),
    ],
)
def test_what_cannot_be_evaluated(labels: list[int], probabilities: NDArray[np.float64], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(labels, probabilities, 2)


def test_fold_ci95_by_hand() -> None:
    # mean 0.62; squared deviations 0.0004 + 0.0001 + 0 + 0.0001 + 0.0004 = 0.001; SD = sqrt(0.001 / 4)
    mean, half = fold_ci95([0.60, 0.61, 0.62, 0.63, 0.64])
    assert mean == pytest.approx(0.62)
    assert half == pytest.approx(1.96 * 0.015811388300841896 / 2.23606797749979)
    assert half == pytest.approx(0.0138593, abs=1e-7)


def test_fold_ci95_needs_two_folds_and_the_same_classes_in_each() -> None:
    assert fold_ci95([0.7]) == (0.7, None)
    assert fold_ci95([]) == (None, None)
    assert fold_ci95([0.7, None, 0.8]) == (None, None)
    assert fold_ci95([0.5, 0.5]) == (0.5, 0.0)
