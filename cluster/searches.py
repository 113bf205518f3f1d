"""Searches beyond the grid: ASHA ends bad configurations early, Optuna learns from those before.

A trial is one configuration of one embedder on all folds and seeds of a round, in lockstep. It reports what
configurations are chosen by, the mean over folds of the least validation loss so far. A search is of one embedder in
one round; all of them share the machine.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import Searcher

from cluster.trials import METRIC, TIME
from her2cache.errors import ConfigError
from trainers.candidates import round_configuration
from trainers.config import Experiment
from trainers.ledger import read_run, safe_name
from trainers.plan import FitPlan
from trainers.progress import has_ended
from trainers.stack import Configuration

if TYPE_CHECKING:
    from ray.tune.search.optuna import OptunaSearch

REDUCTION = 3
"""ASHA lets the better third of the configurations go on at each rung."""

_FIRST_RUNG = 0.1
"""Of the epochs: before it no configuration is ended."""


def searches_of(plans: Sequence[FitPlan]) -> dict[str, list[FitPlan]]:
    """Plans by the search that they belong to."""
    found: dict[str, list[FitPlan]] = {}
    for plan in plans:
        found.setdefault(name_search(plan), []).append(plan)
    return found


def name_search(plan: FitPlan) -> str:
    """For instance `alexnet-random`; in an outer fold `alexnet-random-o2`."""
    return safe_name(plan.embedder) + ("" if plan.outer is None else f"-o{plan.outer}")


def by_configuration(plans: Sequence[FitPlan]) -> list[tuple[FitPlan, ...]]:
    """Plans of one run each -> the trials of ASHA, one a search and configuration."""
    trials: dict[tuple[str, Configuration], list[FitPlan]] = {}
    for plan in plans:
        trials.setdefault((name_search(plan), plan.configurations[0]), []).append(plan)
    return [tuple(own) for own in trials.values()]


class Asha(FIFOScheduler):
    """Asynchronous successive halving (Li et al. 2020), for each search on its own.

    Args:
        searches: name of the search of each listed job.
        epochs: of a run.
    """

    def __init__(self, searches: Sequence[str], epochs: int) -> None:
        super().__init__()
        first = max(1, round(epochs * _FIRST_RUNG))
        self._names = tuple(searches)
        self._halving = {
            name: ASHAScheduler(TIME, METRIC, "min", max_t=epochs, grace_period=first, reduction_factor=REDUCTION)
            for name in searches
        }

    def _of(self, trial: Any) -> Any:
        return self._halving[self._names[trial.config["job"]]]

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return self._of(trial).on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if not result.get("reason"):
            self._of(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self._of(trial).on_trial_remove(tune_controller, trial)


class Optuna(Searcher):
    """Optuna's tree-structured Parzen estimator, for each search on its own; they are asked in turn.

    What was asked for is written to `out/search`, so that a resumed sweep finishes it before it asks for more, and
    tells Optuna what had ended.

    Args:
        experiment: gives the ranges, the number of samples and the seed.
        templates: name of a search -> its plans, whatever their configurations.
        out: sweep directory.

    Raises:
        ConfigError: Optuna is not installed.
    """

    def __init__(self, experiment: Experiment, templates: Mapping[str, Sequence[FitPlan]], out: Path) -> None:
        super().__init__(metric=METRIC, mode="min")
        self._searches = {name: _OptunaSearch(experiment, name, own, out) for name, own in templates.items()}
        self._of: dict[str, _OptunaSearch] = {}

    def missing(self, search: str | None = None) -> int:
        """Trials that are to be run, of one search or of all."""
        return sum(own.missing for name, own in self._searches.items() if search in {None, name})

    def suggest(self, trial_id: str) -> Any:
        search = max(self._searches.values(), key=lambda search: search.missing)
        if not search.missing:
            return Searcher.FINISHED
        self._of[trial_id] = search
        return search.suggest(trial_id)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._of.pop(trial_id).on_trial_complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: Tune's own restore is not used."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""


class _OptunaSearch:
    """One search of `Optuna`."""

    def __init__(self, experiment: Experiment, name: str, templates: Sequence[FitPlan], out: Path) -> None:
        self._name, self._out = name, out
        asked = asked_for(name, out)
        losses = {c: _mean_loss(templates, c, out) for c in asked}
        finished = {c: loss for c, loss in losses.items() if loss is not None}
        self._asked = list(asked)
        self.missing = max(0, experiment.search.samples - len(finished))
        if self.missing:
            unfinished = [c for c in asked if c not in finished]
            self._optuna = _optuna(experiment, unfinished, seed=experiment.search.seed + len(asked))
            for c, loss in finished.items():
                self._optuna.add_evaluated_point(_point(c, experiment), loss)

    def suggest(self, trial_id: str) -> dict[str, Any]:
        point: dict[str, Any] = self._optuna.suggest(trial_id) or {}
        configuration = round_configuration(point["learning_rate"], point["weight_decay"])
        if configuration not in self._asked:
            self._asked.append(configuration)
            _write_asked(self._asked, self._name, self._out)
        self.missing -= 1
        return {"search": self._name, **point}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None, error: bool) -> None:
        failed = error or bool((result or {}).get("reason"))
        self._optuna.on_trial_complete(trial_id, None if failed else result, failed)


def asked_for(search: str, out: Path) -> tuple[Configuration, ...]:
    """The configurations that a search has asked for so far."""
    try:
        return tuple(Configuration(*pair) for pair in json.loads(_path(search, out).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return ()


def require_optuna() -> None:
    """Checks that Optuna is installed.

    Raises:
        ConfigError: it is not.
    """
    try:
        import optuna  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ModuleNotFoundError as error:
        raise ConfigError(
            "[search] method = 'optuna' needs Optuna, which is not installed: pip install 'her2cache[optuna]', or "
            "choose another method"
        ) from error


def _optuna(experiment: Experiment, first: Sequence[Configuration], seed: int) -> OptunaSearch:
    """A search that begins with some configurations."""
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("ray.tune.search.optuna").setLevel(logging.CRITICAL)
    t = experiment.training
    ranges = {"learning_rate": t.learning_rate, "weight_decay": t.weight_decay}
    space = {
        key: optuna.distributions.FloatDistribution(min(values), max(values), log=True)
        for key, values in ranges.items()
    }
    points = [_point(c, experiment) for c in first] or None
    return OptunaSearch(space, METRIC, "min", points_to_evaluate=points, seed=seed)


def _point(configuration: Configuration, experiment: Experiment) -> dict[str, float]:
    """A configuration as Optuna knows it: rounding must not have pushed it out of its range."""
    t = experiment.training
    return {
        "learning_rate": min(max(configuration.learning_rate, min(t.learning_rate)), max(t.learning_rate)),
        "weight_decay": min(max(configuration.weight_decay, min(t.weight_decay)), max(t.weight_decay)),
    }


def _mean_loss(templates: Sequence[FitPlan], configuration: Configuration, out: Path) -> float | None:
    """What a trial that has ended reported; None when it has not ended."""
    ids = [i for plan in templates for i in replace(plan, configurations=(configuration,)).run_ids()]
    if not all(has_ended(i, out) for i in ids):
        return None
    return float(np.mean([read_run(i, out / "ledger").val_loss for i in ids]))


def _write_asked(configurations: Sequence[Configuration], search: str, out: Path) -> None:
    path = _path(search, out)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps([[c.learning_rate, c.weight_decay] for c in configurations]), encoding="utf-8")
    partial.replace(path)


def _path(search: str, out: Path) -> Path:
    return out / "search" / f"{search}.json"
