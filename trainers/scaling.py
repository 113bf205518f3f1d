"""Standardised features: each number of an embedder brought to mean 0 and SD 1 over the training slides.

Embedders differ in scale by orders of magnitude, and one grid of learning rates does not fit them all. The scaling is
fitted on training slides only and applied when instances are gathered. A trained model takes it in (`fold`), so a
checkpoint always works on features as they are stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainers.model import AttentionMIL

ROWS = 1_000
"""Patches of a slide that take part: rows lie in a random order, so the first are a uniform sample, and every slide
counts alike."""

LEAST_SD = 1e-4
"""Numbers that vary less, dead units for instance, are only centred."""


@dataclass(frozen=True)
class Scaling:
    """`(v - mean) / sd`; both float32 (dim,)."""

    mean: Tensor
    sd: Tensor

    @classmethod
    def fitted(cls, features: Mapping[str, Sequence[NDArray[np.floating]]], slides: Iterable[str]) -> Scaling:
        """Mean and SD over the first `ROWS` patches (view 0) of each slide.

        Args:
            features: of all slides.
            slides: those of the training folds.
        """
        n, sums, squares = 0, 0.0, 0.0
        for slide in slides:
            rows = np.asarray(features[slide][0][:ROWS]).astype(np.float64)  # (rows, dim)
            n, sums, squares = n + len(rows), sums + rows.sum(axis=0), squares + (rows**2).sum(axis=0)
        mean = np.asarray(sums / n)  # (dim,)
        sd = np.sqrt(np.maximum(np.asarray(squares / n) - mean**2, 0))  # (dim,)
        sd[sd < LEAST_SD] = 1
        return cls(torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(sd.astype(np.float32)))

    def apply_(self, v: Tensor) -> Tensor:
        """Standardises features in place, (..., dim)."""
        return v.sub_(self.mean.to(v.dtype)).div_(self.sd.to(v.dtype))

    @torch.no_grad()
    def fold(self, model: AttentionMIL) -> AttentionMIL:
        """A model that does with plain features what `model` does with standardised ones.

        `W ((v - m) / s) + b = (W / s) v + (b - (W / s) m)`. The classifier works on the pooled vector, whose weights
        sum to one, so the same holds for it.
        """
        dim = model.hidden.in_features
        folded = AttentionMIL(dim, model.classes, model.units, gated=model.gated).to(model.hidden.weight.dtype)
        folded.load_state_dict(model.state_dict())
        for layer in (folded.hidden, folded.classifier, *([] if folded.gate is None else [folded.gate])):
            layer.weight.div_(self.sd.to(layer.weight.dtype))
            layer.bias.sub_(layer.weight @ self.mean.to(layer.weight.dtype))
        return folded
