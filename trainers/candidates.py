"""Configurations drawn from the range that the lists of an experiment span, and how a search asks for them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

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


@dataclass(frozen=True)
class Stretch:
    """What a search wants trained next.

    Attributes:
        draw: number of the draw, from 0.
        configuration: of it.
        until: epochs that it is to have then.
    """

    draw: int
    configuration: Configuration
    until: int


class Search(Protocol):
    """Chooses the configurations of one embedder, and how far each is trained.

    What it chooses follows from the losses that it is told and the order of the draws, never from who was faster: so a
    sweep that was killed and went on has the same tables as one that was not.
    """

    @property
    def left(self) -> int:
        """Draws that are not over."""
        ...

    def next(self) -> Stretch | None:
        """What can be trained now, beside all that was given before; None when that has to be told first."""
        ...

    def tell(self, draw: int, loss: float | None) -> tuple[Configuration, ...]:
        """Takes the outcome of a stretch.

        Args:
            draw: its number.
            loss: least validation loss so far, meaned over folds, infinite when a run failed; None when the draw did as
                a whole.

        Returns:
            Configurations that are to be trained no further although they have epochs left.
        """
        ...
