"""How far chance alone reaches: intervals and null ranges of the macro AUC, with the case as the unit.

Bags and slides of one case are no independent observations, so everything here takes one row of class
probabilities a case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DRAWS = 2_000
FEW_CASES = 5
"""A bootstrap of fewer cases of a class says little: it is marked unreliable."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A 95 % range of a macro AUC.

    Attributes:
        low, high: its 2.5 and 97.5 percentiles.
        cases: of each class.
        reliable: whether every class has enough cases.
    """

    low: float
    high: float
    cases: tuple[int, ...]

    @property
    def reliable(self) -> bool:
        return min(n for n in self.cases if n) >= FEW_CASES


def by_case(case_ids: Sequence[str], labels: Sequence[int], p: Floats) -> tuple[list[str], NDArray[np.int64], Floats]:
    """One row a case: the mean of its slides' probabilities.

    Args:
        case_ids: of each slide, (slides,).
        labels: class of each slide; slides of a case have one class.
        p: class probabilities, (slides, classes).

    Returns:
        Case ids, sorted; labels (cases,); probabilities (cases, classes).
    """
    cases, index = np.unique(np.asarray(case_ids, dtype=object).astype(str), return_inverse=True)
    sums = np.zeros((len(cases), p.shape[1]))
    np.add.at(sums, index, p)
    counts = np.bincount(index)[:, None]
    y = np.zeros(len(cases), np.int64)
    y[index] = labels
    return cases.tolist(), y, sums / counts


def macro_auc(y: NDArray[np.int64], p: Floats) -> float | None:
    """Mean one-vs-rest AUC over the classes that occur; None when fewer than two do.

    Args:
        y: labels, (cases,).
        p: class probabilities, (cases, classes).
    """
    present = np.unique(y)
    if len(present) < 2:
        return None
    weights = np.stack([(y == c).astype(np.float64) for c in present])  # (present, cases)
    aucs = [_aucs(_order(p[:, c]), w[None], 1 - w[None])[0] for c, w in zip(present, weights, strict=True)]
    return float(np.mean(aucs))


def bootstrap_auc(y: NDArray[np.int64], p: Floats, seed: int = 0, draws: int = DRAWS) -> Interval | None:
    """Range of the macro AUC under resampling of cases within their class (science.md rule 2.4).

    Resampled freely, a small test set loses a class in many draws, and means over other classes are not comparable.

    Args:
        y: labels, (cases,).
        p: class probabilities, (cases, classes).
        seed: of the draws.
        draws: how many.

    Returns:
        None when fewer than two classes occur.
    """
    present = np.unique(y)
    if len(present) < 2:
        return None
    rng = np.random.default_rng(seed)
    weights = np.zeros((draws, len(y)))  # how often each case was drawn
    for c in present:
        of_class = np.flatnonzero(y == c)
        drawn = rng.multinomial(len(of_class), np.full(len(of_class), 1 / len(of_class)), size=draws)
        weights[:, of_class] = drawn
    aucs = [_aucs(_order(p[:, c]), weights * (y == c), weights * (y != c)) for c in present]
    return _interval(np.mean(aucs, axis=0), y, p.shape[1])


def null_range(y: NDArray[np.int64], p: Floats, seed: int = 0, draws: int = DRAWS) -> Interval | None:
    """Range of the macro AUC when labels are dealt to cases by chance (science.md rule 2.2).

    An AUC inside it is what a model without any knowledge reaches with these many cases.

    Args:
        y: labels, (cases,).
        p: class probabilities, (cases, classes).
        seed: of the permutations.
        draws: how many.

    Returns:
        None when fewer than two classes occur.
    """
    present = np.unique(y)
    if len(present) < 2:
        return None
    dealt = np.random.default_rng(seed).permuted(np.tile(y, (draws, 1)), axis=1)  # (draws, cases)
    aucs = [_aucs(_order(p[:, c]), dealt == c, dealt != c) for c in present]
    return _interval(np.mean(aucs, axis=0), y, p.shape[1])


def _order(score: Floats) -> Floats:
    """For each pair of cases 1 where the first has the higher score, 1/2 for a tie; (cases, cases)."""
    return (score[:, None] > score) + 0.5 * (score[:, None] == score)


def _aucs(order: Floats, positive: NDArray[Any], negative: NDArray[Any]) -> Floats:
    """AUC as the share of pairs in order (Mann and Whitney 1947), each case counted by its weight.

    Args:
        order: see `_order`.
        positive, negative: weights, (draws, cases).
    """
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    return ((positive.astype(np.float64) @ order) * negative).sum(axis=1) / pairs


def _interval(aucs: Floats, y: NDArray[np.int64], classes: int) -> Interval:
    low, high = np.percentile(aucs, [2.5, 97.5])
    return Interval(float(low), float(high), tuple(np.bincount(y, minlength=classes).tolist()))
