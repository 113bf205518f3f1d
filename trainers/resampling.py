"""Cases drawn again, and labels dealt anew: what intervals and null ranges rest on, with the case as the unit.

Bags and slides of one case are no independent observations, so everything here takes one row of class probabilities a
case. A set of draws is how often each case counts as each class: 1 and 0 are the truth itself, a bootstrap counts some
cases twice and others not at all, a permutation counts them as other classes. `trainers.replicates` turns draws into
metrics. The same cases and seed give the same draws, so that embedders are compared draw by draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 2_000
FEW_CASES = 5
"""A bootstrap of fewer cases of a class says little: it is marked unreliable."""

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """A 95 % range of a metric: its 2.5 and 97.5 percentiles over draws."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Floats) -> Interval | None:
        """That of a metric's values, (draws,); None where it is undefined."""
        if np.isnan(values).any():
            return None
        low, high = np.percentile(values, [2.5, 97.5])
        return cls(float(low), float(high))


def by_case(case_ids: Sequence[str], labels: Sequence[int], p: Floats) -> tuple[list[str], Labels, Floats]:
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


def truth(y: Labels, classes: int) -> Floats:
    """The one draw in which every case counts once, as what it is.

    Args:
        y: labels, (cases,).
        classes: of the task.

    Returns:
        (1, cases, classes).
    """
    return np.eye(classes)[y][None]


def resampled(y: Labels, classes: int, seed: int = 0, draws: int = DRAWS) -> Floats:
    """Cases resampled within their class (science.md rule 2.4).

    Resampled freely, a small test set loses a class in many draws, and means over other classes are not comparable.

    Args:
        y: labels, (cases,).
        classes: of the task.
        seed: of the draws.
        draws: how many.

    Returns:
        (draws, cases, classes).
    """
    rng = np.random.default_rng(seed)
    counts = np.zeros((draws, len(y)))  # how often each case was drawn
    for c in np.unique(y):
        of_class = np.flatnonzero(y == c)
        counts[:, of_class] = rng.multinomial(len(of_class), np.full(len(of_class), 1 / len(of_class)), size=draws)
    return counts[:, :, None] * truth(y, classes)


def permuted(y: Labels, classes: int, seed: int = 0, draws: int = DRAWS) -> Floats:
    """Labels dealt to cases by chance (science.md rule 2.2); arguments and result as of `resampled`.

    A metric inside the range of these is what a model without any knowledge reaches with these many cases.
    """
    dealt = np.random.default_rng(seed).permuted(np.tile(y, (draws, 1)), axis=1)  # (draws, cases)
    return np.eye(classes)[dealt]


def is_reliable(y: Labels) -> bool:
    """Whether every class that occurs has enough cases for a bootstrap."""
    return int(np.unique(y, return_counts=True)[1].min()) >= FEW_CASES
