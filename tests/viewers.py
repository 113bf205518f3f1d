"""What a viewer shows in tests: two synthetic slides with a value a patch, and a sister slide of the first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from her2cache.errors import SlideOpenError
from tests.slides import texture, write_slide
from trainers.viewer.scene import Layer, Picture, Scene, SlideEntry

WIDTH, HEIGHT, PATCH = 1300, 900, 100


class TwoSlides:
    """The second has no sister; a third cannot be read."""

    title = "a sweep of <two> slides"

    def __init__(self, folder: Path) -> None:
        pictures = [
            write_slide(folder / f"{name}.tif", texture(WIDTH, HEIGHT, k), factors=(1, 4))
            for k, name in enumerate(("first", "first-ihc", "second"))
        ]
        self._he, self._ihc, self._second = (Picture(path, (WIDTH, HEIGHT), 0.5) for path in pictures)

    def entries(self) -> Sequence[SlideEntry]:
        return (
            SlideEntry("first", "c1", "2+", "3+", 2.4, "test"),
            SlideEntry("second <b>", "c2", "0", "0", 0.3, "test"),
            SlideEntry("lost", "c3", "", "", None, "training"),
        )

    def open(self, slide_id: str) -> Scene:
        if slide_id == "lost":
            raise SlideOpenError("lost.tif does not exist on this machine; mount the storage it lies on")
        coords = np.array([(x, y) for y in range(0, 800, PATCH) for x in range(0, 1200, PATCH)], np.int32)
        values = coords[:, 0] / 1200 * 2
        layers = [
            Layer("attention-weighted score", "Algorithm 1.", values, 0.0, 2.0),
            Layer("signed", "For or against.", values - 1, -1.0, 1.0, diverging=True),
        ]
        is_first = slide_id == "first"
        he, ihc = (self._he, self._ihc) if is_first else (self._second, None)
        return Scene(he, ihc, coords, PATCH, PATCH, layers, "By run r1.")
