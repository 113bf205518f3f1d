"""Draws of Optuna's estimator: the same whoever is faster, the same after a kill, and better than chance."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest

from trainers.candidates import draw_configurations
from trainers.config import SearchSection, TrainingSection
from trainers.parzen import Parzen
from trainers.stack import Configuration

TRAINING = TrainingSection(learning_rate=(1e-1, 1e-6), weight_decay=(1e-3, 1e-7), epochs=7)


def loss(configuration: Configuration) -> float:
    """Least at a learning rate of 1e-3; the weight decay matters little."""
    lr, wd = math.log10(configuration.learning_rate), math.log10(configuration.weight_decay)
    return (lr + 3) ** 2 + 0.01 * (wd + 5) ** 2


def search(samples: int, at_once: int) -> SearchSection:
    return SearchSection(method="optuna", samples=samples, at_once=at_once, seed=5)


def run(
    own: SearchSection, order: random.Random, workers: int, asked: Sequence[Configuration] = (), until: int = 10**6
) -> list[Configuration]:
    """Draws until `until` outcomes are told, `workers` under way, of which any may end first."""
    kept = list(asked)

    def keep(configurations: Sequence[Configuration]) -> None:
        kept[:] = configurations

    parzen = Parzen(TRAINING, own, asked, keep)
    running: list[tuple[int, Configuration]] = []
    told = 0
    while told < until:
        while len(running) < workers and (stretch := parzen.next()):
            assert stretch.until == TRAINING.epochs
            running.append((stretch.draw, stretch.configuration))
        if not running:
            break
        number, configuration = running.pop(order.randrange(len(running)))
        assert parzen.tell(number, None if number == 3 else loss(configuration)) == ()  # the fourth always fails
        told += 1
    assert told == until or parzen.left == 0
    return kept


@pytest.mark.parametrize("at_once", [1, 3])
def test_draws_do_not_follow_timing(at_once: int) -> None:
    own = search(16, at_once)
    alone = run(own, random.Random(0), 1)
    assert len(set(alone)) == 16
    assert all(run(own, random.Random(k), workers=4) == alone for k in range(3))


def test_a_killed_search_goes_on_with_the_same_draws() -> None:
    own = search(16, 3)
    whole = run(own, random.Random(0), 3)
    part = run(own, random.Random(1), 3, until=12)
    assert 12 <= len(part) < 16
    assert part == whole[: len(part)]
    assert run(own, random.Random(2), 2, asked=part) == whole


def test_no_more_are_under_way_than_it_says() -> None:
    parzen = Parzen(TRAINING, search(9, 3))
    assert [parzen.next() is not None for _ in range(4)] == [True, True, True, False]
    parzen.tell(1, 1.0)
    assert parzen.next() is None  # the fourth draw knows the first, however late that ends
    parzen.tell(0, 1.0)
    assert [parzen.next() is not None for _ in range(3)] == [True, True, False]


def test_it_learns() -> None:
    """Of 30 draws the last ten lie nearer to the best than draws of chance do."""
    drawn = run(search(30, 2), random.Random(0), 2)
    chance = draw_configurations(TRAINING, SearchSection(method="random", samples=200))
    assert np.median([loss(c) for c in drawn[20:]]) < 0.5 * np.median([loss(c) for c in chance])


def test_a_range_of_one_point_is_drawn_again_only_when_it_is_known() -> None:
    training = TRAINING.model_copy(update={"learning_rate": (1e-3,), "weight_decay": (1e-4,)})
    parzen = Parzen(training, search(3, 3))
    first = parzen.next()
    assert first is not None
    assert parzen.next() is None
    parzen.tell(first.draw, 1.0)
    second = parzen.next()
    assert second is not None
    assert second.configuration == first.configuration
