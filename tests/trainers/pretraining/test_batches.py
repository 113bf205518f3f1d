"""Batches of one size out of blocks of any."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainers.pretraining.batches import Batch, ahead, batches, rebatched
from trainers.pretraining.patches import Block


def blocks(sizes: list[int]) -> list[Block]:
    labels = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    return [(np.broadcast_to(y.astype(np.uint8)[:, None, None, None], (len(y), 2, 2, 3)), y) for y in labels]


@given(st.lists(st.integers(0, 9), min_size=1), st.integers(1, 12))
def test_the_same_patches_in_the_same_order(sizes: list[int], size: int) -> None:
    found = list(rebatched(blocks(sizes), size))
    assert [n for _, y in found for n in y.tolist()] == list(range(sum(sizes)))
    assert all(np.array_equal(x[:, 1, 1, 2], y) for x, y in found)
    assert all(len(y) == size for _, y in found[:-1])
    assert all(0 < len(y) <= size for _, y in found)


def test_batches_are_tensors_even_of_what_cannot_be_written() -> None:
    x, y = blocks([6])[0]
    assert not x.flags.writeable
    found = list(batches([(x, y)], 4, torch.device("cpu")))
    assert [(len(pixels), pixels.dtype, labels.dtype) for pixels, labels in found] == [
        (4, torch.uint8, torch.int64),
        (2, torch.uint8, torch.int64),
    ]
    assert torch.cat([labels for _, labels in found]).tolist() == list(range(6))


def numbered(n: int, made: list[int] | None = None) -> Iterator[Batch]:
    for k in range(n):
        if made is not None:
            made.append(k)
        yield torch.tensor(k), torch.tensor(threading.get_ident())


def test_a_thread_makes_the_next_ones_in_order() -> None:
    found = list(ahead(numbered(10), 3))
    assert [int(k) for k, _ in found] == list(range(10))
    assert all(int(thread) != threading.get_ident() for _, thread in found)


def test_what_fails_ahead_fails_here() -> None:
    def failing() -> Iterator[Batch]:
        yield from numbered(2)
        raise OSError("disk")

    items = ahead(failing(), 3)
    next(items)
    next(items)
    with pytest.raises(OSError, match="disk"):
        next(items)


def test_whoever_stops_early_leaves_no_thread() -> None:
    before, made = threading.active_count(), list[int]()
    items = ahead(numbered(1_000, made), 3)
    next(items)
    items.close()
    assert threading.active_count() == before
    assert len(made) <= 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu() -> None:
    found = list(batches(blocks([5, 9, 3]), 4, torch.device("cuda")))
    assert all(x.is_cuda and y.is_cuda for x, y in found)
    assert torch.cat([y for _, y in found]).tolist() == list(range(17))
    assert all(bool((x[:, 0, 0, 0] == y).all()) for x, y in found)
