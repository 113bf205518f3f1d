from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from her2cache.errors import BagError, SweepError
from tests.planted import PATCHES, planted_features, planted_slides
from trainers.config import BagsSection, ModelSection, SplitsSection, TrainingSection
from trainers.features import SlideFeatures
from trainers.fit import EpochReport, Fit, conclude, fit
from trainers.ledger import Run, has_run, name_run, read_run
from trainers.model import TrainedModel
from trainers.plan import FitPlan
from trainers.progress import Progress
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


def test_patience_ends_a_run_and_the_others_go_on(plan: FitPlan, features: SlideFeatures, tmp_path: Path) -> None:
    """A rate so high that the loss soon rises again, beside one that goes on learning."""
    high, low = Configuration(0.3, 1e-4), Configuration(1e-3, 1e-4)
    patient = replace(plan, configurations=(high, low), settings=TrainingSection(epochs=12, batch_bags=16, patience=2))
    reports: list[EpochReport] = []
    ended, going = fit(patient, features, tmp_path, reports.append)
    assert ended.best is not None
    assert (ended.stopped, len(ended.epochs)) == ("patience", ended.best + 3)
    assert len(ended.epochs) < len(going.epochs)
    in_stack = [len(report.epochs) for report in reports]
    assert in_stack[: len(ended.epochs)] == [2] * len(ended.epochs)
    assert set(in_stack[len(ended.epochs) :]) == {1}
    (alone,) = fit(replace(patient, configurations=(high,)), features, tmp_path / "alone")
    # so high a rate multiplies the rounding of a product of another width
    np.testing.assert_allclose([e.val_loss for e in ended.epochs], [e.val_loss for e in alone.epochs], rtol=0.05)


class KilledError(Exception):
    """Ends a fit where a kill might."""


@pytest.mark.parametrize("after", [1, 3, 5, 6])
def test_a_fit_goes_on_from_its_epoch_checkpoint_to_the_same_bits(
    after: int, plan: FitPlan, features: SlideFeatures, tmp_path: Path
) -> None:
    """Across a run that diverges, one that patience ends, and standardised features."""
    settings = TrainingSection(epochs=6, batch_bags=16, patience=2, feature_norm="standardize")
    hard = replace(plan, configurations=(Configuration(0.3, 1e-4), WILD, GOOD, SLOW), settings=settings)
    whole = fit(hard, features, tmp_path / "whole")

    def kill(report: EpochReport) -> None:
        if report.epoch == after:
            raise KilledError

    with pytest.raises(KilledError):
        fit(hard, features, tmp_path / "killed", kill, save_every=0)
    assert not (tmp_path / "killed" / "ledger").exists()
    epochs: list[int] = []
    resumed = fit(hard, features, tmp_path / "killed", lambda report: epochs.append(report.epoch))
    assert epochs == list(range(after + 1, 7))
    for a, b in zip(whole, resumed, strict=True):
        assert _bare(a) == _bare(b)
        paths = [tmp_path / name / "checkpoints" / f"{a.run_id}.safetensors" for name in ("whole", "killed")]
        assert [path.exists() for path in paths] == [a.best is not None] * 2
        if a.best is not None:
            assert paths[0].read_bytes() == paths[1].read_bytes()
    assert not any((tmp_path / "killed" / "state").iterdir())


def _bare(run: Run) -> Run:
    return replace(run, epochs=tuple(replace(e, seconds=0.0) for e in run.epochs))


def test_a_damaged_epoch_checkpoint_costs_epochs_only(plan: FitPlan, features: SlideFeatures, tmp_path: Path) -> None:
    training = Fit(plan, features)
    training.epoch()
    training.save(tmp_path)
    (path,) = (tmp_path / "state").iterdir()
    path.write_bytes(path.read_bytes()[:-10])
    epochs: list[int] = []
    fit(plan, features, tmp_path, lambda report: epochs.append(report.epoch))
    assert epochs[0] == 1


def test_a_checkpoint_of_another_stack_is_not_taken(plan: FitPlan, features: SlideFeatures, tmp_path: Path) -> None:
    training = Fit(plan, features)
    training.epoch()
    training.save(tmp_path)
    others = [{"configurations": (GOOD,)}, {"fold": 0}, {"outer": 1}, {"experiment": "x"}, {"fraction": 0.5}]
    for change in others:
        assert Progress.load(replace(plan, **change), tmp_path) is None
    assert Progress.load(plan, tmp_path) is not None


def test_a_scheduler_concludes_a_fit_without_its_features(
    plan: FitPlan, features: SlideFeatures, tmp_path: Path
) -> None:
    assert conclude(plan, tmp_path, "asha") is None
    training = Fit(plan, features)
    for _ in range(2):
        training.epoch()
        training.save(tmp_path)
    runs = conclude(plan, tmp_path, "asha")
    assert runs is not None
    assert [(run.stopped, len(run.epochs)) for run in runs] == [("asha", 2)] * 2
    assert all(read_run(run.run_id, tmp_path / "ledger") == run for run in runs)
    until = replace(plan, settings=replace_epochs(plan.settings, 2))
    for run, alone in zip(runs, fit(until, features, tmp_path / "until"), strict=True):
        assert run.val_loss == alone.val_loss
        model, expected = (
            TrainedModel.load(folder / "checkpoints" / f"{run.run_id}.safetensors").module.state_dict()
            for folder in (tmp_path, tmp_path / "until")
        )
        assert all(torch.equal(model[name], expected[name]) for name in expected)


def replace_epochs(settings: TrainingSection, epochs: int) -> TrainingSection:
    return settings.model_copy(update={"epochs": epochs})


def test_gated_attention_is_trained_and_saved(plan: FitPlan, features: SlideFeatures, tmp_path: Path) -> None:
    gated = replace(plan, configurations=(GOOD,), model=ModelSection(attention_units=16, attention="gated"))
    (run,) = fit(gated, features, tmp_path)
    assert run.val_loss < 0.6
    model = TrainedModel.load(tmp_path / "checkpoints" / f"{run.run_id}.safetensors")
    assert model.module.gated


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
