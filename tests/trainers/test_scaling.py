"""Standardised features: fitted on training slides, and taken into the model without a difference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from her2cache.bags import BagSampler
from tests.planted import planted_features, planted_slides
from trainers.config import BagsSection, ModelSection, SplitsSection, TrainingSection
from trainers.features import FeatureRows, SlideFeatures
from trainers.fit import fit
from trainers.model import AttentionMIL, TrainedModel
from trainers.plan import FitPlan
from trainers.scaling import ROWS, Scaling
from trainers.splits import make_splits
from trainers.stack import Configuration
from trainers.tasks import find_task

DIM = 12


def tables(seed: int = 0, slides: int = 3) -> SlideFeatures:
    rng = np.random.default_rng(seed)
    scale, offset = np.logspace(-2, 2, DIM), np.linspace(-5, 5, DIM)
    scale[3] = 0.0  # a dead unit
    return {
        f"s{k}": [(rng.standard_normal((1500, DIM)) * scale + offset + k).astype(np.float32)] for k in range(slides)
    }


def test_it_is_scikit_learns_over_the_first_rows_of_the_slides_asked_for() -> None:
    features = tables()
    scaling = Scaling.fitted(features, ["s0", "s1"])
    seen = np.concatenate([features[s][0][:ROWS] for s in ("s0", "s1")]).astype(np.float64)
    expected = StandardScaler().fit(seen)
    np.testing.assert_allclose(scaling.mean.numpy(), expected.mean_, rtol=1e-5)
    np.testing.assert_allclose(scaling.sd.numpy(), expected.scale_, rtol=1e-4)
    changed = {**features, "s2": [features["s2"][0] * 100]}
    again = Scaling.fitted(changed, ["s0", "s1"])
    assert torch.equal(again.mean, scaling.mean)
    assert torch.equal(again.sd, scaling.sd)


def test_a_dead_unit_is_only_centred() -> None:
    constant: SlideFeatures = {"s": [np.full((10, 2), 7.0, np.float32)]}
    scaling = Scaling.fitted(constant, ["s"])
    assert scaling.apply_(torch.full((1, 2), 7.0)).tolist() == [[0.0, 0.0]]


def test_gathered_rows_are_standardised() -> None:
    features = tables()
    scaling = Scaling.fitted(features, features)
    sampler = BagSampler(dict.fromkeys(features, 1500), 10, seed=0)
    bags = sampler.training(4, 0)
    plain = FeatureRows(features, sampler.slides, 40).bags(bags).clone()
    scaled = FeatureRows(features, sampler.slides, 40, scaling=scaling).bags(bags)
    torch.testing.assert_close(scaled, (plain - scaling.mean) / scaling.sd)


def test_a_folded_model_does_with_plain_features_what_it_did_with_standardised_ones() -> None:
    features = tables()
    scaling = Scaling.fitted(features, features)
    model = AttentionMIL.seeded(DIM, 4, 8, seed=0).double()
    bags = torch.from_numpy(features["s1"][0][:60].reshape(6, 10, DIM)).double()
    expected = model((bags - scaling.mean.double()) / scaling.sd.double())
    torch.testing.assert_close(scaling.fold(model)(bags), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.hidden.weight, AttentionMIL.seeded(DIM, 4, 8, seed=0).double().hidden.weight)


@pytest.fixture(scope="module")
def plan() -> FitPlan:
    task = find_task("four")
    splits = make_splits(planted_slides(Path(), 24), task, SplitsSection(folds=2, test_slides=4))
    return FitPlan(
        space_key="k" * 8,
        embedder="planted",
        fold=0,
        training=splits.training(0),
        validation=splits.validation(0),
        configurations=(Configuration(1e-2, 1e-4),),
        task=task,
        bags=BagsSection(size=20, per_epoch=200, validation=100),
        settings=TrainingSection(epochs=4, batch_bags=16, feature_norm="standardize"),
        model=ModelSection(attention_units=16),
        experiment="digest",
    )


def planted(plan: FitPlan, factor: float) -> SlideFeatures:
    """Features with a signal, all of them multiplied."""
    slides = plan.training + plan.validation
    views = {s.slide_id: planted_features(s.her2_score, int(s.slide_id[1:]), signal=6.0) for s in slides}
    return {slide_id: list(v.astype(np.float32) * np.float32(factor)) for slide_id, v in views.items()}


def test_a_fit_does_not_see_the_scale_of_features(plan: FitPlan, tmp_path: Path) -> None:
    (whole,) = fit(plan, planted(plan, 1.0), tmp_path / "whole")
    (small,) = fit(plan, planted(plan, 0.01), tmp_path / "small")
    assert small.val_loss == pytest.approx(whole.val_loss, rel=1e-3)
    plain = replace(plan, settings=plan.settings.model_copy(update={"feature_norm": "none"}))
    (unscaled,) = fit(plain, planted(plan, 0.01), tmp_path / "plain")
    assert unscaled.val_loss > small.val_loss + 0.1


def test_the_checkpoint_works_on_features_as_they_are_stored(plan: FitPlan, tmp_path: Path) -> None:
    features = planted(plan, 0.01)
    (run,) = fit(plan, features, tmp_path)
    model = TrainedModel.load(tmp_path / "checkpoints" / f"{run.run_id}.safetensors")
    scores = [model.patch_scores(features[s.slide_id][0]) for s in plan.validation]
    bags = BagSampler({s.slide_id: 60 for s in plan.validation}, 20, seed=plan.settings.seed).fixed(100, "validation")
    right = [
        scores[i].bag_probabilities(rows[None])[0, plan.validation[i].label]
        for i, rows in zip(bags.slide, bags.rows, strict=True)
    ]
    assert -np.log(right).mean() == pytest.approx(run.val_loss, rel=1e-3)
