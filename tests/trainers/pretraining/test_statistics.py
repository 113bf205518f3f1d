"""Mean and standard deviation of colours in one stream, against numpy on everything at once."""

from __future__ import annotations

import numpy as np
import pytest

from trainers.pretraining.statistics import colour_statistics


def test_as_numpy_has_it() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal((90, 140, 200), (60, 20, 30), (50, 16, 16, 3)).clip(0, 255).astype(np.uint8)
    y = np.zeros(50, np.int64)
    found = colour_statistics([(x[:13], y[:13]), (x[13:14], y[13:14]), (x[14:], y[14:])])
    unit = x.astype(np.float64) / 255
    assert found.mean == pytest.approx(unit.mean(axis=(0, 1, 2)).tolist(), abs=1e-12)
    assert found.std == pytest.approx(unit.std(axis=(0, 1, 2)).tolist(), abs=1e-12)
    assert found == colour_statistics([(x[::-1], y)]), "order and blocks change a bit"


@pytest.mark.parametrize("n", [0, 3])
def test_nothing_to_measure(n: int) -> None:
    with pytest.raises(ValueError, match="same in every pixel"):
        colour_statistics([(np.full((n, 4, 4, 3), 7, np.uint8), np.zeros(n, np.int64))])
