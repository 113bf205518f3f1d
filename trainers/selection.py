"""Which configuration goes to the test. Validation losses decide, nothing else, and nowhere else.

Each embedder chooses for itself, and anew in each round: for the fixed test set, and for each outer fold of a nested
cross-validation. The seeds of the untrained embedder choose together.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from trainers.ledger import Run
from trainers.overlap import gravest
from trainers.stack import Configuration

Place = tuple[int | None, str]
"""Where a choice is made: outer fold (None is the fixed test set), embedder."""


@dataclass(frozen=True)
class Candidate:
    """A configuration as it did in one round with one embedder.

    Attributes:
        outer, embedder: the round and the embedder, see `trainers.ledger.Run`.
        configuration: the rates.
        runs: those that did not fail, by seed of the embedder, then fold.
        failed: how many did.
        is_selected: whether it goes to the test.
    """

    outer: int | None
    embedder: str
    configuration: Configuration
    runs: tuple[Run, ...]
    failed: int
    is_selected: bool = False

    @property
    def val_loss(self) -> float | None:
        """Mean, over folds and seeds, of the lowest epoch validation loss; None when every run failed."""
        return math.fsum(run.val_loss for run in self.runs) / len(self.runs) if self.runs else None

    def row(self) -> dict[str, Any]:
        """As a row of selection.csv."""
        return {
            "outer": self.outer,
            "embedder": self.embedder,
            "learning_rate": self.configuration.learning_rate,
            "weight_decay": self.configuration.weight_decay,
            "val_loss": self.val_loss,
            "runs": len(self.runs),
            "failed": self.failed,
            "embedder_overlap": gravest(run.embedder_overlap for run in self.runs),
            "selected": self.is_selected,
        }


def select(runs: Iterable[Run]) -> list[Candidate]:
    """All configurations that were tried, one of each round and embedder marked as selected.

    Selected is the least mean, over folds and seeds, of the lowest epoch validation loss; ties go to the larger
    weight decay, then to the smaller learning rate (science.md rule 2.8). A configuration that failed in a fold
    loses to one that did not. Where all runs failed, none is selected.

    Args:
        runs: of all rounds and embedders, failed ones included.

    Returns:
        Round by round, embedder by embedder, in the order of the runs.
    """
    places: dict[Place, dict[Configuration, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        places[run.outer, run.embedder][run.configuration].append(run)
    return [candidate for place, tried in places.items() for candidate in _choose(place, tried)]


def _choose(place: Place, tried: dict[Configuration, list[Run]]) -> Iterable[Candidate]:
    chosen = min(tried, key=lambda configuration: _order(configuration, _usable(tried[configuration])))
    for configuration, runs in tried.items():
        usable = _usable(runs)
        is_selected = configuration == chosen and bool(usable)
        yield Candidate(*place, configuration, tuple(usable), len(runs) - len(usable), is_selected)


def _usable(runs: Iterable[Run]) -> list[Run]:
    return sorted((run for run in runs if run.best is not None), key=lambda run: (run.embedder_seed, run.fold))


def _order(configuration: Configuration, runs: Sequence[Run]) -> tuple[int, float, float, float]:
    mean_loss = math.fsum(run.val_loss for run in runs) / max(len(runs), 1)
    return -len(runs), mean_loss, -configuration.weight_decay, configuration.learning_rate
