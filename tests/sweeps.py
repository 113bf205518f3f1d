"""A whole sweep without Ray: every fit in this process, one after the other."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from trainers.config import read_experiment
from trainers.fit import fit
from trainers.ledger import Run
from trainers.plan import FitPlan
from trainers.study import Study, open_study


def study_of(folder: Path, text: str) -> Study:
    """The study of an experiment in a folder with cohort.csv and store."""
    (folder / "experiment.toml").write_text(text)
    return open_study(read_experiment(folder / "experiment.toml"))


def train(study: Study, out: Path, plans: Iterable[FitPlan] | None = None) -> list[Run]:
    """Trains every fit, or some of them."""
    return [
        run
        for plan in (study.plans() if plans is None else plans)
        for run in fit(plan, study.features(plan.space_key, plan.training + plan.validation), out)
    ]
