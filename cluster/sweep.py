"""A sweep: Experiment -> fits under Ray Tune -> selection -> test -> the files of a sweep directory."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from cluster.resources import available_cpus, ray_session
from cluster.trials import train_all
from her2cache.errors import SweepError
from trainers.config import Experiment, read_experiment
from trainers.fit import FitPlan, failed_runs
from trainers.ledger import Run, has_run, read_run
from trainers.report import write_csv, write_report
from trainers.selection import select
from trainers.splits import write_splits
from trainers.study import Study, assess_selected, fit_baselines, open_study
from trainers.tables import write_predictions, write_results, write_runs

_PACKAGES = ("her2cache", "numpy", "torch", "ray", "scikit-learn", "pyarrow", "zarr")


@dataclass(frozen=True)
class SweepOptions:
    """How a sweep runs.

    Attributes:
        address: of Ray, see `cluster.resources.ray_session`.
        resume: whether `out` may hold a part of this sweep.
        stack: most runs trained in lockstep; None for the whole grid.
    """

    address: str = "local"
    resume: bool = False
    stack: int | None = None


@dataclass
class SweepProgress:
    """Counts of a running sweep, for whoever watches."""

    fits: int
    epochs: int
    epochs_done: int = 0
    val_loss: float = float("inf")


@dataclass(frozen=True)
class SweepReport:
    """The result of a sweep.

    Attributes:
        runs: every run, also those that had ended before.
        resumed: ids of these.
        left_out: slide -> why it took no part.
        warnings: what a reader of the results should know.
        written: name -> file.
        seconds: wall time.
    """

    runs: list[Run]
    resumed: frozenset[str]
    left_out: dict[str, str]
    warnings: tuple[str, ...]
    written: dict[str, Path] = field(default_factory=dict[str, Path])
    seconds: float = 0.0


def run_sweep(
    experiment_file: Path,
    out: Path,
    options: SweepOptions,
    watch: Callable[[SweepProgress], None] = lambda _: None,
) -> SweepReport:
    """Trains, selects and tests everything an experiment asks for.

    Args:
        experiment_file: TOML.
        out: sweep directory, made where there is none.
        options: of the sweep.
        watch: called whenever counts change.

    Raises:
        Her2CacheError: the experiment cannot be run as it is.
        SweepError: `out` holds something else, or not one run could be trained.
    """
    start, started = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    experiment = read_experiment(experiment_file)
    study = open_study(experiment)
    out = out.absolute()
    _claim(out, experiment_file, study, options)
    plans = study.plans(options.stack)
    resumed = frozenset(i for plan in plans for i in plan.run_ids() if has_run(i, out / "ledger"))
    # a stack that lost members would give other bits, so it is trained as a whole or not at all
    missing = [plan for plan in plans if not resumed.issuperset(plan.run_ids())]
    failures = _train(missing, experiment, out, options.address, watch)
    runs = [run for plan in plans for run in _runs_of(plan, failures, out)]

    write_runs(runs, out / "runs.parquet")

    selected = select(runs)
    if not selected:
        raise SweepError(f"not one run could be trained: {runs[0].reason}")
    tested = assess_selected(study, selected, out / "checkpoints")
    write_results(tested, study.splits.test, experiment.classification, out / "results.parquet")
    write_predictions(tested, study.splits.test, out / "predictions.parquet")
    write_csv(out / "baselines.csv", [baseline.row() for baseline in fit_baselines(study)])
    seconds = time.perf_counter() - start
    _write_environment(out, study, options, {"started": started, "seconds": round(seconds, 1)})
    names = ("experiment.toml", "environment.json", "splits.csv", "runs.parquet", "results.parquet")
    written = {name: out / name for name in (*names, "predictions.parquet", "baselines.csv")} | write_report(out)
    warnings = (*study.splits.warnings, *(f"slide {s} left out: {why}" for s, why in study.left_out.items()))
    return SweepReport(runs, resumed, study.left_out, warnings, written, seconds)


def _train(
    plans: Sequence[FitPlan], experiment: Experiment, out: Path, address: str, watch: Callable[[SweepProgress], None]
) -> dict[str, str]:
    """Trains fits; returns run id -> reason for those that failed as a whole."""
    if not plans:
        return {}
    progress = SweepProgress(len(plans), len(plans) * experiment.training.epochs)
    epochs = [0] * len(plans)

    def count(plan: int, epoch: int, val_loss: float) -> None:
        epochs[plan] = epoch  # starts anew when the process of a fit died
        progress.epochs_done = sum(epochs)
        progress.val_loss = min(progress.val_loss, val_loss)
        watch(progress)

    watch(progress)
    with ray_session(address):
        failures = train_all(plans, experiment.data.store, out, count)
    return {run_id: reason for k, reason in failures.items() for run_id in plans[k].run_ids()}


def _runs_of(plan: FitPlan, failures: dict[str, str], out: Path) -> list[Run]:
    """A fit that failed as a whole left no files: it is tried again when the sweep is resumed."""
    first, *_ = plan.run_ids()
    if first in failures:
        return failed_runs(plan, failures[first])
    return [read_run(run_id, out / "ledger") for run_id in plan.run_ids()]


def _claim(out: Path, file: Path, study: Study, options: SweepOptions) -> None:
    """Makes a sweep directory, or checks that the one there holds the beginning of this very sweep."""
    if (out / "environment.json").exists():
        if not options.resume:
            raise SweepError(f"{out} holds a sweep already: add --resume to go on with it, or give another --out")
        if not _same_sweep(out, study):
            raise SweepError(
                f"{out} holds a sweep of another experiment, cohort or store, whose results must not be mixed with "
                "this one's: give another --out, or the files that it was begun with"
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SweepError(f"{out} is not empty and holds no sweep: give another --out, so that nothing is overwritten")
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, out / "experiment.toml")
    write_splits(study.splits, out / "splits.csv")
    _write_environment(out, study, options, {})


def _same_sweep(out: Path, study: Study) -> bool:
    there = json.loads((out / "environment.json").read_text(encoding="utf-8"))
    mine = _identity(study)
    with TemporaryDirectory() as folder:
        splits = Path(folder) / "splits.csv"
        write_splits(study.splits, splits)
        same_splits = splits.read_bytes() == (out / "splits.csv").read_bytes()
    return same_splits and {key: there.get(key) for key in mine} == mine


def _identity(study: Study) -> dict[str, object]:
    return {
        "experiment": study.experiment.digest(),
        "spaces": {name: space.key for name, space in study.spaces.items()},
    }


def _write_environment(out: Path, study: Study, options: SweepOptions, times: dict[str, object]) -> None:
    """Writes environment.json: what a sweep is, as it begins, and how long it took, at its end."""
    document = {
        **_identity(study),
        "cohort": study.experiment.data.cohort,
        "store": study.experiment.data.store,
        "left_out": study.left_out,
        "python": sys.version.split()[0],
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "machine": {"platform": platform.platform(), "cpus": available_cpus()},
        "address": options.address,
        "stack": options.stack or len(study.experiment.training.grid()),
        "threads_per_fit": 1,
        **times,
    }
    partial = out / ".environment.json"
    partial.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    partial.replace(out / "environment.json")
