"""What training finds where the truth is known: a planted instance, and nothing where there is nothing."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from her2cache.cohort import Slide
from trainers.config import BagsSection, ModelSection, SplitsSection, TrainingSection
from trainers.fit import fit
from trainers.model import AttentionMIL, TrainedModel
from trainers.plan import FitPlan
from trainers.splits import make_splits
from trainers.stack import Configuration, Stack
from trainers.tasks import find_task

DIM, SIZE = 16, 20


def bags_with_a_key(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every other bag is positive: one of its instances, at a random place, points in another direction."""
    g = torch.Generator().manual_seed(seed)
    v, labels = torch.randn(n, SIZE, DIM, generator=g), torch.arange(n) % 2
    place = torch.randint(SIZE, (n,), generator=g)
    v[torch.arange(n), place, 3] += 6.0 * labels
    return v, labels, place


@pytest.mark.parametrize("gated", [False, True])
def test_one_key_instance_is_found_and_attended_to_most(gated: bool) -> None:
    model = AttentionMIL.seeded(DIM, 2, 16, seed=0, gated=gated)
    stack = Stack(model, [Configuration(1e-2, 1e-5), Configuration(0.0, 0.0)])
    for step in range(400):
        v, labels, _ = bags_with_a_key(64, seed=step)
        stack.train_batch([(v, labels)], len(labels))
    v, labels, place = bags_with_a_key(400, seed=1_000_000)
    trained, untrained = stack.model(0), stack.model(1)
    with torch.no_grad():
        assert (trained(v).argmax(dim=1) == labels).float().mean() > 0.97
        found = {
            m: m.attention_logits(v).argmax(dim=1)[labels == 1] == place[labels == 1] for m in (trained, untrained)
        }
    assert found[trained].float().mean() > 0.95
    assert found[untrained].float().mean() < 0.5  # chance: 1 / 20, and a far instance draws an untrained eye


def test_without_a_signal_the_auc_is_chance(tmp_path: Path) -> None:
    """Twelve cohorts of noise: the 95 % range of chance holds the AUC of the trained model in all but a few."""
    task = find_task("paper-binary")
    aucs: list[float] = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        slides = [Slide(f"s{i}", f"c{i}", tmp_path / f"{i}.svs", "HE", her2_score=i % 4) for i in range(48)]
        features = {s.slide_id: [rng.standard_normal((40, DIM)).astype(np.float16)] for s in slides}
        splits = make_splits(slides, task, SplitsSection(folds=2, test_slides=24))
        plan = FitPlan(
            space_key="1a2b3c4d5e",
            embedder="noise",
            fold=0,
            training=splits.training(0),
            validation=splits.validation(0),
            configurations=(Configuration(1e-2, 1e-4),),
            task=task,
            bags=BagsSection(size=SIZE, per_epoch=128, validation=64),
            settings=TrainingSection(epochs=4, batch_bags=16),
            model=ModelSection(attention_units=8),
            experiment=f"noise {seed}",
        )
        (run,) = fit(plan, features, tmp_path)
        model = TrainedModel.load(tmp_path / "checkpoints" / f"{run.run_id}.safetensors")
        every = np.arange(40)[None]
        p = [model.patch_scores(features[s.slide_id][0]).bag_probabilities(every)[0, 1] for s in splits.test]
        aucs.append(float(roc_auc_score([s.label for s in splits.test], p)))
    assert [(s.split, s.label) for s in splits.slides].count(("test", 1)) == 12
    half = 1.96 * math.sqrt(25 / (12 * 12 * 12))  # of the AUC of 12 against 12, Mann and Whitney 1947
    inside = sum(abs(auc - 0.5) <= half for auc in aucs)
    assert inside >= 10  # P(fewer) = 2 % when each is inside with 95 %
    assert abs(np.mean(aucs) - 0.5) < 0.12
