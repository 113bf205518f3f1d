"""Searches beyond the grid under Tune: ASHA ends bad configurations early, Optuna learns from those before.

A draw is one configuration of one embedder on all folds and seeds of a round, in lockstep; what it is judged by is what
configurations are chosen by, the mean over folds of the least validation loss so far. A trial trains a draw for a
stretch of epochs, after which its search says whether it goes on. A search is of one embedder in one round; all of them
share the machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from cluster.trials import LOSS
from trainers.candidates import Search, Stretch, draw_configurations
from trainers.config import Experiment
from trainers.halving import Halving
from trainers.ledger import safe_name
from trainers.lockstep import ledger_curves, mean_least_loss
from trainers.parzen import Parzen
from trainers.plan import FitPlan
from trainers.progress import has_ended
from trainers.stack import Configuration


def searches_of(plans: Sequence[FitPlan]) -> dict[str, list[FitPlan]]:
    """Plans by the search that they belong to."""
    found: dict[str, list[FitPlan]] = {}
    for plan in plans:
        found.setdefault(name_search(plan), []).append(plan)
    return found


def name_search(plan: FitPlan) -> str:
    """For instance `alexnet-random`; in an outer fold `alexnet-random-o2`."""
    return safe_name(plan.embedder) + ("" if plan.outer is None else f"-o{plan.outer}")


def given(plans: Sequence[FitPlan], configuration: Configuration) -> tuple[FitPlan, ...]:
    """The plans of a search -> those of one of its draws."""
    return tuple(replace(plan, configurations=(configuration,)) for plan in plans)


class Searches(Searcher):
    """The searches of a sweep. The one with the most draws left is asked first.

    What the ledger has is not trained again: its losses are told to the search.

    Args:
        experiment: says how to search; "asha" or "optuna".
        templates: name of a search -> its plans, whatever their configurations.
        out: sweep directory. What Optuna draws is written to its folder `search`, so that a resumed sweep finishes it.
        stop: given the plans of a draw that is to be trained no further, although it has epochs left.

    Raises:
        ConfigError: Optuna is needed and not installed.
    """

    def __init__(
        self,
        experiment: Experiment,
        templates: Mapping[str, Sequence[FitPlan]],
        out: Path,
        stop: Callable[[Sequence[FitPlan]], None],
    ) -> None:
        super().__init__(metric=LOSS, mode="min")
        self._searches = {name: _search(experiment, name, out) for name in templates}
        self._templates, self._out, self._stop = templates, out, stop
        self._running: dict[str, tuple[str, Stretch]] = {}

    def suggest(self, trial_id: str) -> Any:
        """The next stretch as a trial's `config`; None when outcomes have to come first."""
        for name in sorted(self._searches, key=lambda name: -self._searches[name].left):
            if stretch := self._next(name):
                self._running[trial_id] = name, stretch
                c = stretch.configuration
                return {
                    "search": name,
                    "learning_rate": c.learning_rate,
                    "weight_decay": c.weight_decay,
                    "until": stretch.until,
                }
        return None if any(search.left for search in self._searches.values()) else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        name, stretch = self._running.pop(trial_id)
        self._tell(name, stretch, None if error or result is None or result.get("reason") else result[LOSS])

    def save(self, checkpoint_path: str) -> None:
        """Nothing: Tune's own restore is not used."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""

    def _next(self, name: str) -> Stretch | None:
        """What a search wants trained and the ledger has not."""
        while stretch := self._searches[name].next():
            plans = given(self._templates[name], stretch.configuration)
            if not all(has_ended(i, self._out) for plan in plans for i in plan.run_ids()):
                return stretch
            fits = [ledger_curves(plan, self._out) for plan in plans]
            self._tell(name, stretch, mean_least_loss(fits, stretch.until))
        return None

    def _tell(self, name: str, stretch: Stretch, loss: float | None) -> None:
        for configuration in self._searches[name].tell(stretch.draw, loss):
            self._stop(given(self._templates[name], configuration))


def asked_for(search: str, out: Path) -> tuple[Configuration, ...]:
    """What Optuna has drawn so far for a search, in order; a configuration twice where ranges are very narrow."""
    try:
        return tuple(Configuration(*pair) for pair in json.loads(_path(search, out).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return ()


def _search(experiment: Experiment, name: str, out: Path) -> Search:
    training, search = experiment.training, experiment.search
    if search.method == "asha":
        return Halving(draw_configurations(training, search), training.epochs)
    return Parzen(training, search, asked_for(name, out), lambda asked: _write_asked(asked, name, out))


def _write_asked(configurations: Sequence[Configuration], search: str, out: Path) -> None:
    path = _path(search, out)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps([[c.learning_rate, c.weight_decay] for c in configurations]), encoding="utf-8")
    partial.replace(path)


def _path(search: str, out: Path) -> Path:
    return out / "search" / f"{search}.json"
