"""How far the runs of a stack have come: epochs, best models, and the file that a killed fit goes on from."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trainers.ledger import Epoch, Run, has_run, read_run, write_run
from trainers.model import Origin, TrainedModel
from trainers.plan import FitPlan
from trainers.scaling import Scaling
from trainers.stack import Configuration, Parameters


@dataclass
class Course:
    """A run in training.

    Attributes:
        configuration: of the run.
        epochs: so far.
        best: epoch of least validation loss.
        reason: why it failed.
        stopped: what ended it early.
    """

    configuration: Configuration
    epochs: list[Epoch] = field(default_factory=list[Epoch])
    best: int | None = None
    reason: str = ""
    stopped: str = ""

    @property
    def val_loss(self) -> float:
        return math.inf if self.best is None else self.epochs[self.best].val_loss

    @property
    def ended(self) -> bool:
        return bool(self.reason or self.stopped)

    def add(self, epoch: Epoch, patience: int) -> bool:
        """Takes an epoch; returns whether it is the best so far.

        A loss that is not finite fails the run; `patience` epochs without a lower validation loss end it (0: never).
        """
        if not (math.isfinite(epoch.train_loss) and math.isfinite(epoch.val_loss)):
            self.best = None
            self.reason = (
                f"the loss was no longer finite in epoch {len(self.epochs) + 1}: a learning rate of "
                f"{self.configuration.learning_rate:g} is too high for these features; leave it out of the grid"
            )
            return False
        improved = epoch.val_loss < self.val_loss
        if improved:
            self.best = len(self.epochs)
        self.epochs.append(epoch)
        if patience and self.best is not None and len(self.epochs) - 1 - self.best >= patience:
            self.stopped = "patience"
        return improved


@dataclass
class Progress:
    """The courses of a stack's runs.

    Attributes:
        plan: of the fit.
        courses: one a configuration of the plan.
        best: the model of each run's best epoch.
        scaling: of the features that they were trained on.
        epochs_done: of the stack.
    """

    plan: FitPlan
    courses: list[Course]
    best: Parameters
    scaling: Scaling | None = None
    epochs_done: int = 0

    @property
    def alive(self) -> list[int]:
        """Positions of the runs that are still trained; those of the stack's models, in order."""
        return [k for k, course in enumerate(self.courses) if not course.ended]

    @property
    def done(self) -> bool:
        return not self.alive or self.epochs_done >= self.plan.settings.epochs

    @property
    def val_loss(self) -> float:
        """The least of all runs."""
        return min(course.val_loss for course in self.courses)

    def save(self, out: Path, stack: Mapping[str, Tensor]) -> None:
        """Writes the epoch checkpoint: all of this, and the `Stack.state`; a reader sees the old file or the new."""
        document = {"epochs_done": self.epochs_done, "courses": [asdict(course) for course in self.courses]}
        tensors = {f"stack.{name}": t for name, t in stack.items()}
        tensors |= {f"best.{name}": t for name, t in self.best.named().items()}
        if self.scaling is not None:
            tensors |= {"scaling.mean": self.scaling.mean, "scaling.sd": self.scaling.sd}
        path = _path(self.plan, out)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, partial, {"fit": json.dumps(document)})
        partial.replace(path)

    @classmethod
    def load(cls, plan: FitPlan, out: Path) -> tuple[Progress, dict[str, Tensor]] | None:
        """What `save` wrote: the progress, and the state of the stack. None without a file, or with a damaged one."""
        try:
            with safe_open(_path(plan, out), framework="pt") as file:
                document: dict[str, Any] = json.loads(file.metadata()["fit"])
                # cloned: a view of the file has another alignment, which may change the last bit of a product
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
            courses = [
                Course(configuration, [Epoch(**e) for e in c["epochs"]], c["best"], c["reason"], c["stopped"])
                for c, configuration in zip(document["courses"], plan.configurations, strict=True)
            ]
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None  # the epochs that it held are trained again
        best = Parameters(**_under("best.", tensors))
        scaling = Scaling(**_under("scaling.", tensors)) if "scaling.mean" in tensors else None
        return cls(plan, courses, best, scaling, document["epochs_done"]), _under("stack.", tensors)

    def finish(self, out: Path, stopped: str = "") -> list[Run]:
        """Writes the checkpoints and then the ledger: a run that the ledger has is never trained again.

        Args:
            out: sweep directory.
            stopped: what ended the runs that had epochs left.

        Returns:
            The runs, in the order of the plan's configurations.
        """
        for k in self.alive if stopped else ():
            self.courses[k].stopped = stopped
        runs = [self._finish(k, out) for k in range(len(self.courses))]
        _path(self.plan, out).unlink(missing_ok=True)
        return runs

    def _finish(self, k: int, out: Path) -> Run:
        run = make_run(self.plan, self.courses[k])
        if run.best is not None:
            model = self.best.model(k)
            origin = Origin(
                run_id=run.run_id,
                space_key=run.space_key,
                embedder=run.embedder,
                experiment=self.plan.experiment,
                fold=run.fold,
                epoch=run.best,
                task=self.plan.task,
            )
            folded = model if self.scaling is None else self.scaling.fold(model)
            TrainedModel(folded, origin).save(checkpoint(run.run_id, out))
        write_run(run, out / "ledger")
        return run


def has_ended(run_id: str, out: Path) -> bool:
    """Whether a run need not be trained: the ledger has it, and its checkpoint is there unless it failed."""
    if not has_run(run_id, out / "ledger"):
        return False
    return checkpoint(run_id, out).exists() or read_run(run_id, out / "ledger").best is None


def checkpoint(run_id: str, out: Path) -> Path:
    """File of a run's model."""
    return out / "checkpoints" / f"{run_id}.safetensors"


def make_run(plan: FitPlan, course: Course) -> Run:
    """The record of a run."""
    return Run(
        run_id=plan.run_ids()[plan.configurations.index(course.configuration)],
        space_key=plan.space_key,
        embedder=plan.embedder,
        fold=plan.fold,
        seed=plan.seed,
        configuration=course.configuration,
        epochs=tuple(course.epochs),
        best=course.best,
        reason=course.reason,
        stopped=course.stopped,
        outer=plan.outer,
        embedder_seed=plan.embedder_seed,
        embedder_overlap=plan.embedder_overlap,
    )


def _path(plan: FitPlan, out: Path) -> Path:
    return out / "state" / f"{plan.stack_id()}.safetensors"


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
