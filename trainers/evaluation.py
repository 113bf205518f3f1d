"""Fixed bags, scored through their patches: each patch once, and any number of bags is index arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
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

    Attributes:
        rows: store rows of each slide's patches, (some,) a slide.
        index: place of each instance among the patches of all slides, (bags, size).
        labels: class of each bag, (bags,).
    """

    def __init__(self, bags: Bags, labels: Sequence[int]) -> None:
        stride = int(bags.rows.max()) + 1
        patches, position = np.unique(bags.slide[:, None] * stride + bags.rows, return_inverse=True)
        ends = np.searchsorted(patches, np.arange(len(labels) + 1) * stride)
        self.rows: list[NDArray[np.int64]] = [patches[a:b] % stride for a, b in pairwise(ends)]
        self.index: NDArray[np.int64] = position.reshape(bags.rows.shape)
        self.labels = np.asarray(labels)[bags.slide]

    def blocks(self, features: FeatureRows) -> Iterator[Tensor]:
        """Features of the patches, each once, slide by slide, (some rows, dim) at a time."""
        for slide, rows in enumerate(self.rows):
            yield from features.blocks(slide, rows)

    def loss_and_accuracy(self, scores: PatchScores) -> tuple[float, float]:
        """Mean cross-entropy a bag, and the share of bags predicted right.

        Args:
            scores: of the patches in the order of `blocks`.
        """
        y = scores.bag_logits(self.index)  # (bags, classes)
        log_p = log_softmax(y.astype(np.float64), axis=1)  # (bags, classes)
        loss = -log_p[np.arange(len(y)), self.labels].mean()
        return float(loss), float((y.argmax(axis=1) == self.labels).mean())


class DeviceBags:
    """The same on a device, for the models of a stack at once."""

    def __init__(self, bags: FixedBags, device: torch.device) -> None:
        self._index = torch.from_numpy(bags.index).to(device)  # (bags, size)
        self._labels = torch.from_numpy(bags.labels.astype(np.int64)).to(device)  # (bags,)

    @torch.no_grad()
    def losses_and_accuracies(self, s: Tensor, z: Tensor, b: Tensor) -> list[tuple[float, float]]:
        """`FixedBags.loss_and_accuracy` of every run.

        Args:
            s: attention logits of the patches, (runs, patches).
            z: their class contributions, (runs, patches, classes).
            b: biases, (runs, classes).
        """
        found: list[Tensor] = []
        for run in range(len(s)):  # a run at a time: its instances are (bags, size, classes)
            a = s[run][self._index].softmax(dim=1)  # (bags, size)
            y = (a.unsqueeze(2) * z[run][self._index]).sum(dim=1) + b[run]  # (bags, classes)
            log_p = y.double().log_softmax(dim=1)  # (bags, classes)
            loss = -log_p.gather(1, self._labels.unsqueeze(1)).mean()
            found.append(torch.stack([loss, (y.argmax(dim=1) == self._labels).double().mean()]))
        return [(loss, accuracy) for loss, accuracy in torch.stack(found).tolist()]
