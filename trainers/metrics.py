"""Classification metrics with honest gaps, and the interval of the paper's equation 3.

The labels are always all classes of the task, whatever the test set holds. A number that the data
cannot give is None, never 0 or NaN, and a macro mean is taken over the classes that have a true case
(`n_classes` of them): means over different class sets are not comparable and are never mixed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata
from sklearn.metrics import cohen_kappa_score, precision_recall_fscore_support

MACRO = ("precision", "recall", "f1", "auc")
"""The metrics of the paper's Table 2, each also given per class as `<metric>_<class>`."""

Metrics = dict[str, float | int | None]


def evaluate(labels: ArrayLike, probabilities: ArrayLike, classes: int) -> Metrics:
    """Compares predictions with true classes, each prediction being the most probable class.

    Args:
        labels: true class of each case (a bag or a slide), integers (n,) in [0, classes).
        probabilities: class probabilities, (n, classes).
        classes: how many classes the task has, present in `labels` or not.

    Returns:
        Flat keys: `accuracy`, `balanced_accuracy`, the macro means `precision`, `recall`, `f1` and `auc`
        (one-vs-rest), `quadratic_kappa`, `mae` (of the predicted class, in classes), `expected_score_mae` (of
        sum_c c p_c), the cumulative `auc_ge_1`, `auc_ge_2`, ... (classes from 1, 2, ... on against those below, by
        their summed probability; classes are ordered), `n_classes`
        (classes with a true case), `n_never_predicted` (those among them that were never predicted, whose
        precision counts as 0), and per class `precision_0`, `recall_0`, `f1_0`, `auc_0`, ... .
        AUC is None when positives or negatives are missing, recall and F1 are None without a true case,
        and precision is None for a class that neither occurs nor is predicted.

    Raises:
        ValueError: nothing to evaluate, shapes that do not fit, or a label or probability out of range.
    """
    y = np.asarray(labels, dtype=np.int64)  # (n,)
    p = np.asarray(probabilities, dtype=np.float64)  # (n, classes)
    _check(y, p, classes)
    every = list(range(classes))
    predicted = p.argmax(axis=1)  # (n,)
    is_present = np.bincount(y, minlength=classes) > 0  # (classes,)
    is_predicted = np.bincount(predicted, minlength=classes) > 0  # (classes,)
    # scikit-learn's own default, "warn", makes the checker take this option for a string
    counted: Any = precision_recall_fscore_support(y, predicted, labels=every, zero_division=cast(Any, 0))
    precision, recall, f1, _ = counted  # (classes,) each

    per_class: dict[str, list[float | None]] = {
        "precision": _where(precision, is_present | is_predicted),
        "recall": _where(recall, is_present),
        "f1": _where(f1, is_present),
        "auc": [_auc(y == c, p[:, c]) for c in every],
    }
    present = [c for c in every if is_present[c]]
    metrics: Metrics = {
        "accuracy": float(np.mean(predicted == y)),
        "balanced_accuracy": _mean([per_class["recall"][c] for c in present]),
        **{name: _mean([per_class[name][c] for c in present]) for name in MACRO},
        "quadratic_kappa": _quadratic_kappa(y, predicted, every),
        "mae": float(np.mean(np.abs(predicted - y))),
        "expected_score_mae": float(np.mean(np.abs(p @ np.arange(classes) - y))),
        "n_classes": len(present),
        "n_never_predicted": int(np.sum(is_present & ~is_predicted)),
    }
    metrics |= {f"auc_ge_{c}": _auc(y >= c, p[:, c:].sum(axis=1)) for c in every[1:]}
    return metrics | {f"{name}_{c}": per_class[name][c] for name in MACRO for c in every}


def fold_ci95(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean over folds and half-width of its 95 % interval: paper equation 3, 1.96 SD / sqrt(K), ddof 1.

    It describes the spread over training folds, not over patients.

    Args:
        values: one value a fold. A None among them leaves nothing that could be averaged.

    Returns:
        (mean, half-width); half-width None for fewer than two folds, both None without a mean.
    """
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None, None
    mean = math.fsum(known) / len(known)
    if len(known) < 2:
        return mean, None
    return mean, 1.96 * float(np.std(known, ddof=1)) / math.sqrt(len(known))


def _check(y: NDArray[np.int64], p: NDArray[np.float64], classes: int) -> None:
    if y.ndim != 1 or not y.size:
        raise ValueError(f"labels must be a non-empty (n,) array, got shape {y.shape}")
    if p.shape != (y.size, classes):
        raise ValueError(f"probabilities must be (n, classes) = {(y.size, classes)}, got {p.shape}")
    if y.min() < 0 or y.max() >= classes:
        raise ValueError(f"labels must lie in [0, {classes}), got {y.min()} to {y.max()}")
    if not np.isfinite(p).all():
        raise ValueError("probabilities must be finite; a run that diverged has no predictions to evaluate")


def _where(values: NDArray[np.float64], defined: NDArray[np.bool_]) -> list[float | None]:
    return [float(value) if ok else None for value, ok in zip(values, defined, strict=True)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None


def _auc(positive: NDArray[np.bool_], score: NDArray[np.float64]) -> float | None:
    if positive.all() or not positive.any():
        return None
    # Mann and Whitney 1947, ties by half; scikit-learn's takes ten times as long, and a sweep asks thousands of times
    n = int(positive.sum())
    ranks = float(rankdata(score)[positive].sum())
    return (ranks - n * (n + 1) / 2) / (n * (len(positive) - n))


def _quadratic_kappa(y: NDArray[np.int64], predicted: NDArray[np.int64], labels: list[int]) -> float | None:
    with warnings.catch_warnings():  # scikit-learn warns of the 0 / 0 that becomes None here
        warnings.simplefilter("ignore")
        with np.errstate(invalid="ignore", divide="ignore"):
            kappa = float(cohen_kappa_score(y, predicted, labels=labels, weights="quadratic"))
    return kappa if math.isfinite(kappa) else None
