"""Several fits side by side, an epoch at a time: what a search needs to judge a configuration over all its folds."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trainers.features import prefix, stored_features
from trainers.fit import SAVE_EVERY, Fit
from trainers.ledger import Epoch, read_run
from trainers.plan import FitPlan
from trainers.progress import has_ended

Curves = Mapping[str, Sequence[Epoch]]
"""run id -> its epochs so far; those of a run that failed are left out."""


@dataclass(frozen=True)
class Step:
    """One epoch of one run.

    Attributes:
        fit: position of its fit.
        run_id: the run.
        epoch: number of the epoch, from 1.
        result: what it brought.
        is_new: whether this process trained it, rather than one before.
    """

    fit: int
    run_id: str
    epoch: int
    result: Epoch
    is_new: bool = True


class Lockstep:
    """Fits that wait for each other after every epoch.

    A fit goes on from its epoch checkpoint. One whose runs have all ended before is not trained again: its epochs
    are replayed as the ledger has them.

    Args:
        plans: the fits.
        store: URI of the feature store.
        out: sweep directory.
        device: where to train.
        save_every: seconds between two epoch checkpoints; 0 writes one after every epoch.

    Attributes:
        epochs_done: of every fit that is not done.

    Raises:
        Her2CacheError: features are missing or damaged, or a slide has too few patches.
    """

    def __init__(
        self, plans: Sequence[FitPlan], store: str, out: Path, device: str = "cpu", save_every: float = SAVE_EVERY
    ) -> None:
        self._members = [_open(plan, store, out, device, save_every) for plan in plans]
        self.epochs_done = min((m.epochs_done for m in self._members if not m.done), default=0)
        self._told = 0

    @property
    def done(self) -> bool:
        return all(m.done and m.epochs_done <= self.epochs_done for m in self._members)

    def val_loss(self, epochs: int | None = None) -> float:
        """Mean over the fits of the least validation loss in the first `epochs`, all that are done when there is none
        given; configurations are chosen by it. It is infinite as soon as one has failed."""
        return mean_least_loss([m.curves for m in self._members], epochs or self.epochs_done)

    def epoch(self) -> None:
        """Trains every fit that is not done, and not ahead of the others, for one epoch."""
        for member in self._members:
            if not member.done and member.epochs_done == self.epochs_done:
                member.epoch()
        self.epochs_done += 1

    def save(self) -> None:
        """Writes the epoch checkpoints of the fits that are not done, so that another process goes on from here."""
        for member in self._members:
            if not member.done:
                member.save()

    def news(self) -> list[Step]:
        """Epochs since the last call; at the first, also those of an earlier process."""
        told, self._told = self._told, self.epochs_done
        return [
            Step(k, run_id, number, epoch, number > member.epochs_before)
            for k, member in enumerate(self._members)
            for run_id, epochs in member.curves.items()
            for number, epoch in enumerate(epochs[told : self.epochs_done], start=told + 1)
        ]


def mean_least_loss(fits: Sequence[Curves], epochs: int) -> float:
    """Mean over fits of the least validation loss of their runs in the first `epochs`; see `Lockstep.val_loss`."""
    losses = [min((e.val_loss for run in curves.values() for e in run[:epochs]), default=math.inf) for curves in fits]
    return math.fsum(losses) / len(losses)


class _Member(Protocol):
    @property
    def epochs_done(self) -> int: ...
    @property
    def epochs_before(self) -> int:
        """Those that an earlier process trained."""
        ...

    @property
    def done(self) -> bool: ...
    @property
    def curves(self) -> Curves: ...
    def epoch(self) -> None: ...
    def save(self) -> None: ...


class _Trained:
    """A fit that has epochs left. Its ledger is written as soon as it has none."""

    def __init__(self, fit: Fit, out: Path, save_every: float) -> None:
        self._fit, self._out, self._save_every = fit, out, save_every
        self._saved = time.monotonic()
        self.epochs_before = fit.progress.epochs_done
        if self.done:  # killed between its last epoch and the ledger
            fit.finish(out)

    @property
    def epochs_done(self) -> int:
        return self._fit.progress.epochs_done

    @property
    def done(self) -> bool:
        return self._fit.done

    @property
    def curves(self) -> Curves:
        p = self._fit.progress
        return {run_id: c.epochs for run_id, c in zip(p.plan.run_ids(), p.courses, strict=True) if not c.reason}

    def epoch(self) -> None:
        self._fit.epoch()
        if self.done:
            self._fit.finish(self._out)
        elif time.monotonic() - self._saved >= self._save_every:
            self.save()

    def save(self) -> None:
        self._fit.save(self._out)
        self._saved = time.monotonic()


class _Replayed:
    """A fit that the ledger has."""

    def __init__(self, plan: FitPlan, out: Path) -> None:
        self.curves = ledger_curves(plan, out)
        self.epochs_done = self.epochs_before = max(map(len, self.curves.values()), default=0)
        self.done = True

    def epoch(self) -> None:
        raise AssertionError("a fit that is done has no more epochs")

    def save(self) -> None:
        raise AssertionError("a fit that is done has no epoch checkpoint")


def ledger_curves(plan: FitPlan, out: Path) -> Curves:
    """The epochs of a fit whose runs have all ended."""
    runs = [read_run(run_id, out / "ledger") for run_id in plan.run_ids()]
    return {run.run_id: run.epochs for run in runs if not run.reason}


def _open(plan: FitPlan, store: str, out: Path, device: str, save_every: float) -> _Member:
    if all(has_ended(run_id, out) for run_id in plan.run_ids()):
        return _Replayed(plan, out)
    slides = [s.slide_id for s in plan.training + plan.validation]
    stored = stored_features(store, plan.space_key, slides)
    stored.stage()
    features = prefix(stored, plan.fraction, plan.bags.size)
    return _Trained(Fit(plan, features, device, out), out, save_every)
