"""Which configuration of each feature space goes to the test set. Validation losses decide, nothing else."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

from trainers.ledger import Run
from trainers.stack import Configuration


def select(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The runs of the chosen configuration of each feature space, by fold.

    Chosen is the least mean, over folds, of the lowest epoch validation loss; ties go to the larger weight
    decay, then to the smaller learning rate (science.md rule 2.8). A configuration that failed in a fold
    loses to one that did not.

    Args:
        runs: of all spaces, failed ones included.

    Returns:
        space key -> runs; a space whose runs all failed is left out.
    """
    spaces: dict[str, dict[Configuration, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if not run.reason:
            spaces[run.space_key][run.configuration].append(run)
    return {key: sorted(min(grid.values(), key=_order), key=lambda run: run.fold) for key, grid in spaces.items()}


def _order(runs: list[Run]) -> tuple[int, float, float, float]:
    configuration = runs[0].configuration
    mean_loss = math.fsum(run.val_loss for run in runs) / len(runs)
    return -len(runs), mean_loss, -configuration.weight_decay, configuration.learning_rate
