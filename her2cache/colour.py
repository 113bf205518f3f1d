"""Colour statistics of a slide's patches: what staining and scanner alone tell, as a baseline for every embedder."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from her2cache.units import PatchBatch

_STEP = 8  # every eighth pixel each way: 144 of a patch of 96 px


class ColourSums:
    """Sums over the patches of a slide, a block at a time."""

    def __init__(self) -> None:
        self._n = 0
        self._sums: NDArray[np.float64] = np.zeros((3, 3))

    def add(self, patches: PatchBatch) -> None:
        """Takes patches, uint8 (n, side, side, 3); there may be none."""
        if not len(patches):
            return
        seen = np.ascontiguousarray(patches[:, ::_STEP, ::_STEP])
        pixels = seen.reshape(len(seen), -1, 3).astype(np.float32)  # (n, pixels, 3)
        # a product with 1 / pixels: numpy's mean over a middle axis takes ten times as long
        weight = np.full(pixels.shape[1], 1 / pixels.shape[1], np.float32)
        means = weight @ pixels  # (n, 3)
        pixels -= means[:, None]
        spreads = np.sqrt(weight @ pixels**2)  # (n, 3)
        means, spreads = means.astype(np.float64), spreads.astype(np.float64)
        self._sums += np.stack([means.sum(axis=0), (means**2).sum(axis=0), spreads.sum(axis=0)])
        self._n += len(patches)

    def statistics(self) -> list[float]:
        """Of R, G and B: the mean over patches, the SD between patches, the mean SD within a patch; grey levels.

        Nine numbers, three of a kind; none where there was no patch.
        """
        if not self._n:
            return []
        mean, square, within = self._sums / self._n
        between = np.sqrt(np.maximum(square - mean**2, 0))
        return np.concatenate([mean, between, within]).tolist()
