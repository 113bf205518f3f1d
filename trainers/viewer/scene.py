"""What the viewer shows: slides, their pictures, and the values of their patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from her2cache.remote import SlidePath


@dataclass(frozen=True)
class Picture:
    """A slide file.

    Attributes:
        path: of the file.
        size: (width, height), level-0 px.
        mpp: scale of level 0, um/px.
    """

    path: SlidePath
    size: tuple[int, int]
    mpp: float


@dataclass(frozen=True)
class SlideEntry:
    """A slide of the sweep, as the list shows it.

    Attributes:
        slide_id, case_id: of the slide.
        truth: its class by the cohort, as `2+`; empty when unknown.
        predicted: the class that the models say; empty as long as nobody asked.
        expected_score: sum_c c p_c; None where `predicted` is empty.
        part: "test", or what else it was in the sweep.
    """

    slide_id: str
    case_id: str
    truth: str
    predicted: str
    expected_score: float | None
    part: str


@dataclass(frozen=True)
class Layer:
    """One value a patch.

    Attributes:
        name: as the control shows it.
        meaning: a sentence.
        values: float (patches,); NaN is not drawn.
        low, high: ends of the colour scale.
        diverging: whether 0 is in the middle of it.
    """

    name: str
    meaning: str
    values: NDArray[np.float64]
    low: float
    high: float
    diverging: bool = False


@dataclass(frozen=True)
class Scene:
    """A slide with what is laid over it.

    Attributes:
        he: the slide.
        ihc: its sister; None where the cohort has none.
        coords: level-0 (x, y) of the patches, int32 (patches, 2).
        patch_px: side of a patch, level-0 px.
        step_px: between neighbouring patches, level-0 px.
        layers: at least one.
        caption: which models these values are of.
    """

    he: Picture
    ihc: Picture | None
    coords: NDArray[np.int32]
    patch_px: float
    step_px: float
    layers: Sequence[Layer]
    caption: str


class Scenes(Protocol):
    """The slides of a sweep."""

    @property
    def title(self) -> str:
        """Of the sweep."""
        ...

    def entries(self) -> Sequence[SlideEntry]:
        """All slides, in the order of the list."""
        ...

    def open(self, slide_id: str) -> Scene:
        """A slide of `entries`.

        Raises:
            Her2CacheError: its file or its features cannot be read.
        """
        ...
