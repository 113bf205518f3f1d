"""The metrics of `trainers.metrics` for thousands of draws of cases at once.

Tests hold each of them to `trainers.metrics.evaluate`, which is the definition.
"""

from __future__ import annotations

import numpy as np

from trainers.metrics import MACRO
from trainers.resampling import Floats

Replicates = dict[str, Floats]
"""Metric -> its value in each draw, (draws,); NaN where it is undefined."""

_CELLS = 2_000_000
"""Numbers of a set of draws worked on at once, 16 MB."""


def replicate_metrics(draws: Floats, p: Floats) -> Replicates:
    """All metrics of one set of predictions in every draw.

    Args:
        draws: how often each case counts as each class, (draws, cases, classes), see `trainers.resampling`.
        p: class probabilities, (cases, classes), or (seeds, cases, classes), over which metrics are averaged.

    Returns:
        The keys of `trainers.metrics.evaluate`, without the counts.
    """
    step = max(1, _CELLS // draws[0].size)
    parts = [draws[k : k + step] for k in range(0, len(draws), step)]
    of_seeds = [[_metrics(part, own) for part in parts] for own in (p if p.ndim == 3 else p[None])]
    names = of_seeds[0][0]
    return {name: np.mean([np.concatenate([part[name] for part in own]) for own in of_seeds], axis=0) for name in names}


def replicate_auc(draws: Floats, p: Floats) -> Floats:
    """The macro AUC alone; arguments as of `replicate_metrics`, result (draws,)."""
    return np.mean(
        [_macro(_class_aucs(draws, own), _present(draws)) for own in (p if p.ndim == 3 else p[None])], axis=0
    )


def _metrics(draws: Floats, p: Floats) -> Replicates:
    classes = p.shape[1]
    grades = np.arange(classes)
    predicted = p.argmax(axis=1)  # (cases,)
    confusion = np.einsum("dkc,kj->dcj", draws, np.eye(classes)[predicted], optimize=True)  # (draws, true, predicted)
    n = confusion.sum(axis=(1, 2))  # (draws,)
    true, said = confusion.sum(axis=2), confusion.sum(axis=1)  # (draws, classes)
    hits = np.diagonal(confusion, axis1=1, axis2=2)  # (draws, classes)
    present = true > 0
    per_class = {
        "precision": _over(hits, np.where(said > 0, said, present)),
        "recall": _over(hits, true),
        "f1": np.where(present, _over(2 * hits, true + said), np.nan),
        "auc": _class_aucs(draws, p),
    }
    distance = (grades[:, None] - grades) ** 2  # (classes, classes)
    by_chance = np.einsum("di,dj->dij", true, said) / n[:, None, None]
    expected = np.abs((p @ grades)[:, None] - grades)  # (cases, classes)
    found = {
        "accuracy": hits.sum(axis=1) / n,
        "balanced_accuracy": _macro(per_class["recall"], present),
        **{name: _macro(per_class[name], present) for name in MACRO},
        "quadratic_kappa": 1 - _over((confusion * distance).sum(axis=(1, 2)), (by_chance * distance).sum(axis=(1, 2))),
        "mae": (confusion * np.abs(grades[:, None] - grades)).sum(axis=(1, 2)) / n,
        "expected_score_mae": np.einsum("dkc,kc->d", draws, expected, optimize=True) / n,
    }
    for c in grades[1:].tolist():
        found[f"auc_ge_{c}"] = _auc(draws[:, :, c:].sum(axis=2), draws[:, :, :c].sum(axis=2), p[:, c:].sum(axis=1))
    return found | {f"{name}_{c}": per_class[name][:, c] for name in MACRO for c in grades.tolist()}


def _class_aucs(draws: Floats, p: Floats) -> Floats:
    """One-vs-rest AUC of each class, (draws, classes)."""
    n = draws.sum(axis=2)  # (draws, cases)
    aucs = [_auc(draws[:, :, c], n - draws[:, :, c], p[:, c]) for c in range(p.shape[1])]
    return np.stack(aucs, axis=1)


def _auc(positive: Floats, negative: Floats, score: Floats) -> Floats:
    """AUC as the share of pairs in order, a tie counting half (Mann and Whitney 1947).

    Args:
        positive, negative: how often each case counts as such, (draws, cases).
        score: of each case, (cases,).
    """
    order = (score[:, None] > score) + 0.5 * (score[:, None] == score)  # (cases, cases)
    return _over(((positive @ order) * negative).sum(axis=1), positive.sum(axis=1) * negative.sum(axis=1))


def _present(draws: Floats) -> Floats:
    return draws.sum(axis=1) > 0  # (draws, classes)


def _macro(values: Floats, present: Floats) -> Floats:
    """Mean over the classes that occur; NaN where one of them has no value."""
    return np.where(present, values, 0).sum(axis=1) / present.sum(axis=1)


def _over(a: Floats, b: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return a / np.where(b > 0, b, np.nan)
