"""Patches that lie as one long array, in a file or in memory, read in stretches and shuffled in a bounded pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from her2cache.units import PatchBatch
from trainers.pretraining.patches import Block

STRETCH = 64
"""Patches read at once: neighbours, so that a shuffled epoch reads a file nearly as fast as an ordered one."""

POOL = 64
"""Stretches that are mixed with one another: 4,096 patches, 113 MB at 96 px."""


class Rows(Protocol):
    """What can be read in stretches: an array, a memory map, a dataset of an HDF5 file."""

    def __getitem__(self, rows: slice, /) -> Any: ...


@dataclass(frozen=True, eq=False)
class StoredPatches:
    """A `PatchSet` over one long array.

    Attributes:
        labels: (n,), in memory.
        opened: opens the pixels, uint8 (n, px, px, 3), for as long as an epoch is read.
    """

    labels: NDArray[np.int64]
    opened: Callable[[], AbstractContextManager[Rows]]

    @property
    def size(self) -> int:
        return len(self.labels)

    def shuffled(self, seed: int, epoch: int) -> Iterator[Block]:
        """An epoch in random order: stretches in random order, `POOL` at a time mixed patch by patch."""
        rng = np.random.default_rng((seed, epoch))
        starts = rng.permutation(np.arange(0, self.size, STRETCH))
        with self.opened() as rows:
            for k in range(0, len(starts), POOL):
                pooled = [self._read(rows, int(start)) for start in starts[k : k + POOL]]
                pixels = np.concatenate([block[0] for block in pooled])  # (pooled, px, px, 3)
                labels = np.concatenate([block[1] for block in pooled])  # (pooled,)
                order = rng.permutation(len(labels))
                for first in range(0, len(order), STRETCH):
                    some = order[first : first + STRETCH]
                    yield pixels[some], labels[some]

    def ordered(self) -> Iterator[Block]:
        """Every patch once, as they lie."""
        with self.opened() as rows:
            for start in range(0, self.size, STRETCH):
                yield self._read(rows, start)

    def _read(self, rows: Rows, start: int) -> Block:
        stop = min(start + STRETCH, self.size)
        pixels: PatchBatch = np.asarray(rows[start:stop])
        return pixels, self.labels[start:stop]
