"""Draws of a random search: the same for everyone, within the ranges, even on a logarithmic scale."""

from __future__ import annotations

import numpy as np
import pytest

from trainers.candidates import draw_configurations, round_configuration
from trainers.config import SearchSection, TrainingSection
from trainers.ledger import name_run

TRAINING = TrainingSection(learning_rate=(1e-2, 1e-6, 1e-4), weight_decay=(1e-7, 1e-3))


def test_draws_are_seeded_and_lie_in_the_ranges() -> None:
    drawn = draw_configurations(TRAINING, SearchSection(method="random", samples=400, seed=1))
    assert drawn == draw_configurations(TRAINING, SearchSection(method="random", samples=400, seed=1))
    assert drawn[:5] == draw_configurations(TRAINING, SearchSection(method="random", samples=5, seed=1))
    assert drawn != draw_configurations(TRAINING, SearchSection(method="random", samples=400, seed=2))
    assert len(set(drawn)) == 400
    rates = np.log10([c.learning_rate for c in drawn])
    decays = np.log10([c.weight_decay for c in drawn])
    for logs, low, high in ((rates, -6, -2), (decays, -7, -3)):
        assert logs.min() >= low
        assert logs.max() <= high
        shares = np.histogram(logs, bins=4, range=(low, high))[0] / 400  # a quarter each
        assert shares == pytest.approx([0.25] * 4, abs=0.08)
    assert abs(np.corrcoef(rates, decays)[0, 1]) < 0.15


def test_a_range_of_one_value_is_that_value() -> None:
    training = TrainingSection(learning_rate=(3e-4,), weight_decay=(1e-3, 1e-5))
    drawn = draw_configurations(training, SearchSection(method="random", samples=20))
    assert {c.learning_rate for c in drawn} == {3e-4}


def test_equal_draws_count_once() -> None:
    training = TrainingSection(learning_rate=(1e-3, 1.01e-3), weight_decay=(1e-3,))
    assert len(draw_configurations(training, SearchSection(method="random", samples=50))) == 2


def test_names_of_runs_stay_short() -> None:
    configuration = round_configuration(0.000123456789, 9.87654321e-6)
    assert name_run("net", "1" * 64, 0, configuration) == "net-11111111-f0-lr0.000123-wd9.88e-06"
