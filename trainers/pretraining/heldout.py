"""The cases that a source task must not see: those that the sweep tests on, and for weights of one fold also those that
validate it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from her2cache.cohort import read_cohort
from her2cache.errors import CohortError, ConfigError
from trainers.config import Experiment, SplitsSection, read_experiment
from trainers.study import split_cohort
from trainers.tasks import Task, find_task


@dataclass(frozen=True)
class HeldOut:
    """What is left out of a pre-training.

    Attributes:
        cases: ids.
        why: for people, e.g. "the test cases of paper.toml".
    """

    cases: frozenset[str]
    why: str


def held_out_cases(
    cohort: Path, experiment: Path | None = None, *, outer: int | None = None, fold: int | None = None
) -> HeldOut:
    """The cases that a sweep keeps for its test.

    Args:
        cohort: table of the slides.
        experiment: file of the sweep; without it, the split that a sweep makes of the cohort's H&E slides by default.
        outer: outer fold of the nested cross-validation whose cases are held out; None is the fixed test set.
        fold: fold whose validation cases are held out as well.

    Raises:
        ConfigError: there is no such fold.
        Her2CacheError: the experiment, the cohort or its split are not usable.
    """
    named = read_experiment(experiment) if experiment is not None else None
    table, stain = (Path(named.data.cohort), named.data.stain) if named else (cohort, "HE")
    slides = read_cohort(table).with_stain(stain).slides
    if not slides:
        raise CohortError(
            f"{table} has no {stain} slide, so the cases that a sweep will test on are not known: name its experiment"
            " file with --experiment, or train on all cases with --allow-embedder-overlap"
        )
    task, settings = _settings(named)
    fixed, nested = split_cohort(slides, task, settings)
    if outer is not None and outer >= len(nested):
        raise ConfigError(
            f"--outer {outer}: the experiment has {len(nested)} outer folds, counted from 0 ([splits] nested)"
        )
    splits = fixed if outer is None else nested[outer]
    if fold is not None and fold >= splits.folds:
        raise ConfigError(f"--fold {fold}: there are {splits.folds} folds, counted from 0")
    cases = {s.case_id for s in splits.test}
    which = "the fixed test set" if outer is None else f"outer fold {outer}"
    if fold is not None:
        cases |= {s.case_id for s in splits.validation(fold)}
        which += f" and of fold {fold}"
    here = {s.case_id for s in read_cohort(cohort).slides}
    if table.resolve() != cohort.resolve() and not cases <= here:
        missing = ", ".join(sorted(cases - here)[:3])
        raise CohortError(
            f"{len(cases - here)} of {len(cases)} cases to be left out ({missing}) are not in {cohort}, but in {table},"
            " the cohort of the experiment: under other names they would be trained on; use the same case_id in both"
        )
    return HeldOut(frozenset(cases), f"cases of {which} ({experiment.name if experiment else 'default split'})")


def _settings(experiment: Experiment | None) -> tuple[Task, SplitsSection]:
    return (experiment.classification, experiment.splits) if experiment else (find_task("four"), SplitsSection())
