"""The feed of a GPU, on the processor where there is none: the same code, the same numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.planted import PATCHES, VIEWS, planted_features, planted_slides
from trainers.config import BagsSection, ModelSection, SplitsSection, TrainingSection
from trainers.features import SlideFeatures
from trainers.feeds import DeviceFeed, HostFeed
from trainers.fit import fit
from trainers.model import AttentionMIL
from trainers.plan import FitPlan
from trainers.resident import DeviceSampler, ResidentRows
from trainers.scaling import Scaling
from trainers.splits import make_splits
from trainers.stack import Configuration, Stack
from trainers.tasks import find_task

DEVICES = [
    torch.device("cpu"),
    pytest.param(
        torch.device("cuda"), marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
    ),
]
GRID = (Configuration(1e-2, 1e-4), Configuration(1e-4, 1e-4), Configuration(1e-3, 1e-3))


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
        configurations=GRID,
        task=task,
        bags=BagsSection(size=20, per_epoch=200, validation=100),
        settings=TrainingSection(epochs=8, batch_bags=16),
        model=ModelSection(attention_units=16),
        experiment="digest",
    )


@pytest.fixture(scope="module")
def features(plan: FitPlan) -> SlideFeatures:
    slides = plan.training + plan.validation
    return {s.slide_id: list(planted_features(s.her2_score, seed=i, signal=6.0)) for i, s in enumerate(slides)}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("norm", [False, True])
def test_validation_is_that_of_the_processor(
    plan: FitPlan, features: SlideFeatures, device: torch.device, norm: bool
) -> None:
    scaling = Scaling.fitted(features, [s.slide_id for s in plan.training]) if norm else None
    found: list[list[tuple[float, float]]] = []
    for feed, where in ((HostFeed, torch.device("cpu")), (DeviceFeed, device)):
        stack = Stack(AttentionMIL.seeded(16, 4, 16, seed=1), GRID, where)
        found.append(feed(plan, features, where, scaling).validate(stack))
    np.testing.assert_allclose(found[1], found[0], rtol=2e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("balanced", [False, True])
def test_bags_are_what_they_say(plan: FitPlan, features: SlideFeatures, device: torch.device, balanced: bool) -> None:
    """Every instance is a row of a view of the slide whose class the bag has."""
    plan = replace(plan, bags=BagsSection(size=20, per_epoch=200, validation=100, balanced=balanced))
    known: dict[bytes, tuple[int, int, int]] = {}  # features -> class, slide, row
    for k, s in enumerate(plan.training):
        for view in features[s.slide_id]:
            known |= {row.astype(np.float32).tobytes(): (s.label, k, i) for i, row in enumerate(view)}
    assert len(known) == len(plan.training) * PATCHES * VIEWS
    feed = DeviceFeed(plan, features, device)
    bags = 0
    for parts, n in feed.batches(epoch=0):
        for v, labels in parts:
            assert len(v) == len(labels) == n
            for bag, label in zip(v.cpu().numpy(), labels.tolist(), strict=True):
                of = [known[instance.tobytes()] for instance in bag]
                assert {c for c, _, _ in of} == {label}
                assert len({slide for _, slide, _ in of}) == 1
                assert len({row for _, _, row in of}) == 20  # without replacement, whatever the view
                bags += 1
    assert bags == 200


@pytest.mark.parametrize("device", DEVICES)
def test_what_it_feeds_is_learned_and_a_stack_equals_separate_runs(
    plan: FitPlan, features: SlideFeatures, device: torch.device
) -> None:
    def train(grid: tuple[Configuration, ...]) -> list[list[float]]:
        stack, feed = Stack(AttentionMIL.seeded(16, 4, 16, seed=1), grid, device), DeviceFeed(plan, features, device)
        losses: list[list[float]] = []
        for epoch in range(8):
            for parts, n in feed.batches(epoch):
                stack.train_batch(parts, n)
            losses.append([loss for loss, _ in feed.validate(stack)])
        return losses

    stacked = np.array(train(GRID))  # (epochs, runs)
    assert stacked[-1].min() < 0.7  # chance is 1.39
    alone = np.concatenate([train((configuration,)) for configuration in GRID], axis=1)
    np.testing.assert_allclose(stacked, alone, rtol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_a_fit_on_a_gpu_finds_what_the_processor_finds(plan: FitPlan, features: SlideFeatures, tmp_path: Path) -> None:
    """From other bags, so only about as well."""
    there, here = (fit(plan, features, tmp_path / device, device=device) for device in ("cuda", "cpu"))
    assert [run.val_loss < 0.7 for run in there] == [run.val_loss < 0.7 for run in here] == [True, False, False]
    again = fit(plan, features, tmp_path / "again", device="cuda")
    assert [run.val_loss for run in again] == [run.val_loss for run in there]


def sampler(patches: list[int], size: int, **options: object) -> DeviceSampler:
    starts = torch.tensor(np.concatenate([[0], np.cumsum(patches)[:-1]]))
    return DeviceSampler(patches, starts, size, seed=3, **options)  # type: ignore[arg-type]


def test_every_subset_is_as_likely() -> None:
    """3 of 5 rows: 10 subsets, chi-square with 9 degrees of freedom."""
    _, rows = sampler([5], 3).epoch(20_000, 0)
    subsets = np.sort(rows.numpy(), axis=1) @ [25, 5, 1]
    values, counts = np.unique(subsets, return_counts=True)
    assert len(values) == 10
    assert ((counts - 2000) ** 2 / 2000).sum() < 27.9  # p = 0.001


def test_slides_and_classes_are_drawn_evenly() -> None:
    slides, _ = sampler([9, 30, 12, 9], 3).epoch(12_000, 0)
    assert abs(np.bincount(slides.numpy()) - 3000).max() < 200
    slides, _ = sampler([9, 30, 12, 9], 3, classes=[1, 0, 1, 1]).epoch(12_000, 0)
    counts = np.bincount(slides.numpy())
    assert abs(counts - [2000, 6000, 2000, 2000]).max() < 250


def test_a_thin_slide_repeats_rows_only_where_it_must() -> None:
    slides, rows = sampler([4, 40], 6).epoch(400, 0)
    thin = rows[slides == 0]
    assert set(thin.unique().tolist()) == {0, 1, 2, 3}
    assert all(len(set(bag)) == 6 for bag in rows[slides == 1].tolist())


def test_an_epoch_depends_on_nothing_but_its_number() -> None:
    draws = sampler([9, 30], 3)
    first, again, other = draws.epoch(50, 1), sampler([9, 30], 3).epoch(50, 1), draws.epoch(50, 2)
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])


def test_rows_are_those_of_the_slides() -> None:
    features = {"a": [np.arange(6.0).reshape(3, 2)], "b": [np.arange(8.0).reshape(4, 2) + 10]}
    rows = ResidentRows(features, ["a", "b"], 1, torch.device("cpu"))
    (block,) = rows.blocks([np.array([0, 2]), np.array([3])], 10)
    assert block.tolist() == [[0, 1], [4, 5], [16, 17]]
    assert [len(b) for b in rows.blocks([np.array([0, 2]), np.array([3])], 2)] == [2, 1]
