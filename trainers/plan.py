"""What is to be trained together: one feature space, one fold, one stack of configurations."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from trainers.config import BagsSection, ModelSection, TrainingSection
from trainers.ledger import name_run, safe_name
from trainers.splits import Assignment
from trainers.stack import Configuration
from trainers.tasks import Task


@dataclass(frozen=True)
class FitPlan:
    """Everything a fit needs but the features.

    Attributes:
        space_key, embedder: the feature space.
        fold: validated on.
        outer: outer fold of the nested cross-validation, see `trainers.ledger.Run`.
        embedder_seed, embedder_overlap: the same.
        training, validation: slides.
        configurations: runs of the stack.
        task: gives the classes.
        bags, settings, model: sections of the experiment.
        experiment: digest of the experiment.
        fraction: share of each slide's patches that is used.
    """

    space_key: str
    embedder: str
    fold: int
    training: tuple[Assignment, ...]
    validation: tuple[Assignment, ...]
    configurations: tuple[Configuration, ...]
    task: Task
    bags: BagsSection
    settings: TrainingSection
    model: ModelSection
    experiment: str
    outer: int | None = None
    embedder_seed: int = 0
    embedder_overlap: str = ""
    fraction: float = 1.0

    @property
    def seed(self) -> int:
        """Of weights and bags: the same in every feature space and for every configuration, so that only these
        differ."""
        return self.settings.seed + self.fold

    def run_ids(self) -> list[str]:
        """Names of the runs, in the order of the configurations."""
        return [name_run(self.embedder, self.space_key, self.fold, c, self.outer) for c in self.configurations]

    def stack_id(self) -> str:
        """Name of the stack: another for every other experiment, space, fold, fraction or set of configurations."""
        members = [asdict(c) for c in self.configurations]
        parts = [self.space_key, self.experiment, self.fold, self.outer, self.fraction, members]
        digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        return f"{safe_name(self.embedder)}-{self.space_key[:8]}-{digest[:16]}"
