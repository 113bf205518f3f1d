"""Features of slides as trainers see them: memory maps in, float32 batches out."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from her2cache.bags import Bags
from her2cache.store.reader import FeatureStore

SlideFeatures = Mapping[str, Sequence[NDArray[np.floating]]]
"""slide_id -> its features (patches, dim), a view each, normally float16 memory maps of the store."""


def stored_features(uri: str, space_key: str, slides: Iterable[str]) -> SlideFeatures:
    """Memory maps of all stored views of some slides.

    Raises:
        StoreError: a slide is not committed in the space, or its bytes are not what was committed.
    """
    store = FeatureStore.open(uri)
    return {
        slide: [store.features(slide, space_key, view) for view in range(store.record(slide, space_key).views)]
        for slide in slides
    }


class FeatureRows:
    """Gathers rows of several slides into one reused buffer.

    Only the rows asked for are touched; the maps' pages are shared by every process of the machine.

    Args:
        features: of every slide in `slides`.
        slides: the slides that `Bags.slide` counts.
        rows: most rows gathered at once.
        dtype: of the result.
    """

    def __init__(
        self, features: SlideFeatures, slides: Sequence[str], rows: int, dtype: torch.dtype = torch.float32
    ) -> None:
        self._tables = [[_tensor(view) for view in features[slide]] for slide in slides]
        first = self._tables[0][0]  # (patches, dim)
        self._dim = first.shape[1]
        self._stored = first.new_empty(rows, self._dim)
        self._wide = first.new_empty(rows, self._dim, dtype=dtype)

    def bags(self, bags: Bags) -> Tensor:
        """Instances of some bags, (bags, size, dim); valid until the next call."""
        size = bags.rows.shape[1]
        for i, slide in enumerate(bags.slide.tolist()):
            self._take_bag(self._tables[slide], bags.rows[i], bags.views[i], at=i * size)
        return self._convert(len(bags) * size).view(len(bags), size, self._dim)

    def blocks(self, slide: int, rows: NDArray[np.int64]) -> Iterator[Tensor]:
        """Plain patches (view 0) of one slide, (some rows, dim) each; valid until the next."""
        step = len(self._stored)
        for start in range(0, len(rows), step):
            block = rows[start : start + step]
            self._take(self._tables[slide][0], block, at=0)
            yield self._convert(len(block))

    def _take_bag(self, views: list[Tensor], rows: NDArray[np.int64], view: NDArray[np.int64], *, at: int) -> None:
        if view[0] == view[-1]:  # ascending, so one view alone
            self._take(views[view[0]], rows, at=at)
            return
        ends = np.bincount(view, minlength=len(views)).cumsum().tolist()
        start = 0
        for table, end in zip(views, ends, strict=True):
            if end > start:
                self._take(table, rows[start:end], at=at + start)
            start = end

    def _take(self, table: Tensor, rows: NDArray[np.int64], *, at: int) -> None:
        torch.index_select(table, 0, torch.from_numpy(rows), out=self._stored[at : at + len(rows)])

    def _convert(self, rows: int) -> Tensor:
        # one conversion of many rows is quicker than a conversion a bag
        return self._wide[:rows].copy_(self._stored[:rows])


def _tensor(array: NDArray[np.floating]) -> Tensor:
    with warnings.catch_warnings():  # torch warns that a read-only map could be written to; nothing here does
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)
