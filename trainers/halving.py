"""Successive halving: configurations compete at rungs, and only the better third of them is trained on."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from trainers.candidates import Stretch
from trainers.stack import Configuration

REDUCTION = 3
"""The better third goes on at each rung, and each rung lies at three times the epochs of the one before."""

_FIRST_RUNG = 0.1
"""Of the epochs: before it no configuration is ended."""


@dataclass
class _Rung:
    """Where draws are judged, one after another in their order.

    Attributes:
        epochs: that a draw has there.
        judged: draws before this one are judged, or do not come.
        losses: of those that came, in ascending order.
    """

    epochs: int
    judged: int = 0
    losses: list[float] = field(default_factory=list[float])

    def passes(self, loss: float) -> bool:
        """Judges the next draw: it goes on when it is within the better third of those before it."""
        if not math.isfinite(loss):
            return False
        passes = not self.losses or loss <= np.percentile(self.losses, 100 / REDUCTION)
        insort(self.losses, loss)
        return bool(passes)


@dataclass
class _Draw:
    configuration: Configuration
    rung: int = 0
    loss: float | None = None
    running: bool = False
    over: bool = False


class Halving:
    """Asynchronous successive halving (ASHA, Li et al. 2020; the variant that stops), decided in the order of draws.

    A draw that comes to a rung is compared with the draws before it that came there, and waits for those that may still
    come. The first draw never waits, so there is always one that goes on; draws that begin in order and train equally
    fast wait next to nothing.

    Args:
        configurations: the draws, in their order.
        epochs: of a run that nothing ends.
    """

    def __init__(self, configurations: Sequence[Configuration], epochs: int) -> None:
        self._draws = [_Draw(c) for c in configurations]
        self._rungs = [_Rung(at) for at in rung_epochs(epochs)]

    @property
    def left(self) -> int:
        return sum(not draw.over for draw in self._draws)

    def next(self) -> Stretch | None:
        for number, draw in enumerate(self._draws):
            if not (draw.over or draw.running) and draw.loss is None:
                draw.running = True
                return Stretch(number, draw.configuration, self._rungs[draw.rung].epochs)
        return None

    def tell(self, draw: int, loss: float | None) -> tuple[Configuration, ...]:
        told = self._draws[draw]
        told.running = False
        if loss is None or told.rung == len(self._rungs) - 1:
            told.over = True
        else:
            told.loss = loss
        return tuple(stopped.configuration for k in range(len(self._rungs) - 1) for stopped in self._judge(k))

    def _judge(self, k: int) -> list[_Draw]:
        """Judges at a rung all draws that can be; returns those that are stopped."""
        rung, stopped = self._rungs[k], list[_Draw]()
        for draw in self._draws[rung.judged :]:
            comes = not draw.over
            if comes and (draw.rung < k or draw.loss is None):
                break  # it may still come
            rung.judged += 1
            if comes and draw.loss is not None:
                if rung.passes(draw.loss):
                    draw.rung, draw.loss = k + 1, None
                else:
                    draw.over = True
                    stopped.append(draw)
        return stopped


def rung_epochs(epochs: int) -> tuple[int, ...]:
    """Epochs at which draws are judged, and last those of a whole run: 50 -> 5, 15, 45, 50."""
    at = max(1, round(epochs * _FIRST_RUNG))
    found: list[int] = []
    while at < epochs:
        found.append(at)
        at *= REDUCTION
    return (*found, epochs)
