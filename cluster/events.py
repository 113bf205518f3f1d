"""Losses of running fits as TensorBoard event files, a folder a run: `tensorboard --logdir SWEEP_DIR/tensorboard`."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue] - made by protobuf
from tensorboardX.summary import scalar, text

from trainers.lockstep import Step
from trainers.plan import FitPlan


class EventFiles:
    """Writes `train_loss`, `val_loss` and `val_accuracy` of every epoch; a `cluster.progress.Listener`.

    Whoever goes on with a fit tells all its epochs from the first, so a run's folder is emptied then and holds every
    epoch once, however often processes died. One file is open for each run that is being trained.

    Args:
        folder: of all runs; made when it is needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, EventsWriter] = {}

    def started(self, plan: FitPlan) -> None:
        pass

    def stepped(self, plan: FitPlan, steps: Sequence[Step]) -> None:
        for step in sorted(steps, key=lambda step: step.epoch):
            if step.epoch == 1:
                self._begin(plan, step.run_id)
            if file := self._files.get(step.run_id):
                for name in ("train_loss", "val_loss", "val_accuracy"):
                    value = getattr(step.result, name)
                    file.write_event(_event(step.epoch, summary=scalar(name, value, display_name=name)))
        for run_id in {step.run_id for step in steps} & self._files.keys():
            self._files[run_id].flush()

    def paused(self, plan: FitPlan) -> None:
        for run_id in plan.run_ids():
            if file := self._files.pop(run_id, None):
                file.close()

    def ended(self, plan: FitPlan, reason: str) -> None:
        self.paused(plan)

    def _begin(self, plan: FitPlan, run_id: str) -> None:
        if file := self._files.pop(run_id, None):
            file.close()
        folder = self._folder / run_id
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        file = self._files[run_id] = EventsWriter(str(folder / "events"))
        configuration = plan.configurations[plan.run_ids().index(run_id)]
        says = {
            "embedder": plan.embedder,
            "fold": plan.fold,
            **({} if plan.outer is None else {"outer fold": plan.outer}),
            "learning rate": f"{configuration.learning_rate:g}",
            "weight decay": f"{configuration.weight_decay:g}",
            "feature_norm": plan.settings.feature_norm,
            "attention": plan.model.attention,
            "share of the patches": plan.fraction,
        }
        table = "\n".join(["|hyperparameter|value|", "|-|-|", *(f"|{k}|{v}|" for k, v in says.items())])
        file.write_event(_event(0, summary=text("hyperparameters", table)))


def _event(step: int, **what: object) -> Event:
    return Event(step=step, wall_time=time.time(), **what)
