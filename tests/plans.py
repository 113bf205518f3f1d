"""Plans that nobody trains, for tests of what looks at plans only."""

from __future__ import annotations

from trainers.config import BagsSection, ModelSection, TrainingSection
from trainers.ledger import Epoch
from trainers.lockstep import Step
from trainers.plan import FitPlan
from trainers.stack import Configuration
from trainers.tasks import find_task

DIMS = {"a" * 64: 100, "b" * 64: 300}


def plan_of(embedder: str = "a", fold: int = 0, rates: tuple[float, ...] = (1e-3,), epochs: int = 10) -> FitPlan:
    """A plan of an embedder, "a" or "b", with a configuration for each learning rate."""
    return FitPlan(
        space_key=embedder * 64,
        embedder=embedder,
        fold=fold,
        training=(),
        validation=(),
        configurations=tuple(Configuration(rate, 1e-5) for rate in rates),
        task=find_task("four"),
        bags=BagsSection(),
        settings=TrainingSection(epochs=epochs),
        model=ModelSection(),
        experiment="digest",
    )


def steps_of(plan: FitPlan, first: int, last: int, losses: tuple[float, ...] = (1.0,), before: int = 0) -> list[Step]:
    """Epochs `first` to `last` of every run, `before` of them by an earlier process; `losses` are those on validation
    bags after the first epoch."""
    return [
        Step(0, run_id, epoch, Epoch(0.5, loss / epoch, 0.25, 1.0), epoch > before)
        for run_id, loss in zip(plan.run_ids(), losses, strict=True)
        for epoch in range(first, last + 1)
    ]
