"""How the AUC of a cohort depends on the number of bags that its slides are scored with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from trainers.patch_scores import PatchScores
from trainers.score import draw_bags

COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
POOL_BAGS = 2000
REPEATS = 200


@dataclass(frozen=True)
class BagCount:
    """Macro one-vs-rest AUC over cases whose slides are scored by so many bags.

    Attributes:
        bags: a slide.
        auc: mean over repeats; None where a class that occurs is the only one.
        p2_5, p97_5: percentiles over repeats of the drawing of bags, not over patients.
        repeats: how many.
    """

    bags: int
    auc: float | None
    p2_5: float | None
    p97_5: float | None
    repeats: int


def draw_pool(models: Sequence[PatchScores], size: int, seed: int, bags: int = POOL_BAGS) -> NDArray[np.float32]:
    """Class probabilities of many bags of a slide, averaged over models, (bags, classes)."""
    n_patches = models[0].attention_logit.size
    drawn = draw_bags(n_patches, bags, size, np.random.default_rng(seed))
    return np.concatenate([np.mean([m.bag_probabilities(rows) for m in models], axis=0) for rows in drawn])


def auc_by_bags(
    pools: Sequence[NDArray[np.float32]],
    case_ids: Sequence[str],
    labels: Sequence[int],
    *,
    repeats: int = REPEATS,
    seed: int = 0,
) -> list[BagCount]:
    """The AUC for each number of bags in `COUNTS`.

    Bags are independent given the slide, so a score by n bags is the mean of n of the slide's pool, drawn with
    replacement. A case is the mean of its slides.

    Args:
        pools: from `draw_pool`, one a slide.
        case_ids: of the slides.
        labels: class of each slide; slides of a case have one class.
        repeats: how often the bags of all slides are drawn.
        seed: of the drawing.
    """
    rng = np.random.default_rng(seed)
    cases, index = np.unique(np.array(case_ids), return_inverse=True)
    y = np.zeros(len(cases), np.int64)
    y[index] = labels
    found: list[BagCount] = []
    for bags in COUNTS:
        p = np.zeros((repeats, len(cases), pools[0].shape[1]))
        for own, case in zip(pools, index.tolist(), strict=True):
            p[:, case] += own[rng.integers(0, len(own), (repeats, bags))].mean(axis=1)
        aucs = macro_aucs(p / np.bincount(index)[:, None], y)  # (repeats,)
        if np.isnan(aucs).any():
            found.append(BagCount(bags, None, None, None, repeats))
        else:
            low, high = np.percentile(aucs, [2.5, 97.5])
            found.append(BagCount(bags, float(aucs.mean()), float(low), float(high), repeats))
    return found


def macro_aucs(p: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Macro one-vs-rest AUC, as `trainers.metrics.evaluate` has it, of many predictions of the same cases.

    Args:
        p: class probabilities, (repeats, cases, classes).
        labels: class of each case, (cases,).

    Returns:
        (repeats,); NaN where there is only one class.
    """
    aucs: list[NDArray[np.float64]] = []
    for c in np.unique(labels):
        is_c = labels == c
        n = int(is_c.sum())
        ranks = rankdata(p[:, :, c], axis=1)[:, is_c].sum(axis=1)  # (repeats,)
        with np.errstate(invalid="ignore"):  # 0 / 0 where no case is of another class
            aucs.append((ranks - n * (n + 1) / 2) / np.float64(n * (len(labels) - n)))  # Mann and Whitney 1947
    return np.mean(aucs, axis=0)
