"""Optuna's tree-structured Parzen estimator, asked in a way that no timing changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from her2cache.errors import ConfigError
from trainers.candidates import Stretch, round_configuration
from trainers.config import SearchSection, TrainingSection
from trainers.stack import Configuration


class Parzen:
    """Draws, each guided by the outcomes of those before it.

    `search.at_once` of them may be under way. A draw knows the outcomes of all draws but the `at_once - 1` before it,
    also when these have ended; its generator is seeded with its number. So draws follow from seed and outcomes alone.

    Args:
        training: gives the ranges and the epochs of a run.
        search: number of draws, how many at once, and the seed.
        asked: draws of an earlier process, which are taken as they are.
        keep: given all draws whenever there is a new one, before it is trained.

    Raises:
        ConfigError: Optuna is not installed.
    """

    def __init__(
        self,
        training: TrainingSection,
        search: SearchSection,
        asked: Sequence[Configuration] = (),
        keep: Callable[[Sequence[Configuration]], None] = lambda _: None,
    ) -> None:
        require_optuna()
        self._training, self._search, self._keep = training, search, keep
        self._asked = list(asked[: search.samples])
        self._given: set[int] = set()
        self._told: dict[int, float] = {}

    @property
    def left(self) -> int:
        return self._search.samples - len(self._told)

    def next(self) -> Stretch | None:
        for number in range(self._search.samples):
            if number in self._given:
                continue
            if not all(before in self._told for before in range(number - self._search.at_once + 1)):
                return None
            if number == len(self._asked):
                self._asked.append(self._draw(number))
                self._keep(self._asked)
            if self._is_under_way(number):
                continue
            self._given.add(number)
            return Stretch(number, self._asked[number], self._training.epochs)
        return None

    def tell(self, draw: int, loss: float | None) -> tuple[Configuration, ...]:
        self._told[draw] = math.inf if loss is None else loss
        return ()

    def _is_under_way(self, number: int) -> bool:
        """Whether an earlier draw of the same configuration is: ranges may be that narrow."""
        same = {k for k in self._given if self._asked[k] == self._asked[number]}
        return bool(same - self._told.keys())

    def _draw(self, number: int) -> Configuration:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        t = self._training
        space: dict[str, optuna.distributions.BaseDistribution] = {
            key: optuna.distributions.FloatDistribution(min(values), max(values), log=True)
            for key, values in (("learning_rate", t.learning_rate), ("weight_decay", t.weight_decay))
        }
        seed = int(np.random.SeedSequence((self._search.seed, number)).generate_state(1)[0])
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        for before in range(number - self._search.at_once + 1):
            if math.isfinite(loss := self._told[before]):
                point = _point(self._asked[before], t)
                study.add_trial(optuna.trial.create_trial(params=point, distributions=space, value=loss))
        drawn = study.ask(space).params
        return round_configuration(drawn["learning_rate"], drawn["weight_decay"])


def require_optuna() -> None:
    """Checks that Optuna is installed.

    Raises:
        ConfigError: it is not.
    """
    try:
        import optuna  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ModuleNotFoundError as error:
        raise ConfigError(
            "[search] method = 'optuna' needs Optuna, which is not installed: pip install 'her2cache[optuna]', or "
            "choose another method"
        ) from error


def _point(configuration: Configuration, training: TrainingSection) -> dict[str, float]:
    """A configuration as Optuna knows it: rounding must not have pushed it out of its range."""
    return {
        "learning_rate": _within(configuration.learning_rate, training.learning_rate),
        "weight_decay": _within(configuration.weight_decay, training.weight_decay),
    }


def _within(value: float, range_: Sequence[float]) -> float:
    return min(max(value, min(range_)), max(range_))
