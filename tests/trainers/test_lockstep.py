"""Fits in lockstep are the fits alone; what they report is what configurations are chosen by; they go on and replay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from her2cache.store.reader import FeatureStore
from tests.planted import planted_slides, planted_store
from trainers.config import BagsSection, ModelSection, SplitsSection, TrainingSection
from trainers.features import prefix, stored_features
from trainers.fit import conclude, fit
from trainers.ledger import Run, read_run
from trainers.lockstep import Lockstep, Step
from trainers.plan import FitPlan
from trainers.splits import make_splits
from trainers.stack import Configuration
from trainers.tasks import find_task

GOOD, WILD = Configuration(1e-2, 1e-4), Configuration(1e38, 1e-4)
EPOCHS = 4


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lockstep")
    planted_store(folder, {"net": 6.0})
    return folder / "store"


@pytest.fixture(scope="module")
def plans(store: Path) -> list[FitPlan]:
    """One configuration on both folds."""
    task = find_task("four")
    splits = make_splits(planted_slides(store), task, SplitsSection(folds=2, test_slides=4))
    return [
        FitPlan(
            space_key=FeatureStore.open(store).find_space("net").key,
            embedder="net",
            fold=fold,
            training=splits.training(fold),
            validation=splits.validation(fold),
            configurations=(GOOD,),
            task=task,
            bags=BagsSection(size=20, per_epoch=96, validation=60),
            settings=TrainingSection(epochs=EPOCHS, batch_bags=16),
            model=ModelSection(attention_units=8),
            experiment="digest",
        )
        for fold in range(2)
    ]


@pytest.fixture(scope="module")
def alone(store: Path, plans: list[FitPlan], tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    out = tmp_path_factory.mktemp("alone")
    runs: list[Run] = []
    for plan in plans:
        slides = [s.slide_id for s in plan.training + plan.validation]
        runs += fit(plan, stored_features(str(store), plan.space_key, slides), out)
    return runs


def without_times(runs: list[Run]) -> list[Run]:
    return [replace(run, epochs=tuple(replace(e, seconds=0) for e in run.epochs)) for run in runs]


def ledger(plans: list[FitPlan], out: Path) -> list[Run]:
    return [read_run(run_id, out / "ledger") for plan in plans for run_id in plan.run_ids()]


def least(runs: list[Run], epochs: int) -> float:
    return float(np.mean([min(e.val_loss for e in run.epochs[:epochs]) for run in runs]))


def test_they_are_the_fits_alone(store: Path, plans: list[FitPlan], alone: list[Run], tmp_path: Path) -> None:
    training = Lockstep(plans, str(store), tmp_path)
    told: list[Step] = []
    for epoch in range(1, EPOCHS + 1):
        assert not training.done
        training.epoch()
        assert training.epochs_done == epoch
        assert training.val_loss() == pytest.approx(least(alone, epoch))
        assert training.val_loss(1) == pytest.approx(least(alone, 1))
        news = training.news()
        assert [(s.fit, s.epoch) for s in news] == [(0, epoch), (1, epoch)]
        told += news
    assert training.done
    assert without_times(ledger(plans, tmp_path)) == without_times(alone)
    assert [s.result for s in told if s.fit == 1] == list(ledger(plans, tmp_path)[1].epochs)


def test_another_process_goes_on(store: Path, plans: list[FitPlan], alone: list[Run], tmp_path: Path) -> None:
    """Also when the first fit was killed an epoch ahead of the second."""
    first = Lockstep(plans, str(store), tmp_path, save_every=0)
    first.epoch()
    first.epoch()
    ahead = Lockstep(plans[:1], str(store), tmp_path, save_every=0)
    ahead.epoch()
    second = Lockstep(plans, str(store), tmp_path, save_every=0)
    assert second.epochs_done == 2
    assert second.val_loss() == pytest.approx(least(alone, 2))
    assert [(s.fit, s.epoch, s.is_new) for s in second.news()] == [(k, e, False) for k in (0, 1) for e in (1, 2)]
    while not second.done:
        second.epoch()
    # the first fit's third epoch was trained before
    assert [(s.fit, s.epoch, s.is_new) for s in second.news()] == [
        (0, 3, False),
        (0, 4, True),
        (1, 3, True),
        (1, 4, True),
    ]
    assert without_times(ledger(plans, tmp_path)) == without_times(alone)


def test_what_is_saved_is_gone_on_with(store: Path, plans: list[FitPlan], tmp_path: Path) -> None:
    """Also of a fit whose checkpoints are far apart."""
    first = Lockstep(plans, str(store), tmp_path)
    first.epoch()
    assert not (tmp_path / "state").exists()
    first.save()
    assert Lockstep(plans, str(store), tmp_path).epochs_done == 1


def test_what_has_ended_is_replayed(store: Path, plans: list[FitPlan], alone: list[Run], tmp_path: Path) -> None:
    """A configuration that was stopped after two epochs and one that was not, without a look at the features."""
    stopped = Lockstep(plans[:1], str(store), tmp_path, save_every=0)
    stopped.epoch()
    stopped.epoch()
    conclude(plans[0], tmp_path, "asha")
    whole = Lockstep(plans[1:], str(store), tmp_path)
    while not whole.done:
        whole.epoch()
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "ledger").iterdir()}

    again = Lockstep(plans, "nowhere", tmp_path)
    losses: list[float] = []
    while not again.done:
        again.epoch()
        losses.append(again.val_loss())
    assert len(losses) == EPOCHS
    assert losses[1] == pytest.approx(least(alone, 2))
    assert losses[-1] == pytest.approx(np.mean([min(e.val_loss for e in alone[0].epochs[:2]), alone[1].val_loss]))
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "ledger").iterdir()} == before


def test_one_that_fails_loses(store: Path, plans: list[FitPlan], tmp_path: Path) -> None:
    training = Lockstep([replace(plans[0], configurations=(WILD,)), plans[1]], str(store), tmp_path)
    while not training.done:
        training.epoch()
    assert training.val_loss() == float("inf")
    assert {s.fit for s in training.news()} == {1}
    failed, good = ledger([replace(plans[0], configurations=(WILD,)), plans[1]], tmp_path)
    assert "no longer finite" in failed.reason
    assert len(good.epochs) == EPOCHS
    assert Lockstep([replace(plans[0], configurations=(WILD,))], "nowhere", tmp_path).done


def test_a_prefix_of_the_rows_is_trained_on(store: Path, plans: list[FitPlan], tmp_path: Path) -> None:
    part = replace(plans[0], fraction=0.5)
    training = Lockstep([part], str(store), tmp_path / "a")
    while not training.done:
        training.epoch()
    slides = [s.slide_id for s in part.training + part.validation]
    features = prefix(stored_features(str(store), part.space_key, slides), 0.5, 20)
    expected = fit(part, features, tmp_path / "b")
    assert without_times(ledger([part], tmp_path / "a")) == without_times(expected)
