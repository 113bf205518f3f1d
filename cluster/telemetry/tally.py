"""What a sweep or a pre-training does, counted for those outside; what begins and ends there is an event."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cluster.progress import EmbedderProgress, SweepProgress
from cluster.telemetry import metrics
from cluster.telemetry.board import Job
from cluster.telemetry.logs import mask
from trainers.plan import FitPlan

if TYPE_CHECKING:
    from trainers.pretraining.loop import PretrainEpoch

_FAILURES = 5
"""As many are kept for the board, the last ones."""


class SweepTally(SweepProgress):
    """The progress of a sweep, which is also told to a job's board and log.

    Args:
        job: whose it is.
        watch: called after every change.
    """

    def __init__(self, job: Job, watch: Callable[[SweepProgress], None]) -> None:
        super().__init__(watch=watch)
        self._job = job
        self._attempts: dict[str, int] = {}
        self._failures: deque[dict[str, Any]] = deque(maxlen=_FAILURES)

    def started(self, plan: FitPlan) -> None:
        super().started(plan)
        fit = plan.stack_id()
        self._attempts[fit] = self._attempts.get(fit, 0) + 1
        self._job.event("fit begun", **_of(plan), attempt=self._attempts[fit])

    def ended(self, plan: FitPlan, reason: str) -> None:
        super().ended(plan, reason)
        attempt = self._attempts.get(plan.stack_id(), 0)
        if reason:
            self._failures.append({"fit": plan.stack_id(), "embedder": plan.embedder, "reason": mask(reason)})
            self._job.event("fit failed", "error", **_of(plan), attempt=attempt, reason=reason)
        else:
            self._job.event("fit ended", **_of(plan), attempt=attempt)
        metrics.count_fit("failed" if reason else "done")

    def snapshot(self) -> dict[str, Any]:
        """Counts of the moment; for another thread."""
        embedders = {name: _shown(counts) for name, counts in list(self.embedders.items())}
        fits = {key: sum(e[key] for e in embedders.values()) for key in ("done", "failed", "running", "waiting")}
        epochs = {key: sum(e[key] for e in embedders.values()) for key in ("epochs", "epochs_done")}
        remaining, rate = self.remaining, self.rate
        return {
            "fits": {"all": sum(e["fits"] for e in embedders.values()), **fits},
            "epochs": {"all": epochs["epochs"], "done": epochs["epochs_done"]},
            "epochs_per_s": None if rate is None else round(rate, 3),
            "remaining_s": None if remaining is None else round(remaining, 1),
            "embedders": embedders,
            "failures": list(self._failures),
        }


def _of(plan: FitPlan) -> dict[str, Any]:
    return {"fit": plan.stack_id(), "runs": plan.run_ids(), "embedder": plan.embedder, "fold": plan.fold}


def _shown(counts: EmbedderProgress) -> dict[str, Any]:
    best = counts.configuration
    return {
        "fits": counts.fits,
        "done": counts.done,
        "failed": counts.failed,
        "running": counts.running,
        "waiting": counts.waiting,
        "epochs": counts.epochs,
        "epochs_done": counts.epochs_done,
        "val_loss": round(counts.val_loss, 5) if math.isfinite(counts.val_loss) else None,
        "learning_rate": None if best is None else best.learning_rate,
        "weight_decay": None if best is None else best.weight_decay,
    }


class PretrainTally:
    """The epochs of a pre-training; call it with each.

    Args:
        job: whose they are.
        epochs: at most.
        watch: called with each as well.
    """

    def __init__(self, job: Job, epochs: int, watch: Callable[[PretrainEpoch], None]) -> None:
        self._job, self._epochs, self._watch = job, epochs, watch
        self._last: PretrainEpoch | None = None
        self._first = 0  # number of the first epoch of this process: it may have gone on with others
        self._least = math.inf
        self._began = time.monotonic()
        self._seconds = 0.0  # up to the last

    def __call__(self, epoch: PretrainEpoch) -> None:
        self._first = self._first or epoch.epoch
        self._last, self._least = epoch, min(self._least, epoch.val_loss)
        self._seconds = time.monotonic() - self._began
        self._job.event("epoch ended", epoch=epoch.epoch, train_loss=epoch.train_loss, val_loss=epoch.val_loss)
        self._watch(epoch)

    def snapshot(self) -> dict[str, Any]:
        """Counts of the moment; for another thread."""
        last, done = self._last, 0 if self._last is None else self._last.epoch
        an_epoch = self._seconds / (done - self._first + 1) if last else None
        return {
            "training": {
                "all": self._epochs,
                "done": done,
                "val_loss": None if last is None else round(last.val_loss, 5),
                "best": None if last is None else round(self._least, 5),
                "patches_per_s": None if last is None else round(last.patches_per_second, 1),
            },
            "remaining_s": None if an_epoch is None else round(an_epoch * (self._epochs - done), 1),
        }
