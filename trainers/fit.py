"""One feature space, one fold, one stack of configurations: train, validate, keep the best epochs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from trainers.features import SlideFeatures
from trainers.feeds import feed_for
from trainers.ledger import Epoch, Run
from trainers.model import AttentionMIL
from trainers.plan import FitPlan
from trainers.progress import Course, Progress, make_run
from trainers.scaling import Scaling
from trainers.stack import Stack

SAVE_EVERY = 30.0
"""Seconds between two epoch checkpoints: what a kill can cost, against writing 4 MB a run."""


@dataclass(frozen=True)
class EpochReport:
    """One epoch of a stack.

    Attributes:
        epoch: its number, from 1.
        epochs: run id -> what the epoch brought, of the runs that were trained and did not fail in it.
        val_loss: least so far, of all runs.
    """

    epoch: int
    epochs: dict[str, Epoch]
    val_loss: float


class Fit:
    """A stack in training, an epoch at a time.

    Args:
        plan: what to train.
        features: of the training and validation slides; test slides are not asked for.
        device: where to train. On a GPU products are taken in TF32: stored features have no more digits than it.
        out: sweep directory with the epoch checkpoint to go on from, when there is one; None begins anew.

    Raises:
        BagError: a slide has too few patches.
    """

    def __init__(
        self, plan: FitPlan, features: SlideFeatures, device: torch.device | str = "cpu", out: Path | None = None
    ) -> None:
        device = torch.device(device)
        if device.type != "cpu":
            torch.set_float32_matmul_precision("high")
        found = None if out is None else Progress.load(plan, out)
        dim, classes = features[plan.training[0].slide_id][0].shape[1], len(plan.task.classes)
        gated = plan.model.attention == "gated"
        model = AttentionMIL.seeded(dim, classes, plan.model.attention_units, plan.seed, gated=gated)
        self._stack = Stack(model, plan.configurations, device)
        if found is None:
            standardize = plan.settings.feature_norm == "standardize"
            scaling = Scaling.fitted(features, [s.slide_id for s in plan.training]) if standardize else None
            courses = [Course(c) for c in plan.configurations]
            self.progress = Progress(plan, courses, self._stack.parameters.zeros(), scaling)
        else:
            self.progress, state = found
            self.progress.best = self.progress.best.to(device)
            self._stack.keep(self.progress.alive)
            self._stack.restore(state)
        self._feed = feed_for(plan, features, device, self.progress.scaling)

    @property
    def done(self) -> bool:
        return self.progress.done

    def epoch(self) -> EpochReport:
        """Trains every run that is left for one epoch, and validates it. Runs that end leave the stack."""
        start, p = time.perf_counter(), self.progress
        alive, run_ids = p.alive, p.plan.run_ids()
        loss = torch.zeros(len(alive), device=self._stack.device)
        for parts, bags in self._feed.batches(p.epochs_done):
            loss += self._stack.train_batch(parts, bags)
        train_losses = (loss / p.plan.bags.per_epoch).tolist()
        scores = self._feed.validate(self._stack)
        seconds = (time.perf_counter() - start) / len(alive)

        epochs = [Epoch(train_losses[r], *scores[r], seconds) for r in range(len(alive))]
        courses = [p.courses[k] for k in alive]
        better = [r for r, course in enumerate(courses) if course.add(epochs[r], p.plan.settings.patience)]
        p.best.replace([alive[r] for r in better], self._stack.parameters, better)
        p.epochs_done += 1
        stay = [r for r, course in enumerate(courses) if not course.ended]
        if len(stay) < len(alive):
            self._stack.keep(stay)
        done = {run_ids[k]: epochs[r] for r, k in enumerate(alive) if not courses[r].reason}
        return EpochReport(p.epochs_done, done, p.val_loss)

    def save(self, out: Path) -> None:
        """Writes the epoch checkpoint."""
        self.progress.save(out, self._stack.state())

    def finish(self, out: Path, stopped: str = "") -> list[Run]:
        """Writes checkpoints and ledger; see `Progress.finish`."""
        self.save(out)  # a kill while the ledger is half written must not send finished runs back to training
        return self.progress.finish(out, stopped)


def fit(
    plan: FitPlan,
    features: SlideFeatures,
    out: Path,
    on_epoch: Callable[[EpochReport], None] | None = None,
    *,
    device: torch.device | str = "cpu",
    save_every: float = SAVE_EVERY,
) -> list[Run]:
    """Trains the runs of a stack in lockstep, from its epoch checkpoint where there is one.

    A run whose loss is no longer finite leaves the stack, with the reason; one that patience ends leaves it too; the
    others go on. Best epochs go to `out/checkpoints`, then what became of each run to `out/ledger`.

    Args:
        plan: what to train.
        features: see `Fit`.
        out: sweep directory.
        on_epoch: called after each epoch.
        device: see `Fit`.
        save_every: seconds between two epoch checkpoints.

    Returns:
        The runs, in the order of the plan's configurations.

    Raises:
        BagError: a slide has too few patches.
    """
    training = Fit(plan, features, device, out)
    saved = time.monotonic()
    while not training.done:
        report = training.epoch()
        if time.monotonic() - saved >= save_every:
            training.save(out)
            saved = time.monotonic()
        if on_epoch:
            on_epoch(report)
    return training.finish(out)


def conclude(plan: FitPlan, out: Path, stopped: str) -> list[Run] | None:
    """Finishes a stack from its epoch checkpoint alone, for a scheduler that stopped it.

    Returns:
        Its runs; None when there is no checkpoint.
    """
    found = Progress.load(plan, out)
    return None if found is None else found[0].finish(out, stopped)


def failed_runs(plan: FitPlan, reason: str) -> list[Run]:
    """The runs of a fit that failed as a whole."""
    return [make_run(plan, Course(c, reason=reason)) for c in plan.configurations]
