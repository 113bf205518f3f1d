"""Features of slides as trainers see them: memory maps in, float32 batches out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from her2cache.bags import Bags
from her2cache.store.maps import SlideMaps
from her2cache.store.reader import FeatureStore
from trainers.scaling import Scaling

SlideFeatures = Mapping[str, Sequence[NDArray[np.floating]]]
"""slide_id -> its features (patches, dim), a view each, normally float16 memory maps of the store."""


def stored_features(uri: str, space_key: str, slides: Iterable[str]) -> SlideMaps:
    """All stored views of some slides, each mapped when it is asked for; see `FeatureStore.maps`.

    Raises:
        IncompleteSlideError: a slide is not committed in the space.
        CorruptFeaturesError: its record is damaged. Bytes that are not what was committed raise it when they are
            asked for.
    """
    return FeatureStore.open(uri).maps(space_key, slides)


def prefix(features: SlideFeatures, fraction: float, least: int) -> SlideFeatures:
    """The first rows of every slide, for a first screening.

    Rows lie in a random order, so the first are a uniform sample of the slide's patches. Nothing is read
    before it is asked for, and the result pickles as `features` does.

    Args:
        features: of some slides.
        fraction: share of each slide's rows, above 0; 1 is all of them.
        least: rows that are kept of a slide all the same, if it has so many.
    """
    return features if fraction == 1 else _Prefixes(features, fraction, least)


@dataclass(frozen=True)
class _Prefixes(Mapping[str, Sequence[NDArray[np.floating]]]):
    features: SlideFeatures
    fraction: float
    least: int

    def __getitem__(self, slide_id: str) -> Sequence[NDArray[np.floating]]:
        return _PrefixViews(self.features[slide_id], self.fraction, self.least)

    def __iter__(self) -> Iterator[str]:
        return iter(self.features)

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class _PrefixViews(Sequence[NDArray[np.floating]]):
    views: Sequence[NDArray[np.floating]]
    fraction: float
    least: int

    def __len__(self) -> int:
        return len(self.views)

    @overload
    def __getitem__(self, index: int) -> NDArray[np.floating]: ...
    @overload
    def __getitem__(self, index: slice) -> list[NDArray[np.floating]]: ...
    def __getitem__(self, index: int | slice) -> NDArray[np.floating] | list[NDArray[np.floating]]:
        if isinstance(index, slice):
            return [self[view] for view in range(len(self))[index]]
        view: NDArray[Any] = self.views[index]  # (patches, dim)
        share = math.ceil(round(self.fraction * len(view), 6))  # 0.1 x 30 is 3, though not in binary
        return view[: max(share, self.least)]


class FeatureRows:
    """Gathers rows of several slides into one reused buffer.

    Only the rows asked for are touched; the maps' pages are shared by every process of the machine.

    Args:
        features: of every slide in `slides`.
        slides: the slides that `Bags.slide` counts.
        rows: most rows gathered at once.
        dtype: of the result.
        scaling: applied to what is gathered; None leaves features as they are stored.
    """

    def __init__(
        self,
        features: SlideFeatures,
        slides: Sequence[str],
        rows: int,
        dtype: torch.dtype = torch.float32,
        scaling: Scaling | None = None,
    ) -> None:
        self._scaling = scaling
        self._slides = [features[slide] for slide in slides]
        first = self._slides[0][0]  # (patches, dim)
        self._stored = np.empty((rows, first.shape[1]), first.dtype)
        self._narrow = torch.from_numpy(self._stored)  # the same memory
        self._wide = torch.empty(self._narrow.shape, dtype=dtype)

    def bags(self, bags: Bags) -> Tensor:
        """Instances of some bags, (bags, size, dim); valid until the next call."""
        size = bags.rows.shape[1]
        for i, slide in enumerate(bags.slide.tolist()):
            start = 0
            # views ascend within a bag, so each is one run of rows
            ends = bags.views[i].searchsorted(np.arange(1, len(self._slides[slide]) + 1)).tolist()
            for view, end in enumerate(ends):
                if end > start:  # a view that no row is of is not even mapped
                    self._take(slide, view, bags.rows[i, start:end], at=i * size + start)
                start = end
        return self._convert(len(bags) * size).view(len(bags), size, -1)

    def blocks(self, slide: int, rows: NDArray[np.int64]) -> Iterator[Tensor]:
        """Plain patches (view 0) of one slide, (some rows, dim) each; valid until the next."""
        step = len(self._stored)
        for start in range(0, len(rows), step):
            block = rows[start : start + step]
            self._take(slide, 0, block, at=0)
            yield self._convert(len(block))

    def _take(self, slide: int, view: int, rows: NDArray[np.int64], *, at: int) -> None:
        # a plain array over the map: numpy's subclass for maps makes every small take twice as slow
        table = np.asarray(self._slides[slide][view])
        # of the ways to gather a few rows this is the one of least overhead; "clip" lets it write straight
        # into `out`. A row beyond the end cannot occur: bags are drawn below the number of patches
        table.take(rows, axis=0, out=self._stored[at : at + len(rows)], mode="clip")

    def _convert(self, rows: int) -> Tensor:
        # one conversion of many rows is quicker than a conversion a bag
        wide = self._wide[:rows].copy_(self._narrow[:rows])
        return wide if self._scaling is None else self._scaling.apply_(wide)
