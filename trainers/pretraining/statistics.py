"""Mean and standard deviation of patches' colours, in one stream."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainers.pretraining.patches import Block

Rgb = tuple[float, float, float]


@dataclass(frozen=True)
class ColourStatistics:
    """Of RGB in 0 to 1, over all pixels of all patches.

    Attributes:
        mean, std: a number a channel; `std` divides by n.
    """

    mean: Rgb
    std: Rgb


def colour_statistics(blocks: Iterable[Block]) -> ColourStatistics:
    """Measures patches. Counts of grey levels are whole numbers, so neither order nor blocks change a bit.

    Raises:
        ValueError: there is no patch, or a channel is the same everywhere.
    """
    counts = np.zeros((3, 256), np.int64)
    for pixels, _ in blocks:
        for c in range(3):
            counts[c] += np.bincount(pixels[..., c].ravel(), minlength=256)
    if not (counts > 0).sum(axis=1).min() > 1:
        raise ValueError("a channel is the same in every pixel")
    levels = np.arange(256) / 255
    share = counts / counts.sum(axis=1, keepdims=True)  # (3, 256)
    mean = share @ levels  # (3,)
    variance = (share * (levels - mean[:, None]) ** 2).sum(axis=1)  # (3,)
    return ColourStatistics(_rgb(mean), _rgb(np.sqrt(variance)))


def _rgb(values: NDArray[np.float64]) -> Rgb:
    red, green, blue = values.tolist()
    return red, green, blue
