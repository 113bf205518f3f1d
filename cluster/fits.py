"""Everything that an experiment trains: its fits by the method of its search, those that are missing, their runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.capacity import Capacity, Terms
from cluster.events import EventFiles
from cluster.progress import SweepProgress, work_of
from cluster.searches import Asha, Optuna, asked_for, by_configuration, name_search, searches_of
from cluster.trials import Ground, Jobs, Search, train
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
                replace(plan, configurations=(configuration,))
                for name, plans in self._templates().items()
                for configuration in asked_for(name, self.out)
                for plan in plans
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
        if self.method == "optuna" and self._optuna().missing():
            return False
        return not self.missing()

    def train(self, terms: Terms, capacity: Capacity, progress: SweepProgress) -> dict[str, str]:
        """Trains what is missing on a Ray that is already started.

        Returns:
            Stack id of each fit that failed as a whole -> why.
        """
        ground = Ground(self.study.experiment.data.store, self.out, terms.gpus)
        listeners = (progress, EventFiles(self.out / "tensorboard"))
        if self.method == "optuna":
            searcher, templates = self._optuna(), self._templates()
            self._announce(progress, [p for name, own in templates.items() for p in own * searcher.missing(name)])
            search = Search(searcher=searcher, samples=searcher.missing(), at_once=capacity.cpus)
            return train(Jobs(templates=templates), ground, listeners, search)
        missing = self.missing()
        if self.method == "asha":
            return self._train_asha(missing, ground, progress)
        self._announce(progress, missing)
        dims = self._dims()
        # the long ones first: one that began last would keep the others' cores waiting
        ordered = sorted(missing, key=lambda plan: -work_of(plan, dims))
        return train(Jobs(tuple((plan,) for plan in ordered)), ground, listeners)

    def runs(self, failures: Mapping[str, str]) -> list[Run]:
        """All runs; those of a fit that failed as a whole are tried again when the sweep is resumed."""
        runs = [run for plan in self.plans() for run in self._runs_of(plan, failures)]
        with suppress(OSError):  # epoch checkpoints of fits that failed stay
            (self.out / "state").rmdir()
        return runs

    def _runs_of(self, plan: FitPlan, failures: Mapping[str, str]) -> list[Run]:
        if all(has_ended(run_id, self.out) for run_id in plan.run_ids()):
            return [read_run(run_id, self.out / "ledger") for run_id in plan.run_ids()]
        failure = failures.get(plan.stack_id(), "")
        if not failure and self.method == "asha" and (runs := conclude(plan, self.out, "asha")):
            return runs
        failed = failed_runs(plan, failure or _UNFINISHED)
        for run in failed:
            write_failure(run, self.out / "ledger")
        return failed

    def _train_asha(self, missing: Sequence[FitPlan], ground: Ground, progress: SweepProgress) -> dict[str, str]:
        """All trials of the searches that miss some: those that have ended replay their losses to the scheduler."""
        names = {name_search(plan) for plan in missing}
        own = [plan for plan in self.plans() if name_search(plan) in names]
        self._announce(progress, own)
        todo = {plan.stack_id() for plan in missing}
        trials = sorted(by_configuration(own), key=lambda plans: any(plan.stack_id() in todo for plan in plans))
        scheduler = Asha([name_search(plans[0]) for plans in trials], self.study.experiment.training.epochs)
        listeners = (progress, EventFiles(self.out / "tensorboard"))
        return train(Jobs(tuple(trials)), ground, listeners, Search(scheduler=scheduler, watched=True))

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

    def _optuna(self) -> Optuna:
        return Optuna(self.study.experiment, self._templates(), self.out)


def configurations_of(study: Study) -> tuple[Configuration, ...]:
    """What the grid, the random search and ASHA try."""
    e = study.experiment
    return e.training.grid() if e.search.method == "grid" else draw_configurations(e.training, e.search)
