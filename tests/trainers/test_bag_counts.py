"""AUC by the number of bags: equal to scores evaluated one by one, and tighter with more bags."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from trainers.bag_counts import COUNTS, auc_by_bags, draw_pool, macro_aucs
from trainers.metrics import evaluate
from trainers.patch_scores import PatchScores
from trainers.score import draw_bags


def pools(signal: float, slides: int = 12, bags: int = 300) -> list[NDArray[np.float32]]:
    """Bags that point at the slide's class, k % 4, with noise."""
    rng = np.random.default_rng(5)
    found: list[NDArray[np.float32]] = []
    for k in range(slides):
        z = rng.normal(size=(bags, 4))
        z[:, k % 4] += signal
        found.append((np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)).astype(np.float32))
    return found


@pytest.mark.parametrize("labels", [[0, 1, 2, 3, 0, 1, 2, 3, 3], [0, 0, 2, 2, 2, 0, 0, 2, 2]])
def test_macro_aucs_are_those_of_evaluate(labels: list[int]) -> None:
    p = np.random.default_rng(1).dirichlet(np.ones(4), size=(6, len(labels)))
    p[0, 1] = p[0, 2]  # a tie
    expected = [evaluate(labels, own, 4)["auc"] for own in p]
    assert macro_aucs(p, np.array(labels)) == pytest.approx(expected)


def test_one_class_has_no_auc() -> None:
    found = auc_by_bags(pools(1.0, slides=2), ["a", "b"], [1, 1], repeats=3)
    assert [each.auc for each in found] == [None] * len(COUNTS)


def test_more_bags_settle() -> None:
    slides = pools(0.7)
    found = auc_by_bags(slides, [f"c{k}" for k in range(12)], [k % 4 for k in range(12)])
    assert [each.bags for each in found] == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    aucs = [each.auc or 0 for each in found]
    width = [(each.p97_5 or 0) - (each.p2_5 or 0) for each in found]
    assert 0.55 < aucs[0] < 0.75
    assert aucs[-1] > 0.97
    assert width[0] > 0.2
    assert width[-1] < width[3] < width[0]
    assert all((each.p2_5 or 0) <= (each.auc or 0) <= (each.p97_5 or 0) for each in found)


def test_slides_of_a_case_count_once() -> None:
    a, b = pools(0.0, slides=2, bags=1)  # a single bag: whatever is drawn, a score is that bag
    found = auc_by_bags([a, b, a, b], ["x", "x", "y", "z"], [0, 0, 1, 2], repeats=2)
    cases = np.stack([(a[0] + b[0]) / 2, a[0], b[0]]).astype(np.float64)
    assert found[0].auc == pytest.approx(evaluate([0, 1, 2], cases, 4)["auc"])


def test_the_pool_is_of_bags_averaged_over_models() -> None:
    rng = np.random.default_rng(0)
    models = [
        PatchScores(
            rng.normal(size=80).astype(np.float32),
            rng.normal(size=(80, 4)).astype(np.float32),
            np.zeros(4, np.float32),
        )
        for _ in range(3)
    ]
    pool = draw_pool(models, 10, seed=4, bags=60)
    (rows,) = draw_bags(80, 60, 10, np.random.default_rng(4))
    assert pool == pytest.approx(np.mean([m.bag_probabilities(rows) for m in models], axis=0))
