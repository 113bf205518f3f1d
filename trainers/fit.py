"""One feature space, one fold, one stack of configurations: train, validate, keep the best epochs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from her2cache.bags import Bags, BagSampler
from trainers.config import BagsSection, ModelSection, TrainingSection
from trainers.evaluation import FixedBags
from trainers.features import FeatureRows, SlideFeatures
from trainers.ledger import Epoch, Run, name_run, write_run
from trainers.model import AttentionMIL, Origin, TrainedModel
from trainers.scaling import Scaling
from trainers.splits import Assignment
from trainers.stack import Configuration, Stack
from trainers.tasks import Task

PART_BAGS = 16
"""Bags worked on at once: of 8 to 64 the quickest, as features and hidden units stay in the cache (2 MB a core)."""


@dataclass(frozen=True)
class FitPlan:
    """Everything a fit needs but the features.

    Attributes:
        space_key, embedder: the feature space.
        fold: validated on.
        outer: outer fold of the nested cross-validation, see `trainers.ledger.Run`.
        embedder_seed: the same.
        training, validation: slides.
        configurations: runs of the stack.
        task: gives the classes.
        bags, settings: sections of the experiment.
        model: section of the experiment.
        experiment: digest of the experiment.
        fraction: share of each slide's patches that is used.
    """

    space_key: str
    embedder: str
    fold: int
    training: tuple[Assignment, ...]
    validation: tuple[Assignment, ...]
    configurations: tuple[Configuration, ...]
    task: Task
    bags: BagsSection
    settings: TrainingSection
    model: ModelSection
    experiment: str
    outer: int | None = None
    embedder_seed: int = 0
    fraction: float = 1.0

    def run_ids(self) -> list[str]:
        """Names of the runs, in the order of the configurations."""
        return [name_run(self.embedder, self.space_key, self.fold, c, self.outer) for c in self.configurations]


@dataclass
class _Course:
    """A run in training: its epochs so far, and the model of the best of them."""

    configuration: Configuration
    epochs: list[Epoch] = field(default_factory=list[Epoch])
    best: int | None = None
    model: AttentionMIL | None = None
    reason: str = ""

    @property
    def val_loss(self) -> float:
        return math.inf if self.best is None else self.epochs[self.best].val_loss

    def add(self, epoch: Epoch) -> bool:
        """Takes an epoch; returns whether it is the best so far. A loss that is not finite fails the run."""
        if not (math.isfinite(epoch.train_loss) and math.isfinite(epoch.val_loss)):
            self.best, self.model = None, None
            self.reason = (
                f"the loss was no longer finite in epoch {len(self.epochs) + 1}: a learning rate of "
                f"{self.configuration.learning_rate:g} is too high for these features; leave it out of the grid"
            )
            return False
        improved = epoch.val_loss < self.val_loss
        if improved:
            self.best = len(self.epochs)
        self.epochs.append(epoch)
        return improved


def fit(
    plan: FitPlan, features: SlideFeatures, out: Path, on_epoch: Callable[[int, float], None] | None = None
) -> list[Run]:
    """Trains the runs of a stack in lockstep.

    A run whose loss is no longer finite leaves the stack, with the reason; the others go on. Best epochs go
    to `out/checkpoints`, then what became of each run to `out/ledger`.

    Args:
        plan: what to train.
        features: of the training and validation slides; test slides are not asked for.
        out: sweep directory.
        on_epoch: called after each epoch with its number (from 1) and the least validation loss so far.

    Returns:
        The runs, in the order of the plan's configurations.

    Raises:
        BagError: a slide has too few patches.
    """
    scaling = None
    if plan.settings.feature_norm == "standardize":
        scaling = Scaling.fitted(features, [s.slide_id for s in plan.training])
    training = _Training(plan, features, scaling)
    validation = _Validation(plan, features, scaling)
    model = AttentionMIL.seeded(
        features[plan.training[0].slide_id][0].shape[1], len(plan.task.classes), plan.model.attention_units, _seed(plan)
    )
    stack = Stack(model, plan.configurations)
    everyone = [_Course(c) for c in plan.configurations]
    alive = everyone
    for epoch in range(plan.settings.epochs):
        start = time.perf_counter()
        train_losses = training.epoch(stack, epoch)
        scores = validation.score(stack)
        seconds = (time.perf_counter() - start) / len(alive)
        for r, course in enumerate(alive):
            if course.add(Epoch(train_losses[r], *scores[r], seconds)):
                course.model = stack.model(r) if scaling is None else scaling.fold(stack.model(r))
        stay = [r for r, course in enumerate(alive) if not course.reason]
        if len(stay) < len(alive):
            stack.keep(stay)
            alive = [alive[r] for r in stay]
        if on_epoch:
            on_epoch(epoch + 1, min(course.val_loss for course in everyone))
        if not alive:
            break
    return [_finish(course, plan, out) for course in everyone]


class _Training:
    """Fresh bags every epoch, the same for all runs of the stack."""

    def __init__(self, plan: FitPlan, features: SlideFeatures, scaling: Scaling | None) -> None:
        self._plan = plan
        labels = {s.slide_id: s.label for s in plan.training}
        self._sampler = BagSampler(
            {s: len(features[s][0]) for s in labels},
            plan.bags.size,
            seed=_seed(plan),
            views=len(features[plan.training[0].slide_id]),
            classes=labels if plan.bags.balanced else None,
            allow_replacement=plan.bags.allow_replacement,
        )
        self._rows = FeatureRows(features, self._sampler.slides, PART_BAGS * plan.bags.size, scaling=scaling)
        self._labels = torch.tensor(list(labels.values()))

    def epoch(self, stack: Stack, epoch: int) -> list[float]:
        """Trains for one epoch; returns each run's mean loss a bag."""
        n_bags, batch_bags = self._plan.bags.per_epoch, self._plan.settings.batch_bags
        bags = self._sampler.training(n_bags, epoch)
        loss = torch.zeros(stack.runs)
        for start in range(0, n_bags, batch_bags):
            batch = bags[start : start + batch_bags]
            loss += stack.train_batch(self._parts(batch), len(batch))
        return (loss / n_bags).tolist()

    def _parts(self, batch: Bags) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(batch), PART_BAGS):
            part = batch[start : start + PART_BAGS]
            yield self._rows.bags(part), self._labels[part.slide]


class _Validation:
    """The fixed validation bags of a fold."""

    def __init__(self, plan: FitPlan, features: SlideFeatures, scaling: Scaling | None) -> None:
        counts = {s.slide_id: len(features[s.slide_id][0]) for s in plan.validation}
        sampler = BagSampler(
            counts, plan.bags.size, seed=plan.settings.seed, allow_replacement=plan.bags.allow_replacement
        )
        bags = sampler.fixed(plan.bags.validation, "validation")
        self._bags = FixedBags(bags, [s.label for s in plan.validation])
        self._rows = FeatureRows(features, sampler.slides, PART_BAGS * plan.bags.size, scaling=scaling)

    def score(self, stack: Stack) -> list[tuple[float, float]]:
        """Loss and accuracy of each run."""
        return [self._bags.loss_and_accuracy(s) for s in stack.patch_scores(self._bags.blocks(self._rows))]


def _seed(plan: FitPlan) -> int:
    """The same in every feature space and for every configuration, so that only these differ."""
    return plan.settings.seed + plan.fold


def failed_runs(plan: FitPlan, reason: str) -> list[Run]:
    """The runs of a fit that failed as a whole."""
    return [_run(plan, _Course(c, reason=reason)) for c in plan.configurations]


def _run(plan: FitPlan, course: _Course) -> Run:
    return Run(
        run_id=name_run(plan.embedder, plan.space_key, plan.fold, course.configuration, plan.outer),
        space_key=plan.space_key,
        embedder=plan.embedder,
        fold=plan.fold,
        seed=_seed(plan),
        configuration=course.configuration,
        epochs=tuple(course.epochs),
        best=course.best,
        reason=course.reason,
        outer=plan.outer,
        embedder_seed=plan.embedder_seed,
    )


def _finish(course: _Course, plan: FitPlan, out: Path) -> Run:
    """Writes the checkpoint, then the run's file: a run that has a file has its checkpoint."""
    run = _run(plan, course)
    if course.model is not None and run.best is not None:
        origin = Origin(
            run_id=run.run_id,
            space_key=run.space_key,
            embedder=run.embedder,
            experiment=plan.experiment,
            fold=run.fold,
            epoch=run.best,
            task=plan.task,
        )
        TrainedModel(course.model, origin).save(out / "checkpoints" / f"{run.run_id}.safetensors")
    write_run(run, out / "ledger")
    return run
