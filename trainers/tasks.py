"""Classification tasks: maps from the HER2 score of a slide to a class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from her2cache.errors import ConfigError


@dataclass(frozen=True)
class Task:
    """What a model is trained to tell apart.

    Attributes:
        name: of the preset.
        classes: display names, in the order of the model's outputs.
        class_of_score: class of the HER2 scores 0, 1+, 2+ and 3+.
    """

    name: str
    classes: tuple[str, ...]
    class_of_score: tuple[int, int, int, int]

    def positive_classes(self) -> tuple[int, ...]:
        """Classes that hold a positive score (2+ or 3+), the paper's binary reading of HER2."""
        return tuple(sorted(set(self.class_of_score[2:])))


PRESETS: Mapping[str, Task] = {
    "four": Task("four", ("0", "1+", "2+", "3+"), (0, 1, 2, 3)),
    "paper-binary": Task("paper-binary", ("0, 1+", "2+, 3+"), (0, 0, 1, 1)),
}


def find_task(name: str) -> Task:
    """The preset of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown task {name!r}: the presets are {', '.join(PRESETS)}")
    return PRESETS[name]
