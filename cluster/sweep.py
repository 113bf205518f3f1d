"""A sweep: Experiment -> fits under Ray Tune -> selection -> test -> the files of a sweep directory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from cluster.capacity import Terms, choose_terms, read_capacity
from cluster.directory import Begun, claim, locked, write_environment
from cluster.fits import Fits, configurations_of
from cluster.progress import SweepProgress
from cluster.resources import ray_session
from cluster.telemetry.board import running_job
from cluster.telemetry.tally import SweepTally
from her2cache.errors import ConfigError, SweepError
from trainers.conclusion import conclude_sweep
from trainers.config import read_experiment
from trainers.ledger import Run
from trainers.parzen import require_optuna
from trainers.study import Study, open_study


@dataclass(frozen=True)
class SweepOptions:
    """How a sweep runs.

    Attributes:
        address: of Ray, see `cluster.resources.ray_session`.
        resume: whether `out` may hold a part of this sweep.
        stack: most runs trained in lockstep; None leaves it to memory and cores.
        fraction: share of each slide's patches that is used, for a first screening.
        gpus_per_fit: share of a GPU for each fit; None leaves it to memory, 0 trains on processors.
        allow_embedder_overlap: whether an embedder may be tested on cases whose labels its weights have seen.
    """

    address: str = "local"
    resume: bool = False
    stack: int | None = None
    fraction: float = 1.0
    gpus_per_fit: float | None = None
    allow_embedder_overlap: bool = False


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
    experiment = read_experiment(experiment_file)
    asked = _stack_asked_for(experiment.search.method, options.stack)
    study = open_study(experiment, allow_overlap=options.allow_embedder_overlap)
    study = replace(study, fraction=options.fraction)
    out = out.absolute()
    with locked(out):
        begun = claim(out, experiment_file, study, resume=options.resume, stack=asked)
        return _sweep(study, out, begun, asked, options, watch)


def _sweep(
    study: Study,
    out: Path,
    begun: Begun | None,
    asked: int | None,
    options: SweepOptions,
    watch: Callable[[SweepProgress], None],
) -> SweepReport:
    start = time.perf_counter()
    fits, resumed, failures = Fits(study, 1, out), frozenset[str](), dict[str, str]()
    if begun is not None:
        fits = replace(fits, stack=begun.stack)
        resumed = fits.ended()
    if begun is None or not fits.complete():
        with ray_session(options.address), running_job("sweep", options.address, str(out)) as job:
            capacity = read_capacity(options.gpus_per_fit)
            terms = choose_terms(
                study, capacity, len(configurations_of(study)), options.gpus_per_fit, begun.stack if begun else asked
            )
            _require_same_device(out, begun, terms)
            beginning = {} if begun else {"started": datetime.now(UTC).isoformat(timespec="seconds")}
            more: dict[str, object] = {"stack": terms.stack, "gpus_per_fit": terms.gpus, "address": options.address}
            write_environment(out, study, {**beginning, **more})
            fits = replace(fits, stack=terms.stack)
            tally = SweepTally(job, watch)
            job.show(tally)
            failures = fits.train(terms, capacity, tally)
    runs = fits.runs(failures)
    is_new = resumed != frozenset(r.run_id for r in runs)
    write_environment(out, study, {"seconds": round(time.perf_counter() - start, 1)} if is_new else {})
    written = conclude_sweep(study, runs, out)
    written = {name: out / name for name in ("experiment.toml", "environment.json", "splits.csv")} | written
    seconds = time.perf_counter() - start
    return SweepReport(runs, resumed, study.left_out, _warnings(study), written, seconds)


def _require_same_device(out: Path, begun: Begun | None, terms: Terms) -> None:
    if begun is not None and begun.on_gpu != (terms.gpus > 0):
        was, now = ("GPUs", "processors") if begun.on_gpu else ("processors", "GPUs")
        raise SweepError(
            f"{out} was begun on {was} and would go on on {now}, which draw other bags: "
            + ("go on where there is a GPU" if begun.on_gpu else "add --gpus-per-fit 0")
            + ", or give another --out"
        )


def _stack_asked_for(method: str, stack: int | None) -> int | None:
    """1 for searches that end or choose single configurations, else what the user says."""
    if method not in {"asha", "optuna"}:
        return stack
    if stack not in {None, 1}:
        raise ConfigError(
            f"--stack {stack} does not go with [search] method = {method!r}, which judges configurations one by one: "
            "leave --stack out, or choose grid or random"
        )
    if method == "optuna":
        require_optuna()
    return 1


def _warnings(study: Study) -> tuple[str, ...]:
    share = f"a screening: of each slide only the first {study.fraction:.4g} of the patches took part, in tests as well"
    left_out = (f"slide {s} left out: {why}" for s, why in study.left_out.items())
    return (*([share] if study.fraction < 1 else []), *study.warnings, *left_out)
