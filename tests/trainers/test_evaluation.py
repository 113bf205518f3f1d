from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from her2cache.bags import BagSampler
from tests.planted import DIM, PATCHES, planted_features
from trainers.assessment import assess
from trainers.evaluation import FixedBags
from trainers.features import FeatureRows
from trainers.model import AttentionMIL, Origin, TrainedModel
from trainers.splits import Assignment
from trainers.stack import Configuration, Stack
from trainers.tasks import find_task

SCORES = (0, 1, 2, 3, 1)
FEATURES = {f"s{i}": list(planted_features(score, seed=i)) for i, score in enumerate(SCORES)}


def sampler(size: int = 20) -> BagSampler:
    return BagSampler(dict.fromkeys(FEATURES, PATCHES), size, seed=5)


def direct_logits(model: AttentionMIL, slide: np.ndarray, rows: np.ndarray) -> torch.Tensor:
    bags = np.stack([FEATURES[f"s{i}"][0][r] for i, r in zip(slide, rows, strict=True)]).astype(np.float32)
    with torch.no_grad():
        return model(torch.from_numpy(bags))  # (bags, classes)


def test_gathered_bags_are_the_rows_of_their_views() -> None:
    bags = BagSampler(dict.fromkeys(FEATURES, PATCHES), 7, seed=5, views=2).training(30, 0)
    gathered = FeatureRows(FEATURES, list(FEATURES), 30 * 7).bags(bags).numpy()
    for i, slide in enumerate(bags.slide):
        views = FEATURES[f"s{slide}"]
        expected = [views[v][r] for v, r in zip(bags.views[i], bags.rows[i], strict=True)]
        np.testing.assert_array_equal(gathered[i], np.stack(expected).astype(np.float32))


def test_patch_scores_validate_as_the_direct_forward_pass() -> None:
    bags = sampler().fixed(50, "validation")
    fixed = FixedBags(bags, SCORES)
    rows = FeatureRows(FEATURES, list(FEATURES), rows=32)
    grid = [Configuration(1e-3, 0.0), Configuration(1e-2, 0.0)]
    stack = Stack(AttentionMIL.seeded(DIM, 4, 8, seed=0), grid)
    stack.train_batch([(torch.randn(3, 5, DIM), torch.tensor([0, 1, 2]))], 3)  # so that the runs differ
    labels = torch.tensor(SCORES)[bags.slide]
    for r, scores in enumerate(stack.patch_scores(fixed.blocks(rows))):
        logits = direct_logits(stack.model(r), bags.slide, bags.rows)
        loss, accuracy = fixed.loss_and_accuracy(scores)
        assert loss == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-5)
        assert accuracy == pytest.approx((logits.argmax(1) == labels).float().mean().item())


def test_each_patch_is_scored_once() -> None:
    fixed = FixedBags(sampler().fixed(500, "validation"), SCORES)
    blocks = fixed.blocks(FeatureRows(FEATURES, list(FEATURES), rows=32))
    assert sum(len(block) for block in blocks) == len(SCORES) * PATCHES  # and not 500 x 20


def test_an_assessment_is_that_of_the_direct_forward_pass() -> None:
    task = find_task("four")
    model = AttentionMIL.seeded(DIM, 4, 8, seed=0)
    trained = TrainedModel(model, Origin("run", "key", "planted", "digest", 0, 0, task))
    slides = [Assignment(name, name, score, score, "test", None) for name, score in zip(FEATURES, SCORES, strict=True)]
    found = assess(trained, FEATURES, slides, sampler(), 200)
    bags = sampler().fixed(200, "test")
    expected = torch.softmax(direct_logits(model, bags.slide, bags.rows), dim=1).numpy()
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found.slide, bags.slide)
    labels = np.array(SCORES)[bags.slide]
    assert found.metrics["bag_accuracy"] == pytest.approx((expected.argmax(1) == labels).mean())
    by_slide = np.stack([expected[bags.slide == i].mean(axis=0) for i in range(len(SCORES))])
    assert found.metrics["slide_accuracy"] == pytest.approx((by_slide.argmax(1) == np.array(SCORES)).mean())
