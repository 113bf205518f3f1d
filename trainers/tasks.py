"""Classification tasks: maps from the HER2 score of a slide, and its ISH where that counts, to a class."""

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
        class_of_amplified: class of a 2+ whose gene is amplified (ISH+); None where ISH does not count.
    """

    name: str
    classes: tuple[str, ...]
    class_of_score: tuple[int, int, int, int]
    class_of_amplified: int | None = None

    def label(self, her2_score: int, ish: bool | None = None) -> int | None:
        """The class of a slide; None for a 2+ whose ISH is not known where it counts."""
        if her2_score != 2 or self.class_of_amplified is None:
            return self.class_of_score[her2_score]
        return {True: self.class_of_amplified, False: self.class_of_score[2], None: None}[ish]

    def positive_classes(self) -> tuple[int, ...]:
        """Classes that hold a positive score: 2+ or 3+, the paper's binary reading of HER2, but no 2+/ISH-."""
        two = self.class_of_score[2] if self.class_of_amplified is None else self.class_of_amplified
        return tuple(sorted({two, self.class_of_score[3]}))


PRESETS: Mapping[str, Task] = {
    "four": Task("four", ("0", "1+", "2+", "3+"), (0, 1, 2, 3)),
    "paper-binary": Task("paper-binary", ("0, 1+", "2+, 3+"), (0, 0, 1, 1)),
    "her2-low": Task("her2-low", ("0", "1+, 2+/ISH-", "3+, 2+/ISH+"), (0, 1, 1, 2), class_of_amplified=2),
}


def find_task(name: str) -> Task:
    """The preset of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown task {name!r}: the presets are {', '.join(PRESETS)}")
    return PRESETS[name]
