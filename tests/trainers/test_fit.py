from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from her2cache.errors import BagError, SweepError
from tests.planted import PATCHES, planted_features, planted_slides
from trainers.config import BagsSection, ModelSection, SplitsSection, TrainingSection
from trainers.features import SlideFeatures
from trainers.fit import FitPlan, fit
from trainers.ledger import has_run, name_run, read_run
from trainers.model import TrainedModel
from trainers.splits import make_splits
from trainers.stack import Configuration
from trainers.tasks import find_task

GOOD, SLOW = Configuration(1e-2, 1e-4), Configuration(1e-5, 1e-4)
WILD = Configuration(1e38, 1e-4)


@pytest.fixture(scope="module")
def plan() -> FitPlan:
    task = find_task("four")
    splits = make_splits(planted_slides(Path(), 24), task, SplitsSection(folds=2, test_slides=4))
    return FitPlan(
        space_key="1a2b3c4d5e",
        embedder="planted",
        fold=1,
        training=splits.training(1),
        validation=splits.validation(1),
        configurations=(GOOD, SLOW),
        task=task,
        bags=BagsSection(size=20, per_epoch=200, validation=100),
        settings=TrainingSection(epochs=6, batch_bags=16),
        model=ModelSection(attention_units=16),
        experiment="digest",
    )


@pytest.fixture(scope="module")
def features(plan: FitPlan) -> SlideFeatures:
    slides = plan.training + plan.validation
    return {s.slide_id: list(planted_features(s.her2_score, seed=i, signal=6.0)) for i, s in enumerate(slides)}


def test_a_planted_signal_is_learned_and_attended_to(plan: FitPlan, features: SlideFeatures, tmp_path: Path) -> None:
    good, slow = fit(plan, features, tmp_path)
    assert good.best is not None
    assert good.epochs[good.best].val_accuracy > 0.8  # 8 % of the bags hold no patch with the signal
    assert good.val_loss < 0.5 < slow.val_loss
    model = TrainedModel.load(tmp_path / "checkpoints" / f"{good.run_id}.safetensors", space_key=plan.space_key)
    rng = np.random.default_rng(0)
    keys, others = np.arange(0, PATCHES, 10), np.setdiff1d(np.arange(PATCHES), np.arange(0, PATCHES, 10))
    bags = np.stack([[key, *rng.choice(others, 9, replace=False)] for key in keys])  # one key instance each
    found = [model.patch_scores(features[s.slide_id][0]).attention(bags).argmax(axis=1) for s in plan.validation]
    assert (np.stack(found) == 0).mean() > 0.8  # chance: 0.1


def test_the_epoch_of_least_validation_loss_is_kept(plan: FitPlan, features: SlideFeatures, tmp_path: Path) -> None:
    """A rate so high that the loss rises again: the checkpoint must not be the last epoch."""
    plan = replace(plan, configurations=(Configuration(0.3, 1e-4),), settings=TrainingSection(epochs=8, batch_bags=16))
    (run,) = fit(plan, features, tmp_path)
    losses = [e.val_loss for e in run.epochs]
    assert run.best == int(np.argmin(losses)) < len(losses) - 1
    until = replace(plan, settings=TrainingSection(epochs=run.best + 1, batch_bags=16))
    (shorter,) = fit(until, features, tmp_path / "until")
    paths = [folder / "checkpoints" / f"{run.run_id}.safetensors" for folder in (tmp_path, tmp_path / "until")]
    assert shorter.val_loss == run.val_loss
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_run_that_diverges_leaves_and_the_others_go_on(
    plan: FitPlan, features: SlideFeatures, tmp_path: Path
) -> None:
    good, wild, slow = fit(replace(plan, configurations=(GOOD, WILD, SLOW)), features, tmp_path / "three")
    assert "no longer finite in epoch 1" in wild.reason
    assert wild.best is None
    assert not (tmp_path / "three" / "checkpoints" / f"{wild.run_id}.safetensors").exists()
    for run, alone in zip((good, slow), fit(plan, features, tmp_path / "two"), strict=True):
        np.testing.assert_allclose([e.val_loss for e in run.epochs], [e.val_loss for e in alone.epochs], rtol=1e-3)
    (only,) = fit(replace(plan, configurations=(WILD,)), features, tmp_path / "one")
    assert only.reason == wild.reason


def test_runs_come_back_from_the_ledger(plan: FitPlan, features: SlideFeatures, tmp_path: Path) -> None:
    runs = fit(replace(plan, configurations=(GOOD, WILD)), features, tmp_path)
    assert [run.run_id for run in runs] == replace(plan, configurations=(GOOD, WILD)).run_ids()
    for run in runs:
        assert has_run(run.run_id, tmp_path / "ledger")
        assert read_run(run.run_id, tmp_path / "ledger") == run
    path = tmp_path / "ledger" / f"{runs[0].run_id}.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(SweepError, match="cannot be read"):
        read_run(runs[0].run_id, tmp_path / "ledger")
    path.write_text(json.dumps({"run_id": "x"}))
    with pytest.raises(SweepError, match="cannot be read"):
        read_run(runs[0].run_id, tmp_path / "ledger")


def test_a_fit_is_the_same_each_time(plan: FitPlan, features: SlideFeatures, tmp_path: Path) -> None:
    plan = replace(plan, settings=TrainingSection(epochs=2, batch_bags=16))
    first, again = (fit(plan, features, tmp_path / name) for name in ("a", "b"))
    for a, b in zip(first, again, strict=True):
        assert [(e.train_loss, e.val_loss) for e in a.epochs] == [(e.train_loss, e.val_loss) for e in b.epochs]


def test_only_training_and_validation_slides_are_read(plan: FitPlan, features: SlideFeatures, tmp_path: Path) -> None:
    asked: set[str] = set()

    class Watched(dict[str, list[np.ndarray]]):
        def __getitem__(self, key: str) -> list[np.ndarray]:
            asked.add(key)
            return super().__getitem__(key)

    fit(replace(plan, settings=TrainingSection(epochs=1)), Watched(features), tmp_path)  # type: ignore[arg-type]
    assert asked == {s.slide_id for s in plan.training + plan.validation}


def test_a_thin_slide_is_named(plan: FitPlan, features: SlideFeatures, tmp_path: Path) -> None:
    plan = replace(plan, bags=BagsSection(size=PATCHES + 1))
    with pytest.raises(BagError, match=rf"slide s\d+ has {PATCHES} patches"):
        fit(plan, features, tmp_path)


def test_run_names() -> None:
    name = name_run("alexnet-imagenet", "1a2b3c4d5e", 0, Configuration(1e-3, 1e-5))
    assert name == "alexnet-imagenet-1a2b3c4d-f0-lr1e-03-wd1e-05"
    assert name_run("timm:vit/16", "1a2b3c4d5e", 1, Configuration(3.3e-4, 0.0)).endswith("-f1-lr0.00033-wd0e+00")
    assert "/" not in name_run("timm:vit/16", "1a2b3c4d5e", 1, GOOD)
