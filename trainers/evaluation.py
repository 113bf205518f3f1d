"""Fixed bags by patch scores: each patch is scored once, a bag is index arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from scipy.special import log_softmax
from torch import Tensor

from her2cache.bags import Bags
from trainers.features import FeatureRows
from trainers.patch_scores import PatchScores


class FixedBags:
    """A fixed set of bags, with every patch that it holds listed once.

    Args:
        bags: of plain patches (view 0).
        labels: class of each slide that `bags.slide` counts.
    """

    def __init__(self, bags: Bags, labels: Sequence[int]) -> None:
        stride = int(bags.rows.max()) + 1
        patches, position = np.unique(bags.slide[:, None] * stride + bags.rows, return_inverse=True)
        ends = np.searchsorted(patches, np.arange(len(labels) + 1) * stride)
        self._rows = [patches[a:b] % stride for a, b in pairwise(ends)]  # of each slide
        self._index = position.reshape(bags.rows.shape)  # (bags, size), into the patches of all slides
        self.labels = np.asarray(labels)[bags.slide]  # (bags,)

    def blocks(self, features: FeatureRows) -> Iterator[Tensor]:
        """Features of the patches, each once, slide by slide, (some rows, dim) at a time."""
        for slide, rows in enumerate(self._rows):
            yield from features.blocks(slide, rows)

    def loss_and_accuracy(self, scores: PatchScores) -> tuple[float, float]:
        """Mean cross-entropy a bag, and the share of bags predicted right.

        Args:
            scores: of the patches in the order of `blocks`.
        """
        y = scores.bag_logits(self._index)  # (bags, classes)
        log_p = log_softmax(y.astype(np.float64), axis=1)  # (bags, classes)
        loss = -log_p[np.arange(len(y)), self.labels].mean()
        return float(loss), float((y.argmax(axis=1) == self.labels).mean())
