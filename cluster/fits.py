"""Everything that an experiment trains: its fits by the method of its search, those that are missing, their runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cluster.capacity import Capacity, Terms
from cluster.events import EventFiles
from cluster.progress import Listener, SweepProgress, work_of
from cluster.searches import Searches, asked_for, given, name_search, searches_of
from cluster.trials import Ground, Jobs, Relay, train
from trainers.candidates import draw_configurations
from trainers.fit import conclude, failed_runs
from trainers.ledger import Run, read_run, write_failure
from trainers.plan import FitPlan
from trainers.progress import has_ended
from trainers.stack import Configuration
from trainers.study import Study

_UNFINISHED = "it was not trained to its end, as its processes were lost: go on with --resume"


@dataclass(frozen=True)
class Fits:
    """The fits of a study.

    Attributes:
        study: what is swept.
        stack: most runs of a fit.
        out: sweep directory.
    """

    study: Study
    stack: int
    out: Path

    @property
    def method(self) -> str:
        return self.study.experiment.search.method

    def plans(self) -> list[FitPlan]:
        """All fits; with Optuna those that it has asked for so far."""
        if self.method == "optuna":
            return [
                plan
                for name, plans in self._templates().items()
                for configuration in dict.fromkeys(asked_for(name, self.out))
                for plan in given(plans, configuration)
            ]
        return self.study.plans(self.stack, configurations_of(self.study))

    def ended(self) -> frozenset[str]:
        """Ids of the runs that have ended, well or not."""
        return frozenset(i for plan in self.plans() for i in plan.run_ids() if has_ended(i, self.out))

    def missing(self) -> list[FitPlan]:
        """Fits that are to be trained. One that lost some of its runs is trained as a whole: fewer give other bits."""
        ended = self.ended()
        return [plan for plan in self.plans() if not ended.issuperset(plan.run_ids())]

    def complete(self) -> bool:
        """Whether there is nothing to train."""
        return not self.missing() and not self._undrawn()

    def train(self, terms: Terms, capacity: Capacity, progress: SweepProgress) -> dict[str, str]:
        """Trains what is missing on a Ray that is already started.

        Returns:
            Stack id of each fit that failed as a whole -> why.
        """
        missing, dims = self.missing(), self._dims()
        ground = Ground(self.study.experiment.data.store, self.out, terms.gpus)
        listeners = (progress, EventFiles(self.out / "tensorboard"))
        if self.method in {"asha", "optuna"}:
            draws = {(name_search(plan), plan.configurations) for plan in missing}  # trained on all their folds
            again = [plan for plan in self.plans() if (name_search(plan), plan.configurations) in draws]
            self._announce(progress, again + self._undrawn())
            return self._search(ground, listeners, capacity.cpus)
        self._announce(progress, missing)
        # the long ones first: one that began last would keep the others' cores waiting
        ordered = sorted(missing, key=lambda plan: -work_of(plan, dims))
        jobs = Jobs(tuple((plan,) for plan in ordered))
        return train(jobs, ground, Relay(jobs, listeners))

    def runs(self, failures: Mapping[str, str]) -> list[Run]:
        """All runs; those of a fit that failed as a whole are tried again when the sweep is resumed."""
        runs = [run for plan in self.plans() for run in self._runs_of(plan, failures)]
        with suppress(OSError):  # epoch checkpoints of fits that failed stay
            (self.out / "state").rmdir()
        return runs

    def _runs_of(self, plan: FitPlan, failures: Mapping[str, str]) -> list[Run]:
        if self._has_ended(plan):
            return [read_run(run_id, self.out / "ledger") for run_id in plan.run_ids()]
        failed = failed_runs(plan, failures.get(plan.stack_id(), _UNFINISHED))
        for run in failed:
            write_failure(run, self.out / "ledger")
        return failed

    def _search(self, ground: Ground, listeners: Sequence[Listener], at_once: int) -> dict[str, str]:
        jobs = Jobs(templates=self._templates())
        relay = Relay(jobs, listeners)

        def stop(plans: Sequence[FitPlan]) -> None:
            going = [plan for plan in plans if not self._has_ended(plan)]
            for plan in going:
                conclude(plan, self.out, self.method)
            relay.end(going)

        searches = Searches(self.study.experiment, jobs.templates, self.out, stop)
        return train(jobs, ground, relay, searches, at_once)

    def _undrawn(self) -> list[FitPlan]:
        """What Optuna is still to draw, with a configuration that stands for any."""
        if self.method != "optuna":
            return []
        samples = self.study.experiment.search.samples
        return [
            plan
            for name, plans in self._templates().items()
            for plan in plans * max(0, samples - len(asked_for(name, self.out)))
        ]

    def _has_ended(self, plan: FitPlan) -> bool:
        return all(has_ended(run_id, self.out) for run_id in plan.run_ids())

    def _announce(self, progress: SweepProgress, plans: Sequence[FitPlan]) -> None:
        """Tells the progress what is to be trained, and what has ended."""
        ended, todo = self.ended(), {plan.stack_id() for plan in plans}
        before = [p for p in self.plans() if ended.issuperset(p.run_ids()) and p.stack_id() not in todo]
        progress.expect(plans, Counter(plan.embedder for plan in before), self._dims())

    def _dims(self) -> dict[str, int]:
        return {space.key: space.dim for space in self.study.spaces.values()}

    def _templates(self) -> dict[str, tuple[FitPlan, ...]]:
        """Plans of each search, with a configuration that stands for any."""
        plans = self.study.plans(1, self.study.experiment.training.grid()[:1])
        return {name: tuple(own) for name, own in searches_of(plans).items()}


def configurations_of(study: Study) -> tuple[Configuration, ...]:
    """What the grid, the random search and ASHA try."""
    e = study.experiment
    return e.training.grid() if e.search.method == "grid" else draw_configurations(e.training, e.search)
