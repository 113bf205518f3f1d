"""Classification tasks: maps from the HER2 score of a slide, and its ISH where that counts, to a class."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

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


_MAPPED = "map-"

PRESETS: Mapping[str, Task] = {
    "four": Task("four", ("0", "1+", "2+", "3+"), (0, 1, 2, 3)),
    "paper-binary": Task("paper-binary", ("0, 1+", "2+, 3+"), (0, 0, 1, 1)),
    "her2-low": Task("her2-low", ("0", "1+, 2+/ISH-", "3+, 2+/ISH+"), (0, 1, 1, 2), class_of_amplified=2),
}


SCORES = ("0", "1+", "2+", "3+")


def mapped_task(class_of_score: Sequence[int]) -> Task:
    """A task of one's own, from the classes of the scores 0, 1+, 2+ and 3+; `find_task` knows its name.

    Raises:
        ConfigError: the classes are not numbered from 0 without a gap, or do not rise with the score.
    """
    steps = [b - a for a, b in pairwise(class_of_score)]
    if len(class_of_score) != 4 or class_of_score[0] != 0 or not {0, 1} >= set(steps) or not any(steps):
        raise ConfigError(
            f"[task] class_of_score = {list(class_of_score)}: give the classes of 0, 1+, 2+ and 3+, numbered from 0 "
            "and rising with the score, at least two, for instance [0, 0, 1, 1]"
        )
    a, b, c, d = class_of_score
    names = tuple(", ".join(s for s, k in zip(SCORES, class_of_score, strict=True) if k == n) for n in range(d + 1))
    return Task(_MAPPED + "".join(map(str, class_of_score)), names, (a, b, c, d))


def find_task(name: str) -> Task:
    """The preset of that name, or the task that `mapped_task` gave it.

    Raises:
        ConfigError: there is none.
    """
    if re.fullmatch(_MAPPED + "[0-3]{4}", name):
        return mapped_task([int(digit) for digit in name.removeprefix(_MAPPED)])
    if name not in PRESETS:
        raise ConfigError(f"unknown task {name!r}: the presets are {', '.join(PRESETS)}")
    return PRESETS[name]
