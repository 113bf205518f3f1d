"""Shuffled and ordered epochs of patches that lie in a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import numpy as np
import pytest

from her2cache.units import PatchBatch
from trainers.pretraining.patches import Block
from trainers.pretraining.stored import POOL, STRETCH, StoredPatches

N = 2 * POOL * STRETCH + 10 * STRETCH + 7  # two pools and a bit, and a stretch that is not full


class Counted:
    """Rows that say how they were read: pixel (0, 0) of row i holds i."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.reads = list[tuple[int, int]]()
        self.is_open = False

    @contextmanager
    def opened(self) -> Iterator[Counted]:
        self.is_open = True
        try:
            yield self
        finally:
            self.is_open = False

    def __getitem__(self, rows: slice) -> PatchBatch:
        assert self.is_open
        self.reads.append((rows.start, rows.stop))
        i = np.arange(rows.start, rows.stop)
        return np.stack([i & 255, i >> 8 & 255, i >> 16], axis=-1).astype(np.uint8).reshape(-1, 1, 1, 3)


def index(blocks: list[Block]) -> np.ndarray:
    pixels = np.concatenate([block[0] for block in blocks]).reshape(-1, 3).astype(np.int64)
    return pixels @ [1, 256, 65536]


@pytest.fixture
def rows() -> Counted:
    return Counted(N)


@pytest.fixture
def patches(rows: Counted) -> StoredPatches:
    return StoredPatches(np.arange(N) * 7, rows.opened)


def test_an_ordered_epoch_is_every_patch_as_it_lies(patches: StoredPatches) -> None:
    blocks = list(patches.ordered())
    assert np.array_equal(index(blocks), np.arange(N))
    assert np.array_equal(np.concatenate([block[1] for block in blocks]), np.arange(N) * 7)


def test_a_shuffled_epoch_is_every_patch_once_with_its_own_label(patches: StoredPatches) -> None:
    blocks = list(patches.shuffled(1, 1))
    order = index(blocks)
    assert np.array_equal(np.sort(order), np.arange(N))
    assert np.array_equal(np.concatenate([block[1] for block in blocks]), order * 7)
    assert max(len(block[1]) for block in blocks) <= STRETCH


def test_an_epoch_follows_seed_and_number(patches: StoredPatches) -> None:
    first = index(list(patches.shuffled(1, 1)))
    assert np.array_equal(first, index(list(patches.shuffled(1, 1))))
    for other in ((1, 2), (2, 1)):
        assert (first == index(list(patches.shuffled(*other)))).mean() < 0.01


def test_an_epoch_is_mixed_all_over(patches: StoredPatches) -> None:
    order = index(list(patches.shuffled(3, 1)))
    assert (np.abs(np.diff(order)) == 1).mean() < 0.01, "neighbours stay together"
    quarter = order[: N // 4]
    assert np.histogram(quarter, 8, (0, N))[0].min() > N / 4 / 8 / 3, "the first quarter leaves out a part of the file"


def test_a_file_is_read_in_stretches_and_never_whole(patches: StoredPatches, rows: Counted) -> None:
    epoch = patches.shuffled(1, 1)
    next(epoch)
    assert len(rows.reads) == POOL
    epoch.close()
    assert not rows.is_open
    assert all(stop - start <= STRETCH and start % STRETCH == 0 for start, stop in rows.reads)


def test_an_array_will_do() -> None:
    x = np.arange(5 * 2 * 2 * 3, dtype=np.uint8).reshape(5, 2, 2, 3)
    patches = StoredPatches(np.arange(5), partial(nullcontext, x))
    ((pixels, labels),) = patches.ordered()
    assert np.array_equal(pixels, x)
    assert labels.tolist() == [0, 1, 2, 3, 4]
    assert patches.size == 5
