"""Fits as trials of Ray Tune: one core each, actors reused, features shared through memory maps."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.execution import class_cache
from ray.tune.search import Searcher

from cluster.progress import Listener
from cluster.telemetry import metrics
from her2cache.errors import Her2CacheError
from trainers.candidates import round_configuration
from trainers.fit import SAVE_EVERY
from trainers.lockstep import Lockstep, Step
from trainers.plan import FitPlan

LOSS = "val_loss"
"""What a trial reports for its search: see `Lockstep.val_loss`."""

_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the command, not only Tune
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # of its own state, which nobody reads: the ledger is ours
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}

_RETRIES = 2
"""How often a fit is taken up again when its process dies; it then gives the same numbers."""

_REPORT_S = 0.5
"""Least seconds between two reports of a trial: each costs a turn of Tune's loop."""

_DIED = (
    f"its process died {_RETRIES + 1} times, most likely for want of memory: stack fewer runs (--stack, in another "
    "--out), or give the machine to fewer fits at once, and go on with --resume"
)
_NO_MEMORY = (
    "out of memory: its stack is too large for what the machine leaves; stack fewer runs (--stack, in another --out) "
    "or, on a GPU, give every fit more of it (--gpus-per-fit)"
)

_CREDENTIALS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"}
"""Tune would hand them to its trials in a runtime environment, which Ray writes into its logs. Every process of a node
has the environment that Ray was started in there, and so those of the driver on this machine."""


@dataclass(frozen=True)
class Jobs:
    """What the trials are. A trial's `config` names its plans.

    Attributes:
        listed: plans of each trial, known beforehand; `{"job": position}`.
        templates: name of a search -> plans that are given the configuration that it asks for, and trained until they
            have so many epochs; `{"search": name, "learning_rate": ..., "weight_decay": ..., "until": epochs}`.
    """

    listed: tuple[tuple[FitPlan, ...], ...] = ()
    templates: Mapping[str, tuple[FitPlan, ...]] = field(default_factory=dict[str, tuple[FitPlan, ...]])

    def plans(self, config: Mapping[str, Any]) -> tuple[FitPlan, ...]:
        """The plans of a trial."""
        if "job" in config:
            return self.listed[config["job"]]
        configuration = round_configuration(config["learning_rate"], config["weight_decay"])
        return tuple(replace(plan, configurations=(configuration,)) for plan in self.templates[config["search"]])


@dataclass(frozen=True)
class Ground:
    """Where fits are trained.

    Attributes:
        store: URI of the feature store, within reach of every node.
        out: sweep directory, the same.
        gpus: share of a GPU that each is granted; 0 trains on the processor.
    """

    store: str
    out: Path
    gpus: float = 0.0


def train(
    jobs: Jobs, ground: Ground, relay: Relay, searcher: Searcher | None = None, at_once: int | None = None
) -> dict[str, str]:
    """Trains fits on a Ray that is already started.

    Args:
        jobs: the trials.
        ground: where.
        relay: told of every trial.
        searcher: asks for trials; None trains every listed job.
        at_once: trials of a searcher.

    Returns:
        Stack id of each fit that failed as a whole -> why. The runs of all others have their files in `out/ledger`.
    """
    os.environ.update(_QUIET)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are returned, not logged
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(_CREDENTIALS)
    trial = tune.with_parameters(_Trial, jobs=jobs, ground=ground, save_every=SAVE_EVERY, report_every=_REPORT_S)
    space = {} if searcher else {"job": tune.grid_search(list(range(len(jobs.listed))))}
    with _scratch(ground.out) as scratch:
        tune.Tuner(
            tune.with_resources(trial, {"cpu": 1, "gpu": ground.gpus} if ground.gpus else {"cpu": 1}),
            param_space=space,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=-1 if searcher else 1,  # a searcher says itself when it is done
                max_concurrent_trials=at_once,
                reuse_actors=True,
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name="fits",
                storage_path=str(scratch),
                verbose=0,
                callbacks=[relay],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # epoch checkpoints are ours
                failure_config=tune.FailureConfig(max_failures=_RETRIES),
            ),
        ).fit()
    return relay.failures


@contextmanager
def _scratch(out: Path) -> Generator[Path]:
    """A folder for what Tune keeps for itself. It must lie where all nodes see it; results are in the ledger."""
    folder = out / ".tune"
    shutil.rmtree(folder, ignore_errors=True)  # of a driver that was killed
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _name(trial: Any) -> str:
    return f"fit-{trial.trial_id}"


class _Trial(tune.Trainable):
    """A trial: its plans in lockstep. An error ends it with the reason and leaves the actor to the next."""

    def setup(  # pyright: ignore[reportIncompatibleMethodOverride] - Tune hands over what with_parameters was given
        self, config: dict[str, Any], *, jobs: Jobs, ground: Ground, save_every: float, report_every: float
    ) -> None:
        torch.set_num_threads(1)  # one core a trial: said here, because Ray says it only in the environment
        self._jobs, self._ground = jobs, ground
        self._save_every, self._report_every = save_every, report_every
        self._device = "cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"
        self._training: Lockstep | None = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._release()
        return True

    def step(self) -> dict[str, Any]:
        try:
            result = self._train()
            if result["done"]:
                self._release()
            return result
        except Her2CacheError as error:
            reason = str(error)
        except (MemoryError, torch.OutOfMemoryError):
            reason = _NO_MEMORY
        except Exception as error:  # noqa: BLE001 - a fit that fails must not end the sweep
            # the processor's allocator has no error class of its own
            no_memory = isinstance(error, RuntimeError) and "allocate memory" in str(error)
            reason = _NO_MEMORY if no_memory else f"{type(error).__name__}: {error}"
        self._release()
        return {"reason": reason, "done": True, "over": True, "steps": [], LOSS: float("inf")}

    def cleanup(self) -> None:
        self._release()

    def _train(self) -> dict[str, Any]:
        training = self._training
        if training is None:
            plans = self._jobs.plans(self.config)
            training = Lockstep(plans, self._ground.store, self._ground.out, self._device, self._save_every)
            self._training = training
        began, before = time.monotonic(), training.epochs_done
        report, until = began + self._report_every, self.config.get("until", sys.maxsize)
        while not training.done and training.epochs_done < until:
            training.epoch()
            if time.monotonic() >= report:
                break
        metrics.count_epochs(training.epochs_done - before, time.monotonic() - began)
        done = training.done or training.epochs_done >= until
        if done and not training.done:
            training.save()
        return {
            "reason": "",
            "done": done,
            "over": training.done,
            "steps": training.news(),
            LOSS: training.val_loss(min(until, training.epochs_done)),
        }

    def _release(self) -> None:
        """Gives back the memory, that of a device too: the next trial may be of another process on it."""
        self._training = None
        if self._device == "cuda":
            torch.cuda.empty_cache()


class Relay(tune.Callback):
    """Tells listeners what Tune's loop sees.

    Args:
        jobs: the trials.
        listeners: told of every fit.

    Attributes:
        failures: stack id of each fit that failed as a whole -> why.
    """

    def __init__(self, jobs: Jobs, listeners: Sequence[Listener]) -> None:
        self._jobs, self._listeners = jobs, list(listeners)
        self.failures: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks for a restore that is never made; a progress bar does not pickle

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        for plan in self._jobs.plans(trial.config):
            self._tell(lambda listener, plan=plan: listener.started(plan))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        plans = self._jobs.plans(trial.config)
        steps: list[Step] = result["steps"]
        for k, own in groupby(steps, key=lambda step: step.fit):
            told = list(own)
            self._tell(lambda listener, k=k, told=told: listener.stepped(plans[k], told))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        plans = self._jobs.plans(trial.config)
        if trial.last_result["over"]:
            self.end(plans, trial.last_result["reason"])
        else:
            for plan in plans:
                self._tell(lambda listener, plan=plan: listener.paused(plan))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.end(self._jobs.plans(trial.config), _DIED)

    def end(self, plans: Sequence[FitPlan], reason: str = "") -> None:
        """Fits have ended; `reason` says why they failed."""
        for plan in plans:
            if reason:
                self.failures[plan.stack_id()] = reason
            self._tell(lambda listener, plan=plan: listener.ended(plan, reason))

    def _tell(self, news: Callable[[Listener], None]) -> None:
        """A listener that cannot go on, because the disk is full say, is told no more: training goes on."""
        for listener in list(self._listeners):
            try:
                news(listener)
            except OSError as error:
                self._listeners.remove(listener)
                warnings.warn(f"{type(listener).__name__} is told no more of the sweep: {error}", stacklevel=2)
