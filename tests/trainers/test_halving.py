"""Halving against a transcription of its rule, whatever the order in which draws come to their rungs."""

from __future__ import annotations

import math
import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainers.candidates import Stretch
from trainers.halving import Halving, rung_epochs
from trainers.stack import Configuration

EPOCHS = 9
Curve = list[float]


def draws(n: int) -> list[Configuration]:
    return [Configuration(10.0**-k, 0.0) for k in range(n)]


def run(curves: list[Curve | None], order: random.Random, at_once: int) -> tuple[list[int], list[Stretch]]:
    """Trains draws, of which `at_once` run and any may end first. A curve has the least loss so far after each epoch;
    None stands for a draw that fails as a whole.

    Returns:
        Epochs of each draw, and what was stopped where.
    """
    configurations = draws(len(curves))
    halving = Halving(configurations, EPOCHS)
    epochs, stopped = [0] * len(curves), list[Stretch]()
    running: list[Stretch] = []
    while halving.left or running:
        while len(running) < at_once and (stretch := halving.next()):
            assert stretch.until > epochs[stretch.draw]
            running.append(stretch)
        assert running, "all wait for each other"
        stretch = running.pop(order.randrange(len(running)))
        curve = curves[stretch.draw]
        if curve is None:
            told = halving.tell(stretch.draw, None)
        else:
            epochs[stretch.draw] = stretch.until
            told = halving.tell(stretch.draw, curve[stretch.until - 1])
        for configuration in told:
            k = configurations.index(configuration)
            stopped.append(Stretch(k, configuration, epochs[k]))
    assert halving.next() is None
    return epochs, sorted(stopped, key=lambda stretch: stretch.draw)


def transcription(curves: list[Curve | None]) -> list[int]:
    """Draw by draw, rung by rung: on past a rung with no draw before, or when within the better third of them."""
    came: dict[int, list[float]] = {1: [], 3: []}
    epochs: list[int] = []
    for curve in curves:
        if curve is None:
            epochs.append(0)
            continue
        reached = EPOCHS
        for rung, losses in came.items():
            loss = curve[rung - 1]
            good = math.isfinite(loss) and (not losses or loss <= float(np.quantile(losses, 1 / 3)) + 1e-12)
            if math.isfinite(loss):
                losses.append(loss)
            if not good:
                reached = rung
                break
        epochs.append(reached)
    return epochs


curve = st.lists(st.integers(0, 20).map(float) | st.just(math.inf), min_size=EPOCHS, max_size=EPOCHS).map(
    lambda losses: [float(v) for v in np.minimum.accumulate(losses)]
)


@given(st.lists(curve | st.none(), min_size=1, max_size=12), st.integers(1, 5), st.randoms(use_true_random=False))
def test_it_keeps_its_rule_in_any_order(curves: list[Curve | None], at_once: int, order: random.Random) -> None:
    epochs, stopped = run(curves, order, at_once)
    expected = transcription(curves)
    assert epochs == expected
    early = [k for k, curve in enumerate(curves) if curve is not None and expected[k] < EPOCHS]
    assert [s.draw for s in stopped] == early
    assert all(s.until == expected[s.draw] for s in stopped)


def test_the_better_third_goes_on() -> None:
    curves: list[Curve | None] = [[loss] * EPOCHS for loss in (0.1, 0.2, 0.3, 0.05, 0.06)]
    # of the first three only the best; the fourth beats all; the fifth is below the third of 0.05, 0.1, 0.2, 0.3, but
    # at the next rung it meets 0.05 and 0.1, whose third is 0.0667
    assert run(curves, random.Random(0), 2)[0] == [9, 1, 1, 9, 9]


def test_rungs_lie_at_three_times_the_epochs() -> None:
    assert rung_epochs(50) == (5, 15, 45, 50)
    assert rung_epochs(9) == (1, 3, 9)
    assert rung_epochs(1) == (1,)


def test_draws_begin_in_their_order_and_go_on_before_new_ones() -> None:
    halving = Halving(draws(4), EPOCHS)
    first, second = halving.next(), halving.next()
    assert first == Stretch(0, draws(1)[0], 1)
    assert second is not None
    assert (second.draw, second.until) == (1, 1)
    assert halving.tell(1, 0.5) == ()  # waits for the first
    assert halving.tell(0, 0.1) == (draws(2)[1],)
    third = halving.next()
    assert third is not None
    assert (third.draw, third.until) == (0, 3)
    assert halving.left == 3
