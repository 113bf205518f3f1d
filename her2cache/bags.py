"""Bags: which rows of which slide train, validate or test a model. Indices only, no features.

Every draw is keyed by (seed, purpose, epoch), so the bags of an epoch do not depend on what was drawn
before it, and a resumed run sees the bags that an uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from her2cache.errors import BagError

Indices = NDArray[np.int64]
Purpose = Literal["training", "validation", "test"]
_STREAM: Mapping[Purpose, int] = {"training": 0, "validation": 1, "test": 2}


@dataclass(frozen=True)
class Bags:
    """A set of bags; bag `i` holds the instances `(slide[i], views[i, k], rows[i, k])`.

    Attributes:
        slide: position of each bag's slide in the sampler's `slides`, int64 (bags,).
        rows: store rows, int64 (bags, size).
        views: augmented view of each instance, int64 (bags, size), ascending within a bag, so that the
            rows of a view are gathered in one go; 0 is the plain patch.
    """

    slide: Indices
    rows: Indices
    views: Indices

    def __len__(self) -> int:
        return len(self.slide)

    def __getitem__(self, part: slice) -> Bags:
        return Bags(self.slide[part], self.rows[part], self.views[part])


class BagSampler:
    """Draws bags of `size` rows from one slide each, slides uniformly.

    Args:
        n_patches: rows of each slide in the store; its order gives the slides their positions.
        size: instances a bag.
        seed: of every draw.
        views: stored views, of which training draws one an instance.
        classes: slide -> class. When given, a bag's class is drawn first, then a slide of that class,
            so that every class is seen equally often.
        allow_replacement: lets a slide with fewer rows than `size` repeat rows.

    Raises:
        BagError: no slide, a slide without rows, or one with fewer rows than `size`.
    """

    def __init__(
        self,
        n_patches: Mapping[str, int],
        size: int,
        *,
        seed: int,
        views: int = 1,
        classes: Mapping[str, int] | None = None,
        allow_replacement: bool = False,
    ) -> None:
        if not n_patches:
            raise BagError("no slide to draw bags from: the split is empty; check splits.csv and the store")
        least = 1 if allow_replacement else size
        for slide, n in n_patches.items():
            if n < least:
                raise BagError(
                    f"slide {slide} has {n} patches, a bag needs {size}: too little tissue was found on it; "
                    "leave the slide out, make bags smaller ([bags] size), or set [bags] allow_replacement = true"
                )
        self.slides = tuple(n_patches)
        self.size = size
        self._n = np.array(list(n_patches.values()), dtype=np.int64)  # (slides,)
        self._seed = seed
        self._views = views
        self._classes = None if classes is None else np.array([classes[s] for s in self.slides])

    def training(self, n_bags: int, epoch: int) -> Bags:
        """The bags of one training epoch (from 0), a random view an instance."""
        rng = np.random.default_rng((self._seed, _STREAM["training"], epoch))
        bags = self._draw(n_bags, rng)
        if self._views == 1:
            return bags
        views = rng.integers(0, self._views, bags.rows.shape)  # (bags, size)
        order = np.argsort(views, axis=1)  # (bags, size)
        return Bags(bags.slide, np.take_along_axis(bags.rows, order, axis=1), np.take_along_axis(views, order, axis=1))

    def fixed(self, n_bags: int, purpose: Literal["validation", "test"]) -> Bags:
        """A fixed set of bags of plain patches, the same at every call."""
        return self._draw(n_bags, np.random.default_rng((self._seed, _STREAM[purpose])))

    def _draw(self, n_bags: int, rng: np.random.Generator) -> Bags:
        slide = self._draw_slides(n_bags, rng)  # (bags,)
        n = self._n[slide]  # (bags,)
        rows = sample_rows(n, self.size, rng)  # (bags, size)
        return Bags(slide, rows, np.zeros_like(rows))

    def _draw_slides(self, n_bags: int, rng: np.random.Generator) -> Indices:
        if self._classes is None:
            return rng.integers(0, len(self.slides), n_bags)
        present = np.unique(self._classes)
        drawn = rng.choice(present, n_bags)  # (bags,)
        slide = np.empty(n_bags, dtype=np.int64)
        for label in present:
            where = drawn == label
            slide[where] = rng.choice(np.flatnonzero(self._classes == label), int(where.sum()))
        return slide


def sample_rows(n: Indices, size: int, rng: np.random.Generator) -> Indices:
    """Draws `size` of `n[i]` rows for every bag `i`, without replacement where `n[i] >= size`.

    Floyd's algorithm (Bentley and Floyd, "A sample of brilliance", CACM 30(9), 1987), advanced one
    instance at a time for all bags at once: exact for every `n`, and its cost does not depend on `n`.

    Args:
        n: rows to choose from, (bags,).
        size: rows to choose.
        rng: source of randomness.

    Returns:
        (bags, size); each row set is uniform over the subsets, its order is not (nothing depends on it).
    """
    rows = np.empty((size, len(n)), dtype=np.int64)  # instance-major: the search below is contiguous
    for k in range(size):
        top = n - size + k  # the newest row that instance k may be
        drawn = rng.integers(0, np.maximum(top + 1, 1))
        taken = (rows[:k] == drawn).any(axis=0)
        rows[k] = np.where(taken, top, drawn)
    short = n < size
    if short.any():
        rows[:, short] = rng.integers(0, n[short], (size, int(short.sum())))
    return np.ascontiguousarray(rows.T)
