"""Labelled patches of a source task, wherever they lie: what pre-training is fed with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from her2cache.units import PatchBatch

Block = tuple[PatchBatch, NDArray[np.int64]]
"""Patches uint8 (k, px, px, 3) and their labels (k,)."""


class PatchSet(Protocol):
    """Labelled patches that need not lie in memory."""

    @property
    def size(self) -> int:
        """Patches an epoch."""
        ...

    def shuffled(self, seed: int, epoch: int) -> Iterator[Block]:
        """An epoch in random order, in blocks of any size; the same for the same (seed, epoch)."""
        ...

    def ordered(self) -> Iterator[Block]:
        """Every patch once, in a fixed order, in blocks of any size."""
        ...


@dataclass(frozen=True)
class SourceData:
    """A source task: what an AlexNet is trained on.

    Attributes:
        source_task: "pcam" or "ihc".
        classes: names of its classes, in the order of the labels.
        source_mpp: scale of the patches, um/px.
        px: their side.
        digest: over all patches and labels, or over files that hold them, hex; a checkpoint and the weights carry it.
        train, valid, test: the three parts.
        case_ids: cases whose labels the training or the choice of the epoch sees.
    """

    source_task: str
    classes: tuple[str, ...]
    source_mpp: float
    px: int
    digest: str
    train: PatchSet
    valid: PatchSet
    test: PatchSet
    case_ids: tuple[str, ...] = ()
