"""Whether embedders differ: the difference of each to the best on the same cases (science.md rule 2.5).

Overlapping intervals are no test: two embedders err on the same hard cases, so their difference varies less than
either of them. The same resampled cases serve both, and Holm's correction pays for asking of every embedder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainers.cases import Cases
from trainers.replicates import replicate_auc
from trainers.resampling import Floats, is_reliable, resampled, truth

ALPHA = 0.05


@dataclass(frozen=True)
class Comparison:
    """An embedder against the best, by case-level macro AUC.

    Attributes:
        embedder, best: their names; `best` is the one of the highest AUC on these very cases, which flatters it.
        auc, best_auc: their AUCs.
        difference: of the best to the embedder, above 0.
        low, high: its bootstrap range at the level that Holm's method gives this comparison.
        level: that level, 0.95 or more.
        p_holm: two-sided p value of no difference, Holm-corrected.
        distinguishable: whether the range leaves out 0, and those of all clearer comparisons do.
        n_cases: cases compared on.
        reliable: whether every class has enough of them for a bootstrap.
    """

    embedder: str
    best: str
    auc: float
    best_auc: float
    difference: float
    low: float
    high: float
    level: float
    p_holm: float
    distinguishable: bool
    n_cases: int
    reliable: bool

    def sentence(self) -> str:
        """What it says, in one line."""
        said = f"{self.best} is ahead of {self.embedder} by {self.difference:.2f} ({self.low:.2f} to {self.high:.2f})"
        return said if self.distinguishable else f"{said}: not distinguishable"


def compare(embedders: Mapping[str, Cases]) -> list[Comparison]:
    """Compares all embedders with the best.

    Only cases that every embedder has a prediction for take part.

    Args:
        embedders: name -> its cases.

    Returns:
        A comparison each, the clearest difference first; none for fewer than two embedders, or cases of one class.
    """
    shared = sorted(set.intersection(*(set(cases.ids) for cases in embedders.values()))) if embedders else []
    if len(embedders) < 2 or not shared:
        return []
    first = next(iter(embedders.values()))
    classes = first.p.shape[2]
    y = first.y[np.searchsorted(first.ids, shared)]
    p = {name: cases.p[:, np.searchsorted(cases.ids, shared)] for name, cases in embedders.items()}
    auc = {name: float(replicate_auc(truth(y, classes), own)[0]) for name, own in p.items()}
    if any(np.isnan(value) for value in auc.values()):
        return []
    best = max(auc, key=lambda name: auc[name])
    draws = resampled(y, classes)
    of_best = replicate_auc(draws, p[best])
    differences = {name: of_best - replicate_auc(draws, own) for name, own in p.items() if name != best}
    raw = {name: _p_value(d) for name, d in differences.items()}
    found: list[Comparison] = []
    for rank, name in enumerate(sorted(raw, key=lambda name: raw[name])):
        # Holm 1979: the clearest of m comparisons is held to alpha / m, the next to alpha / (m - 1), ...
        alpha = ALPHA / (len(raw) - rank)
        low, high = _range(differences[name], alpha)
        before = found[-1] if found else None
        found.append(
            Comparison(
                embedder=name,
                best=best,
                auc=auc[name],
                best_auc=auc[best],
                difference=auc[best] - auc[name],
                low=low,
                high=high,
                level=1 - alpha,
                p_holm=max(before.p_holm if before else 0.0, min(1.0, raw[name] * (len(raw) - rank))),
                distinguishable=(before is None or before.distinguishable) and not low <= 0 <= high,
                n_cases=len(shared),
                reliable=is_reliable(y),
            )
        )
    return found


def row(comparison: Comparison, cases: str) -> dict[str, Any]:
    """As a row of comparison.csv; `cases` says which they are."""
    return {"cases": cases, **vars(comparison)}


def _p_value(differences: Floats) -> float:
    """Two-sided: twice the share of draws on the rarer side of 0, the observation counted among them."""
    rarer = min(np.sum(differences <= 0), np.sum(differences >= 0))
    return min(1.0, 2 * (int(rarer) + 1) / (len(differences) + 1))


def _range(differences: Floats, alpha: float) -> tuple[float, float]:
    """The order statistics between which 0 lies exactly when `_p_value` is above `alpha`."""
    ordered = np.sort(differences)
    k = max(0, int(np.floor(alpha * (len(ordered) + 1) / 2 - 1 + 1e-9)))
    return float(ordered[k]), float(ordered[-1 - k])
