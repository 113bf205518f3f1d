"""Fits as trials of Ray Tune: one core each, actors reused, features shared through memory maps."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import tune

from her2cache.errors import Her2CacheError
from trainers.features import stored_features
from trainers.fit import FitPlan, fit

_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the command, not only Tune
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}

_RETRIES = 2
"""How often a fit is begun anew when its process dies; it then gives the same numbers."""

Watch = Callable[[int, int, float], None]
"""Called after each epoch of each fit: number of the fit, its epochs so far, its least validation loss."""


def train_all(plans: Sequence[FitPlan], store: str, out: Path, watch: Watch) -> dict[int, str]:
    """Trains fits on a Ray that is already started.

    Args:
        plans: the fits.
        store: URI of the feature store, within reach of every node.
        out: sweep directory, the same.
        watch: see `Watch`.

    Returns:
        Position of each fit that failed as a whole -> why. The runs of all others have their files in
        `out/ledger`.
    """
    os.environ.update(_QUIET)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are returned, not logged
    trial = tune.with_parameters(_trial, plans=list(plans), store=store, out=str(out))
    with _scratch(out) as scratch:
        tuner = tune.Tuner(
            tune.with_resources(trial, {"cpu": 1}),
            param_space={"plan": tune.grid_search(list(range(len(plans))))},
            tune_config=tune.TuneConfig(
                reuse_actors=True, trial_name_creator=_name, trial_dirname_creator=_name, num_samples=1
            ),
            run_config=tune.RunConfig(
                name="fits",
                storage_path=str(scratch),
                verbose=0,
                callbacks=[_Watcher(watch)],
                failure_config=tune.FailureConfig(max_failures=_RETRIES),
            ),
        )
        results = tuner.fit()
    failures: dict[int, str] = {}
    for result in results:
        plan = int((result.config or {})["plan"])
        reason = (result.metrics or {}).get("reason", "")
        if result.error is not None:
            failures[plan] = (
                f"its process died {_RETRIES + 1} times, most likely for want of memory: run fewer fits at once, or "
                "stack fewer runs (--stack), and go on with --resume"
            )
        elif reason:
            failures[plan] = reason
    return failures


@contextmanager
def _scratch(out: Path) -> Generator[Path]:
    """A folder for what Tune keeps for itself. It must lie where all nodes see it; results are in the ledger."""
    folder = out / ".tune"
    shutil.rmtree(folder, ignore_errors=True)  # of a driver that was killed
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _trial(config: dict[str, Any], *, plans: list[FitPlan], store: str, out: str) -> None:
    import torch

    torch.set_num_threads(1)  # one core a trial: said here, because Ray says it only in the environment
    plan = plans[config["plan"]]
    try:
        slides = [s.slide_id for s in plan.training + plan.validation]
        features = stored_features(store, plan.space_key, slides)
        fit(
            plan, features, Path(out), lambda epoch, loss: tune.report({"epoch": epoch, "val_loss": loss, "reason": ""})
        )
    except Her2CacheError as error:
        tune.report({"reason": str(error)})
    except Exception as error:  # noqa: BLE001 - a fit that fails must not end the sweep
        tune.report({"reason": f"{type(error).__name__}: {error}"})


def _name(trial: Any) -> str:
    return f"fit-{trial.config['plan']}"


class _Watcher(tune.Callback):
    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks for a restore that is never made; a progress bar does not pickle

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if not result.get("reason"):
            self._watch(result["config"]["plan"], result["epoch"], result["val_loss"])
