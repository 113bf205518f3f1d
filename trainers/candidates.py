"""Configurations drawn from the range that the lists of an experiment span."""

from __future__ import annotations

import math

import numpy as np

from trainers.config import SearchSection, TrainingSection
from trainers.stack import Configuration


def draw_configurations(training: TrainingSection, search: SearchSection) -> tuple[Configuration, ...]:
    """`search.samples` configurations, evenly on a logarithmic scale; every embedder is given the same ones.

    Numbers are rounded to three digits. Where ranges are so narrow that two draws are then the same, it counts once.
    """
    rng = np.random.default_rng(search.seed)
    ranges = [
        (math.log(min(values)), math.log(max(values))) for values in (training.learning_rate, training.weight_decay)
    ]
    drawn = np.exp([[rng.uniform(low, high) for low, high in ranges] for _ in range(search.samples)])  # (samples, 2)
    return tuple(dict.fromkeys(round_configuration(rate, decay) for rate, decay in drawn.tolist()))


def round_configuration(learning_rate: float, weight_decay: float) -> Configuration:
    """A configuration of three significant digits, which the names of its runs can carry."""
    return Configuration(float(f"{learning_rate:.2e}"), float(f"{weight_decay:.2e}"))
